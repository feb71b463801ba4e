//! Requests as a file names them, one JSON object a line. A prompt is a list of segments: the same id stands for the same
//! tokens wherever it occurs, so that prefixes and whole conversations can be shared. Token ids are made up from it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A request's last token, if it ends before it has to.
pub(crate) const STOP_ID: u32 = 0;
pub(crate) const VOCAB_SIZE: u32 = 1 << 17;

/// The first `tokens` tokens of the content `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub(crate) id: String,
    pub(crate) tokens: u32,
}

/// A line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) arrival_s: f64,
    pub(crate) prompt: Vec<Segment>,
    /// The answer's content, for prompts that go on from it; none: nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<String>,
    pub(crate) output_tokens: u32,
    pub(crate) max_tokens: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) class: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<u64>,
}

/// A request with its token ids.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) prompt: Arc<[u32]>,
    answer: u64,
    pub(crate) output_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) class: Option<u8>,
    pub(crate) tenant: u64,
}

impl Entry {
    pub(crate) fn prompt_tokens(&self) -> u32 {
        self.prompt.iter().map(|segment| segment.tokens).sum()
    }

    /// Request number `id`.
    pub(crate) fn job(&self, id: u64) -> Job {
        let mut prompt = Vec::with_capacity(self.prompt_tokens() as usize);
        for segment in &self.prompt {
            let content = content(&segment.id);
            prompt.extend((0..segment.tokens).map(|index| token(content, index)));
        }
        Job {
            id,
            prompt: prompt.into(),
            answer: self.answer.as_deref().map_or_else(|| mix(id), content),
            output_tokens: self.output_tokens.clamp(1, self.max_tokens),
            max_tokens: self.max_tokens,
            class: self.class,
            tenant: self.tenant.unwrap_or(0),
        }
    }
}

impl Job {
    pub(crate) fn prompt_len(&self) -> u32 {
        u32::try_from(self.prompt.len()).expect("a prompt is short of 2^32 tokens")
    }

    /// What is generated at this place of the answer.
    pub(crate) fn answer_token(&self, index: u32) -> u32 {
        if index + 1 == self.output_tokens {
            STOP_ID
        } else {
            token(self.answer, index)
        }
    }

    /// Prompt or answer, as far as it will ever go.
    pub(crate) fn token(&self, position: u32) -> u32 {
        match self.prompt.get(position as usize) {
            Some(&id) => id,
            None => self.answer_token(position - self.prompt_len()),
        }
    }
}

/// Never the stop id.
fn token(content: u64, index: u32) -> u32 {
    let mixed = mix(content ^ (u64::from(index) << 1));
    1 + u32::try_from(mixed % u64::from(VOCAB_SIZE - 1)).expect("a remainder is small")
}

fn content(id: &str) -> u64 {
    let bytes = id.bytes();
    bytes.fold(0x5eed, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// A bijection that leaves nothing in order (the finalizer of splitmix64).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
