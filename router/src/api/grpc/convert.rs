//! Between the messages of the proto file and what the native routes work with.

use serde::de::IgnoredAny;

use crate::api::generate::Answer;
use crate::api::health::Info;
use crate::api::native::{self, Details, End, Item, Lowered, Parameters, Shape};
use crate::event::{Course, FinishReason, Token};
use crate::public_pb as pb;
use crate::tokenize;
use crate::validation::Draft;

pub(super) fn lower(message: pb::GenerateRequest, streams: bool) -> (String, Draft, Shape) {
    let pb::GenerateRequest { inputs, parameters } = message;
    let Lowered {
        draft,
        details,
        return_full_text,
    } = native::lower(parameters.map(Parameters::from), streams);
    let full = return_full_text.unwrap_or(false);
    let shape = Shape {
        details,
        prompt: full.then(|| inputs.clone()),
    };
    (inputs, draft, shape)
}

impl From<pb::Parameters> for Parameters {
    fn from(parameters: pb::Parameters) -> Self {
        let pb::Parameters {
            best_of,
            temperature,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            top_k,
            top_p,
            typical_p,
            min_p,
            do_sample,
            max_new_tokens,
            min_new_tokens,
            ignore_eos,
            return_full_text,
            stop,
            truncate,
            watermark,
            details,
            decoder_input_details,
            seed,
            top_n_tokens,
            logit_bias,
            adapter_id,
            priority,
            cache_salt,
            scheduling_details,
        } = parameters;
        // The rules are those of JSON, where keys are strings.
        let logit_bias = logit_bias
            .into_iter()
            .map(|(id, bias)| (id.to_string(), bias));
        Self {
            best_of,
            temperature,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            top_k,
            top_p,
            typical_p,
            min_p,
            do_sample,
            max_new_tokens,
            min_new_tokens,
            ignore_eos,
            return_full_text,
            stop: Some(stop),
            truncate,
            watermark,
            details,
            decoder_input_details,
            seed,
            top_n_tokens,
            logit_bias: Some(logit_bias.collect()),
            priority,
            cache_salt,
            scheduling_details,
            grammar: None,
            adapter_id: adapter_id.map(|_| IgnoredAny),
        }
    }
}

pub(super) fn answer(answer: Answer, shape: &Shape, seed: Option<u64>) -> pb::GenerateResponse {
    let Answer {
        tokens,
        text,
        finished,
    } = answer;
    let has_top = tokens.iter().any(|token| !token.top.is_empty());
    let candidates = |token: &Token| pb::TopTokens {
        tokens: top_tokens(token),
    };
    pb::GenerateResponse {
        generated_text: shape.full_text(&text),
        details: (shape.details != Details::None).then(|| pb::Details {
            finish_reason: reason(finished.reason).into(),
            generated_tokens: finished.usage.generated_tokens,
            seed,
            prefill: Vec::new(),
            top_tokens: if has_top {
                tokens.iter().map(candidates).collect()
            } else {
                Vec::new()
            },
            tokens: tokens.into_iter().map(pb::Token::from).collect(),
            scheduling: scheduling(shape.details, finished.course),
        }),
    }
}

fn scheduling(details: Details, course: Course) -> Option<pb::Scheduling> {
    let Course {
        cached_tokens,
        waited,
        preemptions,
    } = course;
    (details == Details::WithScheduling).then(|| pb::Scheduling {
        cached_tokens,
        waited: waited.map(|reason| reason.name().to_owned()),
        preemptions,
    })
}

pub(super) fn stream_message(item: Item) -> pb::GenerateStreamResponse {
    let Item { index, token, end } = item;
    let details = end.as_ref().filter(|end| end.details != Details::None);
    pb::GenerateStreamResponse {
        index,
        top_tokens: top_tokens(&token),
        token: Some(token.into()),
        details: details.map(pb::StreamDetails::from),
        generated_text: end.map(|end| end.generated_text),
    }
}

impl From<&End> for pb::StreamDetails {
    fn from(end: &End) -> Self {
        Self {
            finish_reason: reason(end.finished.reason).into(),
            generated_tokens: end.finished.usage.generated_tokens,
            seed: end.seed,
            input_length: end.input_length,
            scheduling: scheduling(end.details, end.finished.course),
        }
    }
}

impl From<Token> for pb::Token {
    fn from(token: Token) -> Self {
        Self {
            id: token.id,
            text: token.text,
            logprob: token.logprob,
            special: token.special,
        }
    }
}

fn top_tokens(token: &Token) -> Vec<pb::Token> {
    let candidates = token.top.iter();
    let candidates = candidates.map(|candidate| pb::Token {
        id: candidate.id,
        text: candidate.text.clone(),
        logprob: Some(candidate.logprob),
        special: candidate.special,
    });
    candidates.collect()
}

fn reason(reason: FinishReason) -> pb::FinishReason {
    match reason {
        FinishReason::Length => pb::FinishReason::Length,
        FinishReason::EndOfSequence => pb::FinishReason::EosToken,
        FinishReason::StopSequence => pb::FinishReason::StopSequence,
    }
}

pub(super) fn tokens(tokens: Vec<tokenize::Token>) -> pb::TokenizeResponse {
    // A body is limited to less than 4 GiB.
    let place = |place| u32::try_from(place).unwrap_or(u32::MAX);
    let tokens = tokens.into_iter().map(|token| pb::TextToken {
        id: token.id,
        text: token.text,
        start: place(token.start),
        stop: place(token.stop),
    });
    pb::TokenizeResponse {
        tokens: tokens.collect(),
    }
}

pub(super) fn info(info: Info<'_>) -> pb::InfoResponse {
    let number = |number: usize| number as u64;
    pb::InfoResponse {
        model_id: info.model_id.to_owned(),
        model_dtype: info.model_dtype,
        model_device_type: info.model_device_type,
        model_pipeline_tag: info.model_pipeline_tag.to_owned(),
        max_concurrent_requests: number(info.max_concurrent_requests),
        max_best_of: number(info.max_best_of),
        max_stop_sequences: number(info.max_stop_sequences),
        max_input_tokens: info.max_input_tokens.map(number),
        max_total_tokens: info.max_total_tokens.map(number),
        validation_workers: number(info.validation_workers),
        max_client_batch_size: number(info.max_client_batch_size),
        max_batch_total_tokens: info.max_batch_total_tokens.map(number),
        router: info.router.to_owned(),
        version: info.version.to_owned(),
    }
}
