//! The driver against the fake engine, in virtual time: tokens equal the integer model's pure function, whatever happens
//! around them.

use std::time::Duration;

use penstock_router::driver::{Command, EngineStatus, InjectedWork};
use penstock_router::engine::fake::FakeConfig;
use penstock_router::event::{Failure, FinishReason};
use penstock_router::request::RequestId;

use crate::support::{collect, config, expected, ready, request, start, submit};

#[tokio::test(start_paused = true)]
async fn answers_equal_the_pure_function_at_every_depth() {
    for depth in 1..=3 {
        let (mut handle, mut deliveries, _switch) = start(config(depth), FakeConfig::default());
        ready(&mut handle).await;
        for id in 0..40 {
            let len = 1 + (id * 37) % 300;
            let request = request(id, len, 1 + (id * 13) % 50);
            submit(&handle, request).await;
        }
        let answers = collect(&mut deliveries, 40).await;
        for id in 0..40 {
            let count = 1 + (id * 13) % 50;
            let answer = &answers[&RequestId(id.into())];
            assert_eq!(answer.end, Some(Ok(FinishReason::Length)));
            let len = 1 + (id * 37) % 300;
            assert_eq!(
                answer.ids,
                expected(id, len, count),
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
        let mut request = request(id, 40, 20);
        if id == 7 {
            let mut ids = request.prompt_ids.to_vec();
            ids[20] = FakeConfig::default().model().nan_token();
            request.prompt_ids = ids.into();
        }
        submit(&handle, request).await;
    }
    let answers = collect(&mut deliveries, 32).await;
    for id in 0..32 {
        let answer = &answers[&RequestId(id.into())];
        if id == 7 {
            assert_eq!(answer.end, Some(Err(Failure::BadLogits)));
        } else {
            assert_eq!(answer.ids, expected(id, 40, 20));
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
        let request = request(id, 20, 100);
        submit(&handle, request).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for id in 0..10u32 {
        handle
            .commands
            .send(Command::Cancel(RequestId(id.into())))
            .await
            .unwrap();
        handle
            .commands
            .send(Command::Finish(RequestId(u64::from(10 + id))))
            .await
            .unwrap();
    }
    let answers = collect(&mut deliveries, 10).await;
    for id in 0..30 {
        let answer = &answers[&RequestId(id.into())];
        let whole = expected(id, 20, 100);
        if id < 20 {
            assert_eq!(answer.end, None, "request {id} ends silently");
            assert!(whole.starts_with(&answer.ids) && answer.ids.len() < 40);
        } else {
            assert_eq!(answer.ids, whole);
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
        let request = request(id, 20, 100);
        submit(&handle, request).await;
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

    submit(&handle, request(3, 20, 5)).await;
    let answers = collect(&mut deliveries, 1).await;
    assert_eq!(answers[&RequestId(3)].end, Some(Err(Failure::EngineLost)));

    switch.set_alive(true);
    ready(&mut handle).await;
    submit(&handle, request(4, 20, 5)).await;
    let answers = collect(&mut deliveries, 1).await;
    assert_eq!(answers[&RequestId(4)].ids, expected(4, 20, 5));
    assert_eq!(handle.stats.get().engines_ready, 2);
}

#[tokio::test(start_paused = true)]
async fn workers_that_take_nothing_do_not_block_the_inbox() {
    let (mut handle, mut deliveries, _switch) = start(config(2), FakeConfig::default());
    ready(&mut handle).await;
    // More vectors than the channel holds, and more commands than the inbox does.
    for id in 0..10_000 {
        let request = request(id, 2, 1);
        submit(&handle, request).await;
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
        let request = request(id, 4, 200);
        submit(&handle, request).await;
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

#[tokio::test(start_paused = true)]
async fn plans_without_rows_are_no_steps() {
    let mut fake = FakeConfig {
        step_time: Duration::from_millis(10),
        ..FakeConfig::default()
    };
    fake.info.num_seats = 1;
    let (mut handle, mut deliveries, _switch) = start(config(2), fake);
    ready(&mut handle).await;
    // Each but the first waits until a plan of its own has told the shard that the seat is free.
    for id in 0..5 {
        submit(&handle, request(id, 20, 5)).await;
    }
    collect(&mut deliveries, 5).await;
    let stats = handle.stats.get();
    assert_eq!(
        (stats.prefill.steps, stats.decode.steps),
        (stats.scheduler.prefill_steps, stats.scheduler.decode_steps)
    );
    assert_eq!(stats.prefill.steps, 5);
}
