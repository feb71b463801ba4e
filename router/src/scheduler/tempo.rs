//! What steps take, and so how long a prompt chunk may be beside running streams; and how fast the queue moves, and so
//! how long a new request will wait.

use std::time::Duration;

/// Weight of the past in the average of steps without prompt tokens.
const KEEP: f64 = 3.0 / 4.0;
/// Steps in a row with prompt tokens beside running streams, after which one goes without: else nobody would know what the
/// streams alone take where prompts never end.
const MOST_MIXED: u32 = 32;
/// Of what a step took otherwise than expected, what is believed at once.
const RATE: f64 = 0.7;
/// Tokens of context in the unit that it is counted in: at this many a surprise is put down to both costs alike.
const CONTEXT_UNIT: f64 = 500.0;
/// Of the objective, what a step is expected to take: some take longer than expected.
const AIM: f64 = 0.95;
/// A chunk that says what a prompt token costs: of a shorter one much is the cost of a chunk as such.
const LONG_CHUNK: f64 = 64.0;
/// Weight of the past in the average time between admissions.
const KEEP_RATE: f64 = 31.0 / 32.0;
/// Prompt tokens beside running streams, however long they take: a prompt that gets nowhere helps nobody.
const LEAST_CHUNK: u32 = 16;

/// The prompt tokens of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chunk {
    /// With padding.
    pub(super) tokens: u32,
    /// Over all of them, the tokens before.
    pub(super) context: u64,
}

/// What prompt tokens take: the same for each, and more for each that has much before it. Follows the last chunks by the
/// normalised least mean squares of Nagumo and Noda (1967).
#[derive(Debug, Default)]
struct PromptCost {
    us_per_token: Option<f64>,
    /// And unit of context.
    us_per_context: f64,
    /// Units before a token of the last chunk.
    last_context: f64,
}

impl PromptCost {
    fn learn(&mut self, chunk: Chunk, us: f64) {
        let (tokens, context) = (f64::from(chunk.tokens), chunk.context as f64 / CONTEXT_UNIT);
        self.last_context = context / tokens;
        let Some(us_per_token) = self.us_per_token else {
            self.us_per_token = Some(us / tokens);
            return;
        };
        let error = us - us_per_token * tokens - self.us_per_context * context;
        let power = tokens * tokens + context * context + LONG_CHUNK * LONG_CHUNK;
        let correction = RATE * error / power;
        self.us_per_token = Some((us_per_token + correction * tokens).max(0.0));
        self.us_per_context = (self.us_per_context + correction * context).max(0.0);
    }

    /// As many tokens as take `left_us`; none if nothing is known.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast saturates, and neither time nor cost is negative"
    )]
    fn within(&self, left_us: f64, context: Option<u32>) -> u32 {
        let Some(us_per_token) = self.us_per_token else {
            return 0;
        };
        let context = context.map_or(self.last_context, |context| {
            f64::from(context) / CONTEXT_UNIT
        });
        // Of n tokens each takes `first`, and `more` for each of the others before it: n first + n n more / 2 = left.
        let first = (us_per_token + self.us_per_context * context).max(1e-3);
        let more = self.us_per_context / CONTEXT_UNIT;
        (2.0 * left_us / (first + (first * first + 2.0 * more * left_us).sqrt())) as u32
    }
}

/// All in microseconds.
#[derive(Debug, Default)]
pub(super) struct Tempo {
    /// A step without prompt tokens.
    decode_us: Option<f64>,
    /// Plans with prompt tokens beside running streams since one without.
    num_mixed: Option<u32>,
    prompts: PromptCost,
    /// Between two admissions while others waited.
    interval_us: Option<f64>,
    last_admission: Option<Duration>,
}

impl Tempo {
    /// A step of `decode_rows` rows that continue and this chunk took `step_us`.
    pub(super) fn stepped(&mut self, step_us: u32, decode_rows: u32, chunk: Chunk) {
        let step_us = f64::from(step_us);
        if chunk.tokens == 0 {
            let before = self.decode_us.unwrap_or(step_us);
            self.decode_us = Some(KEEP * before + (1.0 - KEEP) * step_us);
            return;
        }
        let without_us = match decode_rows {
            0 => 0.0,
            _ => self.decode_us.unwrap_or(0.0),
        };
        self.prompts.learn(chunk, (step_us - without_us).max(0.0));
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
    /// They follow `context` tokens; `None` if that is not known yet.
    pub(super) fn prompt_tokens_within(&self, target: Duration, context: Option<u32>) -> u32 {
        let aim_us = target.as_secs_f64() * 1e6 * AIM;
        let decode_us = self.decode_us.unwrap_or(0.0);
        let left_us = (aim_us - decode_us).max(decode_us.min(aim_us));
        self.prompts.within(left_us, context).max(LEAST_CHUNK)
    }

    /// A request was admitted; `others_waited` before.
    pub(super) fn admitted(&mut self, now: Duration, others_waited: bool) {
        let last = self.last_admission.replace(now);
        // Once nobody waits, the pace of an earlier rush says nothing about the next.
        self.interval_us = last.filter(|_| others_waited).map(|last| {
            let interval = now.saturating_sub(last).as_secs_f64() * 1e6;
            let before = self.interval_us.unwrap_or(interval);
            KEEP_RATE * before + (1.0 - KEEP_RATE) * interval
        });
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

    fn chunk(tokens: u32, context: u64) -> Chunk {
        Chunk { tokens, context }
    }

    #[test]
    fn chunks_settle_where_a_step_stays_below_the_target() {
        let mut tempo = Tempo::default();
        assert_eq!(tempo.prompt_tokens_within(TARGET, None), LEAST_CHUNK);
        for _ in 0..100 {
            tempo.stepped(10_000, 8, Chunk::default());
        }
        // 2 ms for the chunk as such and 40 us a token.
        let mut tokens = LEAST_CHUNK;
        for _ in 0..100 {
            tokens = tempo.prompt_tokens_within(TARGET, Some(0));
            tempo.stepped(12_000 + 40 * tokens, 8, chunk(tokens, 0));
        }
        assert!((870..=900).contains(&tokens), "{tokens}");
        // The end of a prompt costs much for its few tokens, which says little.
        tempo.stepped(12_200, 8, chunk(5, 0));
        assert!(tempo.prompt_tokens_within(TARGET, Some(0)) > 800);
    }

    #[test]
    fn a_deep_prompt_gets_short_chunks_and_leaves_no_trace() {
        let mut tempo = Tempo::default();
        tempo.stepped(10_000, 8, Chunk::default());
        // 20 us a token, and as much again for every 2,000 tokens before it.
        let mut steps = Vec::new();
        for _ in 0..2 {
            let mut fed = 0;
            while fed < 30_000 {
                let tokens = tempo.prompt_tokens_within(TARGET, Some(fed));
                let context = u64::from(tokens) * u64::from(fed + tokens / 2);
                let step = 10_000 + 20 * tokens + u32::try_from(context / 100).unwrap();
                tempo.stepped(step, 8, chunk(tokens, context));
                steps.push(step);
                fed += tokens;
            }
        }
        let late = &steps[5..];
        assert!(late.iter().all(|&step| step < 55_000), "{late:?}");
        let mean = late.iter().sum::<u32>() / u32::try_from(late.len()).unwrap();
        assert!(mean > 44_000, "{mean}: {late:?}");
    }

    /// Beside steps that take so long without a prompt, in microseconds, with prompts at 100 us a token.
    fn chunk_beside(decode_us: u32) -> u32 {
        let mut tempo = Tempo::default();
        tempo.stepped(decode_us, 8, Chunk::default());
        tempo.stepped(decode_us + 10_000, 8, chunk(100, 0));
        tempo.prompt_tokens_within(TARGET, Some(0))
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
