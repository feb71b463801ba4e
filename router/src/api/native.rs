//! What the native routes and the gRPC service share: parameters, the way into the engine, and what a stream says.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::AppState;
use super::generate::{Prompt, Running};
use super::record::Record;
use crate::error::ApiError;
use crate::event::{Event, Finished, Token};
use crate::text::TextStyle;
use crate::validation::{Draft, NATIVE_NAMES};

/// Integers are wide so that a negative one meets the rule for its range, not an error about types.
#[derive(Debug, Deserialize)]
pub(super) struct Parameters {
    pub(super) best_of: Option<i64>,
    pub(super) temperature: Option<f64>,
    pub(super) repetition_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) top_p: Option<f64>,
    pub(super) typical_p: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) do_sample: Option<bool>,
    pub(super) max_new_tokens: Option<i64>,
    pub(super) min_new_tokens: Option<i64>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) return_full_text: Option<bool>,
    pub(super) stop: Option<Vec<String>>,
    pub(super) truncate: Option<i64>,
    pub(super) watermark: Option<bool>,
    pub(super) details: Option<bool>,
    pub(super) decoder_input_details: Option<bool>,
    pub(super) seed: Option<u64>,
    pub(super) top_n_tokens: Option<i64>,
    pub(super) logit_bias: Option<indexmap::IndexMap<String, f64>>,
    pub(super) priority: Option<i64>,
    pub(super) cache_salt: Option<String>,
    pub(super) scheduling_details: Option<bool>,
    pub(super) grammar: Option<IgnoredAny>,
    pub(super) adapter_id: Option<IgnoredAny>,
}

/// What is told beside the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Details {
    None,
    /// TGI's.
    Plain,
    /// With what the scheduler did.
    WithScheduling,
}

/// Parameters as the engine side and the answer side need them.
#[derive(Debug)]
pub(super) struct Lowered {
    pub(super) draft: Draft,
    pub(super) details: Details,
    pub(super) return_full_text: Option<bool>,
}

/// Without parameters TGI samples; with parameters that say nothing it does not.
pub(super) fn lower(parameters: Option<Parameters>, streams: bool) -> Lowered {
    let mut lowered = match parameters {
        Some(parameters) => parameters.lower(),
        None => {
            let mut draft = Draft::new(NATIVE_NAMES);
            draft.do_sample = true;
            Lowered {
                draft,
                details: Details::None,
                return_full_text: None,
            }
        }
    };
    if streams || lowered.details != Details::None {
        lowered.draft.logprobs = Some(false);
    }
    lowered
}

impl Parameters {
    fn lower(self) -> Lowered {
        let wanted = [
            ("best_of", self.best_of.is_some_and(|best_of| best_of != 1)),
            ("watermark", self.watermark == Some(true)),
            (
                "decoder_input_details",
                self.decoder_input_details == Some(true),
            ),
            ("grammar", self.grammar.is_some()),
            ("adapter_id", self.adapter_id.is_some()),
        ];
        let unsupported = wanted.iter().filter(|(_, wanted)| *wanted);
        let warps = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.typical_p.is_some()
            || self.min_p.is_some();
        let draft = Draft {
            names: NATIVE_NAMES,
            do_sample: self.do_sample.unwrap_or(false) || warps,
            temperature: self.temperature,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            top_k: self.top_k,
            top_p: self.top_p,
            typical_p: self.typical_p,
            min_p: self.min_p,
            seed: self.seed,
            logit_bias: self.logit_bias.unwrap_or_default().into_iter().collect(),
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stop: self.stop.unwrap_or_default(),
            truncate: self.truncate,
            top_n_tokens: self.top_n_tokens,
            logprobs: None,
            priority: self.priority,
            cache_salt: self.cache_salt,
            // Not of the body.
            tenant: 0,
            deadline: None,
            unsupported: unsupported.map(|(field, _)| *field).collect(),
        };
        Lowered {
            draft,
            details: match (self.scheduling_details, self.details) {
                (Some(true), _) => Details::WithScheduling,
                (_, Some(true)) => Details::Plain,
                _ => Details::None,
            },
            return_full_text: self.return_full_text,
        }
    }
}

/// Takes a place, checks, tokenizes and submits.
pub(super) async fn start(
    app: &AppState,
    inputs: String,
    draft: Draft,
    record: &mut Record,
) -> Result<Running, ApiError> {
    let permit = app.generator.permits(1)?.remove(0);
    let prompt = Prompt::Text(inputs);
    app.start(permit, prompt, draft, TextStyle::Native, record)
        .await
}

/// What the answer should hold.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) details: Details,
    /// Put before the generated text, if asked for.
    pub(super) prompt: Option<String>,
}

impl Shape {
    pub(super) fn full_text(&self, text: &str) -> String {
        match &self.prompt {
            Some(prompt) => format!("{prompt}{text}"),
            None => text.to_owned(),
        }
    }
}

/// One item per token; the last one carries the whole text.
#[derive(Debug)]
pub(super) struct Items {
    shape: Shape,
    seed: Option<u64>,
    input_length: u32,
    index: u32,
    text: String,
}

/// A token of a stream.
#[derive(Debug)]
pub(super) struct Item {
    /// From 1.
    pub(super) index: u32,
    pub(super) token: Token,
    pub(super) end: Option<End>,
}

/// What the last token carries.
#[derive(Debug)]
pub(super) struct End {
    pub(super) generated_text: String,
    pub(super) finished: Finished,
    pub(super) details: Details,
    pub(super) seed: Option<u64>,
    pub(super) input_length: u32,
}

impl Items {
    pub(super) fn new(shape: Shape, seed: Option<u64>, input_length: u32) -> Self {
        Self {
            shape,
            seed,
            input_length,
            index: 0,
            text: String::new(),
        }
    }

    /// The tokens among these events.
    pub(super) fn take(&mut self, events: Vec<Event>) -> impl Iterator<Item = Item> {
        let mut events = events.into_iter().peekable();
        std::iter::from_fn(move || {
            loop {
                // The end comes together with the last token: the text workers see to that.
                if let Event::Token(token) = events.next()? {
                    let end = events.next_if(|next| matches!(next, Event::Finished(_)));
                    let end = end.and_then(|end| match end {
                        Event::Finished(finished) => Some(finished),
                        Event::Token(_) | Event::Failed(_) => None,
                    });
                    return Some(self.item(token, end));
                }
            }
        })
    }

    fn item(&mut self, mut token: Token, end: Option<Finished>) -> Item {
        self.index += 1;
        if let (Some(end), false) = (&end, token.special) {
            token.text.push_str(&end.tail);
        }
        if !token.special {
            self.text.push_str(&token.text);
        }
        let end = end.map(|finished| {
            let tail = if token.special {
                finished.tail.as_str()
            } else {
                ""
            };
            End {
                generated_text: self.shape.full_text(&self.text) + tail,
                finished,
                details: self.shape.details,
                seed: self.seed,
                input_length: self.input_length,
            }
        });
        Item {
            index: self.index,
            token,
            end,
        }
    }
}
