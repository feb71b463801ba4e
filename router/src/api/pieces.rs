//! Answers that may be many times as large as their request. Each counts until its client has taken it, so that slow
//! clients together cannot fill the memory; one that takes nothing for long is cut.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::error::{ApiError, ErrorKind};
use crate::server::WRITE_TIMEOUT;

/// All such answers together; one that is larger waits until it is alone.
const MAX_ANSWERS_BYTES: usize = 256 << 20;
/// What is handed to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// Bytes that large answers may still take.
#[derive(Debug)]
pub struct Answers {
    free: Arc<Semaphore>,
    max_bytes: usize,
}

impl Default for Answers {
    fn default() -> Self {
        Self::new(MAX_ANSWERS_BYTES)
    }
}

impl Answers {
    fn new(max_bytes: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max_bytes)),
            max_bytes,
        }
    }

    /// A response of this JSON text.
    pub(super) fn respond(&self, json: Vec<u8>) -> Result<Response, ApiError> {
        let num_bytes = u32::try_from(json.len().min(self.max_bytes)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.free).try_acquire_many_owned(num_bytes);
        let room = room.map_err(|_| {
            let message = "too many large answers are on their way";
            ApiError::new(ErrorKind::Overloaded, message).retry_after(1)
        })?;
        let length = json.len().into();
        let mut response = Response::new(Body::from_stream(Pieces::new(json, room)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, length);
        Ok(response)
    }
}

/// An answer on its way.
struct Answer {
    json: Vec<u8>,
    num_sent: usize,
    /// When the connection last asked for a piece.
    asked: Instant,
    _room: OwnedSemaphorePermit,
}

/// `None` once it was cut. A connection that waits for its client asks for nothing, so somebody else looks at the clock.
type Shared = Mutex<Option<Answer>>;

struct Pieces {
    answer: Arc<Shared>,
    watch: AbortHandle,
}

impl Pieces {
    fn new(json: Vec<u8>, room: OwnedSemaphorePermit) -> Self {
        let answer = Arc::new(Mutex::new(Some(Answer {
            json,
            num_sent: 0,
            asked: Instant::now(),
            _room: room,
        })));
        let watch = tokio::spawn(watch(Arc::downgrade(&answer))).abort_handle();
        Self { answer, watch }
    }
}

fn lock(answer: &Shared) -> MutexGuard<'_, Option<Answer>> {
    answer.lock().expect("nothing panics while it holds this")
}

async fn watch(answer: Weak<Shared>) {
    let mut wake = Instant::now() + WRITE_TIMEOUT;
    loop {
        sleep_until(wake).await;
        let Some(answer) = answer.upgrade() else {
            return;
        };
        let mut answer = lock(&answer);
        let Some(Answer { asked, .. }) = &*answer else {
            return;
        };
        wake = *asked + WRITE_TIMEOUT;
        if wake <= Instant::now() {
            *answer = None;
            return;
        }
    }
}

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut answer = lock(&self.answer);
        let Some(answer) = &mut *answer else {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        };
        answer.asked = Instant::now();
        let rest = &answer.json[answer.num_sent..];
        if rest.is_empty() {
            return Poll::Ready(None);
        }
        // Copied: a part of the text would keep the whole of it in memory after its room is given back.
        let piece = Bytes::copy_from_slice(&rest[..rest.len().min(PIECE_BYTES)]);
        answer.num_sent += piece.len();
        Poll::Ready(Some(Ok(piece)))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_counts_until_it_is_taken() {
        let answers = Answers::new(100_000);
        let first = answers.respond(vec![b'1'; 60_000]).unwrap();
        let refused = answers.respond(vec![b'2'; 60_000]).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Overloaded);
        assert_eq!(first.headers()["content-length"], "60000");
        let body = first.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(*body, [b'1'; 60_000]);
        // Larger than all together may be, and in several pieces.
        let alone = answers.respond(vec![b'3'; 300_000]).unwrap();
        assert!(answers.respond(vec![b'4']).is_err());
        let body = alone.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(*body, [b'3'; 300_000]);
        drop(answers.respond(vec![b'5'; 100_000]).unwrap());
        assert!(answers.respond(vec![b'6'; 100_000]).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_cut() {
        let answers = Answers::new(100_000);
        let slow = answers.respond(vec![b'1'; 100_000]).unwrap();
        let mut slow = slow.into_body();
        tokio::time::sleep(WRITE_TIMEOUT * 3 / 4).await;
        assert!(slow.frame().await.unwrap().is_ok());
        tokio::time::sleep(WRITE_TIMEOUT * 3 / 4).await;
        assert!(answers.respond(vec![b'2']).is_err());
        tokio::time::sleep(WRITE_TIMEOUT).await;
        assert!(answers.respond(vec![b'2']).is_ok());
        assert!(slow.frame().await.unwrap().is_err());
    }
}
