//! Planning and applying one decode step.

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
    let plan = scheduler.plan(Duration::ZERO).expect("there is work");
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

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    for num_rows in [1u32, 64, 256, 512] {
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
                let plan = scheduler.plan(Duration::ZERO).expect("there is work");
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
                |scheduler| black_box(scheduler.plan(Duration::ZERO)),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
