//! Random numbers that are the same everywhere and for ever: traces are named by their seed.

use crate::sim::trace::mix;

#[derive(Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: mix(seed) }
    }

    /// In (0, 1).
    pub(crate) fn share(&mut self) -> f64 {
        self.state = mix(self.state);
        ((self.state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Between two events that come at random, this many a second.
    pub(crate) fn interval(&mut self, rate: f64) -> f64 {
        -self.share().ln() / rate
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is clamped to the two numbers"
    )]
    pub(crate) fn between(&mut self, least: u32, most: u32) -> u32 {
        let span = f64::from(most - least) + 1.0;
        least + ((self.share() * span) as u32).min(most - least)
    }

    /// A length whose logarithm is normal, as those of messages and answers about are.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is clamped to the two numbers"
    )]
    pub(crate) fn length(&mut self, median: f64, sigma: f64, most: u32) -> u32 {
        let radius = (-2.0 * self.share().ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.share()).cos();
        let length = median * (sigma * normal).exp();
        length.clamp(1.0, f64::from(most)) as u32
    }
}
