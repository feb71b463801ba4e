//! How long a step takes, and how much fits. The time is a sum of terms that were fitted to measured steps; what a term
//! leaves out is said beside it.

use std::time::Duration;

use penstock_router::scheduler::{GroupLimits, Limits};

use super::trace::VOCAB_SIZE;

pub(crate) const BLOCK_SIZE: u32 = 16;
pub(crate) const TOKENS_PER_BLOCK: usize = BLOCK_SIZE as usize;

/// Costs and sizes of one engine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Of every step that has a row.
    pub(crate) base_ns: f64,
    /// A row that decodes.
    pub(crate) row_ns: f64,
    /// A token whose keys and values such a row reads.
    pub(crate) kv_ns: f64,
    /// A prompt token, padding included.
    pub(crate) prompt_ns: f64,
    /// A token that a prompt token attends to.
    pub(crate) context_ns: f64,
    pub(crate) kv_tokens: usize,
    pub(crate) max_rows: u32,
    pub(crate) max_prompt_tokens: u32,
    /// Steps with prompt tokens run at the next of these sizes; none: at their own.
    pub(crate) padded_sizes: Vec<u32>,
    /// Plans in flight, where the policy can have several.
    pub(crate) depth: u32,
}

/// What a step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) decode_rows: u32,
    decode_context: u64,
    pub(crate) prompt_tokens: u32,
    prompt_context: u64,
}

impl Work {
    /// A row that continues at `position`.
    pub(crate) fn decode(&mut self, position: u32) {
        self.decode_rows += 1;
        self.decode_context += u64::from(position);
    }

    /// A row that feeds `count` tokens from `start` on.
    pub(crate) fn feed(&mut self, start: u32, count: u32) {
        self.prompt_tokens += count;
        self.prompt_context += u64::from(count) * (u64::from(start) + u64::from(count) / 2);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.decode_rows + self.prompt_tokens == 0
    }
}

impl Machine {
    /// Llama 3.1 8B, bfloat16, on one H100. Decode: the column "H100" of the first GPU table in docs/performance.md (1
    /// row 5.92 ms, 128 rows 13.1 ms, 256 rows 20.2 ms at 1,024 tokens of context), of which keys and values are read at
    /// the 3.01 TB/s of the same run, 128 KiB a token. Prefill: 27.1 ms for 1,024 tokens and 225 ms for 8,000, same page.
    /// Room: 53 GB of keys and values.
    pub(crate) fn h100() -> Self {
        Self {
            base_ns: 5.85e6,
            row_ns: 11.5e3,
            kv_ns: 43.5,
            prompt_ns: 19.8e3,
            context_ns: 1.89,
            kv_tokens: 400_000,
            max_rows: 256,
            max_prompt_tokens: 4096,
            padded_sizes: mixed_sizes(4096 + 256),
            depth: 2,
        }
    }

    /// A model of 135 M parameters, float32, on two cores: docs/performance.md, "On a CPU" (47, 211 and 327 tokens/s with
    /// 1, 8 and 32 streams; 106 ms to the first token of a prompt of some 85 tokens). Attention is not told apart there.
    pub(crate) fn cpu() -> Self {
        Self {
            base_ns: 19e6,
            row_ns: 2.4e6,
            kv_ns: 0.0,
            prompt_ns: 1e6,
            context_ns: 0.0,
            kv_tokens: 32_768,
            max_rows: 32,
            max_prompt_tokens: 512,
            padded_sizes: mixed_sizes(512 + 32),
            depth: 2,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "h100-8b" => Some(Self::h100()),
            "cpu-135m" => Some(Self::cpu()),
            _ => None,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a step takes less than centuries"
    )]
    pub(crate) fn time(&self, work: &Work) -> Duration {
        if work.is_empty() {
            return Duration::ZERO;
        }
        let padding = match work.prompt_tokens {
            0 => 0,
            tokens => self.padded(work.decode_rows + tokens) - work.decode_rows - tokens,
        };
        let ns = self.base_ns
            + self.row_ns * f64::from(work.decode_rows)
            + self.kv_ns * work.decode_context as f64
            + self.prompt_ns * f64::from(work.prompt_tokens + padding)
            + self.context_ns * work.prompt_context as f64;
        Duration::from_nanos(ns as u64)
    }

    fn padded(&self, tokens: u32) -> u32 {
        let mut sizes = self.padded_sizes.iter().copied();
        sizes.find(|&size| size >= tokens).unwrap_or(tokens)
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.kv_tokens / TOKENS_PER_BLOCK
    }

    /// As a shard of this size would report them.
    pub(crate) fn limits(&self) -> Limits {
        let limits = Limits {
            vocab_size: VOCAB_SIZE,
            groups: vec![GroupLimits {
                tokens_per_block: BLOCK_SIZE,
                num_blocks: u32::try_from(self.num_blocks()).expect("it is small"),
            }],
            num_seats: self.max_rows * 2,
            num_lanes: 0,
            max_rows: self.max_rows,
            max_prompt_tokens: self.max_prompt_tokens,
            mixed_sizes: mixed_sizes(self.max_prompt_tokens + self.max_rows),
            depth: self.depth,
        };
        Limits::new(limits).expect("the numbers make sense together")
    }
}

/// The same as `server/penstock_server/sizes.py`.
fn mixed_sizes(max_tokens: u32) -> Vec<u32> {
    let steps = [(16, 8), (64, 16), (256, 32), (1024, 64), (4096, 256)];
    let mut sizes = Vec::new();
    let mut start = 0;
    for (end, step) in steps.into_iter().chain([(max_tokens, 1024)]) {
        sizes.extend((start + step..=end).step_by(step as usize));
        start = start.max(end);
    }
    sizes.retain(|&size| size < max_tokens);
    sizes.push(max_tokens);
    sizes
}
