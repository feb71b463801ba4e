//! Drives the scheduler: inbox -> plan -> engine -> results -> deliveries. The only place where scheduler, engine and
//! clock meet. This file holds the seam that the rest of the router sees, and finds a new engine when one is lost.

mod outbox;
mod pacing;
mod serve;
mod stats;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::config::{self, RouterConfig};
use crate::engine::{Connector, Engine, EngineError, EngineInfo, Progress};
use crate::event::{Delivery, Failure, Output};
use crate::request::{Request, RequestId};
use crate::scheduler::{GroupLimits, Limits, LimitsError, Policy, Reserve, Scheduler};
use outbox::Outbox;
use pacing::Pacing;
use serve::{Ended, Serving};
pub use stats::{DriverStats, Samples, SharedStats, StepSample, StepTotals};

/// Commands that wait for the driver.
const INBOX_CAPACITY: usize = 4096;
/// Between two attempts to reach an engine.
const RETRY: Duration = Duration::from_millis(50);

/// What the rest of the router tells the driver. Bounded channel; a full one means overload.
#[derive(Debug)]
pub enum Command {
    Submit(Request),
    /// The client is gone: nothing more is delivered.
    Cancel(RequestId),
    /// A stop string was found: free the request as if it had ended; nothing more is delivered.
    Finish(RequestId),
}

/// Facts of a ready engine, the same for every rank.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineFacts {
    pub architecture: String,
    pub dtype: String,
    pub device_type: String,
    pub vocab_size: usize,
    pub max_positions: usize,
    pub num_ranks: usize,
    pub tokens_per_block: usize,
    /// Without the scratch block.
    pub num_blocks: usize,
    pub max_top_logprobs: usize,
}

/// How the engine stands; a `watch` value.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineStatus {
    Starting {
        phase: String,
        fraction: f32,
    },
    Ready(Arc<EngineFacts>),
    /// The group is gone; the driver is trying to reach a new one.
    Down {
        reason: String,
    },
}

/// What the driver needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// Plans in flight, at most what the engine offers.
    pub depth: u32,
    /// Most prompt tokens in one step; by device if absent.
    pub max_batch_prefill_tokens: Option<usize>,
    /// Most rows in one step; what the engine offers if absent.
    pub max_batch_size: Option<usize>,
    pub policy: Policy,
    pub injected_work: InjectedWork,
}

impl From<&RouterConfig> for DriverConfig {
    fn from(config: &RouterConfig) -> Self {
        Self {
            depth: config.engine.step.step_depth,
            max_batch_prefill_tokens: config.batching.max_batch_prefill_tokens,
            max_batch_size: config.batching.max_batch_size,
            policy: Policy {
                prefix_cache: config.batching.prefix_caching,
                reserve: match config.batching.reserve {
                    config::Reserve::Estimate => Reserve::Estimate,
                    config::Reserve::Full => Reserve::Full,
                },
                target_itl: Duration::from_millis(config.batching.target_itl_ms),
                max_queue: config.limits.max_queue_size.unwrap_or(usize::MAX),
            },
            injected_work: InjectedWork::None,
        }
    }
}

/// Work that tests and benchmarks add to the making of every plan, to see whether it hides behind the running step.
#[derive(Clone, Copy, Debug, Default)]
pub enum InjectedWork {
    #[default]
    None,
    /// Keeps the driver's thread busy.
    Burn(Duration),
    /// Keeps the driver waiting, also in virtual time.
    Sleep(Duration),
}

impl InjectedWork {
    async fn run(self) {
        match self {
            Self::None => (),
            Self::Burn(duration) => {
                let end = std::time::Instant::now() + duration;
                while std::time::Instant::now() < end {
                    std::hint::spin_loop();
                }
            }
            Self::Sleep(duration) => sleep(duration).await,
        }
    }
}

/// The rest of the router's end of the driver. The driver stops when the last copy is dropped.
#[derive(Clone, Debug)]
pub struct DriverHandle {
    pub commands: mpsc::Sender<Command>,
    pub status: watch::Receiver<EngineStatus>,
    pub stats: SharedStats,
}

/// Starts a driver on a thread of its own. Deliveries of one step arrive as one vector.
pub fn spawn<C: Connector + Send + 'static>(
    config: DriverConfig,
    connector: C,
    deliveries: mpsc::Sender<Vec<Delivery>>,
) -> io::Result<DriverHandle> {
    let (handle, driver) = Driver::new(config, deliveries);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("driver".to_owned())
        .spawn(move || runtime.block_on(driver.run(connector)))?;
    Ok(handle)
}

/// The driver before it runs; [`spawn`] for most uses, by hand where a test owns the clock.
#[derive(Debug)]
pub struct Driver {
    config: DriverConfig,
    inbox: mpsc::Receiver<Command>,
    outbox: Outbox,
    status: watch::Sender<EngineStatus>,
    shared_stats: SharedStats,
    stats: DriverStats,
    origin: Instant,
}

impl Driver {
    pub fn new(
        config: DriverConfig,
        deliveries: mpsc::Sender<Vec<Delivery>>,
    ) -> (DriverHandle, Self) {
        let (commands, inbox) = mpsc::channel(INBOX_CAPACITY);
        let (status, status_receiver) = watch::channel(EngineStatus::Starting {
            phase: "connect".to_owned(),
            fraction: 0.0,
        });
        let driver = Self {
            config,
            inbox,
            outbox: Outbox::new(deliveries),
            status,
            shared_stats: SharedStats::default(),
            stats: DriverStats::default(),
            origin: Instant::now(),
        };
        let handle = DriverHandle {
            commands,
            status: status_receiver,
            stats: driver.shared_stats.clone(),
        };
        (handle, driver)
    }

    /// Serves one engine after another until every handle is dropped.
    pub async fn run<C: Connector>(mut self, mut connector: C) {
        let mut epoch = 0;
        let mut last_reason = String::new();
        loop {
            epoch = next_epoch(epoch);
            let status = self.status.clone();
            let Some(reached) = self.meanwhile(reach(&mut connector, epoch, &status)).await else {
                return;
            };
            let ended = match reached.and_then(|engine| self.serving(engine)) {
                Ok(serving) => serving.run().await,
                Err(error) => error.into(),
            };
            if matches!(ended, Ended::InboxClosed) {
                return;
            }
            self.report(&ended, &mut last_reason);
            if self.meanwhile(sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }

    /// State for an engine that is ready, which is announced.
    fn serving<E: Engine>(&mut self, engine: E) -> Result<Serving<'_, E>, EngineError> {
        let info = engine.info();
        let limits = limits(info, &self.config)
            .map_err(|error| EngineError::Unsupported(error.to_string()))?;
        let depth = limits.depth;
        let decode_sizes = info.decode_sizes.clone();
        self.stats.engines_ready += 1;
        // Before it is announced: who sees it ready finds it counted.
        self.shared_stats.set(self.stats, &mut Samples::default());
        self.status
            .send_replace(EngineStatus::Ready(Arc::new(facts(info))));
        tracing::info!(
            architecture = info.architecture,
            num_ranks = info.num_ranks,
            depth,
            "the engine is ready"
        );
        Ok(Serving {
            engine,
            scheduler: Scheduler::new(limits, self.config.policy.clone(), self.stats.scheduler),
            pacing: Pacing::new(depth),
            decode_sizes,
            inbox: &mut self.inbox,
            outbox: &mut self.outbox,
            stats: &mut self.stats,
            shared_stats: &self.shared_stats,
            samples: Samples::default(),
            origin: self.origin,
            injected_work: self.config.injected_work,
        })
    }

    /// Awaits something while there is no engine: whoever submits meanwhile fails at once. `None` if the inbox closed.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return Some(output),
                command = self.inbox.recv() => match command? {
                    Command::Submit(request) => self.outbox.pending.push(Delivery {
                        request: request.id,
                        output: Output::Failed(Failure::EngineLost),
                    }),
                    Command::Cancel(_) | Command::Finish(_) => (),
                },
                () = self.outbox.flush() => (),
            }
        }
    }

    /// Says once why there is no engine. Sockets that are not there yet are no news while starting.
    fn report(&self, ended: &Ended, last_reason: &mut String) {
        let reason = ended.to_string();
        let starting = matches!(*self.status.borrow(), EngineStatus::Starting { .. });
        let waiting = matches!(
            ended,
            Ended::Engine(EngineError::Rank { .. } | EngineError::Gone)
        );
        if reason != *last_reason {
            if starting && waiting {
                tracing::debug!(reason, "no engine yet");
            } else {
                tracing::error!(reason, "the engine is lost");
            }
            last_reason.clone_from(&reason);
        }
        if !(starting && waiting) {
            self.status.send_replace(EngineStatus::Down { reason });
        }
    }
}

/// One attempt to get an engine that is ready.
async fn reach<C: Connector>(
    connector: &mut C,
    epoch: u64,
    status: &watch::Sender<EngineStatus>,
) -> Result<C::Engine, EngineError> {
    let mut engine = connector.connect(epoch).await?;
    engine
        .warmup(|progress| {
            let Progress {
                phase,
                fraction,
                elapsed: _,
            } = progress;
            status.send_replace(EngineStatus::Starting { phase, fraction });
        })
        .await?;
    Ok(engine)
}

/// Above every epoch before, also those of a router that ran here earlier.
fn next_epoch(last: u64) -> u64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
    now.max(last + 1)
}

fn limits(info: &EngineInfo, config: &DriverConfig) -> Result<Limits, LimitsError> {
    let narrow = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
    let on_gpu = info.device_type == "cuda";
    let default_prompt_tokens = if on_gpu { 4096 } else { 512 }.min(info.max_positions);
    let groups = info.groups.iter().map(|group| GroupLimits {
        tokens_per_block: group.tokens_per_block,
        num_blocks: group.num_blocks.saturating_sub(1),
    });
    let max_rows = info.decode_sizes.last().copied().unwrap_or(0);
    Limits::new(Limits {
        vocab_size: info.vocab_size,
        groups: groups.collect(),
        num_seats: info.num_seats,
        num_lanes: info.num_penalty_lanes,
        max_rows: max_rows.min(config.max_batch_size.map_or(u32::MAX, narrow)),
        max_prompt_tokens: config
            .max_batch_prefill_tokens
            .map_or(default_prompt_tokens, narrow),
        mixed_sizes: info.mixed_sizes.clone(),
        depth: config.depth.min(info.depth),
    })
}

fn facts(info: &EngineInfo) -> EngineFacts {
    // The group that holds least bounds what a request may take.
    let smallest = info
        .groups
        .iter()
        .min_by_key(|group| u64::from(group.tokens_per_block) * u64::from(group.num_blocks));
    let (tokens_per_block, num_blocks) = smallest.map_or((0, 0), |group| {
        (group.tokens_per_block, group.num_blocks.saturating_sub(1))
    });
    EngineFacts {
        architecture: info.architecture.clone(),
        dtype: info.dtype.clone(),
        device_type: info.device_type.clone(),
        vocab_size: info.vocab_size as usize,
        max_positions: info.max_positions as usize,
        num_ranks: info.num_ranks as usize,
        tokens_per_block: tokens_per_block as usize,
        num_blocks: num_blocks as usize,
        max_top_logprobs: info.max_top_logprobs as usize,
    }
}
