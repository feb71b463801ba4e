//! Nobody waits, or is turned away, for the sake of something that does not stand in the way.

use std::time::Duration;

use super::request;
use crate::event::{Delivery, Failure, Output, Refusal};
use crate::request::{Request, RequestId};
use crate::scheduler::step::{Plan, RowResult, RowStatus, StepResult};
use crate::scheduler::{Limits, Policy, Scheduler};

const STEP: Duration = Duration::from_millis(20);

/// A scheduler, a clock, and an engine that answers every row.
struct Server {
    scheduler: Scheduler,
    now: Duration,
    out: Vec<Delivery>,
}

impl Server {
    fn new(change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = super::roomy().limits().clone();
        limits.depth = 1;
        change(&mut limits);
        let limits = Limits::new(limits).unwrap();
        Self {
            scheduler: Scheduler::new(limits, Policy::default(), super::super::Counters::default()),
            now: Duration::ZERO,
            out: Vec::new(),
        }
    }

    fn submit(&mut self, request: Request) {
        self.scheduler.submit(request, self.now, &mut self.out);
    }

    fn plan(&mut self) -> Option<Plan> {
        self.scheduler.plan(self.now, &mut self.out)
    }

    /// The oldest plan's result comes a step later.
    fn answer(&mut self) {
        let plan = self.scheduler.in_flight.front().expect("it is in flight");
        let rows = plan.rows.iter().map(|row| RowResult {
            seat: row.seat,
            position: row.position,
            status: RowStatus::Ok,
            num_tokens: u32::from(row.sample),
        });
        let rows: Vec<RowResult> = rows.collect();
        let sampled = rows.iter().filter(|row| row.num_tokens > 0).count();
        let result = StepResult {
            plan_id: plan.plan_id,
            token_ids: vec![1; sampled],
            rows,
            step_us: 20_000,
            ..StepResult::default()
        };
        self.now += STEP;
        let applied = self.scheduler.apply(&result, self.now, &mut self.out);
        applied.unwrap();
    }

    fn step(&mut self) {
        self.plan();
        if self.scheduler.num_in_flight() > 0 {
            self.answer();
        }
    }

    fn drain(&mut self) {
        while self.scheduler.has_work() {
            self.step();
        }
    }

    fn refusals(&self) -> Vec<(RequestId, Refusal)> {
        let refused = |delivery: &Delivery| match delivery.output {
            Output::Failed(Failure::Refused { refusal, .. }) => Some((delivery.request, refusal)),
            _ => None,
        };
        self.out.iter().filter_map(refused).collect()
    }

    fn runs(&self, id: u64) -> bool {
        self.scheduler.running.seat_of(RequestId(id)).is_some()
    }
}

fn within(mut request: Request, limit: Duration) -> Request {
    request.scheduling.queue_timeout = Some(limit);
    request
}

#[test]
fn the_time_when_nobody_came_says_nothing_about_the_pace() {
    let mut server = Server::new(|_| ());
    for id in 0..5 {
        server.submit(request(id, 40, 2));
        server.drain();
        server.now += Duration::from_secs(60);
    }
    // Of these the first plan takes some, and the next ones the others.
    for id in 5..25 {
        server.submit(within(request(id, 100, 2), Duration::from_secs(10)));
    }
    server.step();
    server.submit(within(request(25, 100, 2), Duration::from_secs(10)));
    server.drain();
    assert_eq!(server.refusals(), []);
}

#[test]
fn nobody_is_refused_for_the_sake_of_those_who_have_left_the_queue() {
    let mut server = Server::new(|limits| limits.max_rows = 1);
    for id in 0..4 {
        server.submit(request(id, 10, 2));
    }
    while !server.runs(2) {
        server.step();
    }
    // The last one gives up while the other's last step runs.
    server.plan();
    server.scheduler.cancel(RequestId(3));
    server.answer();
    while server.scheduler.num_in_flight() > 0 {
        server.answer();
    }
    server.drain();
    server.now += Duration::from_secs(100);
    server.submit(within(request(4, 10, 2), Duration::from_secs(5)));
    assert_eq!(server.refusals(), []);
    server.drain();
}

#[test]
fn who_waits_for_a_penalty_lane_holds_up_nobody_who_needs_none() {
    let mut server = Server::new(|limits| limits.num_lanes = 1);
    for id in 0..2 {
        let mut request = request(id, 10, 500);
        request.sampling.repetition_penalty = 1.5;
        server.submit(request);
    }
    server.step();
    assert!(server.runs(0) && !server.runs(1));
    for id in 2..52 {
        server.submit(request(id, 10, 500));
        // Now and then a plan has no prompts, to learn what the others take.
        server.step();
        server.step();
        assert!(server.runs(id), "request {id} waits");
    }
}

#[test]
fn who_fits_is_not_refused_because_another_does_not() {
    let mut server = Server::new(|limits| limits.num_lanes = 1);
    for id in 0..20 {
        server.submit(request(id, 100, 2));
    }
    server.drain();
    for id in 20..22 {
        let mut request = request(id, 10, 1000);
        request.sampling.repetition_penalty = 1.5;
        server.submit(request);
    }
    for _ in 0..400 {
        server.step();
    }
    server.submit(within(request(22, 10, 2), Duration::from_secs(5)));
    assert_eq!(server.refusals(), []);
    server.step();
    assert!(server.runs(22));
}

#[test]
fn who_fits_is_not_refused_because_another_lacks_blocks() {
    let mut server = Server::new(|limits| limits.groups[0].num_blocks = 128);
    for id in 0..20 {
        server.submit(request(id, 100, 2));
    }
    server.drain();
    for id in 20..22 {
        server.submit(request(id, 10, 1500));
    }
    for _ in 0..400 {
        server.step();
    }
    assert!(server.runs(20) && !server.runs(21));
    server.submit(within(request(22, 10, 2), Duration::from_secs(5)));
    assert_eq!(server.refusals(), []);
    server.step();
    assert!(server.runs(22));
}

#[test]
fn another_tenants_queue_does_not_count() {
    let mut server = Server::new(|limits| limits.max_rows = 2);
    for id in 0..60 {
        let mut request = request(id, 10, 20);
        request.scheduling.tenant = 1;
        server.submit(request);
    }
    for _ in 0..100 {
        server.step();
    }
    // The pace is one in 200 ms: 50 others take ten seconds.
    let mut other = within(request(60, 10, 20), Duration::from_secs(2));
    other.scheduling.tenant = 2;
    server.submit(other);
    assert_eq!(server.refusals(), []);
    for _ in 0..50 {
        server.step();
    }
    assert!(server.runs(60) || server.out.iter().any(|left| left.request == RequestId(60)));
    assert_eq!(server.refusals(), []);
    let mut same = within(request(61, 10, 20), Duration::from_secs(2));
    same.scheduling.tenant = 1;
    server.submit(same);
    assert_eq!(server.refusals(), [(RequestId(61), Refusal::PredictedWait)]);
}

#[test]
fn many_long_prompts_do_not_hold_up_a_short_one() {
    let mut server = Server::new(|_| ());
    for id in 0..100 {
        server.submit(request(id, 2000, 20));
    }
    for _ in 0..2 {
        server.step();
    }
    server.submit(request(100, 20, 20));
    for _ in 0..4 {
        server.step();
    }
    assert!(server.runs(100));
}

#[test]
fn the_pace_of_an_earlier_rush_is_forgotten() {
    let mut server = Server::new(|limits| limits.max_rows = 2);
    for id in 0..40 {
        server.submit(request(id, 10, 200));
    }
    server.drain();
    server.now += Duration::from_secs(3600);
    for id in 40..44 {
        server.submit(within(request(id, 10, 2), Duration::from_secs(4)));
    }
    server.step();
    for id in 44..50 {
        server.submit(within(request(id, 10, 2), Duration::from_secs(4)));
    }
    server.drain();
    assert_eq!(server.refusals(), []);
}
