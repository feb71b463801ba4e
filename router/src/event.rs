//! What the scheduler produces and every dialect renders.

use std::time::Duration;

use crate::request::RequestId;

/// One token as the shard sampled it.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    pub id: u32,
    /// Only where the request asked.
    pub logprob: Option<f32>,
    /// Best first; empty unless asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a request ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` reached.
    Length,
    /// A stop id was sampled.
    EndOfSequence,
    /// A stop string was found in the text.
    StopSequence,
}

/// Why a request did not get its first row in the first plan after it came. The last reason that applied is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// Others are before it.
    Turn,
    /// The step is full: of rows, or of prompt tokens.
    StepFull,
    /// Every seat is taken, or every penalty lane.
    Seats,
    /// The KV cache has no room for it yet.
    Blocks,
    /// Another request is computing a prefix that it shares.
    SharedPrefix,
    /// As many long prompts as allowed are being computed.
    LongPrompts,
}

impl WaitReason {
    pub const ALL: [Self; 6] = [
        Self::Turn,
        Self::StepFull,
        Self::Seats,
        Self::Blocks,
        Self::SharedPrefix,
        Self::LongPrompts,
    ];

    /// For logs, metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Turn => "turn",
            Self::StepFull => "step_full",
            Self::Seats => "seats",
            Self::Blocks => "blocks",
            Self::SharedPrefix => "shared_prefix",
            Self::LongPrompts => "long_prompts",
        }
    }
}

/// Why a request was turned away before it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many requests wait as allowed.
    QueueFull,
    /// By the rate at which others were taken, its time would be over before its turn.
    PredictedWait,
    /// It waited as long as it may.
    QueueTimeout,
}

impl Refusal {
    pub const ALL: [Self; 3] = [Self::QueueFull, Self::PredictedWait, Self::QueueTimeout];

    /// For logs, metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::PredictedWait => "predicted_wait",
            Self::QueueTimeout => "queue_timeout",
        }
    }
}

/// Why a request ended badly. The text is safe to show to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The shard group died or was lost.
    #[error("the model's worker stopped while this request was running; send it again")]
    EngineLost,
    /// The model gave no usable logits for this row.
    #[error("the model returned no finite logits for this request")]
    BadLogits,
    /// An id outside the vocabulary, or one that did not follow on: a bug of this server.
    #[error("the model's worker refused the input of this request")]
    BadInput,
    /// The device ran out of memory in a step of this request.
    #[error("out of memory in a step of this request")]
    OutOfMemory,
    /// The engine has no room for penalties at all.
    #[error("the model's worker does not support penalties (repetition, frequency, presence)")]
    NoPenalties,
    /// Prompt and answer do not fit into the KV cache, not even alone.
    #[error("the KV cache is too small for this request")]
    TooLong,
    /// Turned away; another try after this many seconds may be taken.
    #[error("Model is overloaded: {} ({})", match .refusal {
        Refusal::QueueFull => "the queue is full",
        Refusal::PredictedWait => "the predicted wait exceeds this request's time limit",
        Refusal::QueueTimeout => "the request waited for its turn as long as it may",
    }, .refusal.name())]
    Refused {
        refusal: Refusal,
        retry_after_s: u32,
        /// Why it had to wait until then.
        waited: Option<WaitReason>,
    },
    /// The request's total time is over.
    #[error("the deadline of this call has passed; what still ran is cancelled")]
    DeadlineExceeded,
    /// The server is stopping and its drain time is over.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A bug: making this request's text panicked.
    #[error("the server failed to make this answer's text")]
    Text,
}

/// Where a request's time went. All measured by the loop's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Submitted to first row in a plan.
    pub queue: Duration,
    /// First row in a plan to the last token.
    pub inference: Duration,
}

/// One thing that happened to a request, from the loop to the text workers. `Finished` and `Failed` are last, and
/// exactly one of them is delivered, except after a cancellation, which ends a request silently.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The request is in a plan for the first time, after this long in the queue. Delivered at the latest with its first
    /// token, and before it.
    Started {
        queue: Duration,
        /// Prompt tokens that were found in the prefix cache.
        cached_tokens: u32,
        /// Why it had to wait, if it had to.
        waited: Option<WaitReason>,
    },
    /// The request was stopped to make room and waits again; its tokens go on later where they ended.
    Preempted,
    Token(SampledToken),
    Finished {
        reason: FinishReason,
        timings: Timings,
    },
    Failed(Failure),
}

/// An [`Output`] with its address.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub request: RequestId,
    pub output: Output,
}

/// What reaches a dialect: text beside ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Token(Token),
    Finished(Finished),
    Failed(Failure),
}

/// A token with the text that became certain with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Complete characters only; empty while a character is still incomplete, and for special tokens when they are
    /// skipped.
    pub text: String,
    /// A special token of the vocabulary.
    pub special: bool,
    pub logprob: Option<f32>,
    /// Best first.
    pub top: Vec<Candidate>,
}

/// A token that could have been chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub id: u32,
    pub text: String,
    pub special: bool,
    pub logprob: f32,
}

/// The end of a request that went well.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub reason: FinishReason,
    pub usage: Usage,
    pub course: Course,
    pub timings: Timings,
    /// Text held back by the decoder or the stop-string matcher that belongs to the answer after all.
    pub tail: String,
}

/// What the scheduler did with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: u32,
    /// Why it had to wait before its first row, if it had to.
    pub waited: Option<WaitReason>,
    /// How often it was stopped to make room.
    pub preemptions: u32,
}

impl Course {
    /// Of several prompts as one: sums, and the first reason to wait.
    pub fn add(&mut self, other: Self) {
        let Self {
            cached_tokens,
            waited,
            preemptions,
        } = other;
        self.cached_tokens += cached_tokens;
        self.waited = self.waited.or(waited);
        self.preemptions += preemptions;
    }
}

/// Token counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
}
