//! What stays of a request while it waits, runs, is stopped and waits again.

use std::time::Duration;

use crate::event::{Timings, WaitReason};
use crate::request::{Request, RequestId};

/// A request with its answer so far.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) request: Request,
    pub(super) submitted: Duration,
    /// Order of submission.
    pub(super) arrival: u64,
    /// The plan sent last when it came.
    pub(super) seen_plan: u64,
    /// Tokens received, all of them delivered.
    pub(super) generated: Vec<u32>,
    /// Since its first row.
    pub(super) started: Option<Duration>,
    /// Prompt tokens that its first row found in the prefix cache.
    pub(super) cached_tokens: u32,
    /// The last reason why it was not admitted.
    pub(super) waited: Option<WaitReason>,
    /// Times that others were admitted while it did not fit.
    pub(super) passed: u32,
    pub(super) preemptions: u32,
    /// Crashes since its last token during which it was in a plan without a result.
    pub(super) crashes: u32,
    /// While it waits for a shared prefix: whose, and for how many more prompt tokens of plans.
    pub(super) patience: Option<(RequestId, u64)>,
    /// Generated tokens that its tenant has been charged for.
    pub(super) charged: usize,
}

impl Task {
    pub(super) fn new(request: Request, submitted: Duration, seen_plan: u64) -> Self {
        Self {
            request,
            submitted,
            arrival: 0,
            seen_plan,
            generated: Vec::new(),
            started: None,
            cached_tokens: 0,
            waited: None,
            passed: 0,
            preemptions: 0,
            crashes: 0,
            patience: None,
            charged: 0,
        }
    }

    /// Prompt and answer so far.
    pub(super) fn num_known(&self) -> usize {
        self.request.prompt_ids.len() + self.generated.len()
    }

    /// Token ids from position `start` to `end`.
    pub(super) fn ids(&self, start: usize, end: usize) -> impl Iterator<Item = u32> {
        let prompt = &self.request.prompt_ids;
        let split = prompt.len();
        let first = &prompt[start.min(split)..end.min(split)];
        let second = &self.generated[start.max(split) - split..end.max(split) - split];
        first.iter().chain(second).copied()
    }

    /// Prompt and answer so far as one slice; `buffer` is used if there is an answer.
    pub(super) fn known<'a>(&'a self, buffer: &'a mut Vec<u32>) -> &'a [u32] {
        if self.generated.is_empty() {
            return &self.request.prompt_ids;
        }
        buffer.clear();
        buffer.extend(self.ids(0, self.num_known()));
        buffer
    }

    /// When its time in the queue is over, if it may not wait for ever.
    pub(super) fn queue_deadline(&self) -> Option<Duration> {
        let timeout = self.request.scheduling.queue_timeout?;
        self.started.is_none().then(|| self.submitted + timeout)
    }

    pub(super) fn total_deadline(&self) -> Option<Duration> {
        Some(self.submitted + self.request.scheduling.total_timeout?)
    }

    /// Why it waited, if it had to, after this plan.
    pub(super) fn wait_reason(&self, last_plan: u64) -> Option<WaitReason> {
        let is_late = self.seen_plan < last_plan;
        self.waited.or(is_late.then_some(WaitReason::Turn))
    }

    pub(super) fn timings(&self, now: Duration) -> Timings {
        let started = self.started.unwrap_or(now);
        Timings {
            queue: started.saturating_sub(self.submitted),
            inference: now.saturating_sub(started),
        }
    }
}
