//! How native answers and stream events look.

use serde::Serialize;

use crate::api::course::SchedulingDetails;
use crate::api::generate::Answer;
use crate::api::native::{self, End, Item, Items, Shape};
use crate::api::record::reason_name;
use crate::api::respond::ErrorStyle;
use crate::api::sse::{Encoder, Frames};
use crate::error::{ApiError, ErrorKind};
use crate::event::{Course, Event, Token};

#[derive(Debug, Serialize)]
struct NativeToken<'a> {
    id: u32,
    text: &'a str,
    logprob: Option<f32>,
    special: bool,
}

impl<'a> From<&'a Token> for NativeToken<'a> {
    fn from(token: &'a Token) -> Self {
        Self {
            id: token.id,
            text: &token.text,
            logprob: token.logprob,
            special: token.special,
        }
    }
}

fn top_tokens(token: &Token) -> Vec<NativeToken<'_>> {
    token
        .top
        .iter()
        .map(|candidate| NativeToken {
            id: candidate.id,
            text: &candidate.text,
            logprob: Some(candidate.logprob),
            special: candidate.special,
        })
        .collect()
}

#[derive(Debug, Serialize)]
pub(super) struct Body<'a> {
    generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
}

#[derive(Debug, Serialize)]
struct Details<'a> {
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    /// Log-probabilities of the prompt: always empty, as in TGI without its flag for them.
    prefill: [(); 0],
    tokens: Vec<NativeToken<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<Vec<NativeToken<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling: Option<SchedulingDetails>,
}

fn scheduling(details: native::Details, course: Course) -> Option<SchedulingDetails> {
    (details == native::Details::WithScheduling).then(|| course.into())
}

pub(super) fn body<'a>(answer: &'a Answer, shape: &Shape, seed: Option<u64>) -> Body<'a> {
    let has_top = answer.tokens.iter().any(|token| !token.top.is_empty());
    let top_tokens = has_top.then(|| answer.tokens.iter().map(top_tokens).collect());
    let details = Details {
        finish_reason: reason_name(answer.finished.reason),
        generated_tokens: answer.finished.usage.generated_tokens,
        seed,
        prefill: [],
        tokens: answer.tokens.iter().map(NativeToken::from).collect(),
        top_tokens: top_tokens.unwrap_or_default(),
        scheduling: scheduling(shape.details, answer.finished.course),
    };
    Body {
        generated_text: shape.full_text(&answer.text),
        details: (shape.details != native::Details::None).then_some(details),
    }
}

/// One event per token; the last one carries the whole text.
#[derive(Debug)]
pub(super) struct NativeStream {
    items: Items,
}

#[derive(Debug, Serialize)]
struct StreamEvent<'a> {
    index: u32,
    token: NativeToken<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<NativeToken<'a>>,
    generated_text: Option<&'a str>,
    details: Option<StreamDetails>,
}

#[derive(Debug, Serialize)]
struct StreamDetails {
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    input_length: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling: Option<SchedulingDetails>,
}

impl From<&End> for StreamDetails {
    fn from(end: &End) -> Self {
        Self {
            finish_reason: reason_name(end.finished.reason),
            generated_tokens: end.finished.usage.generated_tokens,
            seed: end.seed,
            input_length: end.input_length,
            scheduling: scheduling(end.details, end.finished.course),
        }
    }
}

impl NativeStream {
    pub(super) fn new(shape: Shape, seed: Option<u64>, input_length: u32) -> Self {
        Self {
            items: Items::new(shape, seed, input_length),
        }
    }
}

impl Encoder for NativeStream {
    fn events(&mut self, _index: usize, events: Vec<Event>, out: &mut Frames) {
        for Item { index, token, end } in self.items.take(events) {
            let end = end.as_ref();
            out.json(&StreamEvent {
                index,
                token: NativeToken::from(&token),
                top_tokens: top_tokens(&token),
                generated_text: end.map(|end| end.generated_text.as_str()),
                details: end
                    .filter(|end| end.details != native::Details::None)
                    .map(StreamDetails::from),
            });
        }
    }

    fn error(&mut self, error: &ApiError, out: &mut Frames) {
        let mut body = ErrorStyle::Native.body(error);
        if error.kind == ErrorKind::Incomplete {
            body["error_type"] = "incomplete_generation_stream".into();
        }
        out.json(&body);
    }

    fn end(&mut self, _out: &mut Frames) {}
}
