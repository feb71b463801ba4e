//! TGI's native dialect: `POST /`, `/generate`, `/generate_stream`.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::generate::{Answer, Prompt, Running, Streams};
use super::record::{Record, reason_name};
use super::respond::{ErrorStyle, json_response};
use super::sse::{Encoder, Frames, error_response, stream_response};
use super::{App, AppState};
use crate::error::{ApiError, ErrorKind};
use crate::event::{Event, Finished, Token};
use crate::text::TextStyle;
use crate::validation::{Draft, NATIVE_NAMES};

#[derive(Debug, Deserialize)]
struct GenerateRequest {
    inputs: String,
    parameters: Option<Parameters>,
    #[serde(default)]
    stream: bool,
}

/// Integers are wide so that a negative one meets the rule for its range, not an error about types.
#[derive(Debug, Deserialize)]
struct Parameters {
    best_of: Option<i64>,
    temperature: Option<f64>,
    repetition_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    top_k: Option<i64>,
    top_p: Option<f64>,
    typical_p: Option<f64>,
    min_p: Option<f64>,
    do_sample: Option<bool>,
    max_new_tokens: Option<i64>,
    min_new_tokens: Option<i64>,
    ignore_eos: Option<bool>,
    return_full_text: Option<bool>,
    stop: Option<Vec<String>>,
    truncate: Option<i64>,
    watermark: Option<bool>,
    details: Option<bool>,
    decoder_input_details: Option<bool>,
    seed: Option<u64>,
    top_n_tokens: Option<i64>,
    logit_bias: Option<indexmap::IndexMap<String, f64>>,
    grammar: Option<IgnoredAny>,
    adapter_id: Option<IgnoredAny>,
}

/// What the answer should hold.
#[derive(Clone, Debug)]
struct Shape {
    details: bool,
    /// Put before the generated text, if asked for.
    prompt: Option<String>,
}

/// Which of the three routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Generate,
    Stream,
    /// `/` in TGI's old form: a list of one answer, the prompt included unless refused.
    Compat,
}

impl GenerateRequest {
    fn lower(self, route: Route) -> (String, Draft, Shape, bool) {
        let streams = match route {
            Route::Generate => false,
            Route::Stream => true,
            Route::Compat => self.stream,
        };
        // Without parameters TGI samples; with parameters that say nothing it does not.
        let (mut draft, details, return_full_text) = match self.parameters {
            Some(parameters) => parameters.lower(),
            None => {
                let mut draft = Draft::new(NATIVE_NAMES);
                draft.do_sample = true;
                (draft, false, None)
            }
        };
        if streams || details {
            draft.logprobs = Some(false);
        }
        let full = return_full_text.unwrap_or(route == Route::Compat);
        let shape = Shape {
            details,
            prompt: full.then(|| self.inputs.clone()),
        };
        (self.inputs, draft, shape, streams)
    }
}

impl Parameters {
    /// The draft, `details` and `return_full_text`.
    fn lower(self) -> (Draft, bool, Option<bool>) {
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
            unsupported: unsupported.map(|(field, _)| *field).collect(),
        };
        (draft, self.details.unwrap_or(false), self.return_full_text)
    }
}

pub(super) async fn generate(State(app): State<AppState>, request: Request) -> Response {
    handle(app, request, Route::Generate, "/generate").await
}

pub(super) async fn generate_stream(State(app): State<AppState>, request: Request) -> Response {
    handle(app, request, Route::Stream, "/generate_stream").await
}

pub(super) async fn compat(State(app): State<AppState>, request: Request) -> Response {
    handle(app, request, Route::Compat, "/").await
}

async fn handle(app: AppState, request: Request, route: Route, path: &'static str) -> Response {
    let mut record = Record::new(&app.metrics, path);
    let parsed = async {
        app.ready()?;
        app.read_body(request).await?.parse::<GenerateRequest>()
    };
    let error = match parsed.await {
        Ok(body) => {
            let (inputs, draft, shape, streams) = body.lower(route);
            let started = start(&app, inputs, draft, &mut record).await;
            match started {
                Ok(running) if streams => return stream(&app, running, shape, record),
                // Once the handler runs a stream has status 200, as TGI's clients expect.
                Err(error) if streams => {
                    record.failed(&error, 200);
                    return error_response(NativeStream::new(shape, None, 0), &error);
                }
                Ok(running) => match whole(&app, running, &shape, route, &mut record).await {
                    Ok(response) => return response,
                    Err(error) => error,
                },
                Err(error) => error,
            }
        }
        Err(error) => error,
    };
    let style = ErrorStyle::Native;
    record.failed(&error, style.status(&error).as_u16());
    style.response(&error)
}

async fn start(
    app: &AppState,
    inputs: String,
    draft: Draft,
    record: &mut Record,
) -> Result<Running, ApiError> {
    let permit = app.generator.permits(1)?.remove(0);
    app.start(
        permit,
        Prompt::Text(inputs),
        draft,
        TextStyle::Native,
        record,
    )
    .await
}

async fn whole(
    app: &App,
    running: Running,
    shape: &Shape,
    route: Route,
    record: &mut Record,
) -> Result<Response, ApiError> {
    let (num_characters, seed) = (running.num_characters, running.seed);
    let answer = running.collect(record).await?;
    let body = body(&answer, shape, seed);
    let mut response = match route {
        Route::Compat => json_response(StatusCode::OK, &[body]),
        Route::Generate | Route::Stream => json_response(StatusCode::OK, &body),
    };
    timing_headers(
        response.headers_mut(),
        &app.compute_type(),
        num_characters,
        record,
    );
    Ok(response)
}

fn stream(app: &App, running: Running, shape: Shape, record: Record) -> Response {
    let encoder = NativeStream::new(shape, running.seed, record.prompt_tokens);
    let streams = Streams::new([running.generation]);
    let mut response = stream_response(streams, encoder, record);
    compute_headers(
        response.headers_mut(),
        &app.compute_type(),
        running.num_characters,
    );
    response
}

/// On every answer, streamed or not.
pub(super) fn compute_headers(headers: &mut HeaderMap, compute_type: &str, num_characters: usize) {
    if let Ok(value) = HeaderValue::from_str(compute_type) {
        headers.insert(HeaderName::from_static("x-compute-type"), value);
    }
    headers.insert(
        HeaderName::from_static("x-compute-characters"),
        num_characters.into(),
    );
}

/// On answers that are whole: times in milliseconds, but `x-compute-time` in seconds.
pub(super) fn timing_headers(
    headers: &mut HeaderMap,
    compute_type: &str,
    num_characters: usize,
    record: &Record,
) {
    compute_headers(headers, compute_type, num_characters);
    let millis =
        |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let total = record.total();
    if let Ok(seconds) = HeaderValue::from_str(&total.as_secs_f64().to_string()) {
        headers.insert(HeaderName::from_static("x-compute-time"), seconds);
    }
    let numbers = [
        ("x-total-time", millis(total)),
        ("x-validation-time", millis(record.validation)),
        ("x-queue-time", millis(record.queue)),
        ("x-inference-time", millis(record.inference)),
        ("x-time-per-token", millis(record.time_per_token())),
        ("x-prompt-tokens", record.prompt_tokens.into()),
        ("x-generated-tokens", record.generated_tokens.into()),
    ];
    for (name, number) in numbers {
        headers.insert(HeaderName::from_static(name), number.into());
    }
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

/// Marks are not known for tokens that were only candidates; TGI shows them as not special.
fn top_tokens(token: &Token) -> Vec<NativeToken<'_>> {
    token
        .top
        .iter()
        .map(|(id, text, logprob)| NativeToken {
            id: *id,
            text,
            logprob: Some(*logprob),
            special: false,
        })
        .collect()
}

fn body(answer: &Answer, shape: &Shape, seed: Option<u64>) -> serde_json::Value {
    let mut body = json!({"generated_text": full_text(shape, &answer.text)});
    if shape.details {
        let tokens: Vec<NativeToken<'_>> = answer.tokens.iter().map(NativeToken::from).collect();
        body["details"] = json!({
            "finish_reason": reason_name(answer.finished.reason),
            "generated_tokens": answer.finished.usage.generated_tokens,
            "seed": seed,
            "prefill": [],
            "tokens": tokens,
        });
        if answer.tokens.iter().any(|token| !token.top.is_empty()) {
            let tops: Vec<_> = answer.tokens.iter().map(top_tokens).collect();
            body["details"]["top_tokens"] = json!(tops);
        }
    }
    body
}

fn full_text(shape: &Shape, text: &str) -> String {
    match &shape.prompt {
        Some(prompt) => format!("{prompt}{text}"),
        None => text.to_owned(),
    }
}

/// One event per token; the last one carries the whole text.
#[derive(Debug)]
struct NativeStream {
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
    fn new(shape: Shape, seed: Option<u64>, input_length: u32) -> Self {
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
