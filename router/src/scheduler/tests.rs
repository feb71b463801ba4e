//! The scheduler against the strict fake shard, in a world so small that everything runs out all the time.

mod machine;
mod memory;
mod protocol;
mod speed;
mod waits;
mod world;

use prost::Message;

use super::step::Rows;
use super::tempo::Chunk;
use super::{GroupLimits, Limits, Policy, Scheduler};
use crate::engine::blob;
use crate::engine::grpc::{MAX_MESSAGE_BYTES, step_request};
pub(in crate::scheduler) use world::request;

/// 64 decode rows with room for everything.
fn roomy() -> Scheduler {
    let limits = Limits {
        vocab_size: 1000,
        groups: vec![GroupLimits {
            tokens_per_block: 16,
            num_blocks: 4096,
        }],
        num_seats: 256,
        num_lanes: 8,
        max_rows: 256,
        max_prompt_tokens: 512,
        mixed_sizes: vec![64, 128, 256, 512],
        depth: 2,
    };
    let mut scheduler = Scheduler::new(
        Limits::new(limits).unwrap(),
        Policy::default(),
        super::Counters::default(),
    );
    // What streams take alone is known.
    scheduler.tempo.planned(false);
    scheduler
}

#[test]
fn what_streams_take_alone_is_measured_while_prompts_never_end() {
    let mut scheduler = roomy();
    scheduler.tempo = super::Tempo::default();
    let mut out = Vec::new();
    let now = std::time::Duration::ZERO;
    scheduler.submit(request(0, 5, 4000), now, &mut out);
    let mut is_mixed = Vec::new();
    for id in 1..=100 {
        scheduler.in_flight.clear();
        let plan = scheduler.plan(now, &mut out).unwrap();
        is_mixed.push(!plan.feed_ids.is_empty());
        scheduler.submit(request(id, 600, 10), now, &mut out);
    }
    let without: Vec<usize> = (0..100).filter(|&plan| !is_mixed[plan]).collect();
    assert_eq!(
        without,
        [1, 34, 67],
        "the first plan has no streams beside it"
    );
}

#[test]
fn a_steady_decode_plan_holds_no_ids_and_few_bytes() {
    let mut scheduler = roomy();
    let mut out = Vec::new();
    for id in 0..64 {
        scheduler.submit(request(id, 7, 200), std::time::Duration::ZERO, &mut out);
    }
    let (mut steps, mut bytes) = (0, 0);
    for _ in 0..190 {
        let plan = scheduler.plan(std::time::Duration::ZERO, &mut out).unwrap();
        let size = step_request(plan.id, blob::encode(&plan)).encoded_len();
        scheduler.in_flight.clear();
        if !plan.registrations.is_empty() || !matches!(plan.rows, Rows::SameAsPrevious(_)) {
            assert!(plan.id < 4, "only the first plans are anything else");
            continue;
        }
        assert!(plan.feed_ids.is_empty());
        if plan.appends.is_empty() {
            assert!(size <= 72, "{size} bytes where nothing changes");
        }
        steps += 1;
        bytes += size;
    }
    assert!(
        bytes / steps <= 8 * 64 + 64,
        "{} bytes a step",
        bytes / steps
    );
}

#[test]
fn decode_rows_go_on_beside_a_long_prompt() {
    let mut scheduler = roomy();
    let mut out = Vec::new();
    for id in 0..10 {
        scheduler.submit(request(id, 5, 100), std::time::Duration::ZERO, &mut out);
    }
    scheduler.plan(std::time::Duration::ZERO, &mut out).unwrap();
    // 20 us a token: a whole plan's prompt tokens stay below the objective.
    scheduler.tempo.stepped(5_000, 10, Chunk::default());
    let chunk = Chunk {
        tokens: 502,
        context: 0,
    };
    scheduler.tempo.stepped(15_000, 10, chunk);
    scheduler.submit(request(10, 3000, 10), std::time::Duration::ZERO, &mut out);
    let mut chunks = Vec::new();
    while chunks.iter().sum::<usize>() < 3000 {
        scheduler.in_flight.clear();
        let plan = scheduler.plan(std::time::Duration::ZERO, &mut out).unwrap();
        assert_eq!(plan.rows.len(), 11, "ten streams and one chunk");
        chunks.push(plan.feed_ids.len());
    }
    // 502 beside ten rows fill 512; the rest is cut so that padding is saved.
    assert_eq!(chunks, [502, 502, 502, 502, 502, 490]);
}

#[test]
fn registrations_that_do_not_fit_one_message_come_in_several_plans() {
    let mut scheduler = roomy();
    let mut out = Vec::new();
    let many: std::sync::Arc<[u32]> = vec![1; 1 << 20].into();
    for id in 0..20 {
        let mut request = request(id, 3, 2);
        request.sampling.min_new_tokens = 1;
        request.stop_ids = std::sync::Arc::clone(&many);
        scheduler.submit(request, std::time::Duration::ZERO, &mut out);
    }
    let mut admitted = 0;
    while admitted < 20 {
        scheduler.in_flight.clear();
        let plan = scheduler.plan(std::time::Duration::ZERO, &mut out).unwrap();
        assert!(!plan.registrations.is_empty());
        admitted += plan.registrations.len();
        let size = step_request(plan.id, blob::encode(&plan)).encoded_len();
        assert!(size <= MAX_MESSAGE_BYTES, "{size} bytes");
    }
}

#[test]
fn whose_time_in_the_queue_is_over_learns_why_it_waited() {
    use crate::event::{Failure, Output, Refusal, WaitReason};
    let at = std::time::Duration::from_secs;
    let mut scheduler = roomy();
    let mut out = Vec::new();
    for id in 0..3 {
        let mut long = request(id, 5_000, 10);
        long.scheduling.queue_timeout = Some(at(5));
        scheduler.submit(long, at(0), &mut out);
        scheduler.plan(at(0), &mut out).unwrap();
        scheduler.in_flight.clear();
    }
    scheduler.plan(at(0), &mut out).unwrap();
    scheduler.expire(at(5), &mut out);
    let waited = Some(WaitReason::LongPrompts);
    assert!(
        out.iter().any(|delivery| matches!(
            delivery.output,
            Output::Failed(Failure::Refused { refusal: Refusal::QueueTimeout, waited: why, .. }) if why == waited
        )),
        "{out:?}"
    );
    assert_eq!(
        scheduler.counters.waits[WaitReason::LongPrompts as usize],
        1
    );
}
