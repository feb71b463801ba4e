//! What every dialect lowers to. A [`Request`] is made by `validation.rs` only, so its fields are already in range.
//! It holds token ids and numbers; stop strings travel beside it, to the text workers.

use std::sync::Arc;
use std::time::Duration;

/// Identifies a request inside this process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// How the next token is chosen. Neutral values switch a step off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// False: the most likely token after penalties; the warpers below are then neutral.
    pub do_sample: bool,
    /// Greater than 0; 1 is neutral.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// In (0, 1]; 1 is off.
    pub typical_p: f32,
    /// In [0, 1); 0 is off.
    pub min_p: f32,
    /// Greater than 0; 1 is off. Counts prompt and generated tokens.
    pub repetition_penalty: f32,
    /// In [-2, 2]; 0 is off. Counts generated tokens.
    pub frequency_penalty: f32,
    /// In [-2, 2]; 0 is off. Counts generated tokens.
    pub presence_penalty: f32,
    /// Drawn by the router where the client gave none.
    pub seed: u64,
    /// Which of several answers to one prompt this is; part of the key of the random numbers.
    pub fork: u32,
    /// Added to the logits before anything else.
    pub logit_bias: Vec<(u32, f32)>,
    /// Stop ids are banned while fewer tokens were generated.
    pub min_new_tokens: u32,
}

impl SamplingParams {
    /// The most likely token at every step, with every other step off.
    pub fn greedy(seed: u64) -> Self {
        Self {
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            typical_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed,
            fork: 0,
            logit_bias: Vec::new(),
            min_new_tokens: 0,
        }
    }

    /// The request needs one of the shard's penalty lanes.
    pub fn needs_penalty_lane(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

/// Which log-probabilities come with the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogprobParams {
    /// Before penalties and warpers (`/v1`) or after them (native routes).
    pub raw: bool,
    /// Best tokens listed beside the chosen one.
    pub num_top: u32,
}

/// When a request gets its turn, and with whom it may share cached blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// 1 goes first, [`Scheduling::CLASSES`] last.
    pub class: u8,
    /// Those who share the server fairly: all requests of one tenant have the same number.
    pub tenant: u64,
    /// Requests with different salts never share a cached block.
    pub cache_salt: u64,
    /// Longest wait for the first row.
    pub queue_timeout: Option<Duration>,
    /// Longest time from submission to the last token.
    pub total_timeout: Option<Duration>,
}

impl Scheduling {
    pub const CLASSES: u8 = 5;
    pub const DEFAULT_CLASS: u8 = 3;
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            class: Self::DEFAULT_CLASS,
            tenant: 0,
            cache_salt: 0,
            queue_timeout: None,
            total_timeout: None,
        }
    }
}

/// A validated request.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: RequestId,
    /// Not empty.
    pub prompt_ids: Arc<[u32]>,
    pub sampling: SamplingParams,
    /// At least 1; prompt + new tokens fit the limits.
    pub max_new_tokens: u32,
    /// A token of these ends the request; empty with `ignore_eos`.
    pub stop_ids: Arc<[u32]>,
    pub logprobs: Option<LogprobParams>,
    pub scheduling: Scheduling,
}

impl Request {
    /// No token is computed at or beyond this position.
    pub fn max_len(&self) -> usize {
        self.prompt_ids.len() + self.max_new_tokens as usize
    }
}
