//! Request bodies: read up to the limit, then parsed with errors that name the field. axum's own extractor answers in
//! plain text.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::App;
use crate::config::LimitsConfig;
use crate::error::{ApiError, ErrorKind};

/// A body that takes longer comes from a client that holds the connection on purpose.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// All bodies together are at most as large as those of all requests that may run, and at most this.
const MAX_BODIES_BYTES: usize = 256 << 20;

/// Bytes that bodies may still take, from their arrival until their prompts are tokens. Places for requests are given
/// out later, when it is known how many a body needs.
#[derive(Debug)]
pub struct Bodies {
    free: Arc<Semaphore>,
}

impl Bodies {
    pub fn new(limits: &LimitsConfig) -> Self {
        let all = limits
            .payload_limit
            .saturating_mul(limits.max_concurrent_requests);
        let bytes = all.min(MAX_BODIES_BYTES).max(limits.payload_limit);
        Self {
            free: Arc::new(Semaphore::new(bytes)),
        }
    }

    fn take(&self, num_bytes: usize) -> Result<OwnedSemaphorePermit, ReadError> {
        let num_bytes = u32::try_from(num_bytes).map_err(|_| ReadError::Overloaded)?;
        let taken = Arc::clone(&self.free).try_acquire_many_owned(num_bytes);
        taken.map_err(|_| ReadError::Overloaded)
    }

    async fn read(&self, mut body: Limited<Body>) -> Result<Received, ReadError> {
        let mut read = Received {
            bytes: Vec::new(),
            room: self.take(0)?,
        };
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(ReadError::Body)?.into_data() {
                read.room.merge(self.take(data.len())?);
                read.bytes.extend_from_slice(&data);
            }
        }
        Ok(read)
    }
}

enum ReadError {
    Overloaded,
    Body(axum::BoxError),
}

impl App {
    /// Reads a JSON body.
    pub(super) async fn read_body(&self, request: Request) -> Result<JsonBody, ApiError> {
        check_media_type(&request)?;
        self.receive(request.into_body()).await.map(JsonBody)
    }

    /// Reads a body of any type.
    pub(super) async fn receive(&self, body: Body) -> Result<Received, ApiError> {
        let limit = self.limits.payload_limit;
        let stated = body.size_hint().exact();
        let body = self.bodies.read(Limited::new(body, limit));
        let Ok(read) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
            let seconds = BODY_TIMEOUT.as_secs();
            let message = format!("the body did not arrive within {seconds} s");
            return Err(ApiError::new(ErrorKind::BodyTimeout, message));
        };
        read.map_err(|error| match error {
            ReadError::Overloaded => {
                let message = "too many request bodies are on their way".to_owned();
                ApiError::new(ErrorKind::Overloaded, message).retry_after(1)
            }
            ReadError::Body(error) if error.is::<LengthLimitError>() => {
                let given = stated.map_or_else(|| "more".to_owned(), |stated| stated.to_string());
                let message = format!(
                    "the body must have <= {limit} bytes (--payload-limit). Given: {given}"
                );
                ApiError::new(ErrorKind::TooLarge, message)
            }
            ReadError::Body(error) => {
                let message = format!("the body could not be read: {error}");
                ApiError::new(ErrorKind::Malformed, message)
            }
        })
    }
}

fn check_media_type(request: &Request) -> Result<(), ApiError> {
    let given = request.headers().get(CONTENT_TYPE);
    let given = given.and_then(|value| value.to_str().ok());
    let essence = given.map(|value| value.split(';').next().unwrap_or_default().trim());
    let is_json = essence.is_some_and(|essence| {
        let essence = essence.to_ascii_lowercase();
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    });
    if is_json {
        return Ok(());
    }
    let given = given.map_or_else(|| "none".to_owned(), |given| format!("{given:?}"));
    let message = format!("the header `Content-Type` must be application/json. Given: {given}");
    Err(ApiError::new(ErrorKind::MediaType, message).with_param("Content-Type"))
}

/// A body that has arrived.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    /// To be kept until the prompt is tokens: until then the body counts.
    pub(super) room: OwnedSemaphorePermit,
}

/// To be kept until its prompt is tokens.
#[derive(Debug)]
pub(super) struct JsonBody(Received);

impl JsonBody {
    /// As it arrived; from now on it no longer counts.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.bytes
    }

    /// Takes the fields of `T`; unknown fields are ignored.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        // A list would be taken for the fields in their order.
        if self.0.bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(wrong_type(
                ".",
                "the body must be a JSON object. Given: a list",
            ));
        }
        let mut deserializer = serde_json::Deserializer::from_slice(&self.0.bytes);
        let parsed = serde_path_to_error::deserialize(&mut deserializer);
        let parsed = match parsed {
            Ok(parsed) => deserializer
                .end()
                .map(|()| parsed)
                .map_err(|error| (String::new(), error)),
            Err(error) => {
                let path = error.path().to_string();
                Err((path, error.into_inner()))
            }
        };
        parsed.map_err(|(path, error)| {
            if error.is_data() {
                wrong_type(&path, &plain_words(&error.to_string()))
            } else {
                let message = format!("the body is not valid JSON: {error}");
                ApiError::new(ErrorKind::Malformed, message)
            }
        })
    }
}

/// Without Rust's names of types, and without the place: the field is named.
fn plain_words(reason: &str) -> String {
    let reason = reason
        .rsplit_once(" at line ")
        .map_or(reason, |(reason, _)| reason);
    let words = [
        ("expected f64", "expected a number"),
        ("expected i64", "expected an integer"),
        (
            "expected u64",
            "expected an integer from 0 to 18446744073709551615",
        ),
        ("expected a sequence", "expected a list"),
        ("invalid type: sequence", "invalid type: list"),
        ("expected a map", "expected an object"),
        ("invalid type: map", "invalid type: object"),
    ];
    let replace = |reason: String, (rust, plain): &(&str, &str)| reason.replace(rust, plain);
    words.iter().fold(reason.to_owned(), replace)
}

/// `path` is "." where the body itself has the wrong type.
fn wrong_type(path: &str, reason: &str) -> ApiError {
    let message = if path.is_empty() || path == "." {
        format!("Input validation error: {reason}")
    } else {
        format!("Input validation error: `{path}`: {reason}")
    };
    let missing = reason
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split('`').next());
    let param = match (missing, path) {
        (Some(field), "" | ".") => Some(field.to_owned()),
        (Some(field), path) => Some(format!("{path}.{field}")),
        (None, "" | ".") => None,
        (None, path) => Some(path.to_owned()),
    };
    let error = ApiError::new(ErrorKind::WrongType, message);
    match param {
        Some(param) => error.with_param(param),
        None => error,
    }
}
