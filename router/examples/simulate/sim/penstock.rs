//! The router's own scheduler, with an engine that knows every answer in advance.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use penstock_router::event::{Delivery, Failure, Output};
use penstock_router::request::{Request, RequestId, SamplingParams, Scheduling};
use penstock_router::scheduler::step::{Plan, Row, RowResult, RowStatus, Rows, Seat, StepResult};
use penstock_router::scheduler::{Counters, Policy, Scheduler};

use super::machine::{Machine, Work};
use super::server::{Event, Events, Server};
use super::trace::{Job, STOP_ID};

/// Who sits on a seat.
struct Seated {
    seat: Seat,
    job: Arc<Job>,
    /// After the last plan.
    position: u32,
}

/// The scheduler and what the engine would know.
pub(crate) struct Penstock {
    scheduler: Scheduler,
    depth: u32,
    queue_timeout: Option<Duration>,
    jobs: HashMap<u64, Arc<Job>>,
    seats: HashMap<u32, Seated>,
    /// Of the plan before, if it may be repeated.
    last_rows: Vec<Row>,
    results: VecDeque<StepResult>,
    deliveries: Vec<Delivery>,
}

impl Penstock {
    pub(crate) fn new(machine: &Machine, policy: Policy, queue_timeout: Option<Duration>) -> Self {
        let limits = machine.limits();
        Self {
            depth: limits.depth,
            scheduler: Scheduler::new(limits, policy, Counters::default()),
            queue_timeout,
            jobs: HashMap::new(),
            seats: HashMap::new(),
            last_rows: Vec::new(),
            results: VecDeque::new(),
            deliveries: Vec::new(),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.scheduler.counters()
    }

    /// The step of a plan; its result is known at once.
    fn execute(&mut self, plan: Plan) -> Work {
        for registration in &plan.registrations {
            // A registration does not name its request, but it carries the seed.
            let job = self.jobs[&registration.sampling.seed].clone();
            let seated = Seated {
                seat: registration.seat,
                job,
                position: 0,
            };
            self.seats.insert(registration.seat.index, seated);
        }
        if let Rows::Listed(rows) = plan.rows {
            self.last_rows = rows;
        }
        let mut work = Work::default();
        let mut result = StepResult {
            plan_id: plan.id,
            ..StepResult::default()
        };
        for row in &self.last_rows {
            let seated = self.seats.get_mut(&row.seat).expect("it was registered");
            match row.feed {
                Some(extent) => {
                    work.feed(extent.start, extent.count);
                    seated.position = extent.start + extent.count;
                }
                None => {
                    work.decode(seated.position);
                    seated.position += 1;
                }
            }
            if row.sample {
                let index = seated.position - seated.job.prompt_len();
                let token = seated.job.answer_token(index);
                result.token_ids.push(token);
            }
            result.rows.push(RowResult {
                seat: seated.seat,
                position: seated.position,
                status: RowStatus::Ok,
                num_tokens: u32::from(row.sample),
            });
        }
        self.results.push_back(result);
        work
    }

    fn deliver(&mut self, out: &mut Events) {
        for Delivery { request, output } in self.deliveries.drain(..) {
            let event = match output {
                Output::Started { cached_tokens, .. } => Event::Started { cached_tokens },
                Output::Preempted => Event::Preempted,
                Output::Token(_) => Event::Token,
                Output::Finished { .. } => Event::Finished,
                Output::Failed(Failure::Refused {
                    refusal,
                    retry_after_s,
                    ..
                }) => Event::Refused {
                    reason: refusal.name(),
                    retry_after_s,
                },
                Output::Failed(_) => Event::Failed,
            };
            if !matches!(
                event,
                Event::Started { .. } | Event::Preempted | Event::Token
            ) {
                self.jobs.remove(&request.0);
            }
            out.push((request.0, event));
        }
    }
}

impl Server for Penstock {
    fn submit(&mut self, job: Arc<Job>, now: Duration, out: &mut Events) {
        let request = Request {
            id: RequestId(job.id),
            prompt_ids: job.prompt.clone(),
            sampling: SamplingParams::greedy(job.id),
            max_new_tokens: job.max_tokens,
            stop_ids: Arc::new([STOP_ID]),
            logprobs: None,
            scheduling: Scheduling {
                class: job.class.unwrap_or(Scheduling::DEFAULT_CLASS),
                tenant: job.tenant,
                queue_timeout: self.queue_timeout,
                ..Scheduling::default()
            },
        };
        self.jobs.insert(job.id, job);
        self.scheduler.submit(request, now, &mut self.deliveries);
        self.deliver(out);
    }

    fn plan(&mut self, now: Duration, out: &mut Events) -> Option<Work> {
        let plan = self.scheduler.plan(now, &mut self.deliveries);
        self.deliver(out);
        plan.map(|plan| self.execute(plan))
    }

    fn apply(&mut self, took: Duration, now: Duration, out: &mut Events) {
        let mut result = self.results.pop_front().expect("a step was planned");
        result.step_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let applied = self.scheduler.apply(&result, now, &mut self.deliveries);
        applied.expect("the result fits the plan");
        self.deliver(out);
    }

    fn plans_ahead(&self) -> bool {
        self.depth > 1
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.scheduler.next_deadline()
    }

    fn expire(&mut self, now: Duration, out: &mut Events) {
        self.scheduler.expire(now, &mut self.deliveries);
        self.deliver(out);
    }
}
