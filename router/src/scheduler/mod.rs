//! The scheduler: a function from events and a clock to plans, and the one owner of all state about requests, seats and
//! blocks. No I/O, no async, no text; the driver feeds it and carries its plans to an engine.
//!
//! Each request is either waiting in the queue, or running with a seat. A running request that ends leaves its seat in
//! the next plan's frees and its blocks behind the fence of its last plan. One that is stopped to make room for others
//! does the same, and waits again with its answer so far.

mod admit;
mod apply;
mod blocks;
#[cfg(test)]
mod bugs;
mod deadlines;
mod kv_cache;
mod limits;
mod metrics;
mod outputs;
mod plan;
mod queue;
mod radix;
mod room;
mod seats;
mod sequence;
pub mod step;
mod task;
mod tempo;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use apply::ProtocolError;
pub use limits::{GroupLimits, Limits, LimitsError, Misfit, Policy, Reserve};
pub use metrics::Counters;

use crate::event::{Delivery, Failure, Output, Refusal};
use crate::request::{LogprobParams, Request, RequestId};
#[cfg(test)]
use bugs::Bug;
use deadlines::Deadlines;
use kv_cache::{KvCache, Written};
use outputs::Outputs;
use queue::Queue;
use radix::Gone;
use seats::Seats;
use sequence::{Phase, Running};
use step::{Row, Seat};
use task::Task;
use tempo::Tempo;

/// Crashes in a row that a request may have been part of.
const MAX_CRASHES: u32 = 2;

/// What the result of a row must look like.
#[derive(Clone, Copy, Debug)]
struct PlannedRow {
    seat: Seat,
    position: u32,
    sample: bool,
    /// How many values the row's token brings, also when its request has ended.
    logprobs: Option<LogprobParams>,
}

/// A plan without a result.
#[derive(Debug)]
struct InFlight {
    plan_id: u64,
    rows: Vec<PlannedRow>,
    decode_rows: u32,
    /// With padding.
    prompt_tokens: u32,
}

/// All state about one engine's requests.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    policy: Policy,
    queue: Queue,
    running: Running,
    cache: KvCache,
    seats: Seats,
    deadlines: Deadlines,
    outputs: Outputs,
    tempo: Tempo,
    /// Oldest first.
    in_flight: VecDeque<InFlight>,
    last_plan_id: u64,
    acknowledged: u64,
    /// Requests that the last plan left waiting, though it had been offered them.
    left_behind: bool,
    /// The last plan did not come to look at all of them, so who comes now waits in any case.
    left_unseen: bool,
    /// The last plan found fewer blocks than will be needed.
    short_of_blocks: bool,
    /// Rows of the previous plan if the next one may refer to them, else empty.
    repeatable_rows: Vec<Row>,
    running_max_tokens: u64,
    counters: Counters,
}

impl Scheduler {
    /// A scheduler for an engine that has just been opened. `totals` are carried over from the engine before.
    pub fn new(limits: Limits, policy: Policy, totals: Counters) -> Self {
        Self {
            queue: Queue::default(),
            running: Running::new(limits.num_seats),
            cache: KvCache::new(&limits.groups, policy.prefix_cache),
            seats: Seats::new(limits.num_seats, limits.num_lanes),
            deadlines: Deadlines::default(),
            outputs: Outputs::new(),
            tempo: Tempo::default(),
            in_flight: VecDeque::with_capacity(limits.depth as usize),
            last_plan_id: 0,
            acknowledged: 0,
            left_behind: false,
            left_unseen: false,
            short_of_blocks: false,
            repeatable_rows: Vec::new(),
            running_max_tokens: 0,
            counters: totals,
            limits,
            policy,
        }
    }

    /// Queues a request, or turns it away. One that could not run even alone fails at once: validation refuses such
    /// requests, but the engine may have been replaced by a smaller one since.
    pub fn submit(&mut self, request: Request, now: Duration, out: &mut Vec<Delivery>) {
        if let Err(failure) = self.check(&request) {
            self.counters.failed += 1;
            out.push(failed(request.id, failure));
            return;
        }
        if let Some((refusal, retry_after)) = self.refusal(&request, now) {
            self.refuse(request.id, refusal, retry_after, out);
            return;
        }
        let task = Task::new(request, now, self.last_plan_id);
        self.deadlines.add(&task);
        self.queue.push(task);
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let wants_lane = request.sampling.needs_penalty_lane();
        self.limits
            .check(request.max_len(), wants_lane)
            .map_err(|misfit| match misfit {
                Misfit::TooLong { need: _, have: _ } => Failure::TooLong,
                Misfit::NoPenaltyLanes => Failure::NoPenalties,
            })
    }

    /// Why a new request is turned away, and after how long another try is worth it.
    fn refusal(&self, request: &Request, now: Duration) -> Option<(Refusal, Duration)> {
        // While everybody finds a place at once, those who have come since the last plan do not wait for others.
        let free_rows = if self.left_behind {
            0
        } else {
            (self.limits.max_rows as usize).saturating_sub(self.running.len())
        };
        let num_new = self.queue.num_new();
        if num_new >= self.policy.max_queue.saturating_add(free_rows) {
            return Some((Refusal::QueueFull, self.tempo.wait(1, now)));
        }
        let scheduling = &request.scheduling;
        let limits = [scheduling.queue_timeout, scheduling.total_timeout];
        let limit = limits.into_iter().flatten().min()?;
        if !self.left_behind || !self.left_unseen {
            return None;
        }
        let num_before = self.queue.num_before(scheduling.class, scheduling.tenant);
        let wait = self.tempo.wait(num_before, now);
        (wait > limit).then(|| (Refusal::PredictedWait, wait - limit))
    }

    fn refuse(
        &mut self,
        id: RequestId,
        refusal: Refusal,
        retry_after: Duration,
        out: &mut Vec<Delivery>,
    ) {
        self.counters.failed += 1;
        self.counters.refusals[refusal as usize] += 1;
        let retry_after_s = retry_after.as_secs_f64().ceil().clamp(1.0, 60.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it was clamped"
        )]
        let failure = Failure::Refused {
            refusal,
            retry_after_s: retry_after_s as u32,
        };
        out.push(failed(id, failure));
    }

    /// Ends every request whose time is over.
    pub fn expire(&mut self, now: Duration, out: &mut Vec<Delivery>) {
        while let Some(id) = self.deadlines.pop_due(now) {
            if let Some(task) = self.queue.get(id)
                && task
                    .queue_deadline()
                    .is_some_and(|deadline| deadline <= now)
            {
                self.drop_request(id);
                let wait = self.tempo.wait(self.queue.num_new(), now);
                self.refuse(id, Refusal::QueueTimeout, wait, out);
                continue;
            }
            let running = self
                .running
                .seat_of(id)
                .map(|seat| &self.running.at(seat).task);
            let Some(task) = self.queue.get(id).or(running) else {
                continue;
            };
            if task
                .total_deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                self.drop_request(id);
                self.counters.failed += 1;
                self.counters.overdue += 1;
                out.push(failed(id, Failure::DeadlineExceeded));
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do next.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.next()
    }

    /// The client is gone. Nothing more is delivered, and no plan from now on names the request.
    pub fn cancel(&mut self, id: RequestId) {
        if self.drop_request(id) {
            self.counters.cancelled += 1;
        }
    }

    /// The answer is complete, because of something that only its text shows. Nothing more is delivered.
    pub fn finish(&mut self, id: RequestId) {
        if let Some(seat) = self.running.seat_of(id) {
            let sequence = self.running.at(seat);
            let max_new_tokens = sequence.task.request.max_new_tokens;
            self.outputs.ended(max_new_tokens, sequence.num_sampled);
        }
        if self.drop_request(id) {
            self.counters.finished += 1;
        }
    }

    fn drop_request(&mut self, id: RequestId) -> bool {
        if let Some(task) = self.queue.remove(id) {
            self.deadlines.remove(&task);
            // There may be no other plan to find that out, if those who come now are turned away.
            self.left_behind &= !self.queue.is_empty();
            return true;
        }
        match self.running.seat_of(id) {
            Some(seat) => {
                self.end(seat);
                true
            }
            None => false,
        }
    }

    /// The engine is gone: every request fails. The scheduler is of no more use afterwards.
    pub fn fail_all(&mut self, failure: &Failure, out: &mut Vec<Delivery>) {
        while let Some(&seat) = self.running.order().first() {
            let task = self.end(seat);
            self.counters.failed += 1;
            out.push(failed(task.request.id, failure.clone()));
        }
        for task in self.queue.drain() {
            self.counters.failed += 1;
            out.push(failed(task.request.id, failure.clone()));
        }
        self.deadlines = Deadlines::default();
    }

    /// The engine is gone, and there is another one: everybody starts again from the tokens received. Who was in a plan
    /// without a result at every one of the last crashes, and has got no token since the first of them, fails: it may be
    /// the cause.
    pub fn replay(&mut self, limits: Limits, out: &mut Vec<Delivery>) {
        let rows = self.in_flight.drain(..).flat_map(|plan| plan.rows);
        let mut suspects: Vec<Seat> = rows.map(|row| row.seat).collect();
        suspects.sort_unstable();
        suspects.dedup();
        for seat in suspects {
            if let Some(sequence) = self.running.holder(seat) {
                sequence.task.crashes += 1;
            }
        }
        while let Some(&seat) = self.running.order().first() {
            let task = self.running.remove(seat).task;
            self.queue.push_resumed(task);
        }
        self.cache = KvCache::new(&limits.groups, self.policy.prefix_cache);
        self.seats = Seats::new(limits.num_seats, limits.num_lanes);
        self.running = Running::new(limits.num_seats);
        self.tempo = Tempo::default();
        (self.last_plan_id, self.acknowledged) = (0, 0);
        (self.left_behind, self.left_unseen, self.short_of_blocks) = (false, false, false);
        self.repeatable_rows.clear();
        self.running_max_tokens = 0;
        self.limits = limits;
        self.drop_unfit(out);
    }

    /// Ends what this engine cannot serve, or what may have cost the last ones their lives.
    fn drop_unfit(&mut self, out: &mut Vec<Delivery>) {
        let mut unfit: Vec<(RequestId, Failure)> = Vec::new();
        for task in self.queue.iter_mut() {
            task.seen_plan = 0;
            if task.crashes > MAX_CRASHES {
                unfit.push((task.request.id, Failure::EngineLost));
            }
        }
        for task in self.queue.iter() {
            if let Err(failure) = self.check(&task.request) {
                unfit.push((task.request.id, failure));
            }
        }
        unfit.sort_unstable_by_key(|&(id, _)| id);
        for (id, failure) in unfit {
            if self.drop_request(id) {
                self.counters.failed += 1;
                out.push(failed(id, failure));
            }
        }
    }

    /// Fewer plans are in flight than allowed.
    pub fn may_send(&self) -> bool {
        self.in_flight.len() < self.limits.depth as usize
    }

    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A request runs or waits.
    pub fn has_work(&self) -> bool {
        self.running.len() > 0 || !self.queue.is_empty()
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn counters(&self) -> Counters {
        Counters {
            queued: self.queue.len() as u64,
            running: self.running.len() as u64,
            running_max_tokens: self.running_max_tokens,
            tokens_total: self.limits.total_tokens(),
            blocks_total: self.cache.num_blocks() as u64,
            blocks_used: self.cache.num_used() as u64,
            blocks_cached: self.cache.num_cached() as u64,
            ..self.counters
        }
    }

    /// Takes seat and blocks from a running request that is over.
    fn end(&mut self, seat: u32) -> Task {
        let task = self.take_away(seat);
        self.deadlines.remove(&task);
        let scheduling = task.request.scheduling;
        let uncharged = task.generated.len() - task.charged;
        self.queue.generated(scheduling.tenant, uncharged);
        task
    }

    /// Takes seat and blocks from a running request, which goes back to the queue.
    fn requeue(&mut self, seat: u32) {
        let task = self.take_away(seat);
        self.queue.push_resumed(task);
    }

    fn take_away(&mut self, seat: u32) -> Task {
        if !self.running.at(seat).stopped {
            self.publish(seat);
            self.cache.start_leaving(&self.running.at(seat).hold);
        }
        let sequence = self.running.remove(seat);
        self.running_max_tokens -= sequence.task.request.max_len() as u64;
        self.seats.leave(sequence.occupancy);
        #[cfg(test)]
        if bugs::is(Bug::LeakOnCancel) && sequence.num_sampled == 0 && sequence.num_fed > 0 {
            return sequence.task;
        }
        let written = Written {
            cached: sequence.num_hit,
            acknowledged: sequence.num_written,
        };
        let fence = sequence.last_plan;
        self.cache
            .leave(sequence.hold, sequence.occupancy.seat, fence, written);
        if fence <= self.acknowledged {
            self.cache.acknowledge(self.acknowledged);
        }
        sequence.task
    }

    /// Lets others share the blocks of a running request that are full of known tokens.
    fn publish(&mut self, seat: u32) {
        let sequence = self.running.at_mut(seat);
        let unit = self.cache.tokens_per_unit();
        let known = sequence.task.num_known();
        // The last token is known before it is fed, if it ever is.
        let end = (sequence.num_fed as usize).min(known);
        #[cfg(test)]
        let end = if bugs::is(Bug::LastTokenCached) {
            known.min(sequence.hold.table(0).len() * self.cache.pools()[0].tokens_per_block)
        } else {
            end
        };
        let (start, end) = (sequence.hold.cached_units() * unit, end / unit * unit);
        if end > start && self.policy.prefix_cache {
            let ids: Vec<u32> = sequence.task.ids(start, end).collect();
            self.cache.publish(&mut sequence.hold, &ids);
        }
    }

    /// Requests that have read what is gone now compute it again.
    fn restart_readers(&mut self, gone: &Gone) {
        if gone.nodes.is_empty() {
            return;
        }
        let mut readers = Vec::new();
        for position in 0..self.running.len() {
            let seat = self.running.order()[position];
            if self.running.at_mut(seat).hold.lose_path(gone) {
                readers.push(seat);
            }
        }
        for seat in readers {
            self.requeue(seat);
        }
    }

    /// Running requests that are still to be computed in part, by seat.
    fn prefilling(&self) -> impl Iterator<Item = u32> {
        let seats = self.running.order().iter().copied();
        seats.filter(|&seat| matches!(self.running.at(seat).phase(), Phase::Prefill { .. }))
    }
}

fn failed(request: RequestId, failure: Failure) -> Delivery {
    Delivery {
        request,
        output: Output::Failed(failure),
    }
}
