//! What operators look at: health, facts, metrics.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::respond::{ErrorStyle, json_response};
use super::{App, AppState};
use crate::driver::EngineStatus;
use crate::validation::Limits;

/// 200 without a body, or 503 with how far the engine is. Answers from memory: nothing waits for the device.
pub(super) async fn health(State(app): State<AppState>) -> Response {
    match app.ready() {
        Ok(_) => StatusCode::OK.into_response(),
        Err(error) => ErrorStyle::Native.response(&error),
    }
}

/// What is served. The limits are those that are enforced; before the engine is ready, those that are known.
#[derive(Debug, Serialize)]
pub(super) struct Info<'a> {
    pub(super) model_id: &'a str,
    model_sha: Option<&'a str>,
    pub(super) model_pipeline_tag: &'static str,
    pub(super) max_concurrent_requests: usize,
    pub(super) max_best_of: usize,
    pub(super) max_stop_sequences: usize,
    pub(super) max_input_tokens: Option<usize>,
    pub(super) max_total_tokens: Option<usize>,
    pub(super) validation_workers: usize,
    pub(super) max_client_batch_size: usize,
    pub(super) router: &'static str,
    pub(super) version: &'static str,
    sha: Option<&'static str>,
    docker_label: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model_device_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_batch_total_tokens: Option<usize>,
}

pub(super) async fn info(State(app): State<AppState>) -> Response {
    json_response(StatusCode::OK, &app.info())
}

pub(super) async fn metrics(State(app): State<AppState>) -> Response {
    let mut response = app.metrics.render(&app.stats).into_response();
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

impl App {
    pub(super) fn info(&self) -> Info<'_> {
        let facts = match &*self.status.borrow() {
            EngineStatus::Ready(facts) => Some(facts.clone()),
            EngineStatus::Starting { .. } | EngineStatus::Down { .. } => None,
        };
        let facts = facts.as_deref();
        let enforced = facts.map(|facts| Limits::new(&self.limits, facts));
        let limits = &self.limits;
        Info {
            model_id: &self.model.name,
            model_sha: self.model.sha.as_deref(),
            model_pipeline_tag: "text-generation",
            max_concurrent_requests: limits.max_concurrent_requests,
            max_best_of: limits.max_best_of,
            max_stop_sequences: limits.max_stop_sequences,
            max_input_tokens: enforced
                .map(|limits| limits.max_input_tokens)
                .or(limits.max_input_tokens),
            max_total_tokens: enforced
                .map(|limits| limits.max_total_tokens)
                .or(limits.max_total_tokens),
            validation_workers: limits.validation_workers,
            max_client_batch_size: limits.max_client_batch_size,
            router: "text-generation-router",
            version: env!("CARGO_PKG_VERSION"),
            sha: crate::commit(),
            docker_label: crate::docker_label(),
            model_dtype: facts.map(|facts| facts.dtype.clone()),
            model_device_type: facts.map(|facts| facts.device_type.clone()),
            max_batch_total_tokens: facts.map(|facts| facts.num_blocks * facts.tokens_per_block),
        }
    }

    /// `x-compute-type`: ranks and device.
    pub(super) fn compute_type(&self) -> String {
        match &*self.status.borrow() {
            EngineStatus::Ready(facts) => format!("{}-{}", facts.num_ranks, facts.device_type),
            EngineStatus::Starting { .. } | EngineStatus::Down { .. } => "unknown".to_owned(),
        }
    }
}
