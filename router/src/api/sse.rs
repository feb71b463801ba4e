//! Server-sent events: framing, comments that keep a silent connection open, and errors inside a stream. A stream that
//! fails ends with an error event; one that could not even say so is cut by the server, and so is one that nobody reads.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::generate::Streams;
use super::record::Record;
use crate::error::ApiError;
use crate::event::Event;
use crate::server::WRITE_TIMEOUT;

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
struct Source<E> {
    streams: Streams,
    encoder: E,
    record: Record,
    /// Ends when it is time for a comment; every write sets it anew.
    silence: Pin<Box<Sleep>>,
    /// When the connection took something and has not come back for more; `None` while it waits for us.
    taken: Option<Instant>,
}

enum State<E> {
    Open(Source<E>),
    Ended,
    /// Nobody read it: what still ran is cancelled, and its place is free.
    Cut,
}

/// The body of a streaming response; dropping it cancels what still runs. A connection that waits for its client asks
/// for nothing more, so somebody else must look at the clock: over HTTP/2 the socket may be well and one stream stuck.
struct EventStream<E> {
    state: Arc<Mutex<State<E>>>,
    watch: AbortHandle,
}

/// A response that streams.
pub(super) fn stream_response<E: Encoder>(
    streams: Streams,
    encoder: E,
    record: Record,
) -> Response {
    let state = Arc::new(Mutex::new(State::Open(Source {
        streams,
        encoder,
        record,
        silence: Box::pin(sleep(KEEP_ALIVE)),
        taken: Some(Instant::now()),
    })));
    let watch = tokio::spawn(watch(Arc::downgrade(&state))).abort_handle();
    respond(Body::from_stream(EventStream { state, watch }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a stream that panicked is not polled")
}

/// Cuts the stream when it has not been read for `WRITE_TIMEOUT`.
async fn watch<E>(state: Weak<Mutex<State<E>>>) {
    let mut wake = Instant::now() + WRITE_TIMEOUT;
    loop {
        sleep_until(wake).await;
        let Some(state) = state.upgrade() else { return };
        let mut state = lock(&state);
        let State::Open(source) = &*state else { return };
        let now = Instant::now();
        wake = source.taken.unwrap_or(now) + WRITE_TIMEOUT;
        if wake <= now {
            *state = State::Cut;
            return;
        }
    }
}

impl<E: Encoder> Stream for EventStream<E> {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = lock(&self.state);
        let source = match &mut *state {
            State::Open(source) => source,
            State::Ended => return Poll::Ready(None),
            State::Cut => return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into()))),
        };
        source.taken = None;
        let (frames, is_last) = ready!(source.poll(context));
        source.taken = Some(Instant::now());
        if is_last {
            *state = State::Ended;
        }
        Poll::Ready(Some(Ok(Bytes::from(frames.0))))
    }
}

impl<E> Drop for EventStream<E> {
    fn drop(&mut self) {
        self.watch.abort();
    }
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

impl<E: Encoder> Source<E> {
    /// The next write, and whether it is the last.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Frames, bool)> {
        let mut frames = Frames::default();
        while let Poll::Ready(next) = self.streams.poll_next(context) {
            let Some((index, mut events)) = next else {
                self.encoder.end(&mut frames);
                return Poll::Ready((frames, true));
            };
            self.record.observe(&events);
            let failure = match events.last() {
                Some(Event::Failed(failure)) => Some(failure.clone()),
                _ => None,
            };
            if failure.is_some() {
                events.pop();
            }
            self.encoder.events(index, events, &mut frames);
            if let Some(failure) = failure {
                self.encoder.error(&failure.into(), &mut frames);
                return Poll::Ready((frames, true));
            }
            // Text may be held back: then there is nothing to write yet, and the silence goes on.
            if !frames.0.is_empty() {
                self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
                return Poll::Ready((frames, false));
            }
        }
        ready!(self.silence.as_mut().poll(context));
        frames.comment();
        self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Poll::Ready((frames, false))
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
