//! From what a client wrote to a [`Request`], or to an error that names the field, the limit and the value. Pure. The
//! rules run in TGI's order: parameters from top to bottom, then the prompt. Where a limit is a number it comes first
//! in the message and the given value second: clients read those two.

mod rules;

use std::sync::Arc;

use tokio::time::Instant;

use self::rules::{above_zero, count, penalty, share};
use crate::config::LimitsConfig;
use crate::driver::EngineFacts;
use crate::keys::key;
use crate::request::{LogprobParams, Request, RequestId, SamplingParams, Scheduling};

/// A rule that a request breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ValidationError {
    /// As the client spells it.
    pub field: String,
    pub message: String,
}

impl ValidationError {
    pub fn new(field: &str, message: String) -> Self {
        Self {
            field: field.to_owned(),
            message,
        }
    }

    /// A field that TGI knows and this server does not serve.
    pub fn not_supported(field: &str) -> Self {
        Self::new(field, format!("`{field}` is not supported yet"))
    }
}

type Result<T> = std::result::Result<T, ValidationError>;

/// What requests must fit into. Depends on the engine, so it is made anew for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_input_tokens: usize,
    pub max_total_tokens: usize,
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    pub vocab_size: usize,
}

impl Limits {
    /// The smallest of what the operator set, the model's positions, and the KV cache: a request that is larger than
    /// the whole cache could never run.
    pub fn new(config: &LimitsConfig, facts: &EngineFacts) -> Self {
        let capacity = facts
            .max_positions
            .min(facts.num_blocks * facts.tokens_per_block);
        let max_total_tokens = config.max_total_tokens.unwrap_or(capacity).min(capacity);
        let largest_input = max_total_tokens.saturating_sub(1);
        Self {
            max_input_tokens: config
                .max_input_tokens
                .unwrap_or(largest_input)
                .min(largest_input),
            max_total_tokens,
            max_stop_sequences: config.max_stop_sequences,
            max_top_n_tokens: config
                .max_top_n_tokens
                .min(u32::try_from(facts.max_top_logprobs).unwrap_or(u32::MAX)),
            vocab_size: facts.vocab_size,
        }
    }
}

/// How a dialect spells what others spell otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldNames {
    pub inputs: &'static str,
    pub max_new_tokens: &'static str,
    pub min_new_tokens: &'static str,
    pub top_n_tokens: &'static str,
}

pub const NATIVE_NAMES: FieldNames = FieldNames {
    inputs: "inputs",
    max_new_tokens: "max_new_tokens",
    min_new_tokens: "min_new_tokens",
    top_n_tokens: "top_n_tokens",
};

/// A request as a dialect understood it: right types, values unchecked. `None` is the neutral value.
#[derive(Clone, Debug)]
pub struct Draft {
    pub names: FieldNames,
    pub do_sample: bool,
    pub temperature: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub typical_p: Option<f64>,
    pub min_p: Option<f64>,
    pub seed: Option<u64>,
    pub logit_bias: Vec<(String, f64)>,
    pub max_new_tokens: Option<i64>,
    pub min_new_tokens: Option<i64>,
    pub ignore_eos: bool,
    pub stop: Vec<String>,
    pub truncate: Option<i64>,
    pub top_n_tokens: Option<i64>,
    /// Log-probabilities of the tokens are wanted: before (true) or after penalties and warpers.
    pub logprobs: Option<bool>,
    pub priority: Option<i64>,
    pub cache_salt: Option<String>,
    /// Whom the request counts for: the key of a name, or 0.
    pub tenant: u64,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Known features that this server does not have and this request asks for.
    pub unsupported: Vec<&'static str>,
}

impl Draft {
    pub fn new(names: FieldNames) -> Self {
        Self {
            names,
            do_sample: false,
            temperature: None,
            repetition_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            top_k: None,
            top_p: None,
            typical_p: None,
            min_p: None,
            seed: None,
            logit_bias: Vec::new(),
            max_new_tokens: None,
            min_new_tokens: None,
            ignore_eos: false,
            stop: Vec::new(),
            truncate: None,
            top_n_tokens: None,
            logprobs: None,
            priority: None,
            cache_salt: None,
            tenant: 0,
            deadline: None,
            unsupported: Vec::new(),
        }
    }
}

/// A draft whose parameters are in range; the prompt is still missing.
#[derive(Clone, Debug)]
pub struct Checked {
    names: FieldNames,
    limits: Limits,
    sampling: SamplingParams,
    max_new_tokens: Option<u32>,
    ignore_eos: bool,
    truncate: Option<usize>,
    logprobs: Option<LogprobParams>,
    scheduling: Scheduling,
    pub stop: Vec<String>,
}

/// Checks everything that can be checked without the prompt. `drawn_seed` is used where the client gave none.
pub fn check(draft: Draft, limits: &Limits, drawn_seed: u64) -> Result<Checked> {
    if let Some(field) = draft.unsupported.first() {
        return Err(ValidationError::not_supported(field));
    }
    let temperature = above_zero("temperature", draft.temperature)?;
    let repetition_penalty = above_zero("repetition_penalty", draft.repetition_penalty)?;
    let frequency_penalty = penalty("frequency_penalty", draft.frequency_penalty)?;
    let presence_penalty = penalty("presence_penalty", draft.presence_penalty)?;
    let top_p = share("top_p", draft.top_p)?;
    let typical_p = share("typical_p", draft.typical_p)?;
    let min_p = rules::min_p(draft.min_p)?;
    let top_k = count("top_k", draft.top_k)?;
    let logit_bias = rules::logit_bias(draft.logit_bias, limits.vocab_size)?;
    let names = draft.names;
    let max_new_tokens = count(names.max_new_tokens, draft.max_new_tokens)?;
    let min_new_tokens = rules::min_new_tokens(names, draft.min_new_tokens, max_new_tokens)?;
    rules::stop_strings(&draft.stop, limits.max_stop_sequences)?;
    let truncate = rules::truncate(draft.truncate, limits.max_input_tokens)?;
    let num_top = rules::top_n_tokens(
        names.top_n_tokens,
        draft.top_n_tokens,
        limits.max_top_n_tokens,
    )?;
    let logprobs = match draft.logprobs {
        Some(raw) => Some(LogprobParams { raw, num_top }),
        None if num_top > 0 => Some(LogprobParams {
            raw: false,
            num_top,
        }),
        None => None,
    };
    let cache_salt = rules::cache_salt(draft.cache_salt.as_deref())?;
    let scheduling = Scheduling {
        class: rules::class(draft.priority)?,
        tenant: draft.tenant,
        cache_salt: cache_salt.map_or(0, |salt| key(salt.as_bytes())),
        // Times are known when the request is submitted.
        queue_timeout: None,
        total_timeout: None,
    };
    Ok(Checked {
        names,
        limits: *limits,
        sampling: SamplingParams {
            do_sample: draft.do_sample,
            // The warpers mean nothing to the most likely token.
            temperature: temperature.filter(|_| draft.do_sample).unwrap_or(1.0),
            top_k: top_k.filter(|_| draft.do_sample).unwrap_or(0),
            top_p: top_p.filter(|_| draft.do_sample).unwrap_or(1.0),
            typical_p: typical_p.filter(|_| draft.do_sample).unwrap_or(1.0),
            min_p: min_p.filter(|_| draft.do_sample).unwrap_or(0.0),
            repetition_penalty: repetition_penalty.unwrap_or(1.0),
            frequency_penalty,
            presence_penalty,
            seed: draft.seed.unwrap_or(drawn_seed),
            fork: 0,
            logit_bias,
            min_new_tokens,
        },
        max_new_tokens,
        ignore_eos: draft.ignore_eos,
        truncate,
        logprobs,
        scheduling,
        stop: draft.stop,
    })
}

impl Checked {
    /// The prompt is not empty. Before tokenizing: special tokens would hide it.
    pub fn check_inputs(&self, is_empty: bool) -> Result<()> {
        let field = self.names.inputs;
        if is_empty {
            return Err(ValidationError::new(
                field,
                format!("`{field}` cannot be empty"),
            ));
        }
        Ok(())
    }

    /// Adds the prompt.
    pub fn with_prompt(
        self,
        id: RequestId,
        mut ids: Vec<u32>,
        eos_ids: &Arc<[u32]>,
    ) -> Result<Request> {
        self.check_inputs(ids.is_empty())?;
        let inputs = self.names.inputs;
        if let Some(unknown) = ids
            .iter()
            .find(|&&id| id as usize >= self.limits.vocab_size)
        {
            let size = self.limits.vocab_size;
            let message = format!("`{inputs}` token ids must be < {size}. Given: {unknown}");
            return Err(ValidationError::new(inputs, message));
        }
        if let Some(truncate) = self.truncate {
            ids.drain(..ids.len().saturating_sub(truncate));
        }
        let max_new_tokens = self.fit(ids.len())?;
        let known = |id: &u32| (*id as usize) < self.limits.vocab_size;
        Ok(Request {
            id,
            prompt_ids: ids.into(),
            sampling: self.sampling,
            max_new_tokens,
            stop_ids: if self.ignore_eos {
                Arc::default()
            } else if eos_ids.iter().all(known) {
                Arc::clone(eos_ids)
            } else {
                // Cannot be sampled, and the shard would refuse to ban it.
                eos_ids.iter().copied().filter(known).collect()
            },
            logprobs: self.logprobs,
            scheduling: self.scheduling,
        })
    }

    /// How many tokens may be generated after a prompt of `num_input`.
    fn fit(&self, num_input: usize) -> Result<u32> {
        let (inputs, max_new_tokens) = (self.names.inputs, self.names.max_new_tokens);
        let Limits {
            max_total_tokens,
            max_input_tokens,
            ..
        } = self.limits;
        if let Some(num_new) = self.max_new_tokens
            && num_input + num_new as usize > max_total_tokens
        {
            let message = format!(
                "`{inputs}` tokens + `{max_new_tokens}` must be <= {max_total_tokens}. Given: {num_input} `{inputs}` \
                 tokens and {num_new} `{max_new_tokens}`"
            );
            // The prompt alone may be at fault; then a smaller answer would not help.
            let too_long = num_input > max_input_tokens;
            return Err(ValidationError::new(
                if too_long { inputs } else { max_new_tokens },
                message,
            ));
        }
        if num_input > max_input_tokens {
            let message =
                format!("`{inputs}` must have <= {max_input_tokens} tokens. Given: {num_input}");
            return Err(ValidationError::new(inputs, message));
        }
        let room = u32::try_from(max_total_tokens - num_input).unwrap_or(u32::MAX);
        Ok(self.max_new_tokens.unwrap_or(room))
    }

    /// The seed that the request runs with, if it draws at all.
    pub fn seed(&self) -> Option<u64> {
        self.sampling.do_sample.then_some(self.sampling.seed)
    }
}

#[cfg(test)]
#[path = "validation_tests.rs"]
mod tests;
