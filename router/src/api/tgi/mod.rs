//! TGI's native dialect: `POST /`, `/generate`, `/generate_stream`, `/tokenize`.

mod render;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde::de::IgnoredAny;

use self::render::{NativeStream, Shape, body};
use super::generate::{Prompt, Running, Streams, tokenizer_error};
use super::headers::{compute_headers, timing_headers};
use super::record::Record;
use super::respond::{ErrorStyle, json_response, json_text};
use super::sse::{error_response, stream_response};
use super::{App, AppState};
use crate::error::ApiError;
use crate::text::TextStyle;
use crate::tokenize::tokens;
use crate::validation::{Draft, NATIVE_NAMES};

#[derive(Debug, Deserialize)]
struct GenerateRequest {
    inputs: String,
    parameters: Option<Parameters>,
}

/// `stream` means something on `/` only.
#[derive(Debug, Deserialize)]
struct CompatRequest {
    stream: Option<bool>,
}

/// `/tokenize` takes the body of `/generate`, of which only the text counts.
#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    inputs: String,
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

/// Which of the three routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Generate,
    Stream,
    /// `/` in TGI's old form: a list of one answer, the prompt included unless refused.
    Compat,
}

impl GenerateRequest {
    fn lower(self, route: Route, streams: bool) -> (String, Draft, Shape) {
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
        (self.inputs, draft, shape)
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

/// The tokens of a text, with the tokenizer's special tokens: those of the prompt that `/generate` would make of it.
pub(super) async fn tokenize(State(app): State<AppState>, request: Request) -> Response {
    let answer = async {
        app.ready()?;
        let body = app.read_body(request).await?;
        let TokenizeRequest { inputs } = body.parse()?;
        let job = move |tokenizer: &tokenizers::Tokenizer| {
            let tokens = tokens(tokenizer, &inputs, true);
            let tokens = tokens.map_err(|error| tokenizer_error("inputs", &error))?;
            Ok::<_, ApiError>(json_text(&tokens))
        };
        let json = app.tokenizers.run(job).await??;
        drop(body);
        app.answers.respond(json)
    };
    answer
        .await
        .unwrap_or_else(|error: ApiError| ErrorStyle::Native.response(&error))
}

async fn handle(app: AppState, request: Request, route: Route, path: &'static str) -> Response {
    let mut record = Record::new(&app.metrics, path);
    let parsed = async {
        app.ready()?;
        let body = app.read_body(request).await?;
        let streams = match route {
            Route::Generate => false,
            Route::Stream => true,
            Route::Compat => body.parse::<CompatRequest>()?.stream == Some(true),
        };
        Ok((body.parse::<GenerateRequest>()?, streams, body))
    };
    let error = match parsed.await {
        Ok((parsed, streams, body)) => {
            let (inputs, draft, shape) = parsed.lower(route, streams);
            let mut started = start(&app, inputs, draft, &mut record).await;
            drop(body);
            // Once the handler runs a stream has status 200, as TGI's clients expect, unless the operator wants the
            // error's own. Then the headers wait for the first token.
            let real_status = app.http.stream_error_status;
            if let (Ok(running), true) = (&mut started, streams && real_status)
                && let Err(failure) = running.generation.begun().await
            {
                started = Err(failure.into());
            }
            match started {
                Ok(running) if streams => return stream(&app, running, shape, record),
                Err(error) if streams && !real_status => {
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
    let prompt = Prompt::Text(inputs);
    app.start(permit, prompt, draft, TextStyle::Native, record)
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
