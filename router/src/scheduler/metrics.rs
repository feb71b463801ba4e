//! What the scheduler counts, in one plain struct; the driver publishes copies of it.

/// Buckets of [`Counters::batch_sizes`]: at most 1, 2, 4, ... 512 rows, and more.
pub const BATCH_SIZE_BUCKETS: usize = 11;

/// Gauges as of now, and totals since the engine became ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Gauge: requests that wait for their first row.
    pub queued: u64,
    /// Gauge: requests with a seat.
    pub running: u64,
    /// Gauge: positions that the running requests may still reach, prompt included.
    pub running_max_tokens: u64,
    /// Gauge: blocks of all KV groups, without the scratch blocks.
    pub blocks_total: u64,
    /// Gauge: blocks that running requests refer to.
    pub blocks_used: u64,
    /// Gauge: blocks kept for prompts to come.
    pub blocks_cached: u64,
    /// Prompt tokens in plans.
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
    /// Plans by their number of rows.
    pub batch_sizes: [u64; BATCH_SIZE_BUCKETS],
    /// Requests that ended by length, stop id or stop string.
    pub finished: u64,
    /// Requests that ended with a failure.
    pub failed: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
}

impl Counters {
    pub(super) fn count_batch(&mut self, num_rows: usize) {
        if num_rows == 0 {
            return;
        }
        self.rows += num_rows as u64;
        let bucket = num_rows.next_power_of_two().trailing_zeros() as usize;
        self.batch_sizes[bucket.min(BATCH_SIZE_BUCKETS - 1)] += 1;
    }
}
