//! Whom a request counts for, by the header that gateways set.

use axum::http::HeaderMap;

use crate::keys::key;

const HEADER: &str = "x-gateway-inference-fairness-id";

/// 0 without the header, or with an empty one.
pub(super) fn tenant(headers: &HeaderMap) -> u64 {
    headers
        .get(HEADER)
        .map(|name| name.as_bytes())
        .filter(|name| !name.is_empty())
        .map_or(0, key)
}
