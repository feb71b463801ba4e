//! `POST /v1/chat/completions`.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::logprobs::ChatLogprobs;
use super::sampling::Sampling;
use super::{Envelope, OpenAiUsage, check_model, error_event, error_response, finish_reason};
use crate::api::AppState;
use crate::api::body::JsonBody;
use crate::api::generate::{Answer, Prompt, Running, Streams};
use crate::api::record::Record;
use crate::api::respond::json_response;
use crate::api::sse::{Encoder, Frames, stream_response};
use crate::api::tgi::{compute_headers, timing_headers};
use crate::error::{ApiError, ErrorKind};
use crate::event::{Event, Finished, Token};
use crate::text::TextStyle;
use crate::validation::{Draft, FieldNames, ValidationError};

const NAMES: FieldNames = FieldNames {
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
struct Wanted {
    streams: bool,
    usage: bool,
    logprobs: bool,
}

pub(in crate::api) async fn handle(State(app): State<AppState>, request: Request) -> Response {
    let mut record = Record::new(&app.metrics, "/v1/chat/completions");
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
    app.ready()?;
    let body = app.read_body(request).await?;
    let sampling: Sampling = body.parse()?;
    check_model(app, sampling.model.as_deref())?;
    let (messages, draft, wanted) = lower(&body, sampling)?;
    let permit = app.generator.permits(1)?.remove(0);
    let running = app
        .start(
            permit,
            Prompt::Chat(messages),
            draft,
            TextStyle::OpenAi,
            record,
        )
        .await?;
    Ok((running, wanted))
}

fn lower(body: &JsonBody, sampling: Sampling) -> Result<(Vec<Value>, Draft, Wanted), ApiError> {
    let chat: ChatRequest = body.parse()?;
    let wanted = Wanted {
        streams: sampling.streams(),
        usage: sampling.includes_usage(),
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
    Ok((messages(chat.messages)?, draft, wanted))
}

/// Checks each message and joins text parts; everything else in it is for the template.
fn messages(messages: Vec<Map<String, Value>>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        let message = "`messages` must have >= 1 message. Given: 0".to_owned();
        return Err(ValidationError::new("messages", message).into());
    }
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, mut message)| {
            let at = |field: &str| format!("messages[{index}].{field}");
            if !message.get("role").is_some_and(Value::is_string) {
                return Err(wrong(&at("role"), "a string", message.get("role")));
            }
            let has_calls = message
                .get("tool_calls")
                .is_some_and(|calls| !calls.is_null());
            let content = match message.remove("content") {
                Some(Value::String(text)) => text,
                Some(Value::Array(parts)) => join_parts(&parts, &at("content"))?,
                // An assistant that only called tools. Many templates raise on null.
                None | Some(Value::Null) if has_calls => String::new(),
                other => {
                    return Err(wrong(
                        &at("content"),
                        "a string or a list of parts",
                        other.as_ref(),
                    ));
                }
            };
            message.insert("content".to_owned(), content.into());
            Ok(Value::Object(message))
        });
    messages.collect()
}

fn join_parts(parts: &[Value], at: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(part)) => text.push_str(part),
            (Some("text"), None) => {
                return Err(wrong(
                    &format!("{at}[{index}].text"),
                    "a string",
                    part.get("text"),
                ));
            }
            (Some(kind), _) => {
                let field = format!("{at}[{index}]");
                let kind: String = kind.chars().take(50).collect();
                let message = format!("`{field}`: parts of type `{kind}` are not supported yet");
                return Err(ValidationError::new(&field, message).into());
            }
            (None, _) => {
                return Err(wrong(
                    &format!("{at}[{index}].type"),
                    "a string",
                    part.get("type"),
                ));
            }
        }
    }
    Ok(text)
}

fn wrong(field: &str, expected: &str, given: Option<&Value>) -> ApiError {
    let given = match given {
        None => "nothing",
        Some(Value::Null) => "null",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a string",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    };
    let message = format!("Input validation error: `{field}` must be {expected}. Given: {given}");
    ApiError::new(ErrorKind::WrongType, message).with_param(field)
}

#[derive(Debug, Serialize)]
struct Completion {
    #[serde(flatten)]
    envelope: Envelope,
    choices: [Choice; 1],
    usage: OpenAiUsage,
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
    let mut usage = OpenAiUsage::default();
    usage.add(finished.usage);
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
        usage,
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
        wants_usage: wanted.usage,
        usage: OpenAiUsage::default(),
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
    wants_usage: bool,
    usage: OpenAiUsage,
    begun: bool,
}

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    envelope: &'a Envelope,
    choices: Vec<ChunkChoice>,
    usage: Option<OpenAiUsage>,
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
        let mut content: String = tokens.iter().map(|token| token.text.as_str()).collect();
        if let Some(end) = end {
            content.push_str(&end.tail);
        }
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
        });
    }
}

impl Encoder for ChatStream {
    fn events(&mut self, _index: usize, events: Vec<Event>, out: &mut Frames) {
        let mut tokens = Vec::with_capacity(events.len());
        let mut end = None;
        for event in events {
            match event {
                Event::Token(token) => tokens.push(token),
                Event::Finished(finished) => end = Some(finished),
                Event::Failed(_) => {}
            }
        }
        if let Some(end) = &end {
            self.usage.add(end.usage);
        }
        self.chunk(&tokens, end.as_ref(), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Frames) {
        error_event(error, out);
    }

    fn end(&mut self, out: &mut Frames) {
        if self.wants_usage {
            out.json(&Chunk {
                envelope: &self.envelope,
                choices: Vec::new(),
                usage: Some(self.usage),
            });
        }
        out.done();
    }
}
