//! The fields that chat and completions share, with what they mean for a draft.

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::WantedTotals;
use crate::error::ApiError;
use crate::validation::{Draft, FieldNames, ValidationError};

/// `stop`: a string or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
}

/// Read from the same body as the dialect's own fields. Below the line: not OpenAI's, but of many servers.
#[derive(Debug, Deserialize)]
pub(super) struct Sampling {
    pub(super) model: Option<String>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    seed: Option<u64>,
    stop: Option<Stop>,
    logit_bias: Option<IndexMap<String, f64>>,
    n: Option<i64>,
    // ---
    top_k: Option<i64>,
    min_p: Option<f64>,
    typical_p: Option<f64>,
    repetition_penalty: Option<f64>,
    min_tokens: Option<i64>,
    ignore_eos: Option<bool>,
    grammar: Option<IgnoredAny>,
    priority: Option<i64>,
    cache_salt: Option<String>,
    scheduling_details: Option<bool>,
    /// Of the header.
    #[serde(skip)]
    pub(super) tenant: u64,
}

impl Sampling {
    pub(super) fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// What is wanted at the end of the answer.
    pub(super) fn totals(&self) -> WantedTotals {
        let options = self.stream_options.as_ref();
        WantedTotals {
            usage: options.is_some_and(|options| options.include_usage == Some(true)),
            scheduling: self.scheduling_details == Some(true),
        }
    }

    /// A draft without what only the dialect knows: length and log-probabilities.
    pub(super) fn lower(self, names: FieldNames) -> Result<Draft, ApiError> {
        if let Some(n) = self.n
            && n < 1
        {
            let message = format!("`n` must be strictly positive (>= 1). Given: {n}");
            return Err(ValidationError::new("n", message).into());
        }
        let mut unsupported = Vec::new();
        if self.n.is_some_and(|n| n > 1) {
            unsupported.push("n");
        }
        if self.grammar.is_some() {
            unsupported.push("grammar");
        }
        // Exactly 0 is the most likely token, whatever the other parameters say.
        let greedy = self.temperature == Some(0.0);
        Ok(Draft {
            do_sample: !greedy,
            temperature: self.temperature.filter(|_| !greedy),
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            top_k: self.top_k,
            top_p: self.top_p,
            typical_p: self.typical_p,
            min_p: self.min_p,
            seed: self.seed,
            logit_bias: self.logit_bias.unwrap_or_default().into_iter().collect(),
            min_new_tokens: self.min_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stop: match self.stop {
                None => Vec::new(),
                Some(Stop::One(stop)) => vec![stop],
                Some(Stop::Many(stop)) => stop,
            },
            priority: self.priority,
            cache_salt: self.cache_salt,
            tenant: self.tenant,
            unsupported,
            ..Draft::new(names)
        })
    }
}
