//! Requests, drivers and collected answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use penstock_router::driver::{
    Command, Driver, DriverConfig, DriverHandle, EngineStatus, InjectedWork,
};
use penstock_router::engine::fake::{FakeConfig, FakeConnector, FakeSwitch};
use penstock_router::event::{Delivery, Failure, FinishReason, Output};
use penstock_router::request::{Request, RequestId, SamplingParams, Scheduling};
use penstock_router::scheduler::Policy;
use tokio::sync::mpsc;

/// Only a hang takes this long.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// A greedy request with a prompt of its own.
pub(crate) fn request(id: u32, prompt_len: u32, max_new_tokens: u32) -> Request {
    Request {
        id: RequestId(id.into()),
        prompt_ids: prompt(id, prompt_len).into(),
        sampling: SamplingParams::greedy(0),
        max_new_tokens,
        stop_ids: Arc::new([]),
        logprobs: None,
        scheduling: Scheduling::default(),
    }
}

fn prompt(id: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|position| (id * 7919 + position * 31) % 900)
        .collect()
}

/// What must come of such a request.
pub(crate) fn expected(id: u32, prompt_len: u32, max_new_tokens: u32) -> Vec<u32> {
    let mut model = FakeConfig::default().model();
    model.generate(&prompt(id, prompt_len), max_new_tokens as usize)
}

pub(crate) fn config(depth: u32) -> DriverConfig {
    DriverConfig {
        depth,
        max_batch_prefill_tokens: None,
        max_batch_size: None,
        policy: Policy::default(),
        injected_work: InjectedWork::None,
    }
}

/// A driver on this test's clock.
pub(crate) fn start(
    config: DriverConfig,
    fake: FakeConfig,
) -> (DriverHandle, mpsc::Receiver<Vec<Delivery>>, FakeSwitch) {
    let (sender, deliveries) = mpsc::channel(64);
    let (connector, switch) = FakeConnector::new(fake);
    let (handle, driver) = Driver::new(config, sender);
    tokio::spawn(driver.run(connector));
    (handle, deliveries, switch)
}

pub(crate) async fn submit(handle: &DriverHandle, request: Request) {
    let sent = handle.commands.send(Command::Submit(request)).await;
    sent.expect("the driver runs");
}

pub(crate) async fn ready(handle: &mut DriverHandle) {
    wait_for(handle, |status| matches!(status, EngineStatus::Ready(_))).await;
}

/// The first status that fits.
pub(crate) async fn wait_for(
    handle: &mut DriverHandle,
    fits: impl FnMut(&EngineStatus) -> bool,
) -> EngineStatus {
    let waiting = tokio::time::timeout(HANG, handle.status.wait_for(fits));
    let status = waiting.await.expect("the status comes in time");
    status.expect("the driver runs").clone()
}

/// What came of a request.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) ids: Vec<u32>,
    pub(crate) end: Option<Result<FinishReason, Failure>>,
}

/// Collects deliveries until `ends` requests have ended.
pub(crate) async fn collect(
    deliveries: &mut mpsc::Receiver<Vec<Delivery>>,
    ends: usize,
) -> BTreeMap<RequestId, Answer> {
    let mut answers: BTreeMap<RequestId, Answer> = BTreeMap::new();
    let mut ended = 0;
    while ended < ends {
        let batch = tokio::time::timeout(HANG, deliveries.recv()).await;
        for Delivery { request, output } in batch
            .expect("something is delivered in time")
            .expect("the driver runs")
        {
            let answer = answers.entry(request).or_default();
            assert!(answer.end.is_none(), "nothing follows the end");
            match output {
                Output::Started { .. } | Output::Preempted => (),
                Output::Token(token) => answer.ids.push(token.id),
                Output::Finished { reason, timings: _ } => answer.end = Some(Ok(reason)),
                Output::Failed(failure) => answer.end = Some(Err(failure)),
            }
            ended += usize::from(answer.end.is_some());
        }
    }
    answers
}
