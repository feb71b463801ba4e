//! The scheduler: a function from events and a clock to plans, and the one owner of all state about requests, seats and
//! blocks. No I/O, no async, no text; the driver feeds it and carries its plans to an engine.
//!
//! Each request is either waiting in the queue, or running with a seat. A running request that ends leaves its seat in
//! the next plan's frees and its blocks behind the fence of its last plan.

mod apply;
mod blocks;
mod limits;
mod metrics;
mod plan;
mod queue;
mod seats;
mod sequence;
pub mod step;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use apply::ProtocolError;
pub use limits::{GroupLimits, Limits, LimitsError, Misfit, Policy, Reserve};
pub use metrics::Counters;

use crate::event::{Delivery, Failure, Output};
use crate::request::{LogprobParams, Request, RequestId};
use blocks::{BlockPool, Lease};
use queue::Queue;
use seats::Seats;
use sequence::Running;
use step::{Row, Seat};

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
}

/// All state about one engine's requests.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    policy: Policy,
    queue: Queue,
    running: Running,
    /// One per KV group.
    pools: Vec<BlockPool>,
    seats: Seats,
    /// Oldest first.
    in_flight: VecDeque<InFlight>,
    last_plan_id: u64,
    acknowledged: u64,
    /// Rows of the previous plan if the next one may refer to them, else empty.
    repeatable_rows: Vec<Row>,
    running_max_tokens: u64,
    counters: Counters,
}

impl Scheduler {
    /// A scheduler for an engine that has just been opened. `totals` are carried over from the engine before.
    pub fn new(limits: Limits, policy: Policy, totals: Counters) -> Self {
        let pools = limits
            .groups
            .iter()
            .map(|group| BlockPool::new(group.tokens_per_block, group.num_blocks))
            .collect();
        Self {
            queue: Queue::default(),
            running: Running::new(limits.num_seats),
            pools,
            seats: Seats::new(limits.num_seats, limits.num_lanes),
            in_flight: VecDeque::with_capacity(limits.depth as usize),
            last_plan_id: 0,
            acknowledged: 0,
            repeatable_rows: Vec::new(),
            running_max_tokens: 0,
            counters: totals,
            limits,
            policy,
        }
    }

    /// Queues a request. One that could not run even alone fails at once: validation refuses such requests, but the
    /// engine may have been replaced by a smaller one since.
    pub fn submit(&mut self, request: Request, now: Duration, out: &mut Vec<Delivery>) {
        let wants_lane = request.sampling.needs_penalty_lane();
        if let Err(misfit) = self.limits.check(request.max_len(), wants_lane) {
            let failure = match misfit {
                Misfit::TooLong { need: _, have: _ } => Failure::TooLong,
                Misfit::NoPenaltyLanes => Failure::NoPenalties,
            };
            self.counters.failed += 1;
            out.push(failed(request.id, failure));
            return;
        }
        self.queue.push(request, now);
    }

    /// The client is gone. Nothing more is delivered, and no plan from now on names the request.
    pub fn cancel(&mut self, id: RequestId) {
        if self.drop_request(id) {
            self.counters.cancelled += 1;
        }
    }

    /// The answer is complete, because of something that only its text shows. Nothing more is delivered.
    pub fn finish(&mut self, id: RequestId) {
        if self.drop_request(id) {
            self.counters.finished += 1;
        }
    }

    fn drop_request(&mut self, id: RequestId) -> bool {
        if self.queue.remove(id) {
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
            let id = self.running.at(seat).request.id;
            self.end(seat);
            self.counters.failed += 1;
            out.push(failed(id, failure.clone()));
        }
        while let Some(waiting) = self.queue.pop() {
            self.counters.failed += 1;
            out.push(failed(waiting.request.id, failure.clone()));
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
            blocks_total: self.pools.iter().map(|pool| pool.total() as u64).sum(),
            blocks_used: self.pools.iter().map(|pool| pool.used() as u64).sum(),
            blocks_cached: 0,
            ..self.counters
        }
    }

    /// A lease in every KV group, or none.
    fn reserve_all(&mut self, tokens: usize) -> Option<Vec<Lease>> {
        let mut leases = Vec::with_capacity(self.pools.len());
        for pool in &mut self.pools {
            match pool.reserve(tokens) {
                Some(lease) => leases.push(lease),
                None => break,
            }
        }
        if leases.len() == self.pools.len() {
            return Some(leases);
        }
        for (pool, lease) in self.pools.iter_mut().zip(leases) {
            pool.unreserve(lease);
        }
        None
    }

    /// Takes seat and blocks from a running request.
    fn end(&mut self, seat: u32) {
        let sequence = self.running.remove(seat);
        self.running_max_tokens -= sequence.request.max_len() as u64;
        self.seats.leave(sequence.occupancy);
        for (pool, lease) in self.pools.iter_mut().zip(sequence.leases) {
            pool.release(lease, sequence.last_plan, self.acknowledged);
        }
    }
}

fn failed(request: RequestId, failure: Failure) -> Delivery {
    Delivery {
        request,
        output: Output::Failed(failure),
    }
}
