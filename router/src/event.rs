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
    },
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
    pub timings: Timings,
    /// Text held back by the decoder or the stop-string matcher that belongs to the answer after all.
    pub tail: String,
}

/// Token counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
}
