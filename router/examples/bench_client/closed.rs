//! So many streams at once, over windows of time.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::Target;
use crate::clients::Clients;
use crate::connection::{Connection, Tally};
use crate::process::{Usage, resident_kib};

/// Between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(100);
/// For streams that must end by themselves.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub(crate) struct Closed {
    #[arg(long)]
    streams: usize,
    /// Seconds that are not counted
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds of a window; until every stream has ended once if absent
    #[arg(long)]
    seconds: Option<f64>,
    /// Clients that do not read, in a second window beside the others
    #[arg(long, default_value_t = 0)]
    slow: usize,
    /// Of every answer that is not read
    #[arg(long, default_value_t = 0)]
    slow_tokens: u32,
}

/// The state of a run.
struct Run<'a> {
    target: &'a Target,
    clients: Clients,
    /// Streams that were not whole.
    broken: u64,
    whole: u64,
}

impl Closed {
    pub(crate) fn run(&self, target: &Target) -> anyhow::Result<Value> {
        let idle_kib = resident_kib(target.pid)?;
        let clients = Clients::new(target)?;
        let mut run = Run {
            target,
            clients,
            broken: 0,
            whole: 0,
        };
        for _ in 0..self.streams {
            run.clients.add(Connection::open(target, target.tokens)?)?;
        }
        let mut windows = Vec::new();
        let mut slow = Value::Null;
        match self.seconds {
            None => windows.push(run.window(None)?),
            Some(seconds) => {
                run.window(Some(self.warm_up))?;
                windows.push(run.window(Some(seconds))?);
                if self.slow > 0 {
                    let (window, unread) = self.beside_slow(&mut run, seconds)?;
                    windows.push(window);
                    slow = unread;
                }
            }
        }
        Ok(json!({
            "idle_kib": idle_kib,
            "windows": windows,
            "whole": run.whole,
            "broken": run.broken,
            "slow": slow,
        }))
    }

    /// A window with clients that do not read, and then what those find when they do.
    fn beside_slow(&self, run: &mut Run<'_>, seconds: f64) -> anyhow::Result<(Value, Value)> {
        let mut unread = Vec::new();
        for _ in 0..self.slow {
            let mut connection = Connection::open_narrow(run.target, self.slow_tokens)?;
            ensure!(connection.send()?, "the server does not take connections");
            unread.push(connection);
        }
        let before = resident_kib(run.target.pid)?;
        let window = run.window(Some(seconds))?;
        let after = resident_kib(run.target.pid)?;
        run.clients = Clients::new(run.target)?;
        for connection in unread {
            connection.widen()?;
            run.clients.add(connection)?;
        }
        let (mut tally, mut whole) = (Tally::default(), 0);
        let deadline = Instant::now() + PATIENCE;
        while run.clients.len() > 0 {
            ensure!(Instant::now() < deadline, "slow streams do not end");
            for ended in run.clients.turn(deadline, &mut tally)? {
                whole += usize::from(ended.is_whole(self.slow_tokens));
            }
        }
        let report = json!({
            "grown_kib": after.saturating_sub(before),
            "bytes": tally.bytes,
            "tokens": tally.tokens,
            "whole": whole,
        });
        Ok((window, report))
    }
}

impl Run<'_> {
    /// Measures for so long, or until every stream has ended.
    fn window(&mut self, seconds: Option<f64>) -> anyhow::Result<Value> {
        let begin = Instant::now();
        let end = begin + seconds.map_or(PATIENCE, Duration::from_secs_f64);
        let before = Usage::now(self.target)?;
        let mut tally = Tally::default();
        let (mut look, mut most_kib) = (begin, 0);
        while Instant::now() < end && self.clients.len() > 0 {
            for ended in self.clients.turn(end.min(look), &mut tally)? {
                let whole = ended.is_whole(self.target.tokens);
                self.whole += u64::from(whole);
                self.broken += u64::from(!whole);
                if seconds.is_some() {
                    let next = Connection::open(self.target, self.target.tokens)?;
                    self.clients.add(next)?;
                }
            }
            if Instant::now() >= look {
                most_kib = most_kib.max(resident_kib(self.target.pid)?);
                look += LOOK;
            }
        }
        let elapsed = begin.elapsed().as_secs_f64();
        let after = Usage::now(self.target)?;
        tally.latencies.sort_unstable();
        let latency_ms = |share: f64| percentile(&tally.latencies, share) / 1000.0;
        Ok(json!({
            "seconds": elapsed,
            "cpu_seconds": after.server - before.server,
            "client_cpu_seconds": after.client - before.client,
            "others_cores": (after.others - before.others) / elapsed,
            "tokens": tally.tokens,
            "chunks": tally.chunks,
            "bytes": tally.bytes,
            "most_kib": most_kib,
            "latency_p50_ms": latency_ms(0.5),
            "latency_p99_ms": latency_ms(0.99),
        }))
    }
}

/// Of sorted values; 0 of none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index below the number of values"
)]
pub(crate) fn percentile(sorted: &[u32], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(last)).copied().map_or(0.0, f64::from)
}
