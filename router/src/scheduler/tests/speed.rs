//! Three times the time that the benchmarks allow: a scheduler that has become slow fails here, a busy machine does not.

#![expect(clippy::print_stdout, reason = "the times")]

use std::time::{Duration, Instant};

use super::request;
use crate::scheduler::radix::Radix;
use crate::scheduler::step::{Plan, RowResult, RowStatus, StepResult};
use crate::scheduler::{Counters, GroupLimits, Limits, Policy, Scheduler};

/// The shortest of many: others run on the same cores.
fn fastest(mut run: impl FnMut() -> Duration) -> Duration {
    (0..200).map(|_| run()).min().expect("it ran")
}

fn answer(scheduler: &Scheduler, plan: &Plan) -> StepResult {
    let planned = &scheduler.in_flight.back().expect("it is in flight").rows;
    let rows = planned.iter().map(|row| RowResult {
        seat: row.seat,
        position: row.position,
        status: RowStatus::Ok,
        num_tokens: row.sample.into(),
    });
    StepResult {
        plan_id: plan.id,
        rows: rows.collect(),
        token_ids: vec![1; planned.iter().filter(|row| row.sample).count()],
        ..StepResult::default()
    }
}

fn plan_time(num_rows: u32) -> Duration {
    let limits = Limits {
        vocab_size: 1000,
        groups: vec![GroupLimits {
            tokens_per_block: 16,
            num_blocks: num_rows * 64,
        }],
        num_seats: num_rows,
        num_lanes: 0,
        max_rows: num_rows,
        max_prompt_tokens: 16_384,
        mixed_sizes: vec![16_384],
        depth: 2,
    };
    let limits = Limits::new(limits).unwrap();
    let mut scheduler = Scheduler::new(limits, Policy::default(), Counters::default());
    let mut out = Vec::new();
    for id in 0..u64::from(num_rows) {
        scheduler.submit(request(id, 8, 1000), Duration::ZERO, &mut out);
    }
    fastest(|| {
        out.clear();
        let begun = Instant::now();
        let plan = scheduler.plan(Duration::ZERO, &mut out).unwrap();
        let spent = begun.elapsed();
        let result = answer(&scheduler, &plan);
        scheduler.apply(&result, Duration::ZERO, &mut out).unwrap();
        spent
    })
}

#[test]
#[cfg_attr(debug_assertions, ignore = "measures optimised code")]
fn plans_are_made_in_time() {
    for (num_rows, limit_us) in [(256, 50), (1024, 200)] {
        let spent = plan_time(num_rows);
        println!("{num_rows} rows: {spent:?}");
        assert!(
            spent <= Duration::from_micros(3 * limit_us),
            "{num_rows} rows: {spent:?}"
        );
    }
}

/// A hundred requests at once have this many tokens in common, which are cached, and 40 of their own.
fn burst_time(shared: u32) -> Duration {
    let limits = Limits {
        vocab_size: 1000,
        groups: vec![GroupLimits {
            tokens_per_block: 16,
            num_blocks: 16_384,
        }],
        num_seats: 256,
        num_lanes: 0,
        max_rows: 256,
        max_prompt_tokens: 4096,
        mixed_sizes: vec![4096],
        depth: 2,
    };
    let limits = Limits::new(limits).unwrap();
    let mut scheduler = Scheduler::new(limits, Policy::default(), Counters::default());
    let mut out = Vec::new();
    let mut submit = |scheduler: &mut Scheduler, id: u32| {
        let mut request = request(id.into(), 1, 1);
        let own = (0..40).map(|position| (position * 17 + id * 131) % 997);
        request.prompt_ids = (0..shared).map(|id| id * 7 % 991).chain(own).collect();
        scheduler.submit(request, Duration::ZERO, &mut out);
    };
    submit(&mut scheduler, 0);
    while let Some(plan) = scheduler.plan(Duration::ZERO, &mut Vec::new()) {
        let result = answer(&scheduler, &plan);
        let applied = scheduler.apply(&result, Duration::ZERO, &mut Vec::new());
        applied.unwrap();
    }
    (1..=100).for_each(|id| submit(&mut scheduler, id));
    let begun = Instant::now();
    let plan = scheduler.plan(Duration::ZERO, &mut Vec::new()).unwrap();
    let spent = begun.elapsed();
    assert_eq!(plan.registrations.len(), 100);
    spent
}

#[test]
#[cfg_attr(debug_assertions, ignore = "measures optimised code")]
fn a_burst_with_a_long_prefix_is_admitted_in_time() {
    let spent = (0..5).map(|_| burst_time(32_768)).min().expect("it ran");
    println!("{spent:?}");
    assert!(spent <= Duration::from_millis(3 * 5), "{spent:?}");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "measures optimised code")]
fn a_long_prefix_is_found_in_time() {
    let mut tree = Radix::new(16, 1);
    // 200 prompts of 512 units; pairs have the first half in common.
    let prompt = |number: u32| -> Vec<u32> {
        (0..8192)
            .map(|position| match position < 4096 {
                true => (position * 7 + number / 2 * 13) % 999,
                false => (position * 11 + number * 17) % 999,
            })
            .collect()
    };
    let mut num_blocks = 0;
    for number in 0..200 {
        let ids = prompt(number);
        let mut end = tree.attach_root(0);
        let mut rest = ids.as_slice();
        while !rest.is_empty() {
            let blocks: Vec<u32> = (num_blocks..num_blocks + 512).collect();
            let blocks = &blocks[..rest.len() / 16];
            let advanced = tree.advance(end, rest, blocks, |_| ());
            let (node, count) = advanced.expect("nobody uses it");
            end = node;
            rest = &rest[count * 16..];
            num_blocks += 512;
        }
        tree.unpin(end, crate::scheduler::radix::User::Live);
    }
    assert!(
        tree.num_evictable() * 4 > 3 * 100_000,
        "{}",
        tree.num_evictable()
    );
    let mut number = 0;
    let spent = fastest(|| {
        number = (number + 7) % 200;
        let ids = prompt(number);
        let mut table: Vec<u32> = Vec::new();
        let begun = Instant::now();
        let found = tree.find(0, &ids, 511).unwrap();
        let end = tree.attach(found, |blocks| table.extend(blocks));
        let spent = begun.elapsed();
        assert_eq!((found.num_units, table.len()), (511, 511));
        tree.unpin(end, crate::scheduler::radix::User::Live);
        spent
    });
    println!("{spent:?}");
    assert!(spent <= Duration::from_micros(3 * 20), "{spent:?}");
}
