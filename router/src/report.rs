//! How busy the server is, for one line in the log now and then while it is. An idle server says nothing.

use std::time::Instant;

use crate::scheduler::Counters;

/// What was there at the last look.
#[derive(Debug)]
pub(crate) struct BusyReport {
    counters: Counters,
    looked: Instant,
}

/// Now, and on average since the last look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Busy {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) tokens_per_second: f64,
    pub(crate) prompt_tokens_per_second: f64,
    pub(crate) kv_used_percent: u64,
}

impl BusyReport {
    pub(crate) fn new(counters: Counters, now: Instant) -> Self {
        Self {
            counters,
            looked: now,
        }
    }

    /// `None` if nothing runs or waits, and nothing did since the last look.
    pub(crate) fn look(&mut self, counters: Counters, now: Instant) -> Option<Busy> {
        let seconds = (now - self.looked).as_secs_f64();
        let before = std::mem::replace(self, Self::new(counters, now)).counters;
        let generated = counters.generated_tokens - before.generated_tokens;
        let prompt = counters.prompt_tokens - before.prompt_tokens;
        if counters.running + counters.queued + generated + prompt == 0 {
            return None;
        }
        let rate = |tokens: u64| (tokens as f64 / seconds * 10.0).round() / 10.0;
        Some(Busy {
            running: counters.running,
            waiting: counters.queued,
            tokens_per_second: rate(generated),
            prompt_tokens_per_second: rate(prompt),
            kv_used_percent: 100 * counters.blocks_used / counters.blocks_total.max(1),
        })
    }
}

impl Busy {
    pub(crate) fn log(self) {
        let Self {
            running,
            waiting,
            tokens_per_second,
            prompt_tokens_per_second,
            kv_used_percent,
        } = self;
        tracing::info!(
            running,
            waiting,
            tokens_per_second,
            prompt_tokens_per_second,
            kv_used_percent,
            "busy"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_busy_server_is_described_and_an_idle_one_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut report = BusyReport::new(Counters::default(), start);
        assert_eq!(report.look(Counters::default(), at(10)), None);
        let busy = Counters {
            running: 3,
            queued: 2,
            prompt_tokens: 50,
            generated_tokens: 1234,
            blocks_total: 200,
            blocks_used: 31,
            ..Counters::default()
        };
        assert_eq!(
            report.look(busy, at(20)),
            Some(Busy {
                running: 3,
                waiting: 2,
                tokens_per_second: 123.4,
                prompt_tokens_per_second: 5.0,
                kv_used_percent: 15,
            })
        );
        // The last requests ended meanwhile: their tokens still count.
        let ended = Counters {
            running: 0,
            queued: 0,
            generated_tokens: 1334,
            blocks_used: 0,
            ..busy
        };
        let last = report.look(ended, at(30)).unwrap();
        assert_eq!((last.running, last.tokens_per_second), (0, 10.0));
        assert_eq!(report.look(ended, at(40)), None);
    }
}
