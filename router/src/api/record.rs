//! One record per request, from arrival to its last byte: when it is dropped it becomes metrics and one line in the
//! log. Holds numbers and names only, never text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::ApiError;
use crate::event::{Course, Event, FinishReason, Finished, Refusal, WaitReason};
use crate::metrics::{FailureLabel, Metrics};
use crate::request::Request;

/// What is known about a request so far.
#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    route: &'static str,
    status: u16,
    arrived: Instant,
    id: Option<u64>,
    /// Prompts that were submitted and have not ended.
    num_open: usize,
    failure: Option<FailureLabel>,
    reason: Option<FinishReason>,
    refusal: Option<Refusal>,
    pub(super) validation: Duration,
    pub(super) queue: Duration,
    pub(super) inference: Duration,
    first_token: Option<Duration>,
    pub(super) prompt_tokens: u32,
    pub(super) generated_tokens: u32,
    /// Of the prompts that have ended well.
    course: Course,
}

impl Record {
    pub(super) fn new(metrics: &Arc<Metrics>, route: &'static str) -> Self {
        metrics.request_count.increment(1);
        Self {
            metrics: Arc::clone(metrics),
            route,
            status: 200,
            arrived: Instant::now(),
            id: None,
            num_open: 0,
            failure: None,
            reason: None,
            refusal: None,
            validation: Duration::ZERO,
            queue: Duration::ZERO,
            inference: Duration::ZERO,
            first_token: None,
            prompt_tokens: 0,
            generated_tokens: 0,
            course: Course::default(),
        }
    }

    /// A prompt is about to be submitted.
    pub(super) fn submitting(&mut self, request: &Request) {
        let prompt_tokens = u32::try_from(request.prompt_ids.len()).unwrap_or(u32::MAX);
        self.id.get_or_insert(request.id.0);
        self.num_open += 1;
        self.validation = self.arrived.elapsed();
        self.prompt_tokens += prompt_tokens;
        self.metrics.validation_duration.record(self.validation);
        self.metrics.input_length.record(f64::from(prompt_tokens));
        self.metrics
            .max_new_tokens
            .record(f64::from(request.max_new_tokens));
    }

    pub(super) fn observe(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Token(_) => {
                    self.generated_tokens += 1;
                    self.first_token
                        .get_or_insert_with(|| self.arrived.elapsed());
                }
                Event::Finished(finished) => self.finished(finished),
                Event::Failed(failure) => self.fail(&failure.clone().into()),
            }
        }
    }

    fn finished(&mut self, finished: &Finished) {
        let Finished {
            reason,
            usage,
            timings,
            course,
            tail: _,
        } = finished;
        self.course.add(*course);
        self.num_open = self.num_open.saturating_sub(1);
        self.reason = Some(*reason);
        self.queue = self.queue.max(timings.queue);
        self.inference = self.inference.max(timings.inference);
        self.metrics.queue_duration.record(timings.queue);
        self.metrics.inference_duration.record(timings.inference);
        let generated = usage.generated_tokens;
        self.metrics.generated_tokens.record(f64::from(generated));
        self.metrics
            .mean_time_per_token
            .record(timings.inference / generated.max(1));
    }

    /// The request is answered with an error of this status.
    pub(super) fn failed(&mut self, error: &ApiError, status: u16) {
        self.fail(error);
        self.status = status;
    }

    fn fail(&mut self, error: &ApiError) {
        self.failure = Some(error.kind.codes().label);
        if let Some((refusal, waited)) = error.refusal {
            self.refusal = Some(refusal);
            self.course.waited = waited;
            self.queue = self.total().saturating_sub(self.validation);
        }
    }

    pub(super) fn total(&self) -> Duration {
        self.arrived.elapsed()
    }

    pub(super) fn time_per_token(&self) -> Duration {
        self.inference / self.generated_tokens.max(1)
    }

    fn outcome(&self) -> Result<&'static str, FailureLabel> {
        match (self.failure, self.reason) {
            (Some(failure), _) => Err(failure),
            (None, Some(reason)) if self.num_open == 0 => Ok(reason_name(reason)),
            (None, _) => Err(FailureLabel::Dropped),
        }
    }
}

/// TGI's names of the reasons.
pub(super) fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfSequence => "eos_token",
        FinishReason::StopSequence => "stop_sequence",
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let total = self.total();
        let outcome = self.outcome();
        match outcome {
            Ok(_) => {
                self.metrics.request_success.increment(1);
                self.metrics.request_duration.record(total);
            }
            Err(label) => self.metrics.failed(label),
        }
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let end = outcome.unwrap_or_else(FailureLabel::name);
        tracing::info!(
            id = self.id,
            route = self.route,
            status = self.status,
            prompt_tokens = self.prompt_tokens,
            generated_tokens = self.generated_tokens,
            cached_tokens = self.course.cached_tokens,
            waited = self.course.waited.map(WaitReason::name),
            preemptions = self.course.preemptions,
            refusal = self.refusal.map(Refusal::name),
            queue_ms = millis(self.queue),
            first_token_ms = self.first_token.map(millis),
            total_ms = millis(total),
            finish_reason = end,
            "{} {}: {} + {} tokens, {end}",
            self.route,
            self.status,
            self.prompt_tokens,
            self.generated_tokens,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Failure, Timings, Token, Usage};

    #[test]
    fn tokens_count_when_they_come_not_when_the_request_ends_well() {
        let metrics = Arc::new(Metrics::new(10, 20).unwrap());
        let mut record = Record::new(&metrics, "/generate");
        let token = Event::Token(Token {
            id: 1,
            text: "a".to_owned(),
            special: false,
            logprob: None,
            top: Vec::new(),
        });
        record.observe(&[token.clone(), token]);
        record.observe(&[Event::Failed(Failure::EngineLost)]);
        assert_eq!(record.generated_tokens, 2);
    }

    #[test]
    fn a_failure_has_its_own_label() {
        let metrics = Arc::new(Metrics::new(10, 20).unwrap());
        let refused = Failure::Refused {
            refusal: Refusal::QueueTimeout,
            retry_after_s: 1,
            waited: None,
        };
        for (failure, label) in [
            (refused, FailureLabel::Overloaded),
            (Failure::DeadlineExceeded, FailureLabel::Deadline),
            (Failure::EngineLost, FailureLabel::Generation),
            (Failure::TooLong, FailureLabel::Generation),
        ] {
            let mut record = Record::new(&metrics, "/generate");
            record.observe(&[Event::Failed(failure)]);
            assert_eq!(record.outcome(), Err(label));
        }
    }

    #[test]
    fn who_is_turned_away_waited_until_then_and_for_a_reason() {
        let metrics = Arc::new(Metrics::new(10, 20).unwrap());
        let mut record = Record::new(&metrics, "/generate");
        let refused = Failure::Refused {
            refusal: Refusal::QueueTimeout,
            retry_after_s: 1,
            waited: Some(WaitReason::Blocks),
        };
        std::thread::sleep(Duration::from_millis(5));
        record.failed(&refused.into(), 429);
        assert_eq!(record.refusal, Some(Refusal::QueueTimeout));
        assert_eq!(record.course.waited, Some(WaitReason::Blocks));
        assert!(record.queue >= Duration::from_millis(5));
    }

    #[test]
    fn the_courses_of_several_prompts_are_one() {
        let metrics = Arc::new(Metrics::new(10, 20).unwrap());
        let mut record = Record::new(&metrics, "/v1/completions");
        for (cached_tokens, waited, preemptions) in
            [(3, None, 1), (4, Some(WaitReason::Seats), 0), (5, None, 2)]
        {
            let course = Course {
                cached_tokens,
                waited,
                preemptions,
            };
            record.observe(&[Event::Finished(Finished {
                reason: FinishReason::Length,
                usage: Usage::default(),
                course,
                timings: Timings::default(),
                tail: String::new(),
            })]);
        }
        let together = Course {
            cached_tokens: 12,
            waited: Some(WaitReason::Seats),
            preemptions: 3,
        };
        assert_eq!(record.course, together);
    }
}
