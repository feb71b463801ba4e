//! When to send the next plan: as late as is safe. The later a plan is made, the more it knows: which rows have ended,
//! which requests have come. But the engine must never wait for it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// Tokio's timers fire up to this much late.
const TIMER_RESOLUTION: Duration = Duration::from_millis(1);
const LEAST_MARGIN: Duration = Duration::from_millis(1);
/// Of the step, as margin.
const MARGIN_SHARE: f64 = 0.15;
/// Assumed until the first plan to an idle engine has been answered.
const FIRST_TURNAROUND: Duration = Duration::from_millis(1);
const FIRST_SLACK: Duration = Duration::from_micros(250);

/// Steps that take about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepKind {
    pub(super) feeds: bool,
    /// Rows, or tokens if it feeds, padded.
    pub(super) size: u32,
}

/// Moving averages of a duration and of its deviation.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    mean: f64,
    deviation: f64,
}

impl Estimate {
    fn new(first: Duration) -> Self {
        Self {
            mean: first.as_secs_f64(),
            deviation: 0.0,
        }
    }

    fn add(&mut self, value: Duration) {
        let error = value.as_secs_f64() - self.mean;
        self.mean += error / 8.0;
        self.deviation += (error.abs() - self.deviation) / 4.0;
    }

    /// Few are shorter.
    fn low(&self) -> Duration {
        Duration::from_secs_f64((self.mean - 2.0 * self.deviation).max(0.0))
    }

    fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.mean)
    }
}

/// A plan in flight.
#[derive(Debug)]
struct Sent {
    /// `None`: no rows, so no step.
    kind: Option<StepKind>,
    at: Instant,
    /// The engine had nothing else to do.
    to_idle: bool,
    /// Not before this does its step begin; known for the oldest only.
    start: Instant,
}

/// A plan whose result is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) kind: StepKind,
    /// Since it was sent, or since the engine got to it.
    pub(super) elapsed: Duration,
}

/// What was learned about an engine.
#[derive(Debug)]
pub(super) struct Pacing {
    depth: usize,
    steps: HashMap<StepKind, Estimate>,
    in_flight: VecDeque<Sent>,
    /// Both ways between driver and engine, without the step.
    turnaround: Estimate,
    /// From the decision to make a plan until it is sent.
    planning: Estimate,
    /// Grows when plans turn out to be late, and fades.
    slack: Duration,
}

impl Pacing {
    pub(super) fn new(depth: u32) -> Self {
        Self {
            depth: depth as usize,
            steps: HashMap::new(),
            in_flight: VecDeque::with_capacity(depth as usize),
            turnaround: Estimate::new(FIRST_TURNAROUND),
            planning: Estimate::new(Duration::ZERO),
            slack: Duration::ZERO,
        }
    }

    /// When the next plan should be made; `None`: now.
    pub(super) fn hold_until(&self, now: Instant) -> Option<Instant> {
        if self.in_flight.len() + 1 < self.depth {
            return None;
        }
        let running = self.in_flight.front()?;
        let step = self.steps.get(&running.kind?)?;
        let lead = self.turnaround.mean()
            + self.planning.mean()
            + LEAST_MARGIN.max(step.mean().mul_f64(MARGIN_SHARE))
            + self.slack
            + TIMER_RESOLUTION;
        let at = running.start + step.low().saturating_sub(lead);
        (at > now).then_some(at)
    }

    /// A plan that was begun at `begun` has just been sent.
    pub(super) fn sent(&mut self, kind: Option<StepKind>, begun: Instant, now: Instant) {
        self.planning.add(now - begun);
        self.in_flight.push_back(Sent {
            kind,
            at: now,
            to_idle: self.in_flight.is_empty(),
            start: now,
        });
    }

    /// The oldest plan's result is here. `None` if it was no step.
    pub(super) fn received(
        &mut self,
        step_time: Duration,
        next_plan_waiting: bool,
        now: Instant,
    ) -> Option<Received> {
        let Sent {
            kind,
            at,
            to_idle,
            start,
        } = self.in_flight.pop_front()?;
        if to_idle {
            self.turnaround.add((now - at).saturating_sub(step_time));
        }
        if let Some(next) = self.in_flight.front_mut() {
            // Its step began when this one ended, which was before the result got here.
            next.start = next.at.max(now - self.turnaround.mean());
        }
        let kind = kind?;
        self.steps
            .entry(kind)
            .and_modify(|estimate| estimate.add(step_time))
            .or_insert_with(|| Estimate::new(step_time));
        if !self.in_flight.is_empty() {
            self.slack = if next_plan_waiting {
                self.slack.mul_f64(63.0 / 64.0)
            } else {
                (self.slack * 2 + FIRST_SLACK).min(step_time)
            };
        }
        Some(Received {
            kind,
            elapsed: now - start,
        })
    }

    /// The steps without a result.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = StepKind> {
        self.in_flight.iter().filter_map(|sent| sent.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(20);
    const KIND: StepKind = StepKind {
        feeds: false,
        size: 8,
    };

    fn taught(depth: u32, start: Instant) -> Pacing {
        let mut pacing = Pacing::new(depth);
        pacing.sent(Some(KIND), start, start);
        pacing.received(STEP, false, start + STEP);
        pacing
    }

    #[test]
    fn an_idle_engine_and_an_unknown_step_get_their_plan_at_once() {
        let now = Instant::now();
        let mut pacing = Pacing::new(2);
        assert_eq!(pacing.hold_until(now), None, "idle");
        pacing.sent(Some(KIND), now, now);
        assert_eq!(pacing.hold_until(now), None, "unknown step");
    }

    #[test]
    fn a_plan_is_held_back_until_shortly_before_the_running_step_ends() {
        let now = Instant::now();
        let mut pacing = taught(2, now);
        pacing.sent(Some(KIND), now, now);
        let at = pacing.hold_until(now).unwrap();
        // 15 % of the step, the timer's millisecond, and most of the first guess at the turnaround.
        let lead = now + STEP - at;
        assert!(
            (Duration::from_millis(4)..Duration::from_millis(6)).contains(&lead),
            "{lead:?}"
        );
        assert_eq!(pacing.hold_until(at), None);
    }

    #[test]
    fn a_plan_without_rows_teaches_nothing() {
        let now = Instant::now();
        let mut pacing = taught(2, now);
        pacing.sent(None, now, now);
        pacing.sent(Some(KIND), now, now);
        assert_eq!(pacing.received(Duration::ZERO, false, now), None);
        assert_eq!(pacing.slack, Duration::ZERO);
        assert_eq!(pacing.steps.len(), 1);
        assert_eq!(pacing.steps[&KIND].mean(), STEP);
    }

    #[test]
    fn a_deeper_pipeline_is_filled_first() {
        let now = Instant::now();
        let mut pacing = taught(3, now);
        pacing.sent(Some(KIND), now, now);
        assert_eq!(pacing.hold_until(now), None);
        pacing.sent(Some(KIND), now, now);
        assert!(pacing.hold_until(now).is_some());
    }

    #[test]
    fn a_late_plan_widens_the_lead() {
        let now = Instant::now();
        let mut pacing = taught(2, now);
        let mut lead_after = |waiting: bool| {
            pacing.sent(Some(KIND), now, now);
            pacing.sent(Some(KIND), now, now);
            pacing.received(STEP, waiting, now + STEP);
            let running = pacing.in_flight.front().unwrap().start;
            let lead = running + STEP - pacing.hold_until(now).unwrap();
            pacing.received(STEP, true, now + STEP);
            lead
        };
        let before = lead_after(true);
        let late = lead_after(false);
        let recovered = (0..300).map(|_| lead_after(true)).last().unwrap();
        assert!(late > before + FIRST_SLACK / 2);
        assert!(recovered < late);
    }
}
