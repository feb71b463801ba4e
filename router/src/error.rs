//! What can go wrong with a request, and the one table from its kind to a status and the codes of each dialect.

use axum::http::StatusCode;
use tonic::Code;

use crate::event::{Failure, Refusal, WaitReason};
use crate::metrics::FailureLabel;
use crate::stream::SubmitError;
use crate::tokenizer::JobFailed;
use crate::validation::ValidationError;

/// The kinds of errors that a client can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Not JSON.
    Malformed,
    /// JSON of the wrong shape.
    WrongType,
    MediaType,
    TooLarge,
    /// The body did not arrive in time.
    BodyTimeout,
    Validation,
    Template,
    Overloaded,
    /// The engine is starting or gone; sent before any work.
    NotReady,
    /// The engine failed during the request.
    Generation,
    /// The engine or the server ended during the request: another try may well succeed.
    EngineLost,
    /// The time that the client gave is over.
    Deadline,
    /// The stream ended without its last event.
    Incomplete,
    NotFound,
    MethodNotAllowed,
    ModelNotFound,
    Internal,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// Native routes.
    pub status: StatusCode,
    /// `error_type` of the native body.
    pub error_type: &'static str,
    /// `/v1` routes.
    pub openai_status: StatusCode,
    /// `error.code`.
    pub openai_code: &'static str,
    pub label: FailureLabel,
}

impl ErrorKind {
    pub fn codes(self) -> Codes {
        use FailureLabel as L;
        use StatusCode as S;
        let codes = |status, openai_status, error_type, code, label| Codes {
            status,
            error_type,
            openai_status,
            openai_code: code,
            label,
        };
        let invalid = |status, code| codes(status, status, "validation", code, L::Validation);
        let unknown = |status, code| codes(status, status, code, code, L::Validation);
        let unprocessable = S::UNPROCESSABLE_ENTITY;
        let (bad, internal) = (S::BAD_REQUEST, S::INTERNAL_SERVER_ERROR);
        let (busy, unavailable) = (S::TOO_MANY_REQUESTS, S::SERVICE_UNAVAILABLE);
        match self {
            Self::Malformed => invalid(bad, "malformed_json"),
            Self::MediaType => invalid(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::TooLarge => invalid(S::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Self::BodyTimeout => invalid(S::REQUEST_TIMEOUT, "request_timeout"),
            Self::WrongType => codes(
                unprocessable,
                bad,
                "validation",
                "invalid_type",
                L::Validation,
            ),
            Self::Validation => codes(
                unprocessable,
                bad,
                "validation",
                "invalid_value",
                L::Validation,
            ),
            Self::Template => codes(
                unprocessable,
                bad,
                "template_error",
                "template_error",
                L::Template,
            ),
            Self::Overloaded => codes(busy, busy, "overloaded", "overloaded", L::Overloaded),
            Self::NotReady => codes(
                unavailable,
                unavailable,
                "healthcheck",
                "not_ready",
                L::Generation,
            ),
            Self::Generation | Self::EngineLost => codes(
                S::FAILED_DEPENDENCY,
                internal,
                "generation",
                "generation",
                L::Generation,
            ),
            Self::Deadline => {
                let code = "deadline_exceeded";
                let status = S::GATEWAY_TIMEOUT;
                codes(status, status, code, code, L::Deadline)
            }
            Self::Incomplete => {
                let code = "incomplete_generation";
                codes(internal, internal, code, code, L::Incomplete)
            }
            Self::NotFound => unknown(S::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => unknown(S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::ModelNotFound => unknown(S::NOT_FOUND, "model_not_found"),
            Self::Internal => codes(internal, internal, "internal", "internal", L::Generation),
        }
    }

    /// The gRPC service.
    pub fn grpc_code(self) -> Code {
        match self {
            Self::Malformed | Self::WrongType | Self::Validation | Self::Template => {
                Code::InvalidArgument
            }
            Self::TooLarge | Self::Overloaded => Code::ResourceExhausted,
            Self::BodyTimeout | Self::Deadline => Code::DeadlineExceeded,
            Self::NotReady | Self::EngineLost => Code::Unavailable,
            Self::Generation | Self::Incomplete | Self::Internal => Code::Internal,
            Self::NotFound | Self::ModelNotFound => Code::NotFound,
            Self::MediaType | Self::MethodNotAllowed => Code::Unimplemented,
        }
    }
}

impl Codes {
    /// `error.type`.
    pub fn openai_type(&self) -> &'static str {
        match self.openai_status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// How far the engine's start is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    pub phase: String,
    /// Inside the phase.
    pub fraction: f32,
}

/// Of a text that may quote what the client sent.
const MAX_CHARS: usize = 1000;
/// Of its end, which mostly says what was expected.
const END_CHARS: usize = 200;

/// The text without its middle, if it is long.
fn shortened(text: String) -> String {
    let Some(left_out) = text.chars().count().checked_sub(MAX_CHARS + 1) else {
        return text;
    };
    let begin = text.chars().take(MAX_CHARS - END_CHARS);
    let end = text.chars().skip(MAX_CHARS - END_CHARS + left_out + 1);
    begin.chain(" ... ".chars()).chain(end).collect()
}

/// An error on its way to a client. The text is safe to show.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u32>,
    /// Of an engine that is starting.
    pub progress: Option<Progress>,
    /// By the scheduler, and why the request waited until then.
    pub refusal: Option<(Refusal, Option<WaitReason>)>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: shortened(message.into()),
            param: None,
            retry_after: None,
            progress: None,
            refusal: None,
        }
    }

    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(shortened(param.into()));
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    #[must_use]
    pub fn with_progress(mut self, phase: &str, fraction: f32) -> Self {
        self.progress = Some(Progress {
            phase: phase.to_owned(),
            fraction,
        });
        self
    }
}

impl From<ValidationError> for ApiError {
    fn from(error: ValidationError) -> Self {
        let message = format!("Input validation error: {error}");
        Self::new(ErrorKind::Validation, message).with_param(error.field)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Overloaded => {
                Self::new(ErrorKind::Overloaded, error.to_string()).retry_after(1)
            }
            SubmitError::EngineLost => {
                Self::new(ErrorKind::NotReady, error.to_string()).retry_after(1)
            }
        }
    }
}

impl From<&Failure> for ErrorKind {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Refused { .. } => Self::Overloaded,
            Failure::DeadlineExceeded => Self::Deadline,
            Failure::EngineLost | Failure::ShuttingDown => Self::EngineLost,
            Failure::BadLogits
            | Failure::BadInput
            | Failure::OutOfMemory
            | Failure::NoPenalties
            | Failure::TooLong
            | Failure::Text => Self::Generation,
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let kind = ErrorKind::from(&failure);
        match failure {
            Failure::Refused {
                refusal,
                retry_after_s,
                waited,
            } => Self {
                refusal: Some((refusal, waited)),
                ..Self::new(kind, failure.to_string()).retry_after(retry_after_s)
            },
            Failure::DeadlineExceeded => Self::new(kind, failure.to_string()),
            _ => Self::new(kind, format!("Request failed during generation: {failure}")),
        }
    }
}

impl From<JobFailed> for ApiError {
    fn from(error: JobFailed) -> Self {
        Self::new(ErrorKind::Internal, error.to_string())
    }
}
