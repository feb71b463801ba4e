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

#[tokio::test(start_paused = true)]
async fn a_nan_row_fails_alone() {
    let (mut handle, mut deliveries, _switch) = start(config(2), FakeConfig::default());
    ready(&mut handle).await;
    for id in 0..32 {
        let mut ids = prompt(id, 40);
        if id == 7 {
            ids[20] = model().nan_token();
        }
        let request = request(id, ids, 20);
        handle
            .commands
            .send(Command::Submit(request))
            .await
            .unwrap();
    }
    let answers = collect(&mut deliveries, 32).await;
    for id in 0..32 {
        let answer = &answers[&RequestId(id)];
        if id == 7 {
            assert_eq!(answer.end, Some(Err(Failure::BadLogits("NAN"))));
        } else {
            assert_eq!(answer.ids, model().generate(&prompt(id, 40), 20));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cancelled_and_finished_requests_fall_silent_and_leave_nothing() {
    let fake = FakeConfig {
        step_time: Duration::from_millis(10),
        ..FakeConfig::default()
    };
    let (mut handle, mut deliveries, _switch) = start(config(2), fake);
    ready(&mut handle).await;
    for id in 0..30 {
        let request = request(id, prompt(id, 20), 100);
        handle
            .commands
            .send(Command::Submit(request))
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for id in 0..10 {
        handle
            .commands
            .send(Command::Cancel(RequestId(id)))
            .await
            .unwrap();
        handle
            .commands
            .send(Command::Finish(RequestId(10 + id)))
            .await
            .unwrap();
    }
    let answers = collect(&mut deliveries, 10).await;
    for id in 0..30 {
        let answer = &answers[&RequestId(id)];
        let expected = model().generate(&prompt(id, 20), 100);
        if id < 20 {
            assert_eq!(answer.end, None, "request {id} ends silently");
            assert!(expected.starts_with(&answer.ids) && answer.ids.len() < 40);
        } else {
            assert_eq!(answer.ids, expected);
        }
    }
    let stats = handle.stats.get().scheduler;
    assert_eq!(stats.blocks_used, 0);
    assert_eq!(
        (stats.cancelled, stats.finished, stats.running),
        (10, 20, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_engine_fails_everybody_and_the_next_one_serves() {
    let fake = FakeConfig {
        step_time: Duration::from_millis(10),
        ..FakeConfig::default()
    };
    let mut one_row = config(2);
    one_row.max_batch_size = Some(1);
    let (mut handle, mut deliveries, switch) = start(one_row, fake);
    ready(&mut handle).await;
    for id in 0..3 {
        let request = request(id, prompt(id, 20), 100);
        handle
            .commands
            .send(Command::Submit(request))
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    switch.set_alive(false);
    let killed = tokio::time::Instant::now();
    let answers = collect(&mut deliveries, 3).await;
    assert!(killed.elapsed() < Duration::from_secs(1));
    for answer in answers.values() {
        assert_eq!(
            answer.end,
            Some(Err(Failure::EngineLost)),
            "never a clean end"
        );
    }
    handle
        .status
        .wait_for(|status| matches!(status, EngineStatus::Down { .. }))
        .await
        .unwrap();

    handle
        .commands
        .send(Command::Submit(request(3, prompt(3, 20), 5)))
        .await
        .unwrap();
    let answers = collect(&mut deliveries, 1).await;
    assert_eq!(answers[&RequestId(3)].end, Some(Err(Failure::EngineLost)));

    switch.set_alive(true);
    ready(&mut handle).await;
    handle
        .commands
        .send(Command::Submit(request(4, prompt(4, 20), 5)))
        .await
        .unwrap();
    let answers = collect(&mut deliveries, 1).await;
    assert_eq!(
        answers[&RequestId(4)].ids,
        model().generate(&prompt(4, 20), 5)
    );
    assert_eq!(handle.stats.get().engines_ready, 2);
}

#[tokio::test(start_paused = true)]
async fn workers_that_take_nothing_do_not_block_the_inbox() {
    let (mut handle, mut deliveries, _switch) = start(config(2), FakeConfig::default());
    ready(&mut handle).await;
    // More vectors than the channel holds, and more commands than the inbox does.
    for id in 0..10_000 {
        let request = request(id, prompt(id, 2), 1);
        handle
            .commands
            .send(Command::Submit(request))
            .await
            .unwrap();
    }
    let answers = collect(&mut deliveries, 10_000).await;
    assert!(
        answers
            .values()
            .all(|answer| answer.end == Some(Ok(FinishReason::Length)))
    );
}

/// Tokens per step time that 64 rows get in virtual time, with 4 ms of work on 10 ms steps.
async fn share_of_the_limit(depth: u32) -> f64 {
    let step = Duration::from_millis(10);
    let fake = FakeConfig {
        step_time: step,
        ..FakeConfig::default()
    };
    let mut config = config(depth);
    config.injected_work = InjectedWork::Sleep(Duration::from_millis(4));
    let (mut handle, mut deliveries, _switch) = start(config, fake);
    ready(&mut handle).await;
    let begun = tokio::time::Instant::now();
    for id in 0..64 {
        let request = request(id, prompt(id, 4), 200);
        handle
            .commands
            .send(Command::Submit(request))
            .await
            .unwrap();
    }
    collect(&mut deliveries, 64).await;
    let stats = handle.stats.get();
    if depth > 1 {
        let late = stats.decode_steps_with_successor - stats.decode_steps_with_successor_waiting;
        assert!(late * 50 <= stats.decode_steps_with_successor, "{stats:?}");
    }
    200.0 * step.as_secs_f64() / begun.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn work_on_the_next_plan_hides_behind_the_running_step() {
    let (one, two, three) = (
        share_of_the_limit(1).await,
        share_of_the_limit(2).await,
        share_of_the_limit(3).await,
    );
    assert!(one <= 0.80, "depth 1: {one}");
    assert!(two >= 0.95, "depth 2: {two}");
    assert!(three >= 0.95, "depth 3: {three}");
}
