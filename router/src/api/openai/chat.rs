//! `POST /v1/chat/completions`.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::logprobs::ChatLogprobs;
use super::messages::check_messages;
use super::sampling::Sampling;
use super::{
    Envelope, OpenAiUsage, Totals, WantedTotals, error_event, error_response, finish_reason, read,
    split, text_of,
};
use crate::api::AppState;
use crate::api::body::JsonBody;
use crate::api::course::SchedulingDetails;
use crate::api::generate::{Answer, Prompt, Running, Streams, admitted};
use crate::api::headers::{compute_headers, timing_headers};
use crate::api::record::Record;
use crate::api::respond::json_response;
use crate::api::sse::{Encoder, Frames, stream_response};
use crate::error::ApiError;
use crate::event::{Event, Finished, Token};
use crate::text::TextStyle;
use crate::validation::{Draft, FieldNames, ValidationError};

pub(super) const NAMES: FieldNames = FieldNames {
    inputs: "messages",
    max_new_tokens: "max_tokens",
    min_new_tokens: "min_tokens",
    top_n_tokens: "top_logprobs",
};

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Map<String, Value>>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    tools: Option<Vec<IgnoredAny>>,
    tool_choice: Option<Value>,
    response_format: Option<Value>,
}

/// What the answer needs beside the draft.
#[derive(Debug)]
pub(super) struct Wanted {
    streams: bool,
    totals: WantedTotals,
    logprobs: bool,
}

pub(in crate::api) async fn handle(State(app): State<AppState>, request: Request) -> Response {
    serve(app, request, "/v1/chat/completions").await
}

/// `route` is how the log names the request.
pub(in crate::api) async fn serve(
    app: AppState,
    request: Request,
    route: &'static str,
) -> Response {
    let mut record = Record::new(&app.metrics, route);
    match answer(&app, request, &mut record).await {
        Ok((running, wanted)) if wanted.streams => stream(&app, running, &wanted, record),
        Ok((running, wanted)) => match whole(&app, running, &wanted, &mut record).await {
            Ok(response) => response,
            Err(error) => error_response(&error, &mut record),
        },
        Err(error) => error_response(&error, &mut record),
    }
}

async fn answer(
    app: &AppState,
    request: Request,
    record: &mut Record,
) -> Result<(Running, Wanted), ApiError> {
    let (body, sampling) = read(app, request).await?;
    let (messages, draft, wanted) = lower(&body, sampling)?;
    let permit = app.generator.permits(1)?.remove(0);
    let mut running = app
        .start(
            permit,
            Prompt::Chat(messages),
            draft,
            TextStyle::OpenAi,
            record,
        )
        .await?;
    admitted([&mut running]).await?;
    Ok((running, wanted))
}

pub(super) fn lower(
    body: &JsonBody,
    sampling: Sampling,
) -> Result<(Vec<Value>, Draft, Wanted), ApiError> {
    let chat: ChatRequest = body.parse()?;
    let wanted = Wanted {
        streams: sampling.streams(),
        totals: sampling.totals(),
        logprobs: chat.logprobs == Some(true),
    };
    let mut draft = sampling.lower(NAMES)?;
    draft.max_new_tokens = match (chat.max_tokens, chat.max_completion_tokens) {
        (Some(_), Some(_)) => {
            let field = "max_completion_tokens";
            let message = format!("`{field}` and `max_tokens` mean the same: give one of them");
            return Err(ValidationError::new(field, message).into());
        }
        (None, Some(max)) => {
            draft.names.max_new_tokens = "max_completion_tokens";
            Some(max)
        }
        (max, None) => max,
    };
    if chat.top_logprobs.is_some_and(|top| top != 0) && !wanted.logprobs {
        let message = "`top_logprobs` needs `logprobs`: true".to_owned();
        return Err(ValidationError::new("top_logprobs", message).into());
    }
    draft.top_n_tokens = chat.top_logprobs;
    draft.logprobs = wanted.logprobs.then_some(true);
    let forbids_tools = chat
        .tool_choice
        .as_ref()
        .is_some_and(|choice| choice == "none");
    if chat.tools.is_some_and(|tools| !tools.is_empty()) && !forbids_tools {
        draft.unsupported.push("tools");
    }
    let format = chat.response_format.unwrap_or_default();
    if !format.is_null() && format["type"] != "text" {
        draft.unsupported.push("response_format");
    }
    Ok((check_messages(chat.messages)?, draft, wanted))
}

#[derive(Debug, Serialize)]
struct Completion {
    #[serde(flatten)]
    envelope: Envelope,
    choices: [Choice; 1],
    usage: OpenAiUsage,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling: Option<SchedulingDetails>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: u32,
    message: Value,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

async fn whole(
    app: &AppState,
    running: Running,
    wanted: &Wanted,
    record: &mut Record,
) -> Result<Response, ApiError> {
    let num_characters = running.num_characters;
    let Answer {
        tokens,
        text,
        finished,
    } = running.collect(record).await?;
    let mut totals = Totals::default();
    totals.add(&finished);
    let vocabulary = &app.model.vocabulary;
    let completion = Completion {
        envelope: Envelope::new(app, "chatcmpl", "chat.completion"),
        choices: [Choice {
            index: 0,
            message: json!({"role": "assistant", "content": text}),
            logprobs: wanted
                .logprobs
                .then(|| ChatLogprobs::new(&tokens, vocabulary)),
            finish_reason: finish_reason(finished.reason),
        }],
        usage: totals.usage,
        scheduling: wanted.totals.scheduling_of(&totals),
    };
    let mut response = json_response(StatusCode::OK, &completion);
    timing_headers(
        response.headers_mut(),
        &app.compute_type(),
        num_characters,
        record,
    );
    Ok(response)
}

fn stream(app: &AppState, running: Running, wanted: &Wanted, record: Record) -> Response {
    let encoder = ChatStream {
        app: AppState::clone(app),
        envelope: Envelope::new(app, "chatcmpl", "chat.completion.chunk"),
        wants_logprobs: wanted.logprobs,
        wanted: wanted.totals,
        totals: Totals::default(),
        begun: false,
    };
    let num_characters = running.num_characters;
    let mut response = stream_response(Streams::new([running.generation]), encoder, record);
    compute_headers(response.headers_mut(), &app.compute_type(), num_characters);
    response
}

/// Tokens that arrive together share a chunk.
#[derive(Debug)]
struct ChatStream {
    app: AppState,
    envelope: Envelope,
    wants_logprobs: bool,
    wanted: WantedTotals,
    totals: Totals,
    begun: bool,
}

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    envelope: &'a Envelope,
    choices: Vec<ChunkChoice>,
    usage: Option<OpenAiUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling: Option<SchedulingDetails>,
}

#[derive(Debug, Serialize)]
struct ChunkChoice {
    index: u32,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

/// The role is in every chunk: Hugging Face's client requires it.
#[derive(Debug, Serialize)]
struct Delta {
    role: &'static str,
    content: String,
}

impl ChatStream {
    fn chunk(&mut self, tokens: &[Token], end: Option<&Finished>, out: &mut Frames) {
        let content = text_of(tokens, end);
        // A first chunk goes out even without text: the client sees that its answer has begun.
        let is_empty = content.is_empty() && (!self.wants_logprobs || tokens.is_empty());
        if is_empty && end.is_none() && self.begun {
            return;
        }
        self.begun = true;
        let vocabulary = &self.app.model.vocabulary;
        out.json(&Chunk {
            envelope: &self.envelope,
            choices: vec![ChunkChoice {
                index: 0,
                delta: Delta {
                    role: "assistant",
                    content,
                },
                logprobs: self
                    .wants_logprobs
                    .then(|| ChatLogprobs::new(tokens, vocabulary)),
                finish_reason: end.map(|end| finish_reason(end.reason)),
            }],
            usage: None,
            scheduling: None,
        });
    }
}

impl Encoder for ChatStream {
    fn events(&mut self, _index: usize, events: Vec<Event>, out: &mut Frames) {
        let (tokens, end) = split(events);
        if let Some(end) = &end {
            self.totals.add(end);
        }
        self.chunk(&tokens, end.as_ref(), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Frames) {
        error_event(error, out);
    }

    fn end(&mut self, out: &mut Frames) {
        if self.wanted.any() {
            out.json(&Chunk {
                envelope: &self.envelope,
                choices: Vec::new(),
                usage: self.wanted.usage_of(&self.totals),
                scheduling: self.wanted.scheduling_of(&self.totals),
            });
        }
        out.done();
    }
}
