//! How native answers and stream events look.

use serde::Serialize;

use crate::api::generate::Answer;
use crate::api::record::reason_name;
use crate::api::respond::ErrorStyle;
use crate::api::sse::{Encoder, Frames};
use crate::error::{ApiError, ErrorKind};
use crate::event::{Event, Finished, Token};

/// What the answer should hold.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) details: bool,
    /// Put before the generated text, if asked for.
    pub(super) prompt: Option<String>,
}

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
    };
    Body {
        generated_text: full_text(shape, &answer.text),
        details: shape.details.then_some(details),
    }
}

fn full_text(shape: &Shape, text: &str) -> String {
    match &shape.prompt {
        Some(prompt) => format!("{prompt}{text}"),
        None => text.to_owned(),
    }
}

/// One event per token; the last one carries the whole text.
#[derive(Debug)]
pub(super) struct NativeStream {
    shape: Shape,
    seed: Option<u64>,
    input_length: u32,
    index: u32,
    text: String,
}

#[derive(Debug, Serialize)]
struct StreamEvent<'a> {
    index: u32,
    token: NativeToken<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<NativeToken<'a>>,
    generated_text: Option<String>,
    details: Option<StreamDetails>,
}

#[derive(Debug, Serialize)]
struct StreamDetails {
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    input_length: u32,
}

impl NativeStream {
    pub(super) fn new(shape: Shape, seed: Option<u64>, input_length: u32) -> Self {
        Self {
            shape,
            seed,
            input_length,
            index: 0,
            text: String::new(),
        }
    }

    fn token(&mut self, mut token: Token, end: Option<Finished>, out: &mut Frames) {
        self.index += 1;
        if let (Some(end), false) = (&end, token.special) {
            token.text.push_str(&end.tail);
        }
        if !token.special {
            self.text.push_str(&token.text);
        }
        let details = end.as_ref().map(|end| StreamDetails {
            finish_reason: reason_name(end.reason),
            generated_tokens: end.usage.generated_tokens,
            seed: self.seed,
            input_length: self.input_length,
        });
        out.json(&StreamEvent {
            index: self.index,
            token: NativeToken::from(&token),
            top_tokens: top_tokens(&token),
            generated_text: end.map(|end| {
                let tail = if token.special { end.tail.as_str() } else { "" };
                full_text(&self.shape, &self.text) + tail
            }),
            details: details.filter(|_| self.shape.details),
        });
    }
}

impl Encoder for NativeStream {
    fn events(&mut self, _index: usize, events: Vec<Event>, out: &mut Frames) {
        let mut events = events.into_iter().peekable();
        while let Some(event) = events.next() {
            // The end comes together with the last token: the text workers see to that.
            if let Event::Token(token) = event {
                let end = events.next_if(|next| matches!(next, Event::Finished(_)));
                let end = end.and_then(|end| match end {
                    Event::Finished(finished) => Some(finished),
                    Event::Token(_) | Event::Failed(_) => None,
                });
                self.token(token, end, out);
            }
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
