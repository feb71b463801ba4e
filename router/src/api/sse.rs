//! Server-sent events: framing, comments that keep a silent connection open, and errors inside a stream. A stream that
//! fails ends with an error event; one that could not even say so is cut by the server.

use std::convert::Infallible;
use std::io::{self, Write};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;

use super::generate::Streams;
use super::record::Record;
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

struct State<E> {
    streams: Streams,
    encoder: E,
    record: Record,
}

/// A response that streams; dropping it cancels what still runs.
pub(super) fn stream_response<E: Encoder>(
    streams: Streams,
    encoder: E,
    record: Record,
) -> Response {
    let state = State {
        streams,
        encoder,
        record,
    };
    let frames = futures_util::stream::unfold(Some(state), |state| async move {
        let (frames, state) = state?.next().await;
        Some((Ok::<_, Infallible>(Bytes::from(frames.0)), state))
    });
    respond(Body::from_stream(frames))
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

impl<E: Encoder> State<E> {
    /// The next write, and the state unless it was the last.
    async fn next(mut self) -> (Frames, Option<Self>) {
        let mut frames = Frames::default();
        loop {
            let Ok(next) = tokio::time::timeout(KEEP_ALIVE, self.streams.next()).await else {
                frames.comment();
                return (frames, Some(self));
            };
            let Some((index, mut events)) = next else {
                self.encoder.end(&mut frames);
                return (frames, None);
            };
            self.record.observe(&events);
            let failure = match events.last() {
                Some(Event::Failed(failure)) => Some(failure.clone()),
                _ => None,
            };
            if let Some(failure) = failure {
                events.pop();
                self.encoder.events(index, events, &mut frames);
                self.encoder.error(&failure.into(), &mut frames);
                return (frames, None);
            }
            self.encoder.events(index, events, &mut frames);
            // Text may be held back: then there is nothing to write yet.
            if !frames.0.is_empty() {
                return (frames, Some(self));
            }
        }
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
