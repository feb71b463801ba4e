//! The port before there is a model to serve: every request is answered with 503 and how far the start is.

use axum::Router;
use axum::http::Uri;
use tokio::sync::watch;

use crate::api;
use crate::error::Progress;

/// Any method and path, in the dialect of the path.
pub fn routes(progress: watch::Receiver<Progress>) -> Router {
    Router::new().fallback(move |uri: Uri| {
        let response = api::starting_response(uri.path(), &progress.borrow());
        std::future::ready(response)
    })
}
