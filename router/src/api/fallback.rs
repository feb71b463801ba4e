//! Answers to unknown paths and wrong methods: what was asked for, and what there is.

use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Uri};
use axum::response::Response;

use super::respond::ErrorStyle;
use super::{grpc, routes};
use crate::error::{ApiError, ErrorKind};

/// How many routes an answer lists.
const NUM_NEAREST: usize = 3;
/// Longer paths are cut in the answer and in the comparison.
const MAX_PATH: usize = 100;

pub(super) async fn unknown_route(headers: HeaderMap, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(MAX_PATH).collect();
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        return grpc::unknown_method(&path);
    }
    let mut routes: Vec<(usize, &str, &str)> = routes()
        .map(|(route, methods)| (distance(&path, route), route, methods))
        .collect();
    routes.sort_by_key(|(distance, ..)| *distance);
    let nearest: Vec<String> = routes
        .iter()
        .take(NUM_NEAREST)
        .map(|(_, route, methods)| format!("{methods} {route}"))
        .collect();
    let message = format!("no route `{path}`; the nearest are: {}", nearest.join("; "));
    ErrorStyle::of_path(&path).response(&ApiError::new(ErrorKind::NotFound, message))
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let methods = routes().find(|(route, _)| *route == path);
    let methods = methods.map_or("GET, POST", |(_, methods)| methods);
    let message = format!("`{path}` does not accept {method}; it accepts: {methods}");
    let error = ApiError::new(ErrorKind::MethodNotAllowed, message);
    let mut response = ErrorStyle::of_path(path).response(&error);
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// How many characters must be changed, added or dropped (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, character) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, other) in right.iter().enumerate() {
            let changed = diagonal + usize::from(character != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
