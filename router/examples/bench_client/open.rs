//! Requests at a rate, in phases, as from clients who know nothing of each other.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::Target;
use crate::clients::Clients;
use crate::closed::percentile;
use crate::connection::{Connection, Tally};
use crate::process::Usage;

/// For the last answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests that begin without a look at what others got.
const MOST_AT_ONCE: usize = 16;

#[derive(clap::Args)]
pub(crate) struct Open {
    /// Requests per second and seconds, as `100:5`; may be repeated
    #[arg(long = "phase", required = true)]
    phases: Vec<Phase>,
    /// A request is well served if its first token comes within this time
    #[arg(long, default_value_t = 250)]
    prompt_ms: u64,
}

#[derive(Clone, Copy)]
struct Phase {
    rate: f64,
    seconds: f64,
}

impl FromStr for Phase {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (rate, seconds) = text.split_once(':').context("expected RATE:SECONDS")?;
        Ok(Self {
            rate: rate.parse()?,
            seconds: seconds.parse()?,
        })
    }
}

/// What became of the requests that began in a phase; the tokens are those that came during it.
struct Outcome {
    phase: Phase,
    begin: Instant,
    tally: Tally,
    offered: u32,
    whole: u32,
    refused: u32,
    without_retry_after: u32,
    server_errors: u32,
    /// No answer, or one that was cut.
    broken: u32,
    refusals_us: Vec<u32>,
    first_tokens_us: Vec<u32>,
    /// When the last request began that was not well served.
    last_bad: Option<Instant>,
}

impl Open {
    pub(crate) fn run(&self, target: &Target) -> anyhow::Result<Value> {
        let mut clients = Clients::new(target)?;
        let mut outcomes: Vec<Outcome> = Vec::new();
        let mut begin = Instant::now();
        let (started, before) = (begin, Usage::now(target)?);
        for &phase in &self.phases {
            outcomes.push(Outcome::new(phase, begin));
            let end = begin + Duration::from_secs_f64(phase.seconds);
            let mut next = begin;
            while Instant::now() < end {
                for _ in 0..MOST_AT_ONCE {
                    if next > Instant::now() {
                        break;
                    }
                    next += Duration::from_secs_f64(1.0 / phase.rate);
                    let now = outcomes.last_mut().context("no phase")?;
                    now.offered += 1;
                    match Connection::open(target, target.tokens) {
                        Ok(connection) => clients.add(connection)?,
                        // Nobody has answered those before, and there are no more sockets.
                        Err(_) => now.broken += 1,
                    }
                }
                self.turn(&mut clients, target.tokens, next.min(end), &mut outcomes)?;
            }
            begin = end;
        }
        let end = Instant::now() + PATIENCE;
        while clients.len() > 0 && Instant::now() < end {
            self.turn(&mut clients, target.tokens, end, &mut outcomes)?;
        }
        let unanswered = clients.len();
        let others = Usage::now(target)?.others - before.others;
        let phases: Vec<Value> = outcomes.iter_mut().map(Outcome::report).collect();
        Ok(json!({
            "phases": phases,
            "unanswered": unanswered,
            "others_cores": others / started.elapsed().as_secs_f64(),
        }))
    }

    fn turn(
        &self,
        clients: &mut Clients,
        tokens: u32,
        until: Instant,
        outcomes: &mut [Outcome],
    ) -> anyhow::Result<()> {
        let now = outcomes.last_mut().context("no phase")?;
        for ended in clients.turn(until, &mut now.tally)? {
            // Of the phase in which it began.
            let began = |outcome: &&mut Outcome| outcome.begin <= ended.started;
            if let Some(outcome) = outcomes.iter_mut().rev().find(began) {
                outcome.take(&ended, tokens, Duration::from_millis(self.prompt_ms));
            }
        }
        Ok(())
    }
}

impl Outcome {
    fn new(phase: Phase, begin: Instant) -> Self {
        Self {
            phase,
            begin,
            tally: Tally::default(),
            offered: 0,
            whole: 0,
            refused: 0,
            without_retry_after: 0,
            server_errors: 0,
            broken: 0,
            refusals_us: Vec::new(),
            first_tokens_us: Vec::new(),
            last_bad: None,
        }
    }

    fn take(&mut self, ended: &Connection, tokens: u32, prompt: Duration) {
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let waited = ended.first_token.map(|first| first - ended.started);
        match ended.status() {
            429 => {
                self.refused += 1;
                self.without_retry_after += u32::from(!ended.has_header("retry-after"));
                self.refusals_us.push(micros(ended.started.elapsed()));
            }
            500.. => self.server_errors += 1,
            _ if ended.is_whole(tokens) => {
                self.whole += 1;
                self.first_tokens_us.extend(waited.map(micros));
            }
            _ => self.broken += 1,
        }
        if !(ended.is_whole(tokens) && waited.is_some_and(|waited| waited <= prompt)) {
            self.last_bad = self.last_bad.max(Some(ended.started));
        }
    }

    fn report(&mut self) -> Value {
        self.refusals_us.sort_unstable();
        self.first_tokens_us.sort_unstable();
        let ms = |sorted: &[u32], share| percentile(sorted, share) / 1000.0;
        let bad_for = self.last_bad.map_or(Duration::ZERO, |bad| bad - self.begin);
        json!({
            "rate": self.phase.rate,
            "seconds": self.phase.seconds,
            "offered": self.offered,
            "whole": self.whole,
            "refused": self.refused,
            "without_retry_after": self.without_retry_after,
            "server_errors": self.server_errors,
            "broken": self.broken,
            "tokens": self.tally.tokens,
            "refusal_p99_ms": ms(&self.refusals_us, 0.99),
            "refusal_most_ms": ms(&self.refusals_us, 1.0),
            "first_token_p50_ms": ms(&self.first_tokens_us, 0.5),
            "first_token_p99_ms": ms(&self.first_tokens_us, 0.99),
            "bad_for_s": bad_for.as_secs_f64(),
        })
    }
}
