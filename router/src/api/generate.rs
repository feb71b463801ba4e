//! From a draft and a prompt to a running generation, and from that to a whole answer; the same for every dialect.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::App;
use super::record::Record;
use crate::error::{ApiError, ErrorKind};
use crate::event::{Event, Failure, Finished, Token};
use crate::stream::{Generation, Permit};
use crate::text::{TextParams, TextStyle};
use crate::tokenizer::{EncodeError, encode};
use crate::validation::{Draft, Limits, ValidationError, check};

/// What is to be continued.
#[derive(Debug)]
pub(super) enum Prompt {
    /// Tokenized with the tokenizer's special tokens.
    Text(String),
    Ids(Vec<u32>),
    /// Rendered by the chat template, which writes its own special tokens.
    Chat(Vec<Value>),
}

/// A generation on its way, with what its answer must state.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) generation: Generation,
    /// Of the prompt as text.
    pub(super) num_characters: usize,
    /// `None` if nothing is drawn.
    pub(super) seed: Option<u64>,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) tokens: Vec<Token>,
    /// Without special tokens.
    pub(super) text: String,
    pub(super) finished: Finished,
}

impl App {
    /// Checks, tokenizes and submits.
    pub(super) async fn start(
        self: &Arc<Self>,
        permit: Permit,
        prompt: Prompt,
        draft: Draft,
        style: TextStyle,
        record: &mut Record,
    ) -> Result<Running, ApiError> {
        let facts = self.ready()?;
        let limits = Limits::new(&self.limits, &facts);
        let (inputs, deadline) = (draft.names.inputs, draft.deadline);
        let checked = check(draft, &limits, rand::random())?;
        if let Prompt::Text(text) = &prompt {
            checked.check_inputs(text.is_empty())?;
        }
        let (ids, num_characters) = self.tokenize(prompt, inputs).await?;
        let seed = checked.seed();
        let text = TextParams {
            stop: checked.stop.clone(),
            style,
        };
        let id = self.generator.next_id();
        let mut request = checked.with_prompt(id, ids, &self.model.eos_ids)?;
        let remaining = |at: Instant| at.saturating_duration_since(Instant::now());
        request.scheduling.queue_timeout = self.limits.queue_timeout;
        request.scheduling.total_timeout = deadline.map(remaining);
        record.submitting(&request);
        let generation = self.generator.submit(permit, request, &text)?;
        Ok(Running {
            generation,
            num_characters,
            seed,
        })
    }

    async fn tokenize(
        self: &Arc<Self>,
        prompt: Prompt,
        inputs: &'static str,
    ) -> Result<(Vec<u32>, usize), ApiError> {
        let (text, messages) = match prompt {
            Prompt::Ids(ids) => return Ok((ids, 0)),
            Prompt::Text(text) => (text, None),
            Prompt::Chat(messages) => (String::new(), Some(messages)),
        };
        let app = Arc::clone(self);
        let job = move |tokenizer: &tokenizers::Tokenizer| {
            let add_special_tokens = messages.is_none();
            let text = match messages {
                Some(messages) => app.render(&messages)?,
                None => text,
            };
            let ids = encode(tokenizer, &text, add_special_tokens)
                .map_err(|error| tokenizer_error(inputs, &error))?;
            Ok((ids, text.chars().count()))
        };
        self.tokenizers.run(job).await?
    }

    /// The prompt of a chat. Slow: for a tokenizer thread.
    pub(super) fn render(&self, messages: &[Value]) -> Result<String, ApiError> {
        let error = |message: String| {
            let message = format!("Template error: {message}");
            ApiError::new(ErrorKind::Template, message).with_param("messages")
        };
        let template = self
            .model
            .chat
            .as_ref()
            .map_err(|reason| error(reason.clone()))?;
        template
            .render(messages)
            .map_err(|raised| error(raised.to_string()))
    }
}

/// The tokenizer refused the text of this field.
pub(super) fn tokenizer_error(field: &str, error: &EncodeError) -> ApiError {
    let message = format!("`{field}`: tokenizer error: {error}");
    ValidationError::new(field, message).into()
}

/// The scheduler turns a request away within milliseconds, or keeps it until its time in the queue is over.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);

/// Waits for the first events, but not for long; an error if one of the requests is turned away. Once the headers of a
/// stream are out there is no status left that would say so.
pub(super) async fn admitted(all: impl IntoIterator<Item = &mut Running>) -> Result<(), ApiError> {
    let all = all.into_iter().map(|running| async {
        match running.generation.begun().await {
            Err(failure @ Failure::Refused { .. }) => Err(failure),
            // The others have their own place in each dialect.
            Err(_) | Ok(()) => Ok(()),
        }
    });
    match timeout(REFUSED_WITHIN, try_join_all(all)).await {
        Ok(Err(failure)) => Err(failure.into()),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

impl Running {
    /// Waits for the whole answer.
    pub(super) async fn collect(mut self, record: &mut Record) -> Result<Answer, ApiError> {
        let mut tokens = Vec::new();
        let mut text = String::new();
        while let Some(events) = self.generation.next().await {
            record.observe(&events);
            for event in events {
                match event {
                    Event::Token(token) => {
                        if !token.special {
                            text.push_str(&token.text);
                        }
                        tokens.push(token);
                    }
                    Event::Finished(finished) => {
                        text.push_str(&finished.tail);
                        return Ok(Answer {
                            tokens,
                            text,
                            finished,
                        });
                    }
                    Event::Failed(failure) => return Err(failure.into()),
                }
            }
        }
        let message = "the stream ended without its last token";
        Err(ApiError::new(ErrorKind::Incomplete, message))
    }
}

/// The streams of one request's prompts.
#[derive(Debug)]
pub(super) struct Streams(Vec<(usize, Generation)>);

impl Streams {
    pub(super) fn new(generations: impl IntoIterator<Item = Generation>) -> Self {
        Self(generations.into_iter().enumerate().collect())
    }

    /// The next events of any of them, with the prompt's index; `None` when all have ended.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(usize, Vec<Event>)>> {
        let mut place = 0;
        while let Some((index, generation)) = self.0.get_mut(place) {
            match generation.poll_next(context) {
                Poll::Ready(Some(events)) => return Poll::Ready(Some((*index, events))),
                Poll::Ready(None) => drop(self.0.remove(place)),
                Poll::Pending => place += 1,
            }
        }
        if self.0.is_empty() {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }
}
