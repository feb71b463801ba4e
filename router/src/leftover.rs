//! What is left of a request's body when its answer is ready: many errors are known before the body has arrived. A
//! connection with unread bytes ends with the answer, and whatever its client sends next is lost. So the rest is read, or
//! the answer says that the connection ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderValue, Version};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// For a body that is on its way.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same routes, whose connections stay usable.
pub(crate) fn read(routes: Router) -> Router {
    routes.layer(from_fn(run))
}

async fn run(request: Request, next: Next) -> Response {
    // In HTTP/2 a stream ends alone.
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    // Such a client sends its body when it is asked to, and an error does not ask.
    let asks_first = request.headers().contains_key(EXPECT);
    let (give_back, mut given_back) = oneshot::channel();
    let request = request.map(|body| {
        Body::new(Lent {
            body,
            begun: false,
            ended: false,
            give_back: Some(give_back),
        })
    });
    let mut response = next.run(request).await;
    let Ok(Rest { body, begun }) = given_back.try_recv() else {
        return response;
    };
    let is_whole = (begun || !asks_first) && timeout(PATIENCE, discard(body)).await == Ok(true);
    if !is_whole {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

/// Whether the body came to its end.
async fn discard(mut body: Body) -> bool {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

/// A body that nobody wants any more.
#[derive(Debug)]
struct Rest {
    body: Body,
    begun: bool,
}

/// A body that comes back when it is dropped before its end.
#[derive(Debug)]
struct Lent {
    body: Body,
    begun: bool,
    ended: bool,
    give_back: Option<oneshot::Sender<Rest>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.begun = true;
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.ended = !matches!(frame, Some(Ok(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let is_whole = self.ended || self.body.is_end_stream();
        if let (Some(give_back), false) = (self.give_back.take(), is_whole) {
            let rest = Rest {
                body: std::mem::take(&mut self.body),
                begun: self.begun,
            };
            // Without the layer the connection has gone.
            let _ = give_back.send(rest);
        }
    }
}
