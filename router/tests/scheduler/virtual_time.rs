//! What operators are promised, over minutes of virtual time on the simulator's machines.

#[path = "../../examples/simulate/sim/mod.rs"]
#[expect(dead_code, reason = "the program uses the rest")]
mod sim;

use std::time::Duration;

use penstock_router::scheduler::{Policy, Reserve};
use sim::machine::Machine;
use sim::penstock::Penstock;
use sim::replica::Replica;
use sim::report::quantile;
use sim::routing::Router;
use sim::trace::{Entry, Segment};
use sim::world::{End, Record, World};

const TARGET: Duration = Duration::from_millis(50);

fn policy() -> Policy {
    Policy {
        prefix_cache: true,
        reserve: Reserve::Estimate,
        target_itl: TARGET,
        max_queue: usize::MAX,
    }
}

fn world(machine: Machine, policy: Policy, queue_timeout: Option<Duration>) -> World<Penstock> {
    let server = Penstock::new(&machine, policy, queue_timeout);
    World::new(vec![Replica::new(server, machine)], Router::single())
}

/// A request that shares its prompt with nobody.
fn entry(number: usize, arrival_s: f64, prompt_tokens: u32, output_tokens: u32) -> Entry {
    Entry {
        arrival_s,
        prompt: vec![Segment {
            id: format!("prompt {number}"),
            tokens: prompt_tokens,
        }],
        answer: None,
        output_tokens,
        max_tokens: 2 * output_tokens,
        class: None,
        tenant: None,
    }
}

/// `rate` requests a second from `start` to `end`, evenly.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a few thousand requests"
)]
fn steady(start: f64, end: f64, rate: f64, make: impl Fn(usize, f64) -> Entry) -> Vec<Entry> {
    let count = ((end - start) * rate) as usize;
    let arrivals = (0..count).map(|number| start + number as f64 / rate);
    arrivals.map(|at| make((at * 1e6) as usize, at)).collect()
}

fn in_order(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
    entries
}

fn seconds(at: f64) -> Duration {
    Duration::from_secs_f64(at)
}

fn first_token_after(record: &Record) -> Duration {
    *record.tokens.first().expect("it has started") - record.arrival
}

/// Tokens a second between two times, of requests that finished.
fn finished_tokens(records: &[Record], from: f64, to: f64) -> f64 {
    let finished = |record: &&Record| matches!(record.end, Some((_, End::Finished)));
    let tokens = records
        .iter()
        .filter(finished)
        .flat_map(|record| &record.tokens);
    let tokens = tokens.filter(|&&at| (seconds(from)..seconds(to)).contains(&at));
    tokens.count() as f64 / (to - from)
}

/// The 99th percentile of the gaps of 16 streams while a prompt of `document` tokens is computed beside them; without a
/// document in the same time.
fn gap_beside_document(target_itl: Duration, document: Option<u32>) -> Duration {
    let policy = Policy {
        target_itl,
        ..policy()
    };
    let mut world = world(Machine::h100(), policy, None);
    for number in 0..16u32 {
        world.arrive(&entry(number as usize, f64::from(number) * 0.02, 400, 800));
    }
    let end = document.map(|tokens| {
        world.arrive(&entry(99, 2.0, tokens, 10));
        world.run_until(seconds(4.0));
        world.records[16].tokens[0]
    });
    world.run_until(Duration::MAX);
    let during = seconds(2.0)..=end.unwrap_or(seconds(3.0));
    let gaps = world.records[..16]
        .iter()
        .flat_map(|record| record.tokens.windows(2));
    let gaps = gaps.filter(|pair| during.contains(&pair[1]));
    let mut gaps: Vec<Duration> = gaps.map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() > 16 * 4, "the streams run all the while");
    quantile(&mut gaps, 0.99)
}

#[test]
fn a_long_prompt_slows_running_streams_by_no_more_than_the_objective() {
    let alone = gap_beside_document(TARGET, None);
    let beside = gap_beside_document(TARGET, Some(20_000));
    let bound = alone + TARGET;
    assert!(beside <= bound, "{alone:?}, then {beside:?}");
    let unbounded = gap_beside_document(Duration::from_secs(1000), Some(20_000));
    assert!(unbounded > bound, "{alone:?}, then {unbounded:?}");
}

const MAX_QUEUE: usize = 64;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

fn bounded() -> World<Penstock> {
    let policy = Policy {
        max_queue: MAX_QUEUE,
        ..policy()
    };
    world(Machine::h100(), policy, Some(QUEUE_TIMEOUT))
}

fn small(number: usize, at: f64) -> Entry {
    entry(number, at, 200, 100)
}

/// Requests a second that the machine can finish.
fn capacity() -> f64 {
    let mut world = world(Machine::h100(), policy(), None);
    world.run(&steady(0.0, 2.0, 1000.0, small));
    finished_tokens(&world.records, 3.0, 8.0) / 100.0
}

/// Full load for five seconds, ten times as much for ten, and less than full load for five. Returns how many waited at
/// most.
fn overload(world: &mut World<Penstock>, capacity: f64) -> u64 {
    let mut entries = steady(0.0, 5.0, capacity, small);
    entries.extend(steady(5.0, 15.0, capacity * 10.0, small));
    entries.extend(steady(15.0, 20.0, capacity * 0.7, small));
    let mut longest_queue = 0;
    for entry in &entries {
        world.arrive(entry);
        longest_queue = longest_queue.max(world.replicas[0].server.counters().queued);
    }
    world.run_until(Duration::MAX);
    longest_queue
}

/// Of the requests that come from two seconds after the load has fallen on.
fn slowest_afterwards(records: &[Record]) -> Duration {
    let after = records
        .iter()
        .filter(|record| record.arrival >= seconds(17.0));
    after.map(first_token_after).max().expect("some came")
}

/// How many were refused, each at once or when its time was over.
fn refused(records: &[Record]) -> usize {
    let ends = records
        .iter()
        .filter_map(|record| Some((record, record.end.as_ref()?)));
    let refusals = ends.filter_map(|(record, (at, end))| match end {
        End::Refused {
            reason,
            retry_after_s,
        } => Some((*at - record.arrival, *reason, *retry_after_s)),
        End::Finished | End::Failed => None,
    });
    let checked = refusals.inspect(|&(waited, reason, retry_after_s)| {
        let expected = match reason {
            "queue_timeout" => QUEUE_TIMEOUT,
            _ => Duration::ZERO,
        };
        assert_eq!(waited, expected, "{reason}");
        assert!(retry_after_s >= 1, "{reason}");
    });
    checked.count()
}

#[test]
fn overload_costs_no_throughput_and_leaves_no_trace() {
    let capacity = capacity();
    let mut plateau = bounded();
    plateau.run(&steady(0.0, 15.0, capacity, small));
    let plateau = finished_tokens(&plateau.records, 5.0, 15.0);

    let mut world = bounded();
    let longest_queue = overload(&mut world, capacity);
    // Those that the next plan will take come on top of those that wait.
    assert!(
        longest_queue <= MAX_QUEUE as u64 + 256,
        "{longest_queue} waited"
    );
    let goodput = finished_tokens(&world.records, 5.0, 15.0);
    assert!(goodput >= 0.9 * plateau, "{goodput} tokens/s of {plateau}");
    let refused = refused(&world.records);
    assert!(
        refused > world.records.len() / 2,
        "it was no overload: {refused} refused"
    );
    let slowest = slowest_afterwards(&world.records);
    assert!(slowest < Duration::from_millis(250), "{slowest:?}");
}

#[test]
fn overload_without_bounds_lasts() {
    let mut world = world(Machine::h100(), policy(), None);
    overload(&mut world, capacity());
    let slowest = slowest_afterwards(&world.records);
    assert!(slowest > Duration::from_secs(10), "{slowest:?}");
}

/// On the small machine, which takes some two of these a second.
fn of_class(number: usize, at: f64, class: u8) -> Entry {
    let mut entry = entry(number, at, 100, 60);
    entry.class = Some(class);
    entry
}

/// Waits for the first token in an overloaded server: of a request of this class, and the shortest of others, of class
/// 3, that came at the same time.
fn waits(class: u8) -> (Duration, Duration) {
    let mut world = world(Machine::cpu(), policy(), None);
    let mut entries = steady(0.0, 20.0, 8.0, |number, at| of_class(number, at, 3));
    entries.push(of_class(1, 15.01, class));
    let entries = in_order(entries);
    world.run(&entries);
    let of = |range: std::ops::RangeInclusive<f64>| {
        let records = entries.iter().zip(&world.records);
        let theirs = records.filter(|(entry, _)| range.contains(&entry.arrival_s));
        let waits = theirs.map(|(_, record)| first_token_after(record));
        waits.min().expect("one came then")
    };
    (of(15.005..=15.015), of(14.5..=15.001))
}

#[test]
fn the_highest_class_overtakes() {
    let (high, usual) = waits(1);
    assert!(
        high * 4 < usual,
        "{high:?} of class 1, {usual:?} of class 3"
    );
    let (same, usual) = waits(3);
    assert!(same >= usual, "{same:?}, and {usual:?} of those before");
}

#[test]
fn the_lowest_class_starts_under_a_steady_stream_of_the_highest() {
    let policy = Policy {
        max_queue: 64,
        ..policy()
    };
    let mut world = world(Machine::cpu(), policy, None);
    let mut entries = steady(0.0, 90.0, 8.0, |number, at| of_class(number, at, 1));
    entries.push(of_class(1, 10.01, 5));
    let entries = in_order(entries);
    world.run(&entries);
    let lowest = entries.iter().position(|entry| entry.class == Some(5));
    let waited = first_token_after(&world.records[lowest.expect("it was added")]);
    assert!(
        waited > Duration::from_secs(20),
        "it did not have to wait: {waited:?}"
    );
    assert!(waited < Duration::from_secs(65), "{waited:?}");
}

/// Tokens of a sender of 4 requests a second and of another of 80, as two tenants or as one.
fn shares(as_two: bool) -> (usize, usize) {
    let mut world = world(Machine::cpu(), policy(), None);
    let from = |number: usize, at: f64, sender: u64| {
        let mut entry = entry(number + usize::from(sender == 2), at, 100, 60);
        entry.tenant = as_two.then_some(sender);
        (sender, entry)
    };
    let few = (0..240u32).map(|number| from(number as usize * 250_000, f64::from(number) / 4.0, 1));
    let many =
        (0..4800u32).map(|number| from(number as usize * 12_500, f64::from(number) / 80.0, 2));
    let mut sent: Vec<(u64, Entry)> = few.chain(many).collect();
    sent.sort_by(|(_, a), (_, b)| a.arrival_s.total_cmp(&b.arrival_s));
    sent.iter().for_each(|(_, entry)| world.arrive(entry));
    let tokens = |sender: u64| -> usize {
        let records = sent.iter().zip(&world.records);
        let theirs = records.filter(|((from, _), _)| *from == sender);
        theirs.map(|(_, record)| record.tokens.len()).sum()
    };
    (tokens(1), tokens(2))
}

#[test]
fn tenants_share_equally_however_much_one_of_them_sends() {
    let (few, many) = shares(true);
    assert!(
        few.abs_diff(many) * 10 <= few.max(many),
        "{few} and {many} tokens"
    );
    let (few, many) = shares(false);
    assert!(few * 4 < many, "{few} and {many} tokens of one tenant");
}
