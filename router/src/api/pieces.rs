//! Answers that may be many times as large as their request. Each counts until its client has taken it, so that slow
//! clients together cannot fill the memory; one that takes nothing for long is cut.

use std::io::Cursor;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::{Buf, Bytes};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::watched::{Source, Watched};
use crate::error::{ApiError, ErrorKind};

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
        let length = json.len().into();
        let mut response = Response::new(self.pieces(json, None)?);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, length);
        Ok(response)
    }

    /// The same for a response that is whole already, such as tonic's to a call that does not stream.
    pub(super) async fn whole(&self, response: Response) -> Result<Response, ApiError> {
        let (parts, body) = response.into_parts();
        let failed = |error| ApiError::new(ErrorKind::Internal, format!("no answer: {error}"));
        let body = body.collect().await.map_err(failed)?;
        let trailers = body.trailers().cloned();
        let body = self.pieces(body.to_bytes().into(), trailers)?;
        Ok(Response::from_parts(parts, body))
    }

    fn pieces(&self, bytes: Vec<u8>, trailers: Option<HeaderMap>) -> Result<Body, ApiError> {
        if bytes.is_empty() && trailers.is_none() {
            return Ok(Body::empty());
        }
        let num_bytes = u32::try_from(bytes.len().min(self.max_bytes)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.free).try_acquire_many_owned(num_bytes);
        let room = room.map_err(|_| {
            let message = "too many large answers are on their way";
            ApiError::new(ErrorKind::Overloaded, message).retry_after(1)
        })?;
        let pieces = Pieces {
            rest: Cursor::new(bytes),
            trailers,
            _room: room,
        };
        Ok(Body::new(StreamBody::new(Watched::new(pieces))))
    }
}

/// What is left of an answer, and then its trailers.
struct Pieces {
    rest: Cursor<Vec<u8>>,
    trailers: Option<HeaderMap>,
    _room: OwnedSemaphorePermit,
}

impl Source for Pieces {
    type Item = Frame<Bytes>;

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<(Self::Item, bool)> {
        let frame = match self.trailers.take_if(|_| !self.rest.has_remaining()) {
            Some(trailers) => Frame::trailers(trailers),
            // Copied: a part of the text would keep the whole of it in memory after its room is given back.
            None => Frame::data(
                self.rest
                    .copy_to_bytes(self.rest.remaining().min(PIECE_BYTES)),
            ),
        };
        let is_last = !self.rest.has_remaining() && self.trailers.is_none();
        Poll::Ready((frame, is_last))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::server::WRITE_TIMEOUT;

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
