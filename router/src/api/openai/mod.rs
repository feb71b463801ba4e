//! The OpenAI dialect: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, and TGI's `/chat_tokenize`.

pub(super) mod chat;
pub(super) mod completions;
mod logprobs;
mod messages;
pub(super) mod models;
mod sampling;
pub(super) mod tokenize;

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::response::Response;
use serde::Serialize;

use self::sampling::Sampling;
use super::App;
use super::body::JsonBody;
use super::course::SchedulingDetails;
use super::record::Record;
use super::respond::ErrorStyle;
use super::sse::Frames;
use super::tenant::tenant;
use crate::error::{ApiError, ErrorKind};
use crate::event::{Course, Event, FinishReason, Finished, Token, Usage};

/// What every object of one answer repeats.
#[derive(Clone, Debug, Serialize)]
struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
}

impl Envelope {
    fn new(app: &App, prefix: &str, object: &'static str) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            id: format!("{prefix}-{:032x}", rand::random::<u128>()),
            object,
            created: now.as_secs(),
            model: app.names.served().to_owned(),
            system_fingerprint: concat!(env!("CARGO_PKG_VERSION"), "-native").to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct OpenAiUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct PromptTokensDetails {
    cached_tokens: u32,
}

/// What an answer's prompts took together.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    usage: OpenAiUsage,
    course: Course,
}

impl Totals {
    fn add(&mut self, finished: &Finished) {
        let Usage {
            prompt_tokens,
            generated_tokens,
        } = finished.usage;
        self.usage.prompt_tokens += prompt_tokens;
        self.usage.completion_tokens += generated_tokens;
        self.usage.total_tokens += prompt_tokens + generated_tokens;
        self.course.add(finished.course);
        self.usage.prompt_tokens_details.cached_tokens = self.course.cached_tokens;
    }
}

/// What the request wants of them.
#[derive(Clone, Copy, Debug)]
struct WantedTotals {
    /// In a stream; a whole answer always has it.
    usage: bool,
    scheduling: bool,
}

impl WantedTotals {
    /// A stream has a last chunk for them.
    fn any(self) -> bool {
        self.usage || self.scheduling
    }

    fn usage_of(self, totals: &Totals) -> Option<OpenAiUsage> {
        self.usage.then_some(totals.usage)
    }

    fn scheduling_of(self, totals: &Totals) -> Option<SchedulingDetails> {
        self.scheduling.then(|| totals.course.into())
    }
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfSequence | FinishReason::StopSequence => "stop",
    }
}

/// Whether this server serves what the request calls for.
fn check_model(app: &App, model: Option<&str>) -> Result<(), ApiError> {
    let Some(model) = model.filter(|model| !app.names.accept(model)) else {
        return Ok(());
    };
    let model: String = model.chars().take(200).collect();
    let served = app.names.served();
    let message = format!("the model `{model}` does not exist; `{served}` is served");
    Err(ApiError::new(ErrorKind::ModelNotFound, message).with_param("model"))
}

/// A body, with the fields that both routes have; those of its own a route parses from the same body.
async fn read(app: &App, request: Request) -> Result<(JsonBody, Sampling), ApiError> {
    app.ready()?;
    let tenant = tenant(request.headers());
    let body = app.read_body(request).await?;
    let mut sampling: Sampling = body.parse()?;
    sampling.tenant = tenant;
    check_model(app, sampling.model.as_deref())?;
    Ok((body, sampling))
}

/// What arrived together for one prompt, which becomes one chunk.
fn split(events: Vec<Event>) -> (Vec<Token>, Option<Finished>) {
    let mut tokens = Vec::with_capacity(events.len());
    let mut end = None;
    for event in events {
        match event {
            Event::Token(token) => tokens.push(token),
            Event::Finished(finished) => end = Some(finished),
            Event::Failed(_) => {}
        }
    }
    (tokens, end)
}

fn text_of(tokens: &[Token], end: Option<&Finished>) -> String {
    let tail = end.map(|end| end.tail.as_str());
    let texts = tokens.iter().map(|token| token.text.as_str());
    texts.chain(tail).collect()
}

fn error_response(error: &ApiError, record: &mut Record) -> Response {
    let style = ErrorStyle::OpenAi;
    record.failed(error, style.status(error).as_u16());
    style.response(error)
}

/// The last event of a stream that failed. `[DONE]` does not follow: some clients would take it for a good end.
fn error_event(error: &ApiError, out: &mut Frames) {
    out.json(&ErrorStyle::OpenAi.body(error));
}
