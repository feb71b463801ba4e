//! A generation as a stream of messages, one for each token. Its end is the end of the call: well, or with a status.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use tokio::time::Sleep;
use tonic::Status;

use super::convert::stream_message;
use super::deadline::{Deadline, exceeded};
use super::status::fail;
use crate::api::generate::Running;
use crate::api::native::{Items, Shape};
use crate::api::record::Record;
use crate::api::watched::{Source, Watched};
use crate::error::{ApiError, ErrorKind};
use crate::event::Event;
use crate::public_pb::GenerateStreamResponse;
use crate::stream::Generation;

/// Dropping it cancels what still runs.
pub(super) struct MessageStream(Watched<Messages>);

impl MessageStream {
    pub(super) fn new(running: Running, shape: Shape, deadline: Deadline, record: Record) -> Self {
        Self(Watched::new(Messages {
            items: Items::new(shape, running.seed, record.prompt_tokens),
            generation: running.generation,
            deadline: deadline.sleep(),
            record,
            ready: VecDeque::new(),
            outcome: Outcome::Running,
        }))
    }
}

impl Stream for MessageStream {
    type Item = Result<GenerateStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.0).poll_next(context));
        Poll::Ready(next.map(|next| {
            next.unwrap_or_else(|_| Err(Status::aborted("the client did not read this stream")))
        }))
    }
}

struct Messages {
    generation: Generation,
    items: Items,
    record: Record,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Messages that wait for the connection.
    ready: VecDeque<GenerateStreamResponse>,
    outcome: Outcome,
}

/// What comes after the messages that are ready.
enum Outcome {
    Running,
    /// Nothing.
    Finished,
    Failed(ApiError),
}

impl Messages {
    fn take(&mut self, mut events: Vec<Event>) {
        self.record.observe(&events);
        match events.last() {
            Some(Event::Finished(_)) => self.outcome = Outcome::Finished,
            Some(Event::Failed(failure)) => {
                self.outcome = Outcome::Failed(failure.clone().into());
                events.pop();
            }
            Some(Event::Token(_)) | None => {}
        }
        self.ready
            .extend(self.items.take(events).map(stream_message));
    }
}

impl Source for Messages {
    type Item = Result<GenerateStreamResponse, Status>;

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(Self::Item, bool)> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                let is_last = self.ready.is_empty() && matches!(self.outcome, Outcome::Finished);
                return Poll::Ready((Ok(message), is_last));
            }
            let error = match &self.outcome {
                Outcome::Failed(error) => error.clone(),
                // The end comes with a token.
                Outcome::Finished => incomplete(),
                Outcome::Running => {
                    let deadline = self.deadline.as_mut();
                    if deadline.is_some_and(|at| at.as_mut().poll(context).is_ready()) {
                        exceeded()
                    } else if let Some(events) = ready!(self.generation.poll_next(context)) {
                        self.take(events);
                        continue;
                    } else {
                        incomplete()
                    }
                }
            };
            return Poll::Ready((Err(fail(&mut self.record, &error)), true));
        }
    }
}

fn incomplete() -> ApiError {
    let message = "the stream ended without its last token";
    ApiError::new(ErrorKind::Incomplete, message)
}
