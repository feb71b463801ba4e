//! A deterministic engine inside this process, for tests and benchmarks: the integer model on a paged pool, with a step
//! time on an absolute clock. It takes the same plan blobs as a real shard.

mod model;
mod service;
mod shard;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Connector, Engine, EngineError, EngineInfo, KvGroup, Progress, blob};
use crate::scheduler::step::{Plan, StepResult};
pub use model::{IntegerModel, Slot};
pub use service::{Faults, serve};
pub use shard::FakeShard;

/// The fake's shape and speed.
#[derive(Clone, Debug)]
pub struct FakeConfig {
    pub info: EngineInfo,
    pub num_layers: u32,
    pub num_kv_heads: u32,
    /// Step k ends at max(its arrival, the end of step k-1) plus this.
    pub step_time: Duration,
    /// What a shard process of its own takes longer for each token that is fed.
    pub fed_token_time: Duration,
    /// Asked when a result goes out, as a shard process of its own only: stands in the place of every log-probability.
    pub stamp: Option<fn() -> f32>,
}

impl Default for FakeConfig {
    fn default() -> Self {
        Self {
            info: EngineInfo {
                architecture: "PenstockIntegerForCausalLM".to_owned(),
                dtype: "int32".to_owned(),
                device_type: "cpu".to_owned(),
                num_ranks: 1,
                vocab_size: 1000,
                max_positions: 4096,
                groups: vec![KvGroup {
                    tokens_per_block: 16,
                    bytes_per_block: 512,
                    num_blocks: 2049,
                }],
                num_seats: 256,
                num_penalty_lanes: 64,
                decode_sizes: vec![1, 2, 4, 8, 16, 32, 64, 128, 256],
                mixed_sizes: vec![64, 128, 256, 512],
                depth: 3,
                batch_invariant: true,
                max_top_logprobs: 20,
            },
            num_layers: 2,
            num_kv_heads: 2,
            step_time: Duration::ZERO,
            fed_token_time: Duration::ZERO,
            stamp: None,
        }
    }
}

impl FakeConfig {
    /// The model that this fake runs.
    pub fn model(&self) -> IntegerModel {
        IntegerModel::new(self.info.vocab_size, self.num_layers, self.num_kv_heads)
    }
}

/// Kills and revives the fake.
#[derive(Debug)]
pub struct FakeSwitch(watch::Sender<bool>);

impl FakeSwitch {
    /// Off: the running engine ends with an error, and no other is found until it is on again.
    pub fn set_alive(&self, alive: bool) {
        self.0.send_replace(alive);
    }
}

/// Makes fresh fakes.
#[derive(Debug)]
pub struct FakeConnector {
    config: FakeConfig,
    alive: watch::Receiver<bool>,
}

impl FakeConnector {
    pub fn new(config: FakeConfig) -> (Self, FakeSwitch) {
        let (switch, alive) = watch::channel(true);
        (Self { config, alive }, FakeSwitch(switch))
    }
}

impl Connector for FakeConnector {
    type Engine = FakeEngine;

    async fn connect(&mut self, _epoch: u64) -> Result<FakeEngine, EngineError> {
        if !*self.alive.borrow_and_update() {
            return Err(EngineError::Gone);
        }
        Ok(FakeEngine {
            shard: FakeShard::new(&self.config.info, self.config.model()),
            config: self.config.clone(),
            last_end: None,
            steps: VecDeque::new(),
            alive: self.alive.clone(),
        })
    }
}

/// A step that has been computed and is kept back until its end.
#[derive(Debug)]
struct Step {
    arrival: Instant,
    end: Instant,
    result: StepResult,
}

/// The fake.
#[derive(Debug)]
pub struct FakeEngine {
    shard: FakeShard,
    config: FakeConfig,
    last_end: Option<Instant>,
    steps: VecDeque<Step>,
    alive: watch::Receiver<bool>,
}

impl Engine for FakeEngine {
    fn info(&self) -> &EngineInfo {
        &self.config.info
    }

    async fn warmup(&mut self, mut progress: impl FnMut(Progress)) -> Result<(), EngineError> {
        progress(Progress {
            phase: "ready".to_owned(),
            fraction: 1.0,
            elapsed: Duration::ZERO,
        });
        Ok(())
    }

    fn submit(&mut self, plan: &Plan) -> Result<(), EngineError> {
        let mut result = self
            .shard
            .execute(plan.id, &blob::encode(plan))
            .map_err(EngineError::Mismatch)?;
        let arrival = Instant::now();
        let start = self.last_end.map_or(arrival, |end| end.max(arrival));
        let end = start + self.config.step_time;
        self.last_end = Some(end);
        let micros = u32::try_from(self.config.step_time.as_micros()).unwrap_or(u32::MAX);
        (result.step_us, result.forward_us) = (micros, micros);
        self.steps.push_back(Step {
            arrival,
            end,
            result,
        });
        Ok(())
    }

    async fn results(&mut self) -> Result<StepResult, EngineError> {
        let step_end = async {
            match self.steps.front() {
                // Also with no step time the driver gets to its inbox between steps.
                Some(step) if step.end <= Instant::now() => tokio::task::yield_now().await,
                Some(step) => sleep_until(step.end).await,
                None => std::future::pending().await,
            }
        };
        let killed = async {
            // Without a switch nobody can kill the engine any more.
            if self.alive.wait_for(|alive| !alive).await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = killed => Err(EngineError::Gone),
            () = step_end => {
                let mut step = self.steps.pop_front().expect("a step has just ended");
                step.result.next_plan_waiting =
                    self.steps.front().is_some_and(|next| next.arrival <= step.end);
                Ok(step.result)
            }
        }
    }
}
