//! Server-sent events: framing, comments that keep a silent connection open, and errors inside a stream. A stream that
//! fails ends with an error event; one that could not even say so is cut by the server, and so is one that nobody reads.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use super::generate::Streams;
use super::record::Record;
use super::watched::{Source, Watched};
use crate::error::ApiError;
use crate::event::Event;

/// Proxies close connections that are silent for longer.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How a dialect writes its stream.
pub(super) trait Encoder: Send + 'static {
    /// Events of the prompt with this index; never a failure.
    fn events(&mut self, index: usize, events: Vec<Event>, out: &mut Frames);
    /// The stream ends with this error.
    fn error(&mut self, error: &ApiError, out: &mut Frames);
    /// All prompts ended well.
    fn end(&mut self, out: &mut Frames);
}

/// Frames that go out in one write.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    pub(super) fn json(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut self.0, OneLine);
        value
            .serialize(&mut serializer)
            .expect("our own types are JSON");
        self.0.extend_from_slice(b"\n\n");
    }

    /// What ends a stream of `/v1`.
    pub(super) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn comment(&mut self) {
        self.0.extend_from_slice(b":\n\n");
    }
}

/// Compact JSON without the characters that some clients take for the end of a line: Python's `splitlines`, and so
/// httpx's `iter_lines`, break at U+0085, U+2028 and U+2029, which JSON allows inside a string.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['\u{85}', '\u{2028}', '\u{2029}']) {
            let (before, after) = rest.split_at(at);
            let mut characters = after.chars();
            let breaker = characters.next().expect("it was just found");
            write!(writer, "{before}\\u{:04x}", u32::from(breaker))?;
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// What a stream is made of.
struct Writes<E> {
    streams: Streams,
    encoder: E,
    record: Record,
    /// Ends when it is time for a comment; every write sets it anew.
    silence: Pin<Box<Sleep>>,
}

/// A response that streams; dropping it cancels what still runs.
pub(super) fn stream_response<E: Encoder>(
    streams: Streams,
    encoder: E,
    record: Record,
) -> Response {
    let writes = Writes {
        streams,
        encoder,
        record,
        silence: Box::pin(sleep(KEEP_ALIVE)),
    };
    respond(Body::from_stream(Watched::new(writes)))
}

/// A stream of one error event, for what went wrong before the first token.
pub(super) fn error_response(mut encoder: impl Encoder, error: &ApiError) -> Response {
    let mut frames = Frames::default();
    encoder.error(error, &mut frames);
    respond(Body::from(frames.0))
}

fn respond(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

impl<E: Encoder> Source for Writes<E> {
    type Item = Bytes;

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Bytes, bool)> {
        let mut frames = Frames::default();
        while let Poll::Ready(next) = self.streams.poll_next(context) {
            let Some((index, mut events)) = next else {
                self.encoder.end(&mut frames);
                return Poll::Ready((frames.0.into(), true));
            };
            self.record.observe(&events);
            let failure = match events.last() {
                Some(Event::Failed(failure)) => Some(failure.clone()),
                _ => None,
            };
            if failure.is_some() {
                events.pop();
            }
            // A failure alone begins no answer.
            if !events.is_empty() {
                self.encoder.events(index, events, &mut frames);
            }
            if let Some(failure) = failure {
                self.encoder.error(&failure.into(), &mut frames);
                return Poll::Ready((frames.0.into(), true));
            }
            // Text may be held back: then there is nothing to write yet, and the silence goes on.
            if !frames.0.is_empty() {
                self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
                return Poll::Ready((frames.0.into(), false));
            }
        }
        ready!(self.silence.as_mut().poll(context));
        frames.comment();
        self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Poll::Ready((frames.0.into(), false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_for_every_client() {
        let mut frames = Frames::default();
        frames.json(&"a\u{85}b\u{2028}\u{2029}é\n");
        let text = String::from_utf8(frames.0).unwrap();
        assert_eq!(text, "data: \"a\\u0085b\\u2028\\u2029é\\n\"\n\n");
    }
}
