//! The driver against the fake engine: tokens equal the integer model's pure function, whatever happens around them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use penstock_router::driver::{
    Command, Driver, DriverConfig, DriverHandle, EngineStatus, InjectedWork,
};
use penstock_router::engine::fake::{FakeConfig, FakeConnector, IntegerModel};
use penstock_router::event::{Delivery, Failure, FinishReason, Output};
use penstock_router::request::{Request, RequestId, SamplingParams};
use tokio::sync::mpsc;

fn greedy() -> SamplingParams {
    SamplingParams {
        do_sample: false,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        typical_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        seed: 0,
        fork: 0,
        logit_bias: Vec::new(),
        min_new_tokens: 0,
    }
}

fn request(id: u64, prompt_ids: Vec<u32>, max_new_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        prompt_ids: prompt_ids.into(),
        sampling: greedy(),
        max_new_tokens,
        stop_ids: Arc::new([]),
        logprobs: None,
    }
}

/// A prompt that is a request's own.
fn prompt(id: u64, len: usize) -> Vec<u32> {
    (0..len as u64)
        .map(|position| ((id * 7919 + position * 31) % 900) as u32)
        .collect()
}

fn config(depth: u32) -> DriverConfig {
    DriverConfig {
        depth,
        max_batch_prefill_tokens: None,
        max_batch_size: None,
        injected_work: InjectedWork::None,
    }
}

/// What came of each request.
#[derive(Debug, Default)]
struct Answer {
    ids: Vec<u32>,
    end: Option<Result<FinishReason, Failure>>,
}

/// Collects deliveries until `ends` requests have ended.
async fn collect(
    deliveries: &mut mpsc::Receiver<Vec<Delivery>>,
    ends: usize,
) -> HashMap<RequestId, Answer> {
    let mut answers: HashMap<RequestId, Answer> = HashMap::new();
    let mut ended = 0;
    while ended < ends {
        let batch = tokio::time::timeout(Duration::from_secs(600), deliveries.recv())
            .await
            .expect("something is delivered")
            .expect("the driver runs");
        for Delivery { request, output } in batch {
            let answer = answers.entry(request).or_default();
            assert!(answer.end.is_none(), "nothing follows the end");
            match output {
                Output::Token(token) => answer.ids.push(token.id),
                Output::Finished { reason, timings: _ } => answer.end = Some(Ok(reason)),
                Output::Failed(failure) => answer.end = Some(Err(failure)),
            }
            ended += usize::from(answer.end.is_some());
        }
    }
    answers
}

async fn ready(handle: &mut DriverHandle) {
    handle
        .status
        .wait_for(|status| matches!(status, EngineStatus::Ready(_)))
        .await
        .expect("the driver runs");
}

/// A driver on this test's clock.
fn start(
    config: DriverConfig,
    fake: FakeConfig,
) -> (
    DriverHandle,
    mpsc::Receiver<Vec<Delivery>>,
    penstock_router::engine::fake::FakeSwitch,
) {
    let (sender, deliveries) = mpsc::channel(64);
    let (connector, switch) = FakeConnector::new(fake);
    let (handle, driver) = Driver::new(config, sender);
    tokio::spawn(driver.run(connector));
    (handle, deliveries, switch)
}

fn model() -> IntegerModel {
    FakeConfig::default().model()
}

#[tokio::test(start_paused = true)]
async fn answers_equal_the_pure_function_at_every_depth() {
    for depth in 1..=3 {
        let (mut handle, mut deliveries, _switch) = start(config(depth), FakeConfig::default());
        ready(&mut handle).await;
        for id in 0..40 {
            let len = 1 + (id as usize * 37) % 300;
            let request = request(id, prompt(id, len), 1 + (id as u32 * 13) % 50);
            handle
                .commands
                .send(Command::Submit(request))
                .await
                .unwrap();
        }
        let answers = collect(&mut deliveries, 40).await;
        for id in 0..40 {
            let count = 1 + (id as usize * 13) % 50;
            let answer = &answers[&RequestId(id)];
            assert_eq!(answer.end, Some(Ok(FinishReason::Length)));
            let len = 1 + (id as usize * 37) % 300;
            assert_eq!(
                answer.ids,
                model().generate(&prompt(id, len), count),
                "request {id} at depth {depth}"
            );
        }
        assert_eq!(handle.stats.get().scheduler.blocks_used, 0);
    }
}
