//! What the driver counts, for `/metrics`: plain copies behind a lock that is held for a copy only.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::scheduler::Counters;

/// Steps of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTotals {
    pub steps: u64,
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
    /// Engines that became ready.
    pub engines_ready: u64,
}

/// A place for the latest stats.
#[derive(Clone, Debug, Default)]
pub struct SharedStats(Arc<Mutex<DriverStats>>);

impl SharedStats {
    pub fn get(&self) -> DriverStats {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, stats: DriverStats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}
