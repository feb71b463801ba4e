//! From the driver's deliveries to the events of each request. One task makes all text as tokens arrive; the HTTP side
//! takes from a mailbox per request whatever has gathered there since it last looked. A client that reads slowly costs
//! its own text in memory and nothing else: no token waits for it, and no stop string is found late because of it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::driver::Command;
use crate::event::{
    Candidate, Course, Delivery, Event, Failure, FinishReason, Finished, Output, Token, Usage,
};
use crate::metrics::Metrics;
use crate::request::{Request, RequestId};
use crate::text::{TextParams, TextStream, TextStyle};
use crate::vocabulary::Vocabulary;

/// The right to have one more request in the server; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    _slot: OwnedSemaphorePermit,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("Model is overloaded")]
    Overloaded,
    #[error("the model's worker has gone")]
    EngineLost,
}

/// Takes requests and hands back their streams. A cloneable handle.
#[derive(Clone, Debug)]
pub struct Generator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    commands: mpsc::Sender<Command>,
    permits: Arc<Semaphore>,
    max_requests: usize,
    vocabulary: Arc<Vocabulary>,
    metrics: Arc<Metrics>,
    /// Requests that have not ended.
    live: Mutex<HashMap<RequestId, Arc<Mailbox>>>,
    last_id: AtomicU64,
}

/// Between the text worker and the HTTP side of one request.
#[derive(Debug)]
struct Mailbox {
    prompt_tokens: u32,
    /// Locked by the text worker for each token, and by nobody else while the request lives.
    text: Mutex<TextState>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug)]
struct TextState {
    stream: TextStream,
    generated_tokens: u32,
    submitted: Instant,
    last_token: Option<Instant>,
    started: Option<Started>,
    course: Course,
}

/// When the request entered its first plan.
#[derive(Clone, Copy, Debug)]
struct Started {
    at: Instant,
    queue: std::time::Duration,
}

#[derive(Debug, Default)]
struct Inbox {
    events: Vec<Event>,
    /// The last event is in `events` or was taken.
    ended: bool,
    waker: Option<Waker>,
}

impl Generator {
    /// Starts the text worker on the current runtime. It ends when the driver drops its side of `deliveries`.
    pub fn new(
        commands: mpsc::Sender<Command>,
        deliveries: mpsc::Receiver<Vec<Delivery>>,
        vocabulary: Arc<Vocabulary>,
        metrics: Arc<Metrics>,
        max_requests: usize,
    ) -> Self {
        let shared = Arc::new(Shared {
            commands,
            permits: Arc::new(Semaphore::new(max_requests)),
            max_requests,
            vocabulary,
            metrics,
            live: Mutex::default(),
            last_id: AtomicU64::new(0),
        });
        tokio::spawn(work(Arc::downgrade(&shared), deliveries));
        Self { shared }
    }

    /// Room for `num` requests at once, or none.
    pub fn permits(&self, num: usize) -> Result<Vec<Permit>, SubmitError> {
        (0..num)
            .map(|_| {
                let permit = Arc::clone(&self.shared.permits).try_acquire_owned();
                permit
                    .map(|slot| Permit { _slot: slot })
                    .map_err(|_| SubmitError::Overloaded)
            })
            .collect()
    }

    pub fn next_id(&self) -> RequestId {
        RequestId(self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Hands the request to the driver. Its events come from the returned stream; dropping that cancels it.
    pub fn submit(
        &self,
        permit: Permit,
        request: Request,
        text: &TextParams,
    ) -> Result<Generation, SubmitError> {
        let id = request.id;
        let stream = TextStream::new(Arc::clone(&self.shared.vocabulary), text);
        let mailbox = Arc::new(Mailbox {
            prompt_tokens: u32::try_from(request.prompt_ids.len()).unwrap_or(u32::MAX),
            text: Mutex::new(TextState {
                stream,
                generated_tokens: 0,
                submitted: Instant::now(),
                last_token: None,
                started: None,
                course: Course::default(),
            }),
            inbox: Mutex::default(),
        });
        // Before the driver knows it: its first delivery may be faster than we are.
        lock(&self.shared.live).insert(id, Arc::clone(&mailbox));
        let generation = Generation {
            id,
            mailbox,
            shared: Arc::clone(&self.shared),
            permit: Some(permit),
        };
        match self.shared.commands.try_send(Command::Submit(request)) {
            Ok(()) => Ok(generation),
            Err(error) => {
                self.shared.forget(id);
                Err(match error {
                    mpsc::error::TrySendError::Full(_) => SubmitError::Overloaded,
                    mpsc::error::TrySendError::Closed(_) => SubmitError::EngineLost,
                })
            }
        }
    }

    /// Ends every request with `failure`; their clients see it as their last event.
    pub fn fail_all(&self, failure: &Failure) {
        let all: Vec<RequestId> = lock(&self.shared.live).keys().copied().collect();
        for id in all {
            self.shared.fail(id, failure.clone());
        }
    }

    /// Requests that hold a permit.
    pub fn num_requests(&self) -> usize {
        self.shared.max_requests - self.shared.permits.available_permits()
    }
}

impl Shared {
    fn forget(&self, id: RequestId) -> Option<Arc<Mailbox>> {
        lock(&self.live).remove(&id)
    }

    fn fail(&self, id: RequestId, failure: Failure) {
        if let Some(mailbox) = self.forget(id) {
            mailbox.put([Event::Failed(failure)], true);
            self.tell(Command::Cancel(id), None);
        }
    }

    /// Gets a command to the driver even when its inbox is full. The permit stays taken until then, so the tasks that
    /// wait are never more than the requests allowed.
    fn tell(&self, command: Command, permit: Option<Permit>) {
        let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(command) else {
            return;
        };
        let commands = self.commands.clone();
        // Without a runtime the process is at its end, and so is the driver.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = commands.send(command).await;
                drop(permit);
            });
        }
    }

    /// Turns one request's deliveries of one step into events.
    fn deliver(&self, id: RequestId, outputs: impl Iterator<Item = Output>) {
        let Some(mailbox) = lock(&self.live).get(&id).cloned() else {
            return;
        };
        let mut events = Vec::new();
        let mut ended = false;
        let mut text = lock(&mailbox.text);
        let mut outputs = outputs.peekable();
        while let Some(output) = outputs.next() {
            match output {
                Output::Started {
                    queue,
                    cached_tokens,
                    waited,
                } => {
                    text.started = Some(Started {
                        at: Instant::now(),
                        queue,
                    });
                    text.course.cached_tokens = cached_tokens;
                    text.course.waited = waited;
                }
                Output::Preempted => text.course.preemptions += 1,
                Output::Token(token) => {
                    self.time_token(&mut text);
                    let (token, stopped) = text.render(token);
                    events.push(Event::Token(token));
                    if stopped {
                        let mut finished = text.finish_by_stop(mailbox.prompt_tokens);
                        // The driver may have ended it with the same token: TGI looks for stop strings last, OpenAI's
                        // clients want to know that the text is whole.
                        if let (TextStyle::Native, Some(Output::Finished { reason, .. })) =
                            (text.stream.style(), outputs.peek())
                        {
                            finished.reason = *reason;
                        }
                        events.push(Event::Finished(finished));
                        self.tell(Command::Finish(id), None);
                        ended = true;
                        break;
                    }
                }
                Output::Finished { reason, timings } => {
                    events.push(Event::Finished(Finished {
                        reason,
                        usage: text.usage(mailbox.prompt_tokens),
                        timings,
                        course: text.course,
                        tail: text.stream.finish(),
                    }));
                    ended = true;
                }
                Output::Failed(failure) => {
                    events.push(Event::Failed(failure));
                    ended = true;
                }
            }
        }
        drop(text);
        if ended {
            self.forget(id);
        }
        mailbox.put(events, ended);
    }

    fn time_token(&self, text: &mut TextState) {
        let now = Instant::now();
        match text.last_token.replace(now) {
            Some(before) => self.metrics.inter_token_latency.record(now - before),
            None => self
                .metrics
                .time_to_first_token
                .record(now - text.submitted),
        }
    }
}

impl TextState {
    fn render(&mut self, token: crate::event::SampledToken) -> (Token, bool) {
        self.generated_tokens += 1;
        let piece = self.stream.push(token.id);
        let vocabulary = self.stream.vocabulary();
        let top = token
            .top
            .into_iter()
            .map(|(id, logprob)| Candidate {
                id,
                text: vocabulary.token_text(id),
                special: vocabulary.is_special(id),
                logprob,
            })
            .collect();
        let token = Token {
            id: token.id,
            text: piece.text,
            special: piece.special,
            logprob: token.logprob,
            top,
        };
        (token, piece.stopped)
    }

    fn usage(&self, prompt_tokens: u32) -> Usage {
        Usage {
            prompt_tokens,
            generated_tokens: self.generated_tokens,
        }
    }

    /// The driver knows nothing of stop strings, so the times are taken here.
    fn finish_by_stop(&mut self, prompt_tokens: u32) -> Finished {
        let mut timings = crate::event::Timings::default();
        if let Some(started) = self.started {
            timings.queue = started.queue;
            timings.inference = started.at.elapsed();
        }
        Finished {
            reason: FinishReason::StopSequence,
            usage: self.usage(prompt_tokens),
            timings,
            course: self.course,
            tail: String::new(),
        }
    }
}

impl Mailbox {
    fn put(&self, events: impl IntoIterator<Item = Event>, ended: bool) {
        let mut inbox = lock(&self.inbox);
        if inbox.ended {
            return;
        }
        inbox.events.extend(events);
        inbox.ended = ended;
        if let Some(waker) = inbox.waker.take() {
            drop(inbox);
            waker.wake();
        }
    }
}

/// The stream of one request. Dropping it before its end cancels the request.
#[derive(Debug)]
pub struct Generation {
    id: RequestId,
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
    permit: Option<Permit>,
}

impl Generation {
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Waits for the first event and leaves it where it is; an error if it is the last, a failure.
    pub async fn begun(&mut self) -> Result<(), Failure> {
        poll_fn(|context| {
            let mut inbox = lock(&self.mailbox.inbox);
            match inbox.events.first() {
                Some(Event::Failed(failure)) => Poll::Ready(Err(failure.clone())),
                Some(Event::Token(_) | Event::Finished(_)) => Poll::Ready(Ok(())),
                None if inbox.ended => Poll::Ready(Ok(())),
                None => {
                    inbox.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Everything that happened since the last call, in order; waits for the first event. `None` after the end: a
    /// stream's last event is `Finished` or `Failed`.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<Event>>> {
        let mut inbox = lock(&self.mailbox.inbox);
        if !inbox.events.is_empty() {
            return Poll::Ready(Some(std::mem::take(&mut inbox.events)));
        }
        if inbox.ended {
            self.permit = None;
            return Poll::Ready(None);
        }
        inbox.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.shared.forget(self.id).is_some() {
            self.shared
                .tell(Command::Cancel(self.id), self.permit.take());
        }
    }
}

/// The text worker. One is enough: a token costs well under a microsecond, a step of 256 rows well under a millisecond.
/// It does not keep the driver alive: without a handle outside nobody is left to read.
async fn work(shared: Weak<Shared>, mut deliveries: mpsc::Receiver<Vec<Delivery>>) {
    while let Some(batch) = deliveries.recv().await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut batch = batch.into_iter().peekable();
        while let Some(first) = batch.next() {
            let id = first.request;
            // A last token and the end that follows it reach the client as one.
            let mut outputs = vec![first.output];
            while let Some(next) = batch.next_if(|next| next.request == id) {
                outputs.push(next.output);
            }
            // A bug that one answer's text hits must not silence all the others.
            let deliver = || shared.deliver(id, outputs.into_iter());
            if catch_unwind(AssertUnwindSafe(deliver)).is_err() {
                tracing::error!(id = id.0, "the text worker panicked on a request");
                shared.fail(id, Failure::Text);
            }
        }
    }
    if let Some(shared) = shared.upgrade() {
        Generator { shared }.fail_all(&Failure::EngineLost);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("a request whose text panicked is never looked at again")
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
