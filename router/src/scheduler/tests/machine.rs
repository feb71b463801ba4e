//! Every history keeps the rules: the scheduler as a state machine, against naive models of the KV cache and of each
//! request, with a strict fake shard that computes the integer model. And the rules notice: each planted bug is found.

#![expect(clippy::print_stdout, reason = "seeds, and what was found from them")]

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use super::world::{Asked, Op, SIZES, Setup, Size, World};
use crate::event::{Refusal, WaitReason};
use crate::scheduler::bugs::{self, Bug};
use crate::scheduler::step::RowStatus;
use crate::scheduler::{Counters, Reserve};

/// Transitions of one history.
const LENGTH: std::ops::Range<usize> = 1..160;

/// Histories: what may happen next depends on nothing but the kind of world.
struct Histories;

impl ReferenceStateMachine for Histories {
    type State = Setup;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Setup> {
        let reserve = prop_oneof![4 => Just(Reserve::Estimate), 1 => Just(Reserve::Full)];
        let cache = prop_oneof![6 => Just(true), 1 => Just(false)];
        (1u32..=3, size(), reserve, cache)
            .prop_map(|(depth, size, reserve, prefix_cache)| Setup {
                depth,
                size,
                reserve,
                prefix_cache,
            })
            .boxed()
    }

    fn transitions(_: &Setup) -> BoxedStrategy<Op> {
        let failure = prop_oneof![Just(RowStatus::OutOfMemory), Just(RowStatus::BadInput)];
        // Long enough to rise by classes, now and then.
        let waits = prop_oneof![7 => 0u64..20, 1 => 0u64..60_000];
        prop_oneof![
            40 => asked().prop_map(Op::Submit),
            60 => Just(Op::Plan),
            60 => Just(Op::Ack),
            6 => (any::<usize>(), failure).prop_map(|(row, status)| Op::AckWithFailure { row, status }),
            8 => any::<usize>().prop_map(Op::Cancel),
            6 => any::<usize>().prop_map(Op::Finish),
            8 => any::<usize>().prop_map(Op::Preempt),
            4 => waits.prop_map(Op::Wait),
            1 => size().prop_map(Op::Crash),
        ]
        .boxed()
    }

    fn apply(state: Setup, _: &Op) -> Setup {
        state
    }
}

fn size() -> impl Strategy<Value = &'static Size> {
    let others = if ONE_GROUP.get() { 0 } else { 1 };
    prop_oneof![4 => Just(0), 4 * others => Just(1), 3 * others => 2..SIZES.len()]
        .prop_map(|index| &SIZES[index])
}

fn asked() -> impl Strategy<Value = Asked> {
    let prompt_len = prop_oneof![3 => 1u32..10, 2 => 9u32..20];
    let lengths = (0u32..3, 0u32..12, prompt_len, 1u32..9);
    let rare = |weight: u32| prop_oneof![weight => Just(false), 1 => Just(true)];
    let kinds = (rare(5), rare(11), rare(7));
    let timeout = || prop_oneof![8 => Just(0u64), 1 => 1u64..60];
    let scheduling = (
        1u8..=5,
        0u64..3,
        prop_oneof![5 => Just(0u64), 1 => Just(1u64)],
    );
    (lengths, kinds, scheduling, timeout(), timeout()).prop_map(
        |(lengths, kinds, scheduling, queue_timeout, total_timeout)| {
            let (family, shared, prompt_len, max_new) = lengths;
            let (stops, nan, penalties) = kinds;
            let (class, tenant, salt) = scheduling;
            Asked {
                family,
                shared,
                prompt_len,
                max_new,
                stops,
                nan,
                penalties,
                class,
                tenant,
                salt,
                queue_timeout,
                total_timeout,
            }
        },
    )
}

struct Machine;

/// What the histories of this thread came across: a rule that never applied was not tested.
#[derive(Debug, Default)]
struct Seen {
    cached_tokens: u64,
    preemptions: u64,
    overdue: u64,
    waits: [u64; WaitReason::ALL.len()],
    refusals: [u64; Refusal::ALL.len()],
}

impl Seen {
    fn add(&mut self, counters: &Counters) {
        self.cached_tokens += counters.cached_tokens;
        self.preemptions += counters.preemptions;
        self.overdue += counters.overdue;
        for (sum, count) in self.waits.iter_mut().zip(counters.waits) {
            *sum += count;
        }
        for (sum, count) in self.refusals.iter_mut().zip(counters.refusals) {
            *sum += count;
        }
    }
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
    static RECORD: RefCell<String> = RefCell::default();
    static ONE_GROUP: Cell<bool> = const { Cell::new(false) };
}

impl StateMachineTest for Machine {
    type SystemUnderTest = World;
    type Reference = Histories;

    fn init_test(setup: &Setup) -> World {
        World::new(*setup)
    }

    fn apply(mut world: World, _: &Setup, op: Op) -> World {
        world.apply(op);
        world.check_inventory();
        world
    }

    fn teardown(mut world: World, _: Setup) {
        world.drain();
        world.check_end();
        SEEN.with_borrow_mut(|seen| seen.add(&world.scheduler.counters()));
        RECORD.with_borrow_mut(|record| record.push_str(&world.record));
    }
}

/// Runs histories until there were about so many transitions; the first failure is shrunk if wanted.
fn run(transitions: u32, seed: u64, shrink: bool) -> Result<(), String> {
    let average = u32::try_from(LENGTH.end / 2).unwrap();
    let config = Config {
        cases: transitions.div_ceil(average),
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: if shrink { 20_000 } else { 0 },
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config.clone());
    let histories = Histories::sequential_strategy(LENGTH);
    let outcome = runner.run(&histories, |(setup, ops, seen)| {
        // How far a history came is of use for shrinking only.
        let seen = seen.filter(|_| shrink);
        Machine::test_sequential(config.clone(), setup, ops, seen);
        Ok(())
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, (setup, ops, _)) if shrink => {
            let ops: Vec<String> = ops.iter().map(|op| format!("{op:?}")).collect();
            format!("seed {seed}: {reason}\n{setup:?}\n{}", ops.join("\n"))
        }
        TestError::Fail(reason, _) | TestError::Abort(reason) => reason.message().to_owned(),
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "how a person or another test sets it"
)]
fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `PENSTOCK_TRANSITIONS` and `PENSTOCK_SEED` set how many and which.
#[test]
fn every_history_keeps_the_rules() {
    let transitions = number_from("PENSTOCK_TRANSITIONS").unwrap_or(50_000);
    let seed = number_from("PENSTOCK_SEED").unwrap_or_else(rand::random);
    println!("{transitions} transitions from seed {seed}");
    let transitions = u32::try_from(transitions).unwrap();
    if let Err(failure) = run(transitions, seed, true) {
        panic!("{failure}");
    }
    let seen = SEEN.take();
    println!("{seen:?}");
    assert!(seen.cached_tokens > 0 && seen.preemptions > 0 && seen.overdue > 0);
    assert!(seen.waits.iter().all(|&count| count > 0));
    assert!(seen.refusals.iter().all(|&count| count > 0));
}

/// Writes histories for the real shard to replay: `tests/e2e/test_recorded_plans.py` compares its answers.
#[test]
#[ignore = "run by the test of the real shard, with PENSTOCK_RECORD"]
fn record_histories() {
    #[expect(clippy::disallowed_methods, reason = "how another test sets it")]
    let path = std::env::var("PENSTOCK_RECORD").expect("a file to write");
    let seed = number_from("PENSTOCK_SEED").unwrap_or_else(rand::random);
    let transitions = number_from("PENSTOCK_TRANSITIONS").unwrap_or(2_000);
    // The real engine has one KV group.
    ONE_GROUP.set(true);
    run(u32::try_from(transitions).unwrap(), seed, true).unwrap();
    std::fs::write(path, RECORD.take()).unwrap();
    println!("{transitions} transitions from seed {seed}");
}

#[test]
fn each_planted_bug_is_found() {
    let seed = number_from("PENSTOCK_SEED").unwrap_or_else(rand::random);
    println!("seed {seed}");
    // A bug that is found panics, which is no news.
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if bugs::planted().is_none() {
            loud(info);
        }
    }));
    let found: Vec<(Bug, Result<(), String>)> = Bug::ALL
        .into_iter()
        .map(|bug| {
            bugs::plant(Some(bug));
            let outcome = run(50_000, seed, false);
            bugs::plant(None);
            (bug, outcome)
        })
        .collect();
    let _ = std::panic::take_hook();
    let mut missed = Vec::new();
    for (bug, outcome) in found {
        match outcome {
            Ok(()) => missed.push(bug),
            Err(reason) => println!("{bug:?}: {reason}"),
        }
    }
    assert_eq!(missed, [], "not found from seed {seed}");
}

#[test]
fn equal_histories_give_equal_plans() {
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let histories = Histories::sequential_strategy(1..100);
    let outcome = TestRunner::new(config).run(&histories, |(setup, ops, _)| {
        let run = || {
            let mut world = World::new(setup);
            for &op in &ops {
                world.apply(op);
            }
            world.drain();
            world.blobs
        };
        prop_assert_eq!(run(), run());
        Ok(())
    });
    outcome.unwrap();
}
