//! Request bodies: read up to the limit, then parsed with errors that name the field. axum's own extractor answers in
//! plain text.

use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::App;
use crate::error::{ApiError, ErrorKind};

/// A body that takes longer comes from a client that holds the connection on purpose.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

impl App {
    /// Reads a JSON body.
    pub(super) async fn read_body(&self, request: Request) -> Result<JsonBody, ApiError> {
        check_media_type(&request)?;
        let limit = self.limits.payload_limit;
        let stated = request.body().size_hint().exact();
        let body = Limited::new(request.into_body(), limit).collect();
        let Ok(read) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
            let seconds = BODY_TIMEOUT.as_secs();
            let message = format!("the body did not arrive within {seconds} s");
            return Err(ApiError::new(ErrorKind::BodyTimeout, message));
        };
        match read {
            Ok(body) => Ok(JsonBody(body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => {
                let given = stated.map_or_else(|| "more".to_owned(), |stated| stated.to_string());
                let message = format!(
                    "the body must have <= {limit} bytes (--payload-limit). Given: {given}"
                );
                Err(ApiError::new(ErrorKind::TooLarge, message))
            }
            Err(error) => {
                let message = format!("the body could not be read: {error}");
                Err(ApiError::new(ErrorKind::Malformed, message))
            }
        }
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
pub(super) struct JsonBody(Bytes);

impl JsonBody {
    /// Takes the fields of `T`; unknown fields are ignored.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        // A list would be taken for the fields in their order.
        if self.0.trim_ascii_start().first() == Some(&b'[') {
            return Err(wrong_type(
                ".",
                "the body must be a JSON object. Given: a list",
            ));
        }
        let mut deserializer = serde_json::Deserializer::from_slice(&self.0);
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
