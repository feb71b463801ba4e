//! TGI's native dialect: `POST /`, `/generate`, `/generate_stream`.

mod render;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use self::render::{NativeStream, body};
use super::generate::{Running, Streams};
use super::headers::{compute_headers, timing_headers};
use super::native::{Lowered, Parameters, Shape, lower, start};
use super::record::Record;
use super::respond::{ErrorStyle, json_response};
use super::sse::{error_response, stream_response};
use super::{App, AppState};
use crate::error::ApiError;
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
    handle(app, request, Route::Compat, "/").await
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
            let started = start(&app, inputs, draft, &mut record).await;
            drop(body);
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
