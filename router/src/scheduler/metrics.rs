//! What the scheduler counts, in one plain struct; the driver publishes copies of it.

use crate::event::{Refusal, WaitReason};

/// Gauges as of now, and totals since the process started: they are carried over from engine to engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Gauge: requests that wait for their first row.
    pub queued: u64,
    /// Gauge: requests with a seat.
    pub running: u64,
    /// Gauge: positions that the running requests may still reach, prompt included.
    pub running_max_tokens: u64,
    /// Gauge: tokens that the KV cache holds, in the group that holds fewest.
    pub tokens_total: u64,
    /// Gauge: blocks of all KV groups, without the scratch blocks.
    pub blocks_total: u64,
    /// Gauge: blocks that running requests refer to.
    pub blocks_used: u64,
    /// Gauge: blocks kept for prompts to come.
    pub blocks_cached: u64,
    /// Tokens fed by plans: of prompts, and of answers that were stopped.
    pub prompt_tokens: u64,
    /// Tokens received for running requests.
    pub generated_tokens: u64,
    /// Results of rows whose request had ended meanwhile.
    pub wasted_rows: u64,
    /// Plans with at least one row that feeds.
    pub prefill_steps: u64,
    /// Plans whose rows all continue.
    pub decode_steps: u64,
    /// Rows in plans.
    pub rows: u64,
    /// Plans that admit requests beside others that run.
    pub joins: u64,
    /// Tokens that were found in the prefix cache: of prompts, and again of requests that were stopped.
    pub cached_tokens: u64,
    /// Times that a request was stopped to make room.
    pub preemptions: u64,
    /// Requests that had to wait, by `WaitReason::ALL`: those that started, and those whose time in the queue was over.
    pub waits: [u64; WaitReason::ALL.len()],
    /// Requests that were turned away, by `Refusal::ALL`; they count as failed, too.
    pub refusals: [u64; Refusal::ALL.len()],
    /// Requests whose total time was over; they count as failed, too.
    pub overdue: u64,
    /// Requests that ended by length, stop id or stop string.
    pub finished: u64,
    /// Requests that ended with a failure.
    pub failed: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
}

impl Counters {
    pub(super) fn waited(&mut self, reason: Option<WaitReason>) {
        if let Some(reason) = reason {
            self.waits[reason as usize] += 1;
        }
    }
}
