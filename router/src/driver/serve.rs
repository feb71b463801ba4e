//! Runs one engine from ready to lost: commands in, plans out, results in, deliveries out. Sleeps without a timer while
//! there is nothing to do.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::outbox::Outbox;
use super::pacing::{Pacing, Received, StepKind};
use super::stats::{DriverStats, Samples, SharedStats, StepSample, StepTotals};
use super::{Command, InjectedWork};
use crate::engine::{Engine, EngineError};
use crate::event::Failure;
use crate::scheduler::step::{Plan, StepResult};
use crate::scheduler::{ProtocolError, Scheduler};

/// Most commands taken between two looks at the engine.
const COMMANDS_AT_ONCE: usize = 256;

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// Nobody can send commands any more.
    #[error("the router is closing")]
    InboxClosed,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// One engine with the state of its requests.
pub(super) struct Serving<'a, E> {
    pub(super) engine: E,
    pub(super) scheduler: Scheduler,
    pub(super) pacing: Pacing,
    /// Padded row counts of decode steps.
    pub(super) decode_sizes: Vec<u32>,
    pub(super) inbox: &'a mut mpsc::Receiver<Command>,
    pub(super) outbox: &'a mut Outbox,
    pub(super) stats: &'a mut DriverStats,
    pub(super) shared_stats: &'a SharedStats,
    /// Not published yet.
    pub(super) samples: Samples,
    /// Origin of the scheduler's clock.
    pub(super) origin: Instant,
    pub(super) injected_work: InjectedWork,
}

impl<E: Engine> Serving<'_, E> {
    /// Serves until the engine or the inbox ends; then everybody left fails.
    pub(super) async fn run(mut self) -> Ended {
        let ended = match self.serve().await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        let lost: Vec<StepKind> = self.pacing.in_flight().collect();
        for kind in lost {
            self.totals(kind.feeds).lost += 1;
        }
        self.scheduler
            .fail_all(&Failure::EngineLost, &mut self.outbox.pending);
        self.publish();
        ended
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, Ended> {
        let mut commands = Vec::with_capacity(COMMANDS_AT_ONCE);
        loop {
            let wake = self.send_plans().await?;
            self.outbox.try_flush();
            self.publish();
            let deadline = self.scheduler.next_deadline();
            let deadline = deadline.map(|time| self.origin + time);
            let wake = [wake, deadline].into_iter().flatten().min();
            tokio::select! {
                biased;
                result = self.engine.results() => self.take_result(&result?)?,
                count = self.inbox.recv_many(&mut commands, COMMANDS_AT_ONCE) => {
                    if count == 0 {
                        return Err(Ended::InboxClosed);
                    }
                    for command in commands.drain(..) {
                        self.take_command(command);
                    }
                }
                () = self.outbox.flush() => (),
                () = wait_until(wake) => {
                    let now = self.origin.elapsed();
                    self.scheduler.expire(now, &mut self.outbox.pending);
                }
            }
        }
    }

    /// Sends what may be sent now; tells when the next plan is due, if one is held back.
    async fn send_plans(&mut self) -> Result<Option<Instant>, Ended> {
        while self.scheduler.may_send() && self.scheduler.has_work() && !self.outbox.is_clogged() {
            let begun = Instant::now();
            if let Some(due) = self.pacing.hold_until(begun) {
                return Ok(Some(due));
            }
            let now = begun - self.origin;
            let Some(plan) = self.scheduler.plan(now, &mut self.outbox.pending) else {
                return Ok(None);
            };
            self.injected_work.run().await;
            self.engine.submit(&plan)?;
            let admitted = u32::try_from(plan.registrations.len()).unwrap_or(u32::MAX);
            if admitted > 0 {
                self.samples.batch_sizes.push(admitted);
            }
            self.pacing.sent(self.kind_of(&plan), begun, Instant::now());
        }
        Ok(None)
    }

    /// `None` for a plan that only frees seats: its result tells nothing about steps.
    fn kind_of(&self, plan: &Plan) -> Option<StepKind> {
        if plan.rows.is_empty() {
            return None;
        }
        let feeds = !plan.feed_ids.is_empty();
        let (sizes, count) = if feeds {
            let continued = plan.rows.len().saturating_sub(num_feed_rows(plan));
            (
                &self.scheduler.limits().mixed_sizes,
                plan.feed_ids.len() + continued,
            )
        } else {
            (&self.decode_sizes, plan.rows.len())
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let padded = sizes.iter().copied().find(|&size| size >= count);
        Some(StepKind {
            feeds,
            size: padded.unwrap_or(count),
        })
    }

    fn totals(&mut self, feeds: bool) -> &mut StepTotals {
        if feeds {
            &mut self.stats.prefill
        } else {
            &mut self.stats.decode
        }
    }

    fn take_result(&mut self, result: &StepResult) -> Result<(), Ended> {
        let now = Instant::now();
        self.scheduler
            .apply(result, now - self.origin, &mut self.outbox.pending)?;
        self.stats.kernels_compiled += u64::from(result.num_kernels_compiled);
        let step_time = Duration::from_micros(result.step_us.into());
        let received = self
            .pacing
            .received(step_time, result.next_plan_waiting, now);
        let Some(Received {
            kind: StepKind { feeds, size: _ },
            elapsed,
        }) = received
        else {
            return Ok(());
        };
        self.totals(feeds).add(result.step_us, result.forward_us);
        let decode = now.elapsed();
        self.samples.steps.push(StepSample {
            feeds,
            inference: elapsed + decode,
            forward: Duration::from_micros(result.forward_us.into()),
            decode,
        });
        if !feeds && (self.scheduler.num_in_flight() > 0 || self.scheduler.has_work()) {
            self.stats.decode_steps_with_successor += 1;
            self.stats.decode_steps_with_successor_waiting += u64::from(result.next_plan_waiting);
        }
        Ok(())
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Submit(request) => {
                let now = self.origin.elapsed();
                self.scheduler
                    .submit(request, now, &mut self.outbox.pending);
            }
            Command::Cancel(id) => self.scheduler.cancel(id),
            Command::Finish(id) => self.scheduler.finish(id),
        }
    }

    fn publish(&mut self) {
        self.stats.scheduler = self.scheduler.counters();
        self.shared_stats.set(*self.stats, &mut self.samples);
    }
}

fn num_feed_rows(plan: &Plan) -> usize {
    match &plan.rows {
        crate::scheduler::step::Rows::Listed(rows) => {
            rows.iter().filter(|row| row.feed.is_some()).count()
        }
        crate::scheduler::step::Rows::SameAsPrevious(_) => 0,
    }
}

/// Without a time no timer is set.
async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
