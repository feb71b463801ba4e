//! What can go wrong with a request, and the one table from its kind to a status and the codes of each dialect.

use axum::http::StatusCode;

use crate::event::Failure;
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
    /// `error.type`.
    pub openai_type: &'static str,
    /// `error.code`.
    pub openai_code: Option<&'static str>,
    pub label: FailureLabel,
}

impl ErrorKind {
    pub fn codes(self) -> Codes {
        use FailureLabel as Label;
        use StatusCode as Status;
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        let (status, error_type, openai_status, openai_type, openai_code, label) = match self {
            Self::Malformed => (
                Status::BAD_REQUEST,
                "validation",
                Status::BAD_REQUEST,
                INVALID,
                Some("malformed_json"),
                Label::Validation,
            ),
            Self::WrongType => (
                Status::UNPROCESSABLE_ENTITY,
                "validation",
                Status::BAD_REQUEST,
                INVALID,
                Some("invalid_type"),
                Label::Validation,
            ),
            Self::MediaType => (
                Status::UNSUPPORTED_MEDIA_TYPE,
                "validation",
                Status::UNSUPPORTED_MEDIA_TYPE,
                INVALID,
                Some("unsupported_media_type"),
                Label::Validation,
            ),
            Self::TooLarge => (
                Status::PAYLOAD_TOO_LARGE,
                "validation",
                Status::PAYLOAD_TOO_LARGE,
                INVALID,
                Some("payload_too_large"),
                Label::Validation,
            ),
            Self::BodyTimeout => (
                Status::REQUEST_TIMEOUT,
                "validation",
                Status::REQUEST_TIMEOUT,
                INVALID,
                Some("request_timeout"),
                Label::Validation,
            ),
            Self::Validation => (
                Status::UNPROCESSABLE_ENTITY,
                "validation",
                Status::BAD_REQUEST,
                INVALID,
                Some("invalid_value"),
                Label::Validation,
            ),
            Self::Template => (
                Status::UNPROCESSABLE_ENTITY,
                "template_error",
                Status::BAD_REQUEST,
                INVALID,
                Some("template_error"),
                Label::Template,
            ),
            Self::Overloaded => (
                Status::TOO_MANY_REQUESTS,
                "overloaded",
                Status::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("overloaded"),
                Label::Overloaded,
            ),
            Self::NotReady => (
                Status::SERVICE_UNAVAILABLE,
                "healthcheck",
                Status::SERVICE_UNAVAILABLE,
                SERVER,
                Some("not_ready"),
                Label::Generation,
            ),
            Self::Generation => (
                Status::FAILED_DEPENDENCY,
                "generation",
                Status::INTERNAL_SERVER_ERROR,
                SERVER,
                Some("generation"),
                Label::Generation,
            ),
            Self::Incomplete => (
                Status::INTERNAL_SERVER_ERROR,
                "incomplete_generation",
                Status::INTERNAL_SERVER_ERROR,
                SERVER,
                Some("incomplete_generation"),
                Label::Incomplete,
            ),
            Self::NotFound => (
                Status::NOT_FOUND,
                "not_found",
                Status::NOT_FOUND,
                INVALID,
                Some("not_found"),
                Label::Validation,
            ),
            Self::MethodNotAllowed => (
                Status::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                Status::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_allowed"),
                Label::Validation,
            ),
            Self::ModelNotFound => (
                Status::NOT_FOUND,
                "model_not_found",
                Status::NOT_FOUND,
                INVALID,
                Some("model_not_found"),
                Label::Validation,
            ),
            Self::Internal => (
                Status::INTERNAL_SERVER_ERROR,
                "internal",
                Status::INTERNAL_SERVER_ERROR,
                SERVER,
                None,
                Label::Generation,
            ),
        };
        Codes {
            status,
            error_type,
            openai_status,
            openai_type,
            openai_code,
            label,
        }
    }
}

/// An error on its way to a client. The text is safe to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            retry_after: None,
        }
    }

    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
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

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = format!("Request failed during generation: {failure}");
        Self::new(ErrorKind::Generation, message)
    }
}

impl From<JobFailed> for ApiError {
    fn from(error: JobFailed) -> Self {
        Self::new(ErrorKind::Internal, error.to_string())
    }
}
