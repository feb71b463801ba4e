//! The scheduler against the strict fake shard, in a world so small that everything runs out all the time.

mod machine;
mod memory;
mod protocol;
mod speed;
mod waits;
mod world;

use prost::Message;

use super::step::Rows;
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
    Scheduler::new(
        Limits::new(limits).unwrap(),
        Policy::default(),
        super::Counters::default(),
    )
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
    scheduler.tempo.stepped(5_000, 10, 0);
    scheduler.tempo.stepped(15_000, 10, 502);
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
