//! The scheduler against the strict fake shard, in a world so small that everything runs out all the time.

mod protocol;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::step::{RowStatus, Rows};
use super::{GroupLimits, Limits, Policy, Scheduler};
use crate::engine::blob;
use crate::engine::grpc::{MAX_MESSAGE_BYTES, step_request};
use world::{Op, World, request};

fn op() -> impl Strategy<Value = Op> {
    let submit = (1u32..12, 1u32..8, any::<u8>()).prop_map(|(prompt_len, max_new, kind)| {
        Op::Submit {
            prompt_len,
            max_new,
            // One in eight of each: may stop early, has a NaN in its prompt, wants the penalty lane.
            stops: kind % 8 == 0,
            nan: kind % 8 == 1,
            penalties: kind % 8 == 2,
        }
    });
    let failure = prop_oneof![Just(RowStatus::OutOfMemory), Just(RowStatus::BadInput)];
    prop_oneof![
        4 => submit,
        6 => Just(Op::Plan),
        6 => Just(Op::Ack),
        1 => (any::<usize>(), failure).prop_map(|(row, status)| Op::AckWithFailure { row, status }),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Finish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_rules(depth in 1u32..=3, ops in vec(op(), 0..120)) {
        let mut world = World::new(depth);
        for op in ops {
            world.apply(op);
            world.check_inventory();
        }
        world.drain();
        world.check_end();
    }

    #[test]
    fn equal_histories_give_equal_plans(depth in 1u32..=3, ops in vec(op(), 0..60)) {
        let run = || {
            let mut world = World::new(depth);
            for op in ops.clone() {
                world.apply(op);
            }
            world.drain();
            world.blobs
        };
        prop_assert_eq!(run(), run());
    }
}

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
        let plan = scheduler.plan(std::time::Duration::ZERO).unwrap();
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
    scheduler.plan(std::time::Duration::ZERO).unwrap();
    scheduler.submit(request(10, 3000, 10), std::time::Duration::ZERO, &mut out);
    let mut chunks = Vec::new();
    while chunks.iter().sum::<usize>() < 3000 {
        scheduler.in_flight.clear();
        let plan = scheduler.plan(std::time::Duration::ZERO).unwrap();
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
        let plan = scheduler.plan(std::time::Duration::ZERO).unwrap();
        assert!(!plan.registrations.is_empty());
        admitted += plan.registrations.len();
        let size = step_request(plan.id, blob::encode(&plan)).encoded_len();
        assert!(size <= MAX_MESSAGE_BYTES, "{size} bytes");
    }
}
