//! A router whose driver is the test: it sees what is submitted and says what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use penstock_router::Router;
use penstock_router::config::RouterConfig;
use penstock_router::driver::{Command, DriverHandle, EngineFacts, EngineStatus, SharedStats};
use penstock_router::event::{Delivery, FinishReason, Output, SampledToken, Timings};
use penstock_router::model::Model;
use penstock_router::request::{Request, RequestId};
use tokio::sync::{mpsc, watch};

/// Only a hang takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// The driver's side of a router.
pub(crate) struct Script {
    commands: mpsc::Receiver<Command>,
    deliveries: mpsc::Sender<Vec<Delivery>>,
    _status: watch::Sender<EngineStatus>,
}

impl Script {
    pub(crate) fn router(config: &RouterConfig, model: Model, vocab_size: usize) -> (Router, Self) {
        let (commands, inbox) = mpsc::channel(64);
        let (deliveries, outbox) = mpsc::channel(64);
        let facts = EngineFacts {
            architecture: "Scripted".to_owned(),
            dtype: "float32".to_owned(),
            device_type: "cpu".to_owned(),
            vocab_size,
            max_positions: 4096,
            num_ranks: 1,
            tokens_per_block: 16,
            num_blocks: 1000,
            max_top_logprobs: 5,
        };
        let (sender, status) = watch::channel(EngineStatus::Ready(Arc::new(facts)));
        let handle = DriverHandle {
            commands,
            status,
            stats: SharedStats::default(),
        };
        let script = Self {
            commands: inbox,
            deliveries,
            _status: sender,
        };
        (Router::over(config, model, handle, outbox).unwrap(), script)
    }

    /// The next request.
    pub(crate) async fn submitted(&mut self) -> Request {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.commands.recv());
            match next.await.expect("nothing is submitted").unwrap() {
                Command::Submit(request) => return request,
                Command::Cancel(_) | Command::Finish(_) => (),
            }
        }
    }

    /// Waits until this request is given up.
    pub(crate) async fn cancelled(&mut self, id: RequestId) {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.commands.recv());
            let command = next.await.expect("it is not cancelled").unwrap();
            if matches!(command, Command::Cancel(gone) if gone == id) {
                return;
            }
        }
    }

    /// One step's outputs for a request.
    pub(crate) async fn deliver(
        &self,
        request: RequestId,
        outputs: impl IntoIterator<Item = Output>,
    ) {
        let outputs = outputs.into_iter();
        let batch = outputs.map(|output| Delivery { request, output });
        self.deliveries.send(batch.collect()).await.unwrap();
    }

    /// A request that runs to its end at once, one token long.
    pub(crate) async fn answer(&mut self) -> Request {
        let request = self.submitted().await;
        self.deliver(request.id, [started(), token(0), finished()])
            .await;
        request
    }
}

pub(crate) fn started() -> Output {
    Output::Started {
        queue: Duration::ZERO,
        cached_tokens: 0,
        waited: None,
    }
}

pub(crate) fn token(id: u32) -> Output {
    Output::Token(SampledToken {
        id,
        logprob: None,
        top: Vec::new(),
    })
}

pub(crate) fn finished() -> Output {
    Output::Finished {
        reason: FinishReason::Length,
        timings: Timings::default(),
    }
}
