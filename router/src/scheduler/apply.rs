//! From the result of a step to tokens and ends of requests. Every row is held against what was planned: a shard that
//! answers anything else has lost its state, and the group with it.

use std::time::Duration;

use super::step::{RowResult, RowStatus, Seat, StepResult};
use super::{PlannedRow, Scheduler, failed};
use crate::event::{Delivery, Failure, FinishReason, Output, SampledToken};

/// Generated tokens after which a tenant is charged for them.
const CHARGE_EVERY: usize = 32;

/// A result that cannot belong to the plan. The group must be given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("result of plan {got}, expected {expected:?}")]
    PlanId { got: u64, expected: Option<u64> },
    #[error("plan {plan_id}: {got} result rows, expected {expected}")]
    NumRows {
        plan_id: u64,
        got: usize,
        expected: usize,
    },
    #[error("plan {plan_id}, row {row}: {what} is {got}, expected {expected}")]
    Row {
        plan_id: u64,
        row: usize,
        what: &'static str,
        got: u64,
        expected: u64,
    },
    #[error("plan {plan_id}, row {row}: status {status} for a request that runs")]
    Status {
        plan_id: u64,
        row: usize,
        status: &'static str,
    },
    #[error("plan {plan_id}: token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        plan_id: u64,
        id: u32,
        vocab_size: u32,
    },
    #[error("plan {plan_id}: the column {column} has {got} values, expected {expected}")]
    Column {
        plan_id: u64,
        column: &'static str,
        got: usize,
        expected: usize,
    },
}

/// Read positions in the columns of a result.
#[derive(Default)]
struct Cursor {
    tokens: usize,
    logprobs: usize,
    tops: usize,
}

impl Cursor {
    /// The row's token, if it sampled one. Columns were measured before.
    fn next(
        &mut self,
        result: &StepResult,
        planned: &PlannedRow,
        row: &RowResult,
    ) -> Option<SampledToken> {
        if row.num_tokens == 0 {
            return None;
        }
        let mut token = SampledToken {
            id: result.token_ids[self.tokens],
            logprob: None,
            top: Vec::new(),
        };
        self.tokens += 1;
        if let Some(params) = planned.logprobs {
            token.logprob = Some(result.logprobs[self.logprobs]);
            self.logprobs += 1;
            let tops = self.tops..self.tops + params.num_top as usize;
            self.tops = tops.end;
            let ids = result.top_ids[tops.clone()].iter().copied();
            token.top = ids.zip(result.top_logprobs[tops].iter().copied()).collect();
        }
        Some(token)
    }
}

impl Scheduler {
    /// Takes the result of the oldest plan in flight.
    pub fn apply(
        &mut self,
        result: &StepResult,
        now: Duration,
        out: &mut Vec<Delivery>,
    ) -> Result<(), ProtocolError> {
        let expected = self.in_flight.front().map(|plan| plan.plan_id);
        if expected != Some(result.plan_id) {
            return Err(ProtocolError::PlanId {
                got: result.plan_id,
                expected,
            });
        }
        let plan = self.in_flight.pop_front().expect("the front was just seen");
        check_rows(result, &plan.rows)?;
        check_columns(result, &plan.rows, self.limits.vocab_size)?;
        if !plan.rows.is_empty() {
            self.tempo
                .stepped(result.step_us, plan.decode_rows, plan.chunk);
        }
        let mut cursor = Cursor::default();
        for (index, (row, planned)) in result.rows.iter().zip(&plan.rows).enumerate() {
            let token = cursor.next(result, planned, row);
            let Some(sequence) = self.running.holder(planned.seat) else {
                self.counters.wasted_rows += 1;
                self.note_departed(planned, row.status);
                continue;
            };
            match row.status {
                RowStatus::Ok => {
                    sequence.num_written = planned.position;
                    if let Some(token) = token {
                        self.take_token(planned.seat, token, now, out);
                    }
                }
                RowStatus::Nan => self.fail(planned.seat, Failure::BadLogits, out),
                RowStatus::BadInput => self.fail(planned.seat, Failure::BadInput, out),
                RowStatus::OutOfMemory => self.fail(planned.seat, Failure::OutOfMemory, out),
                RowStatus::Overrun | RowStatus::Dead => {
                    return Err(ProtocolError::Status {
                        plan_id: plan.plan_id,
                        row: index,
                        status: row.status.name(),
                    });
                }
            }
        }
        self.acknowledged = plan.plan_id;
        self.seats.acknowledge(plan.plan_id);
        self.cache.acknowledge(plan.plan_id);
        self.release_stopped();
        Ok(())
    }

    /// A row of a request that has left: others may share what it wrote.
    fn note_departed(&mut self, planned: &PlannedRow, status: RowStatus) {
        if status == RowStatus::Ok {
            self.cache.departed_wrote(planned.seat, planned.position);
        } else {
            let is_nan = status == RowStatus::Nan;
            let fence = self.last_plan_id;
            let gone = self.cache.departed_failed(planned.seat, is_nan, fence);
            self.restart_readers(&gone);
        }
    }

    /// Delivers the token; ends the request if it was the last.
    fn take_token(
        &mut self,
        seat: Seat,
        token: SampledToken,
        now: Duration,
        out: &mut Vec<Delivery>,
    ) {
        let sequence = self
            .running
            .holder(seat)
            .expect("the caller saw that the request runs");
        let id = sequence.id();
        let is_first = sequence.task.generated.is_empty();
        sequence.num_sampled += 1;
        sequence.task.generated.push(token.id);
        sequence.task.crashes = 0;
        let task = &mut sequence.task;
        // The order is TGI's: an end token that is also the last allowed token counts as length.
        let reason = if sequence.num_sampled >= task.request.max_new_tokens {
            Some(FinishReason::Length)
        } else if task.request.stop_ids.contains(&token.id) {
            Some(FinishReason::EndOfSequence)
        } else {
            None
        };
        let timings = task.timings(now);
        if is_first {
            out.push(Delivery {
                request: id,
                output: Output::Started {
                    queue: timings.queue,
                    cached_tokens: task.cached_tokens,
                    waited: task.waited,
                },
            });
        }
        #[cfg(test)]
        if super::bugs::is(super::bugs::Bug::DeliversTwice)
            && task.preemptions > 0
            && task.num_known() == sequence.feed_end as usize + 1
        {
            out.push(Delivery {
                request: id,
                output: Output::Token(token.clone()),
            });
        }
        out.push(Delivery {
            request: id,
            output: Output::Token(token),
        });
        self.counters.generated_tokens += 1;
        if let Some(reason) = reason {
            let max_new_tokens = task.request.max_new_tokens;
            let length = sequence.num_sampled;
            self.outputs.ended(max_new_tokens, length);
            self.end(seat.index);
            self.counters.finished += 1;
            out.push(Delivery {
                request: id,
                output: Output::Finished { reason, timings },
            });
            return;
        }
        self.follow_up(seat.index);
    }

    /// Now that one more token is known.
    fn follow_up(&mut self, seat: u32) {
        let unit = self.cache.tokens_per_unit();
        let sequence = self.running.at_mut(seat);
        let task = &mut sequence.task;
        let uncharged = task.generated.len() - task.charged;
        if uncharged >= CHARGE_EVERY {
            task.charged = task.generated.len();
            self.queue
                .generated(task.request.scheduling.tenant, uncharged);
        }
        // A unit is full of known tokens, and has been fed, at depth 1 one token later.
        let is_new = sequence.task.num_known() % unit <= 1;
        if !sequence.stopped && is_new {
            self.publish(seat);
        }
    }

    fn fail(&mut self, seat: Seat, failure: Failure, out: &mut Vec<Delivery>) {
        let sequence = self.running.at(seat.index);
        let id = sequence.id();
        // Only rows that sample are looked at, so bad logits may come from anything that the request has written.
        let num_good = match failure {
            Failure::BadLogits => sequence.num_hit,
            _ => sequence.num_written,
        };
        let gone = self
            .cache
            .void(&sequence.hold, num_good as usize, self.last_plan_id);
        let sequence = self.running.at_mut(seat.index);
        sequence.hold.lose_path(&gone);
        (sequence.num_fed, sequence.num_written) = (num_good, num_good);
        self.end(seat.index);
        self.counters.failed += 1;
        out.push(failed(id, failure));
        self.restart_readers(&gone);
    }
}

/// Seat, generation, position and number of tokens of every row are as planned.
fn check_rows(result: &StepResult, planned: &[PlannedRow]) -> Result<(), ProtocolError> {
    let plan_id = result.plan_id;
    if result.rows.len() != planned.len() {
        return Err(ProtocolError::NumRows {
            plan_id,
            got: result.rows.len(),
            expected: planned.len(),
        });
    }
    for (index, (row, plan)) in result.rows.iter().zip(planned).enumerate() {
        let ok = row.status == RowStatus::Ok;
        // A failed row has no token, so no position.
        let position = if ok { plan.position } else { row.position };
        let num_tokens = u32::from(ok && plan.sample);
        let facts = [
            ("seat", row.seat.index, plan.seat.index),
            ("generation", row.seat.generation, plan.seat.generation),
            ("position", row.position, position),
            ("number of tokens", row.num_tokens, num_tokens),
        ];
        for (what, got, expected) in facts {
            if got != expected {
                return Err(ProtocolError::Row {
                    plan_id,
                    row: index,
                    what,
                    got: got.into(),
                    expected: expected.into(),
                });
            }
        }
    }
    Ok(())
}

/// The columns are as long as the rows need, and every id is one of the vocabulary.
fn check_columns(
    result: &StepResult,
    planned: &[PlannedRow],
    vocab_size: u32,
) -> Result<(), ProtocolError> {
    let plan_id = result.plan_id;
    let (mut tokens, mut logprobs, mut tops) = (0, 0, 0);
    for (row, plan) in result.rows.iter().zip(planned) {
        if row.num_tokens == 0 {
            continue;
        }
        tokens += 1;
        if let Some(params) = plan.logprobs {
            logprobs += 1;
            tops += params.num_top as usize;
        }
    }
    let columns = [
        ("token_ids", result.token_ids.len(), tokens),
        ("logprobs", result.logprobs.len(), logprobs),
        ("top_ids", result.top_ids.len(), tops),
        ("top_logprobs", result.top_logprobs.len(), tops),
    ];
    for (column, got, expected) in columns {
        if got != expected {
            return Err(ProtocolError::Column {
                plan_id,
                column,
                got,
                expected,
            });
        }
    }
    let ids = result.token_ids.iter().chain(&result.top_ids);
    match ids.copied().find(|&id| id >= vocab_size) {
        Some(id) => Err(ProtocolError::TokenId {
            plan_id,
            id,
            vocab_size,
        }),
        None => Ok(()),
    }
}
