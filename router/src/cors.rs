//! Which origins' scripts may read answers. It is browsers that enforce it: nothing here keeps anybody out.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

/// What a script may send.
const METHODS: &str = "GET,POST";
const HEADERS: &str = "content-type,authorization";

/// Those that are named; if none is, all, as in TGI.
#[derive(Clone, Debug)]
pub(crate) struct Origins(Arc<[String]>);

impl Origins {
    pub(crate) fn new(names: &[String]) -> Self {
        Self(names.into())
    }

    /// What the browser is told about an origin; `None` hides the answer from its scripts.
    fn answer(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.0.is_empty() || self.0.iter().any(|name| name == "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let mut names = self.0.iter();
        names
            .any(|name| name.as_bytes() == origin.as_bytes())
            .then(|| origin.clone())
    }
}

/// The same routes, whose answers tell browsers about `origins`.
pub(crate) fn allow(routes: Router, origins: Origins) -> Router {
    routes.layer(from_fn_with_state(origins, add_headers))
}

async fn add_headers(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(ORIGIN).cloned() else {
        return next.run(request).await;
    };
    let asks_first = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if asks_first {
        let allowed = [
            (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        ];
        allowed.into_response()
    } else {
        next.run(request).await
    };
    if let Some(answer) = origins.answer(&origin) {
        response
            .headers_mut()
            .insert(ACCESS_CONTROL_ALLOW_ORIGIN, answer);
    }
    response
        .headers_mut()
        .append(VARY, HeaderValue::from_static("origin"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use tower::ServiceExt;

    use super::*;

    async fn send(allowed: &[&str], method: Method, headers: &[(&str, &str)]) -> Response {
        let names: Vec<String> = allowed.iter().map(|&name| name.to_owned()).collect();
        let routes = Router::new().route("/generate", post(|| async { "text" }));
        let mut request = Request::builder().method(method).uri("/generate");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let routes = allow(routes, Origins::new(&names));
        routes.oneshot(request).await.unwrap()
    }

    fn allowed_origin(headers: &HeaderMap) -> Option<&str> {
        headers
            .get("access-control-allow-origin")
            .map(|value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn named_origins_may_read_and_without_names_all() {
        let (here, there) = ("https://a.example", "https://b.example");
        for (allowed, origin, expected) in [
            (&[][..], here, Some("*")),
            (&["*"][..], here, Some("*")),
            (&[here, there][..], there, Some(there)),
            (&[here][..], there, None),
        ] {
            let response = send(allowed, Method::POST, &[("origin", origin)]).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(allowed_origin(response.headers()), expected);
            assert_eq!(response.headers()["vary"], "origin");
        }
        let response = send(&[], Method::POST, &[]).await;
        assert_eq!(allowed_origin(response.headers()), None);
    }

    #[tokio::test]
    async fn a_browser_that_asks_first_is_told_what_it_may_send() {
        let asking = [
            ("origin", "https://a.example"),
            ("access-control-request-method", "POST"),
        ];
        let response = send(&[], Method::OPTIONS, &asking).await;
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers();
        assert_eq!(allowed_origin(headers), Some("*"));
        assert_eq!(headers["access-control-allow-methods"], "GET,POST");
        let sendable = &headers["access-control-allow-headers"];
        assert_eq!(sendable, "content-type,authorization");
        let response = send(&[], Method::OPTIONS, &asking[..1]).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
