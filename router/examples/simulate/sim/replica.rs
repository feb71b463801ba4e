//! One server on its machine: which step runs, which one comes next, and when something happens next.

use std::sync::Arc;
use std::time::Duration;

use super::machine::{Machine, Work};
use super::server::{Events, Server};
use super::trace::Job;

/// The driver makes a plan this much before the running step ends, and a share of the step: see `driver/pacing.rs`.
const LEAD: Duration = Duration::from_millis(2);
const LEAD_SHARE: f64 = 0.15;

struct Running {
    took: Duration,
    end: Duration,
}

/// A server with its machine.
pub(crate) struct Replica<S> {
    pub(crate) server: S,
    machine: Machine,
    running: Option<Running>,
    /// Sent while a step runs.
    next: Option<Work>,
    /// When to plan beside the running step; `None`: it was tried, and nothing has happened since.
    plan_at: Option<Duration>,
    /// In which the machine was at work.
    pub(crate) busy: Duration,
}

impl<S: Server> Replica<S> {
    pub(crate) fn new(server: S, machine: Machine) -> Self {
        Self {
            server,
            machine,
            running: None,
            next: None,
            plan_at: None,
            busy: Duration::ZERO,
        }
    }

    pub(crate) fn next_event(&self) -> Option<Duration> {
        let end = self.running.as_ref().map(|step| step.end);
        let times = [end, self.plan_at, self.server.next_deadline()];
        times.into_iter().flatten().min()
    }

    pub(crate) fn submit(&mut self, job: Arc<Job>, now: Duration, out: &mut Events) {
        self.server.submit(job, now, out);
        self.replan(now);
        self.advance(now, out);
    }

    /// Does all that is due.
    pub(crate) fn advance(&mut self, now: Duration, out: &mut Events) {
        if self.server.next_deadline().is_some_and(|at| at <= now) {
            self.server.expire(now, out);
            self.replan(now);
        }
        loop {
            if let Some(step) = &self.running {
                if step.end > now {
                    break;
                }
                let took = step.took;
                self.running = None;
                self.server.apply(took, now, out);
            }
            let Some(work) = self.next.take().or_else(|| self.server.plan(now, out)) else {
                self.plan_at = None;
                return;
            };
            let took = self.machine.time(&work);
            self.busy += took;
            self.running = Some(Running {
                took,
                end: now + took,
            });
            self.replan(now);
        }
        if self.plan_at.is_some_and(|at| at <= now) {
            self.next = self.server.plan(now, out);
            self.plan_at = None;
        }
    }

    /// Something has changed that a plan beside the running step could take up.
    fn replan(&mut self, now: Duration) {
        if let Some(step) = &self.running
            && self.next.is_none()
            && self.server.plans_ahead()
        {
            let lead = LEAD + step.took.mul_f64(LEAD_SHARE);
            self.plan_at = Some(step.end.saturating_sub(lead).max(now));
        }
    }
}
