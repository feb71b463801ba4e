//! What one step carries: the plan on its way to an engine and the result on its way back. Plain data; the wire format
//! is the engine's business (`engine/blob.rs`).

use crate::request::{LogprobParams, SamplingParams};

/// A request's row in the shard. The generation rises with every registration of the seat, so that a result for a
/// former owner is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seat {
    pub index: u32,
    /// Greater than 0, and at most `i32::MAX`.
    pub generation: u32,
}

/// Everything that a shard keeps of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    pub seat: Seat,
    pub prompt_len: u32,
    /// No token is computed at or beyond this position.
    pub max_len: u32,
    pub penalty_lane: Option<u32>,
    pub sampling: SamplingParams,
    pub logprobs: Option<LogprobParams>,
    /// Never sampled.
    pub banned_ids: Vec<u32>,
    /// Banned while fewer than `sampling.min_new_tokens` tokens were generated.
    pub min_length_ids: Vec<u32>,
    /// Prompt and generated ids; empty without a penalty lane.
    pub history_ids: Vec<u32>,
    /// How many ids at the end of the history were generated.
    pub num_generated: u32,
}

/// Entry `index` of the seat's block table of `group` becomes `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Append {
    pub seat: u32,
    pub group: u32,
    pub index: u32,
    pub block: u32,
}

/// Positions `start .. start + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub start: u32,
    pub count: u32,
}

/// One row of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub seat: u32,
    /// Draw a token after the row's last input.
    pub sample: bool,
    /// Where the input stands, if the plan carries it; else the row continues from the token it sampled last.
    pub feed: Option<Extent>,
}

/// The rows of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    Listed(Vec<Row>),
    /// Those of the previous plan, this many, all of which continue and sample.
    SameAsPrevious(u32),
}

impl Rows {
    pub fn len(&self) -> usize {
        match self {
            Self::Listed(rows) => rows.len(),
            Self::SameAsPrevious(count) => *count as usize,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the router orders for one step, in the order in which it takes effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Rises by one from 1.
    pub id: u64,
    pub frees: Vec<Seat>,
    pub registrations: Vec<Registration>,
    pub appends: Vec<Append>,
    pub rows: Rows,
    /// Input ids of the rows that feed, one row after another.
    pub feed_ids: Vec<u32>,
}

/// How a row of a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowStatus {
    Ok,
    /// A write outside the seat's blocks or limit was turned away.
    Overrun,
    /// The logits held a NaN or no finite value.
    Nan,
    /// The seat was dead or not registered.
    Dead,
    OutOfMemory,
    /// An id outside the vocabulary, or a feed that does not start where the seat's tokens end.
    BadInput,
}

impl RowStatus {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Overrun => "OVERRUN",
            Self::Nan => "NAN",
            Self::Dead => "DEAD",
            Self::OutOfMemory => "OUT_OF_MEMORY",
            Self::BadInput => "BAD_INPUT",
        }
    }
}

/// How one row went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowResult {
    pub seat: Seat,
    /// Of the first sampled token, or of the token after the last one fed where nothing was sampled.
    pub position: u32,
    pub status: RowStatus,
    pub num_tokens: u32,
}

/// What came of one plan. The columns are in row order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResult {
    pub plan_id: u64,
    pub rows: Vec<RowResult>,
    pub token_ids: Vec<u32>,
    /// One per token of the rows whose seat asked.
    pub logprobs: Vec<f32>,
    /// As many per token as its seat asked for, best first.
    pub top_ids: Vec<u32>,
    pub top_logprobs: Vec<f32>,
    /// From the start of the step to its end on the device, and of that in the model's forward pass.
    pub step_us: u32,
    pub forward_us: u32,
    /// The next plan had arrived when this step ended.
    pub next_plan_waiting: bool,
    /// Since the last result: each made a step wait.
    pub num_kernels_compiled: u32,
}
