//! TGI's native dialect: `POST /`, `/generate`, `/generate_stream`, `/tokenize`.

mod render;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use self::render::{NativeStream, body};
use super::generate::{Running, Streams, admitted, tokenizer_error};
use super::headers::{compute_headers, timing_headers};
use super::native::{Lowered, Parameters, Shape, lower, start};
use super::record::Record;
use super::respond::{ErrorStyle, json_response, json_text};
use super::sse::{error_response, stream_response};
use super::tenant::tenant;
use super::{App, AppState};
use crate::error::ApiError;
use crate::tokenize::tokens;
use crate::validation::Draft;

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
        let Lowered {
            draft,
            details,
            return_full_text,
        } = lower(self.parameters, streams);
        let full = return_full_text.unwrap_or(route == Route::Compat);
        let shape = Shape {
            details,
            prompt: full.then(|| self.inputs.clone()),
        };
        (self.inputs, draft, shape)
    }
}

pub(super) async fn generate(State(app): State<AppState>, request: Request) -> Response {
    handle(app, request, Route::Generate, "/generate").await
}

pub(super) async fn generate_stream(State(app): State<AppState>, request: Request) -> Response {
    handle(app, request, Route::Stream, "/generate_stream").await
}

pub(super) async fn compat(State(app): State<AppState>, request: Request) -> Response {
    serve_compat(app, request, "/").await
}

/// `route` is how the log names the request.
pub(super) async fn serve_compat(app: AppState, request: Request, route: &'static str) -> Response {
    handle(app, request, Route::Compat, route).await
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
    let tenant = tenant(request.headers());
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
            let (inputs, mut draft, shape) = parsed.lower(route, streams);
            draft.tenant = tenant;
            let mut started = start(&app, inputs, draft, &mut record).await;
            drop(body);
            // Once the handler runs a stream has status 200, as TGI's clients expect, unless the scheduler turns it away
            // or the operator wants the error's own. Then the headers wait for the first token.
            let mut real_status = app.http.stream_error_status;
            if let (Ok(running), true) = (&mut started, streams) {
                let begun = if real_status {
                    running.generation.begun().await.map_err(ApiError::from)
                } else {
                    admitted([running]).await
                };
                if let Err(error) = begun {
                    started = Err(error);
                    real_status = true;
                }
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
