//! Planning and applying one decode step; admitting a long prompt that the prefix cache holds.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use penstock_router::engine::blob;
use penstock_router::request::{Request, RequestId, SamplingParams, Scheduling};
use penstock_router::scheduler::step::{Plan, RowResult, RowStatus, Seat, StepResult};
use penstock_router::scheduler::{Counters, GroupLimits, Limits, Policy, Scheduler};

const PROMPT_LEN: u32 = 8;
const MAX_NEW_TOKENS: u32 = 4096;

fn request(id: u64) -> Request {
    Request {
        id: RequestId(id),
        prompt_ids: (0..PROMPT_LEN).collect(),
        sampling: SamplingParams::greedy(0),
        max_new_tokens: MAX_NEW_TOKENS,
        stop_ids: Arc::new([999]),
        logprobs: None,
        scheduling: Scheduling::default(),
    }
}

/// Rows that decode, with the seats in plan order.
fn decoding(num_rows: u32) -> (Scheduler, Vec<Seat>) {
    let limits = Limits {
        vocab_size: 1000,
        groups: vec![GroupLimits {
            tokens_per_block: 16,
            num_blocks: num_rows * (PROMPT_LEN + MAX_NEW_TOKENS).div_ceil(16),
        }],
        num_seats: num_rows,
        num_lanes: 0,
        max_rows: num_rows,
        max_prompt_tokens: 8192,
        mixed_sizes: vec![8192],
        depth: 2,
    };
    let limits = Limits::new(limits).expect("the limits make sense");
    let mut scheduler = Scheduler::new(limits, Policy::default(), Counters::default());
    for id in 0..u64::from(num_rows) {
        scheduler.submit(request(id), Duration::ZERO, &mut Vec::new());
    }
    let plan = scheduler
        .plan(Duration::ZERO, &mut Vec::new())
        .expect("there is work");
    let seats: Vec<Seat> = plan.registrations.iter().map(|new| new.seat).collect();
    let result = result(&plan, &seats, PROMPT_LEN);
    scheduler
        .apply(&result, Duration::ZERO, &mut Vec::new())
        .expect("the result is right");
    (scheduler, seats)
}

fn result(plan: &Plan, seats: &[Seat], position: u32) -> StepResult {
    let rows = seats.iter().map(|&seat| RowResult {
        seat,
        position,
        status: RowStatus::Ok,
        num_tokens: 1,
    });
    StepResult {
        plan_id: plan.id,
        rows: rows.collect(),
        token_ids: vec![1; seats.len()],
        ..StepResult::default()
    }
}

const LONG_PROMPT: u32 = 8192;
const CACHED_BLOCKS: u32 = 100_000;

/// A request whose prompt shares nothing with others', but for the first half of what it shares with its neighbour.
fn long_request(id: u64, number: u32) -> Request {
    let token = |position: u32| match position < LONG_PROMPT / 2 {
        true => (position * 7 + number / 2 * 13) % 999,
        false => (position * 11 + number * 17) % 999,
    };
    Request {
        prompt_ids: (0..=LONG_PROMPT).map(token).collect(),
        max_new_tokens: 1,
        stop_ids: Arc::new([]),
        ..request(id)
    }
}

/// A scheduler whose prefix cache is full of long prompts.
fn cached() -> Scheduler {
    let limits = Limits {
        vocab_size: 1000,
        groups: vec![GroupLimits {
            tokens_per_block: 16,
            num_blocks: CACHED_BLOCKS + 2 * LONG_PROMPT / 16,
        }],
        num_seats: 8,
        num_lanes: 0,
        max_rows: 8,
        max_prompt_tokens: 2 * LONG_PROMPT,
        mixed_sizes: vec![2 * LONG_PROMPT],
        depth: 1,
    };
    let limits = Limits::new(limits).expect("the limits make sense");
    let mut scheduler = Scheduler::new(limits, Policy::default(), Counters::default());
    let mut number = 0;
    while scheduler.counters().blocks_cached < u64::from(CACHED_BLOCKS) {
        run_long(&mut scheduler, long_request(u64::from(number), number));
        number += 1;
    }
    scheduler
}

/// One request from submission to its end.
fn run_long(scheduler: &mut Scheduler, request: Request) {
    let position = LONG_PROMPT + 1;
    scheduler.submit(request, Duration::ZERO, &mut Vec::new());
    while let Some(plan) = scheduler.plan(Duration::ZERO, &mut Vec::new()) {
        let seats: Vec<Seat> = plan.registrations.iter().map(|new| new.seat).collect();
        scheduler
            .apply(
                &result(&plan, &seats, position),
                Duration::ZERO,
                &mut Vec::new(),
            )
            .expect("the result is right");
    }
}

fn bench_hit(criterion: &mut Criterion) {
    let mut scheduler = cached();
    let mut id = 1 << 32;
    let mut group = criterion.benchmark_group("scheduler");
    // All of a plan that admits one request whose prompt of 8k tokens is cached: search, pins, block table, row.
    group.bench_function("admit_cached_8k", |bencher| {
        bencher.iter_custom(|count| {
            let mut spent = Duration::ZERO;
            for _ in 0..count {
                id += 1;
                let request = long_request(id, u32::try_from(id % 128).expect("it is small"));
                scheduler.submit(request, Duration::ZERO, &mut Vec::new());
                let begun = std::time::Instant::now();
                let plan = scheduler.plan(Duration::ZERO, &mut Vec::new());
                spent += begun.elapsed();
                let plan = black_box(plan).expect("there is work");
                assert_eq!(plan.feed_ids.len(), 1, "all but the last token is cached");
                let seats: Vec<Seat> = plan.registrations.iter().map(|new| new.seat).collect();
                let result = result(&plan, &seats, LONG_PROMPT + 1);
                scheduler
                    .apply(&result, Duration::ZERO, &mut Vec::new())
                    .expect("the result is right");
            }
            spent
        });
    });
    group.finish();
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    for num_rows in [1u32, 64, 256, 1024] {
        let (mut scheduler, mut seats) = decoding(num_rows);
        let mut position = PROMPT_LEN;
        // Plan, encode, apply: all that the driver does for a step, deliveries included.
        group.bench_function(BenchmarkId::new("step", num_rows), |bencher| {
            bencher.iter(|| {
                if position == PROMPT_LEN + MAX_NEW_TOKENS - 1 {
                    // Once in 4,096 steps.
                    (scheduler, seats) = decoding(num_rows);
                    position = PROMPT_LEN;
                }
                let plan = scheduler
                    .plan(Duration::ZERO, &mut Vec::new())
                    .expect("there is work");
                position += 1;
                let result = result(&plan, &seats, position);
                let mut out = Vec::new();
                scheduler
                    .apply(&result, Duration::ZERO, &mut out)
                    .expect("the result is right");
                black_box((blob::encode(&plan), out))
            });
        });
        // A plan alone needs an earlier state each time, so it is measured from the first step on.
        group.bench_function(BenchmarkId::new("plan", num_rows), |bencher| {
            bencher.iter_batched_ref(
                || decoding(num_rows).0,
                |scheduler| black_box(scheduler.plan(Duration::ZERO, &mut Vec::new())),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench, bench_hit);
criterion_main!(benches);
