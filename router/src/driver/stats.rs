//! What the driver counts, for `/metrics`: plain copies behind a lock that is held for a copy only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::scheduler::Counters;

/// Steps of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTotals {
    pub steps: u64,
    /// Sent to an engine that was lost before it answered.
    pub lost: u64,
    /// On the device, from the start of a step to its end.
    pub step_time: Duration,
    /// Of that, in the model's forward pass.
    pub forward_time: Duration,
}

impl StepTotals {
    pub(super) fn add(&mut self, step_us: u32, forward_us: u32) {
        self.steps += 1;
        self.step_time += Duration::from_micros(step_us.into());
        self.forward_time += Duration::from_micros(forward_us.into());
    }
}

/// Gauges of now, and totals since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    pub scheduler: Counters,
    /// Steps with at least one row that feeds.
    pub prefill: StepTotals,
    /// Steps whose rows all continue.
    pub decode: StepTotals,
    /// Decode steps after which there was more to do ...
    pub decode_steps_with_successor: u64,
    /// ... and of those, the ones at whose end the engine already had the next plan.
    pub decode_steps_with_successor_waiting: u64,
    /// Kernels that engines compiled when they should have been serving.
    pub kernels_compiled: u64,
    /// Engines that became ready.
    pub engines_ready: u64,
}

/// One step, for histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSample {
    /// At least one row fed.
    pub feeds: bool,
    /// From the sending of the plan, or the end of the step before if that came later, until its result was handled.
    pub inference: Duration,
    /// Of that, in the model's forward pass.
    pub forward: Duration,
    /// Of that, from result to tokens and ends of requests.
    pub decode: Duration,
}

/// What happened since somebody last looked.
#[derive(Debug, Default)]
pub struct Samples {
    pub steps: Vec<StepSample>,
    /// Requests that were admitted together, by one plan.
    pub batch_sizes: Vec<u32>,
}

/// Samples of each kind that are kept while nobody takes them.
const MAX_SAMPLES: usize = 1 << 16;

impl Samples {
    /// Moves all of `new` to the end, as far as there is room.
    fn append(&mut self, new: &mut Self) {
        fn fill<T>(kept: &mut Vec<T>, new: &mut Vec<T>) {
            new.truncate(MAX_SAMPLES.saturating_sub(kept.len()));
            kept.append(new);
        }
        fill(&mut self.steps, &mut new.steps);
        fill(&mut self.batch_sizes, &mut new.batch_sizes);
    }
}

/// A place for the latest stats.
#[derive(Clone, Debug, Default)]
pub struct SharedStats(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    stats: DriverStats,
    samples: Samples,
}

impl SharedStats {
    pub fn get(&self) -> DriverStats {
        self.lock().stats
    }

    /// What was measured since the last call.
    pub fn take_samples(&self) -> Samples {
        std::mem::take(&mut self.lock().samples)
    }

    pub(crate) fn set(&self, stats: DriverStats, samples: &mut Samples) {
        let mut shared = self.lock();
        shared.stats = stats;
        shared.samples.append(samples);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
