//! What operators look at: health, facts, metrics.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

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

/// The limits are those that are enforced; before the engine is ready, those that are known.
pub(super) async fn info(State(app): State<AppState>) -> Response {
    let facts = match &*app.status.borrow() {
        EngineStatus::Ready(facts) => Some(facts.clone()),
        EngineStatus::Starting { .. } | EngineStatus::Down { .. } => None,
    };
    let enforced = facts.as_ref().map(|facts| Limits::new(&app.limits, facts));
    let limits = &app.limits;
    let mut body = json!({
        "model_id": app.model.name,
        "model_sha": null,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": enforced.map(|limits| limits.max_input_tokens).or(limits.max_input_tokens),
        "max_total_tokens": enforced.map(|limits| limits.max_total_tokens).or(limits.max_total_tokens),
        "validation_workers": limits.validation_workers,
        "max_client_batch_size": limits.max_client_batch_size,
        "router": "text-generation-router",
        "version": env!("CARGO_PKG_VERSION"),
        "sha": null,
        "docker_label": null,
    });
    if let Some(facts) = facts {
        body["model_dtype"] = facts.dtype.as_str().into();
        body["model_device_type"] = facts.device_type.as_str().into();
        body["max_batch_total_tokens"] = (facts.num_blocks * facts.tokens_per_block).into();
    }
    json_response(StatusCode::OK, &body)
}

pub(super) async fn metrics(State(app): State<AppState>) -> Response {
    let mut response = app.metrics.render(&app.stats).into_response();
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

impl App {
    /// `x-compute-type`: ranks and device.
    pub(super) fn compute_type(&self) -> String {
        match &*self.status.borrow() {
            EngineStatus::Ready(facts) => format!("{}-{}", facts.num_ranks, facts.device_type),
            EngineStatus::Starting { .. } | EngineStatus::Down { .. } => "unknown".to_owned(),
        }
    }
}
