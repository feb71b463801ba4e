//! Results that cannot be: the scheduler must end the group rather than deliver them.

use std::time::Duration;

use super::world::request;
use crate::event::{Failure, FinishReason, Output};
use crate::request::LogprobParams;
use crate::scheduler::step::{RowResult, RowStatus, Seat, StepResult};
use crate::scheduler::{ProtocolError, Scheduler};

/// A scheduler whose first plan holds one prompt of 3 tokens, and that plan's true result.
fn started() -> (Scheduler, StepResult) {
    let mut scheduler = super::roomy();
    let mut out = Vec::new();
    let mut request = request(1, 3, 2);
    request.logprobs = Some(LogprobParams {
        raw: true,
        num_top: 2,
    });
    scheduler.submit(request, Duration::from_millis(10), &mut out);
    let plan = scheduler
        .plan(Duration::from_millis(30), &mut Vec::new())
        .unwrap();
    let row = RowResult {
        seat: plan.registrations[0].seat,
        position: 3,
        status: RowStatus::Ok,
        num_tokens: 1,
    };
    let result = StepResult {
        plan_id: plan.id,
        rows: vec![row],
        token_ids: vec![42],
        logprobs: vec![-0.5],
        top_ids: vec![42, 43],
        top_logprobs: vec![-0.5, -1.5],
        ..StepResult::default()
    };
    (scheduler, result)
}

#[test]
fn a_true_result_is_delivered_with_its_columns() {
    let (mut scheduler, result) = started();
    let mut out = Vec::new();
    scheduler
        .apply(&result, Duration::from_millis(50), &mut out)
        .unwrap();
    let queue = Duration::from_millis(20);
    assert_eq!(
        out[0].output,
        Output::Started {
            queue,
            cached_tokens: 0,
            waited: None
        }
    );
    let Output::Token(token) = &out[1].output else {
        panic!("{out:?}");
    };
    assert_eq!((token.id, token.logprob), (42, Some(-0.5)));
    assert_eq!(token.top, [(42, -0.5), (43, -1.5)]);

    let plan = scheduler
        .plan(Duration::from_millis(50), &mut Vec::new())
        .unwrap();
    let mut last = result;
    last.plan_id = plan.id;
    last.rows[0].position = 4;
    scheduler
        .apply(&last, Duration::from_millis(75), &mut out)
        .unwrap();
    let Output::Finished { reason, timings } = out[3].output else {
        panic!("{out:?}");
    };
    assert_eq!(reason, FinishReason::Length);
    assert_eq!(timings.queue, queue);
    assert_eq!(timings.inference, Duration::from_millis(45));
}

#[test]
fn results_that_cannot_be_end_the_group() {
    type Change = fn(&mut StepResult);
    let cases: [(Change, &str); 10] = [
        (|r| r.plan_id = 2, "result of plan 2, expected Some(1)"),
        (|r| r.rows.clear(), "plan 1: 0 result rows, expected 1"),
        (
            |r| r.rows[0].seat.index = 5,
            "plan 1, row 0: seat is 5, expected 0",
        ),
        (
            |r| r.rows[0].seat.generation = 2,
            "plan 1, row 0: generation is 2, expected 1",
        ),
        (
            |r| r.rows[0].position = 4,
            "plan 1, row 0: position is 4, expected 3",
        ),
        (
            |r| r.rows[0].num_tokens = 2,
            "plan 1, row 0: number of tokens is 2, expected 1",
        ),
        (
            |r| r.token_ids[0] = 1000,
            "plan 1: token id 1000 is outside the vocabulary of 1000",
        ),
        (
            |r| r.top_ids.truncate(1),
            "plan 1: the column top_ids has 1 values, expected 2",
        ),
        (
            |r| *r = failed(r, RowStatus::Overrun),
            "plan 1, row 0: status OVERRUN for a request that runs",
        ),
        (
            |r| *r = failed(r, RowStatus::Dead),
            "plan 1, row 0: status DEAD for a request that runs",
        ),
    ];
    for (change, message) in cases {
        let (mut scheduler, mut result) = started();
        change(&mut result);
        let mut out = Vec::new();
        let error = scheduler.apply(&result, Duration::ZERO, &mut out);
        assert_eq!(error.unwrap_err().to_string(), message);
        scheduler.fail_all(&Failure::EngineLost, &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].output, Output::Failed(Failure::EngineLost));
    }
}

#[test]
fn a_result_that_nobody_asked_for_is_an_error() {
    let mut scheduler = super::roomy();
    let unasked = StepResult {
        plan_id: 1,
        ..StepResult::default()
    };
    assert_eq!(
        scheduler.apply(&unasked, Duration::ZERO, &mut Vec::new()),
        Err(ProtocolError::PlanId {
            got: 1,
            expected: None
        })
    );
}

#[test]
fn a_row_fails_alone_and_its_late_rows_are_dropped() {
    let (mut scheduler, result) = started();
    let second = scheduler.plan(Duration::ZERO, &mut Vec::new()).unwrap();
    let mut out = Vec::new();
    scheduler
        .apply(&failed(&result, RowStatus::Nan), Duration::ZERO, &mut out)
        .unwrap();
    assert_eq!(out[0].output, Output::Failed(Failure::BadLogits));
    let mut dead = failed(&result, RowStatus::Dead);
    dead.plan_id = second.id;
    scheduler.apply(&dead, Duration::ZERO, &mut out).unwrap();
    assert_eq!(out.len(), 1);
    assert_eq!(scheduler.counters().wasted_rows, 1);
    assert!(!scheduler.has_work());
}

#[test]
fn a_request_larger_than_the_cache_fails_at_once() {
    let mut scheduler = super::roomy();
    let mut out = Vec::new();
    // 4096 blocks of 16; the last token is never fed.
    scheduler.submit(request(1, 65_000, 537), Duration::ZERO, &mut out);
    assert!(out.is_empty());
    scheduler.submit(request(2, 65_000, 538), Duration::ZERO, &mut out);
    assert_eq!(out[0].output, Output::Failed(Failure::TooLong));
}

#[test]
fn penalties_without_lanes_are_named_as_the_cause() {
    let limits = super::roomy().limits().clone();
    let limits = crate::scheduler::Limits {
        num_lanes: 0,
        ..limits
    };
    let mut scheduler = Scheduler::new(
        limits,
        crate::scheduler::Policy::default(),
        crate::scheduler::Counters::default(),
    );
    let mut request = request(1, 3, 2);
    request.sampling.repetition_penalty = 1.5;
    let mut out = Vec::new();
    scheduler.submit(request, Duration::ZERO, &mut out);
    assert_eq!(out[0].output, Output::Failed(Failure::NoPenalties));
}

#[test]
fn bad_input_is_not_blamed_on_the_model() {
    let (mut scheduler, result) = started();
    let mut out = Vec::new();
    let result = failed(&result, RowStatus::BadInput);
    scheduler.apply(&result, Duration::ZERO, &mut out).unwrap();
    assert_eq!(out[0].output, Output::Failed(Failure::BadInput));
}

/// The result of the same plan with a failed row.
fn failed(result: &StepResult, status: RowStatus) -> StepResult {
    let RowResult {
        seat: Seat { index, generation },
        ..
    } = result.rows[0];
    StepResult {
        plan_id: result.plan_id,
        rows: vec![RowResult {
            seat: Seat { index, generation },
            position: 0,
            status,
            num_tokens: 0,
        }],
        ..StepResult::default()
    }
}
