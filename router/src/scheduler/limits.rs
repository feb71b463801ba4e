//! What the engine and the operator allow, as numbers; and which requests can never be served within them.

use std::time::Duration;

/// One KV group of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    pub tokens_per_block: u32,
    /// Without the scratch block.
    pub num_blocks: u32,
}

/// Bounds of every plan. [`Limits::new`] checks that they make sense together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub vocab_size: u32,
    pub groups: Vec<GroupLimits>,
    pub num_seats: u32,
    pub num_lanes: u32,
    /// Most rows of a plan.
    pub max_rows: u32,
    /// Most prompt tokens in a plan.
    pub max_prompt_tokens: u32,
    /// Padded token counts of plans that feed, ascending. The last is the most tokens of a plan.
    pub mixed_sizes: Vec<u32>,
    /// Plans in flight.
    pub depth: u32,
}

/// How the operator wants requests to be scheduled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Keep full blocks of prompts and answers for prompts to come.
    pub prefix_cache: bool,
    pub reserve: Reserve,
    /// Prompt chunks beside running streams are cut so that a step takes no longer than this.
    pub target_itl: Duration,
    /// Most requests that wait.
    pub max_queue: usize,
}

/// How much of the KV cache a request must find before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Its prompt and as long an answer as most have had; if that was too little, somebody is preempted.
    Estimate,
    /// All that it may ever take: nobody is ever preempted.
    Full,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            prefix_cache: true,
            reserve: Reserve::Estimate,
            target_itl: Duration::from_millis(50),
            max_queue: usize::MAX,
        }
    }
}

/// An engine that cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    #[error("the engine reports no {0}")]
    Missing(&'static str),
    #[error("the engine's mixed sizes {0:?} do not ascend")]
    Sizes(Vec<u32>),
    #[error("{0} plans in flight; 1 to 3 are supported")]
    Depth(u32),
}

/// A request that could not run even alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("prompt and answer take {need} tokens of KV cache; the cache holds {have}")]
    TooLong { need: usize, have: usize },
    #[error("the engine has no room for penalties")]
    NoPenaltyLanes,
}

impl Limits {
    /// Checks the numbers and clips those that exceed one another.
    pub fn new(mut limits: Self) -> Result<Self, LimitsError> {
        let &Self {
            vocab_size,
            ref groups,
            num_seats,
            num_lanes: _,
            max_rows,
            max_prompt_tokens,
            ref mixed_sizes,
            depth,
        } = &limits;
        let counts = [
            (vocab_size, "vocabulary"),
            (num_seats, "seats"),
            (max_rows, "decode sizes"),
            (max_prompt_tokens, "room for prompt tokens"),
            (mixed_sizes.first().copied().unwrap_or(0), "mixed sizes"),
        ];
        for (count, what) in counts {
            if count == 0 {
                return Err(LimitsError::Missing(what));
            }
        }
        if groups.is_empty()
            || groups
                .iter()
                .any(|group| group.tokens_per_block == 0 || group.num_blocks == 0)
        {
            return Err(LimitsError::Missing("KV blocks"));
        }
        if !mixed_sizes.is_sorted_by(|a, b| a < b) {
            return Err(LimitsError::Sizes(limits.mixed_sizes));
        }
        if !(1..=3).contains(&depth) {
            return Err(LimitsError::Depth(depth));
        }
        let max_tokens = limits.max_tokens();
        // A running prefill takes a row, so the decode rows beside it always leave it at least one token.
        limits.max_rows = max_rows.min(num_seats).min(max_tokens);
        limits.max_prompt_tokens = max_prompt_tokens.min(max_tokens);
        Ok(limits)
    }

    /// Most tokens of a plan that feeds.
    pub fn max_tokens(&self) -> u32 {
        self.mixed_sizes.last().copied().unwrap_or(0)
    }

    /// Tokens that the KV cache holds, in the group that holds fewest.
    pub(super) fn total_tokens(&self) -> u64 {
        let groups = self.groups.iter();
        let tokens = groups
            .map(|group| u64::from(group.tokens_per_block) * u64::from(group.num_blocks))
            .min();
        tokens.unwrap_or(0)
    }

    /// Whether a request could run if it were alone.
    pub fn check(&self, max_len: usize, wants_lane: bool) -> Result<(), Misfit> {
        for group in &self.groups {
            let have = group.tokens_per_block as usize * group.num_blocks as usize;
            let need = positions_written(max_len);
            if need > have {
                return Err(Misfit::TooLong { need, have });
            }
        }
        if wants_lane && self.num_lanes == 0 {
            return Err(Misfit::NoPenaltyLanes);
        }
        Ok(())
    }
}

/// Positions of the KV cache that a request of `max_len` tokens writes at most: its last token is never fed.
pub(super) fn positions_written(max_len: usize) -> usize {
    max_len.saturating_sub(1)
}
