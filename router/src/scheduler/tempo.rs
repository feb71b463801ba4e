//! What steps take, and so how long a prompt chunk may be beside running streams; and how fast the queue moves, and so
//! how long a new request will wait.

use std::time::Duration;

/// Weight of the past in the average of steps without prompt tokens.
const KEEP: f64 = 3.0 / 4.0;
/// Steps in a row with prompt tokens beside running streams, after which one goes without: else nobody would know what the
/// streams alone take where prompts never end.
const MOST_MIXED: u32 = 32;
/// The same for prompt tokens, which cost more the deeper they are in a prompt.
const KEEP_PROMPT: f64 = 0.6;
/// Of the objective, what a step should take: the next chunk of a prompt costs more than the last.
const AIM: f64 = 0.95;
/// A chunk that says by itself what a prompt token costs now.
const LONG_CHUNK: u32 = 64;
/// The same for the queue, in admissions.
const KEEP_RATE: f64 = 31.0 / 32.0;
/// Prompt tokens beside running streams, however long they take: a prompt that gets nowhere helps nobody.
const LEAST_CHUNK: u32 = 16;

/// Moving averages, all in microseconds.
#[derive(Debug, Default)]
pub(super) struct Tempo {
    /// A step without prompt tokens.
    decode_us: Option<f64>,
    /// Plans with prompt tokens beside running streams since one without.
    num_mixed: Option<u32>,
    /// Time of prompt tokens beyond a step without, and their number.
    prompt_us: f64,
    prompt_tokens: f64,
    /// A prompt token of the last chunk of some length.
    last_us_per_token: f64,
    /// Between two admissions while others waited.
    interval_us: Option<f64>,
    last_admission: Option<Duration>,
}

impl Tempo {
    /// A step of `decode_rows` rows that continue and this many prompt tokens, padding included, took `step_us`.
    pub(super) fn stepped(&mut self, step_us: u32, decode_rows: u32, prompt_tokens: u32) {
        let step_us = f64::from(step_us);
        if prompt_tokens == 0 {
            let before = self.decode_us.unwrap_or(step_us);
            self.decode_us = Some(KEEP * before + (1.0 - KEEP) * step_us);
            return;
        }
        let decode_us = if decode_rows > 0 {
            self.decode_us.unwrap_or(0.0)
        } else {
            0.0
        };
        if prompt_tokens >= LONG_CHUNK {
            self.last_us_per_token = (step_us - decode_us).max(0.0) / f64::from(prompt_tokens);
        }
        self.prompt_us = KEEP_PROMPT * self.prompt_us + (step_us - decode_us).max(0.0);
        self.prompt_tokens = KEEP_PROMPT * self.prompt_tokens + f64::from(prompt_tokens);
    }

    /// A plan of some decode rows was made.
    pub(super) fn planned(&mut self, feeds: bool) {
        self.num_mixed = Some(match (feeds, self.num_mixed) {
            (true, before) => before.unwrap_or(0) + 1,
            (false, _) => 0,
        });
    }

    /// Whether the next plan should have no prompt tokens beside running streams.
    pub(super) fn must_measure(&self) -> bool {
        self.num_mixed.is_none_or(|number| number >= MOST_MIXED)
    }

    /// Most prompt tokens, padding included, beside running streams so that a step takes no longer than `target`; or, where
    /// it takes more than half of that without a prompt, twice as long as without. A prompt never adds more than `target`,
    /// and has half of the device until then: where an objective cannot be met, prompts must not starve for it.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast saturates, and the time left is not negative"
    )]
    pub(super) fn prompt_tokens_within(&self, target: Duration) -> u32 {
        if self.prompt_tokens == 0.0 {
            return LEAST_CHUNK;
        }
        let average = self.prompt_us / self.prompt_tokens;
        let us_per_token = average.max(self.last_us_per_token).max(1e-3);
        let aim_us = target.as_secs_f64() * 1e6 * AIM;
        let decode_us = self.decode_us.unwrap_or(0.0);
        let left_us = (aim_us - decode_us).max(decode_us.min(aim_us));
        ((left_us / us_per_token) as u32).max(LEAST_CHUNK)
    }

    /// A request was admitted; `others_waited` before.
    pub(super) fn admitted(&mut self, now: Duration, others_waited: bool) {
        let last = self.last_admission.replace(now);
        if let (Some(last), true) = (last, others_waited) {
            let interval = now.saturating_sub(last).as_secs_f64() * 1e6;
            let before = self.interval_us.unwrap_or(interval);
            self.interval_us = Some(KEEP_RATE * before + (1.0 - KEEP_RATE) * interval);
        }
    }

    /// How long a request will wait that `num_before` others are before.
    pub(super) fn wait(&self, num_before: usize, now: Duration) -> Duration {
        let Some(interval_us) = self.interval_us else {
            return Duration::ZERO;
        };
        let until_next = interval_us * num_before as f64;
        // If nobody was admitted for long, the average is out of date.
        let since_last = self
            .last_admission
            .map_or(0.0, |last| now.saturating_sub(last).as_secs_f64() * 1e6);
        let overdue = (since_last - interval_us).max(0.0);
        Duration::from_secs_f64((until_next + overdue) / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(50);

    #[test]
    fn chunks_settle_where_a_step_stays_below_the_target() {
        let mut tempo = Tempo::default();
        assert_eq!(tempo.prompt_tokens_within(TARGET), LEAST_CHUNK);
        for _ in 0..100 {
            tempo.stepped(10_000, 8, 0);
        }
        // 2 ms for the chunk as such and 40 us a token.
        let mut chunk = LEAST_CHUNK;
        for _ in 0..100 {
            chunk = tempo.prompt_tokens_within(TARGET);
            tempo.stepped(12_000 + 40 * chunk, 8, chunk);
        }
        assert!((870..=900).contains(&chunk), "{chunk}");
        // The end of a prompt costs much for its few tokens, which says little.
        tempo.stepped(12_200, 8, 5);
        assert!(tempo.prompt_tokens_within(TARGET) > 800);
    }

    /// Of steps that take so long without a prompt, in microseconds, with prompts at 100 us a token.
    fn chunk_beside(decode_us: u32) -> u32 {
        let mut tempo = Tempo::default();
        tempo.stepped(decode_us, 8, 0);
        tempo.stepped(decode_us + 10_000, 8, 100);
        tempo.prompt_tokens_within(TARGET)
    }

    #[test]
    fn prompts_do_not_starve_where_decode_alone_is_slow() {
        assert_eq!(chunk_beside(10_000), 375, "up to the objective");
        assert_eq!(chunk_beside(40_000), 400, "half of the step");
        assert_eq!(
            chunk_beside(200_000),
            475,
            "adds no more than the objective"
        );
    }

    #[test]
    fn the_wait_follows_from_the_pace_of_admissions() {
        let mut tempo = Tempo::default();
        let at = Duration::from_millis;
        assert_eq!(tempo.wait(1000, at(0)), Duration::ZERO, "nothing is known");
        for step in 0..200 {
            tempo.admitted(at(step * 100), true);
        }
        let wait = tempo.wait(20, at(199 * 100));
        assert!((at(1900)..=at(2100)).contains(&wait), "{wait:?}");
        assert!(
            tempo.wait(0, at(30_000)) > at(9000),
            "nobody moved for ten seconds"
        );
    }
}
