//! The headers by which TGI's clients and proxies account for a request.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::record::Record;

/// On every answer, streamed or not.
pub(super) fn compute_headers(headers: &mut HeaderMap, compute_type: &str, num_characters: usize) {
    if let Ok(value) = HeaderValue::from_str(compute_type) {
        headers.insert(HeaderName::from_static("x-compute-type"), value);
    }
    headers.insert(
        HeaderName::from_static("x-compute-characters"),
        num_characters.into(),
    );
}

/// On answers that are whole: times in milliseconds, but `x-compute-time` in seconds.
pub(super) fn timing_headers(
    headers: &mut HeaderMap,
    compute_type: &str,
    num_characters: usize,
    record: &Record,
) {
    compute_headers(headers, compute_type, num_characters);
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let total = record.total();
    if let Ok(seconds) = HeaderValue::from_str(&total.as_secs_f64().to_string()) {
        headers.insert(HeaderName::from_static("x-compute-time"), seconds);
    }
    let numbers = [
        ("x-total-time", millis(total)),
        ("x-validation-time", millis(record.validation)),
        ("x-queue-time", millis(record.queue)),
        ("x-inference-time", millis(record.inference)),
        ("x-time-per-token", millis(record.time_per_token())),
        ("x-prompt-tokens", record.prompt_tokens.into()),
        ("x-generated-tokens", record.generated_tokens.into()),
    ];
    for (name, number) in numbers {
        headers.insert(HeaderName::from_static(name), number.into());
    }
}
