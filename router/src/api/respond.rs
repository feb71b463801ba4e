//! Errors and plain JSON as responses.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{ApiError, Progress};

/// The JSON text of this value.
pub(super) fn json_text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types are JSON")
}

/// A response of this value.
pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(json_text(value)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// How a dialect writes errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorStyle {
    Native,
    OpenAi,
}

impl ErrorStyle {
    /// The dialect of a path.
    pub(super) fn of_path(path: &str) -> Self {
        if path == "/v1" || path.starts_with("/v1/") {
            Self::OpenAi
        } else {
            Self::Native
        }
    }

    pub(super) fn status(self, error: &ApiError) -> StatusCode {
        match self {
            Self::Native => error.kind.codes().status,
            Self::OpenAi => error.kind.codes().openai_status,
        }
    }

    /// `/v1` bodies carry `error_type` too, by which clients made for TGI tell errors apart. While the engine starts both
    /// say how far it is.
    pub(super) fn body(self, error: &ApiError) -> Value {
        let codes = error.kind.codes();
        let mut body = match self {
            Self::Native => json!({"error": error.message, "error_type": codes.error_type}),
            Self::OpenAi => json!({
                "error": {
                    "message": error.message,
                    "type": codes.openai_type(),
                    "param": error.param,
                    "code": codes.openai_code,
                    "http_status_code": codes.openai_status.as_u16(),
                },
                "error_type": codes.error_type,
            }),
        };
        if let Some(Progress { phase, fraction }) = &error.progress {
            body["phase"] = phase.as_str().into();
            body["fraction"] = json!(fraction);
        }
        body
    }

    pub(super) fn response(self, error: &ApiError) -> Response {
        let mut response = json_response(self.status(error), &self.body(error));
        if let Some(seconds) = error.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
