//! `POST /v1/completions`: one or several prompts, as text or as token ids.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::logprobs::CompletionLogprobs;
use super::sampling::Sampling;
use super::{
    Envelope, OpenAiUsage, Totals, WantedTotals, error_event, error_response, finish_reason, read,
    split, text_of,
};
use crate::api::AppState;
use crate::api::course::SchedulingDetails;
use crate::api::generate::{Prompt, Running, Streams, admitted};
use crate::api::headers::{compute_headers, timing_headers};
use crate::api::record::Record;
use crate::api::respond::json_response;
use crate::api::sse::{Encoder, Frames, stream_response};
use crate::config::LimitsConfig;
use crate::error::ApiError;
use crate::event::{Event, Finished, Token};
use crate::text::TextStyle;
use crate::validation::{Draft, FieldNames, ValidationError};

const NAMES: FieldNames = FieldNames {
    inputs: "prompt",
    max_new_tokens: "max_tokens",
    min_new_tokens: "min_tokens",
    top_n_tokens: "logprobs",
};

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Prompts,
    max_tokens: Option<i64>,
    logprobs: Option<i64>,
    echo: Option<bool>,
    best_of: Option<i64>,
    suffix: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists"
)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

impl Prompts {
    fn into_list(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::Ids(ids) => vec![Prompt::Ids(ids)],
            Self::IdLists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
        }
    }
}

/// What the answer needs beside the drafts.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    streams: bool,
    totals: WantedTotals,
    logprobs: bool,
    top_logprobs: bool,
}

pub(in crate::api) async fn handle(State(app): State<AppState>, request: Request) -> Response {
    serve(app, request, "/v1/completions").await
}

/// `route` is how the log names the request.
pub(in crate::api) async fn serve(
    app: AppState,
    request: Request,
    route: &'static str,
) -> Response {
    let mut record = Record::new(&app.metrics, route);
    match answer(&app, request, &mut record).await {
        Ok((running, wanted)) if wanted.streams => stream(&app, running, wanted, record),
        Ok((running, wanted)) => match whole(&app, running, wanted, &mut record).await {
            Ok(response) => response,
            Err(error) => error_response(&error, &mut record),
        },
        Err(error) => error_response(&error, &mut record),
    }
}

async fn answer(
    app: &AppState,
    request: Request,
    record: &mut Record,
) -> Result<(Vec<Running>, Wanted), ApiError> {
    let (body, sampling) = read(app, request).await?;
    let completion: CompletionRequest = body.parse()?;
    let wanted = Wanted {
        streams: sampling.streams(),
        totals: sampling.totals(),
        logprobs: completion.logprobs.is_some(),
        top_logprobs: completion.logprobs.is_some_and(|num| num > 0),
    };
    let draft = lower(&completion, sampling)?;
    let prompts = completion.prompt.into_list();
    check_count(prompts.len(), &app.limits)?;
    // All or none: a request that holds some permits while it waits for others blocks everybody.
    let permits = app.generator.permits(prompts.len())?;
    let mut running = Vec::with_capacity(prompts.len());
    for (permit, prompt) in permits.into_iter().zip(prompts) {
        let draft = draft.clone();
        running.push(
            app.start(permit, prompt, draft, TextStyle::OpenAi, record)
                .await?,
        );
    }
    admitted(&mut running).await?;
    Ok((running, wanted))
}

fn lower(completion: &CompletionRequest, sampling: Sampling) -> Result<Draft, ApiError> {
    let mut draft = sampling.lower(NAMES)?;
    draft.max_new_tokens = completion.max_tokens;
    draft.top_n_tokens = completion.logprobs;
    draft.logprobs = completion.logprobs.map(|_| true);
    let wanted = [
        ("suffix", completion.suffix.is_some()),
        ("echo", completion.echo == Some(true)),
        (
            "best_of",
            completion.best_of.is_some_and(|best_of| best_of != 1),
        ),
    ];
    let unsupported = wanted.iter().filter(|(_, wanted)| *wanted);
    draft
        .unsupported
        .extend(unsupported.map(|(field, _)| *field));
    Ok(draft)
}

/// Each prompt takes a place, so that more than there are could never run.
fn check_count(num_prompts: usize, limits: &LimitsConfig) -> Result<(), ApiError> {
    let cap = limits
        .max_client_batch_size
        .min(limits.max_concurrent_requests);
    if (1..=cap).contains(&num_prompts) {
        return Ok(());
    }
    let message = format!("`prompt` must have >= 1 and <= {cap} prompts. Given: {num_prompts}");
    Err(ValidationError::new("prompt", message).into())
}

#[derive(Debug, Serialize)]
struct Completion<'a> {
    #[serde(flatten)]
    envelope: &'a Envelope,
    choices: Vec<Choice>,
    usage: Option<OpenAiUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling: Option<SchedulingDetails>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

async fn whole(
    app: &AppState,
    running: Vec<Running>,
    wanted: Wanted,
    record: &mut Record,
) -> Result<Response, ApiError> {
    let num_characters = running.iter().map(|running| running.num_characters).sum();
    let mut totals = Totals::default();
    let mut choices = Vec::with_capacity(running.len());
    for (index, running) in running.into_iter().enumerate() {
        let answer = running.collect(record).await?;
        totals.add(&answer.finished);
        choices.push(Choice {
            index,
            logprobs: logprobs(app, wanted, &answer.tokens, &mut 0),
            text: answer.text,
            finish_reason: Some(finish_reason(answer.finished.reason)),
        });
    }
    let completion = Completion {
        envelope: &Envelope::new(app, "cmpl", "text_completion"),
        choices,
        usage: Some(totals.usage),
        scheduling: wanted.totals.scheduling_of(&totals),
    };
    let mut response = json_response(StatusCode::OK, &completion);
    timing_headers(
        response.headers_mut(),
        &app.compute_type(),
        num_characters,
        record,
    );
    Ok(response)
}

fn logprobs(
    app: &AppState,
    wanted: Wanted,
    tokens: &[Token],
    offset: &mut usize,
) -> Option<CompletionLogprobs> {
    let vocabulary = &app.model.vocabulary;
    let with_top = wanted.top_logprobs;
    wanted
        .logprobs
        .then(|| CompletionLogprobs::new(tokens, vocabulary, with_top, offset))
}

fn stream(app: &AppState, running: Vec<Running>, wanted: Wanted, record: Record) -> Response {
    let encoder = CompletionStream {
        app: AppState::clone(app),
        envelope: Envelope::new(app, "cmpl", "text_completion"),
        wanted,
        totals: Totals::default(),
        offsets: vec![0; running.len()],
    };
    let num_characters = running.iter().map(|running| running.num_characters).sum();
    let streams = Streams::new(running.into_iter().map(|running| running.generation));
    let mut response = stream_response(streams, encoder, record);
    compute_headers(response.headers_mut(), &app.compute_type(), num_characters);
    response
}

/// Tokens of one prompt that arrive together share a chunk.
#[derive(Debug)]
struct CompletionStream {
    app: AppState,
    envelope: Envelope,
    wanted: Wanted,
    totals: Totals,
    /// Length of each prompt's text so far, in characters.
    offsets: Vec<usize>,
}

impl CompletionStream {
    fn chunk(&mut self, index: usize, tokens: &[Token], end: Option<&Finished>, out: &mut Frames) {
        let text = text_of(tokens, end);
        let is_empty = text.is_empty() && (!self.wanted.logprobs || tokens.is_empty());
        if is_empty && end.is_none() {
            return;
        }
        out.json(&Completion {
            envelope: &self.envelope,
            choices: vec![Choice {
                index,
                text,
                logprobs: logprobs(&self.app, self.wanted, tokens, &mut self.offsets[index]),
                finish_reason: end.map(|end| finish_reason(end.reason)),
            }],
            usage: None,
            scheduling: None,
        });
    }
}

impl Encoder for CompletionStream {
    fn events(&mut self, index: usize, events: Vec<Event>, out: &mut Frames) {
        let (tokens, end) = split(events);
        if let Some(end) = &end {
            self.totals.add(end);
        }
        self.chunk(index, &tokens, end.as_ref(), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Frames) {
        error_event(error, out);
    }

    fn end(&mut self, out: &mut Frames) {
        let wanted = self.wanted.totals;
        if wanted.any() {
            out.json(&Completion {
                envelope: &self.envelope,
                choices: Vec::new(),
                usage: wanted.usage_of(&self.totals),
                scheduling: wanted.scheduling_of(&self.totals),
            });
        }
        out.done();
    }
}
