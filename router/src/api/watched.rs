//! A stream that ends when nobody takes what it has. A connection that waits for its client asks for nothing more, so
//! somebody else must look at the clock: over HTTP/2 the socket may be well and one stream stuck.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::Stream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::server::WRITE_TIMEOUT;

/// What a stream is made of.
pub(super) trait Source: Send + 'static {
    type Item;

    /// The next item, and whether it is the last. Not called again after that.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Self::Item, bool)>;
}

enum State<S> {
    Open {
        source: S,
        bell: Arc<Bell>,
    },
    Ended,
    /// Nobody read it: what still ran is cancelled, and its place is free.
    Cut,
}

/// Between the source and the connection: knows since when there is something to take.
#[derive(Default)]
struct Bell {
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    /// `None` while the connection waits for us.
    since: Option<Instant>,
    connection: Option<Waker>,
}

impl Bell {
    /// The source has, or had, something to take.
    fn ring(&self) -> Option<Waker> {
        let mut place = lock(&self.place);
        place.since.get_or_insert_with(Instant::now);
        place.connection.take()
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        if let Some(connection) = self.ring() {
            connection.wake();
        }
    }
}

/// The stream of a source; dropping it drops the source.
pub(super) struct Watched<S> {
    state: Arc<Mutex<State<S>>>,
    watch: AbortHandle,
}

impl<S: Source> Watched<S> {
    pub(super) fn new(source: S) -> Self {
        let bell = Arc::new(Bell::default());
        bell.ring();
        let state = Arc::new(Mutex::new(State::Open { source, bell }));
        let watch = tokio::spawn(watch(Arc::downgrade(&state))).abort_handle();
        Self { state, watch }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a stream that panicked is not polled")
}

/// Cuts the stream when it has not been read for `WRITE_TIMEOUT`.
async fn watch<S>(state: Weak<Mutex<State<S>>>) {
    let mut wake = Instant::now() + WRITE_TIMEOUT;
    loop {
        sleep_until(wake).await;
        let Some(state) = state.upgrade() else { return };
        let mut state = lock(&state);
        let State::Open { bell, .. } = &*state else {
            return;
        };
        let now = Instant::now();
        wake = lock(&bell.place).since.unwrap_or(now) + WRITE_TIMEOUT;
        if wake <= now {
            *state = State::Cut;
            return;
        }
    }
}

impl<S: Source> Stream for Watched<S> {
    type Item = io::Result<S::Item>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = lock(&self.state);
        let (source, bell) = match &mut *state {
            State::Open { source, bell } => (source, bell),
            State::Ended => return Poll::Ready(None),
            State::Cut => return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into()))),
        };
        *lock(&bell.place) = Place {
            since: None,
            connection: Some(context.waker().clone()),
        };
        let waker = Waker::from(Arc::clone(bell));
        let polled = source.poll(&mut Context::from_waker(&waker));
        let Poll::Ready((item, is_last)) = polled else {
            return Poll::Pending;
        };
        bell.ring();
        if is_last {
            *state = State::Ended;
        }
        Poll::Ready(Some(Ok(item)))
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.watch.abort();
    }
}
