//! Follows the start through the router's `/health`, which turns 200 only when every rank has answered its RPCs.
//! Runs until ready and not a moment longer: an idle server must be idle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::info;

const POLL: Duration = Duration::from_millis(50);
/// A long phase says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: u64 = 16 << 10;

/// The body of `/health` while starting.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Progress {
    phase: String,
    #[serde(default)]
    fraction: f64,
}

/// What one look at `/health` says.
#[derive(Clone, Debug, PartialEq)]
enum Health {
    Ready,
    Starting(Progress),
    /// Not listening yet, or an answer that says nothing.
    Unknown,
}

/// Returns when the server is ready, after a line for each phase with its time.
pub(crate) async fn wait_until_ready(address: SocketAddr) {
    let mut phases = Phases::new("start");
    loop {
        // Also before the first look: after a restart the router first has to notice that the old shards are gone.
        sleep(POLL).await;
        let health = timeout(ANSWER_TIMEOUT, look(address))
            .await
            .unwrap_or(Health::Unknown);
        match health {
            Health::Ready => return phases.end(),
            Health::Starting(progress) => phases.update(&progress),
            Health::Unknown => {}
        }
    }
}

/// Where this machine reaches a server that listens on `address`.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn look(address: SocketAddr) -> Health {
    let exchange = async {
        let mut stream = TcpStream::connect(reachable(address)).await.ok()?;
        let request =
            format!("GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream
            .take(MAX_ANSWER_BYTES)
            .read_to_end(&mut answer)
            .await
            .ok()?;
        Some(String::from_utf8_lossy(&answer).into_owned())
    };
    exchange
        .await
        .map_or(Health::Unknown, |answer| parse(&answer))
}

fn parse(answer: &str) -> Health {
    let status = answer.split_whitespace().nth(1);
    if status == Some("200") {
        return Health::Ready;
    }
    // The body may be chunked, so look for the object itself.
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let object = body
        .find('{')
        .zip(body.rfind('}'))
        .and_then(|(start, end)| body.get(start..=end));
    match object.map(serde_json::from_str::<Progress>) {
        Some(Ok(progress)) => Health::Starting(progress),
        _ => Health::Unknown,
    }
}

/// The phase that runs, and when it and its last progress line began.
#[derive(Debug)]
struct Phases {
    phase: String,
    since: Instant,
    last_line: Instant,
}

impl Phases {
    fn new(phase: &str) -> Self {
        Self {
            phase: phase.to_owned(),
            since: Instant::now(),
            last_line: Instant::now(),
        }
    }

    fn update(&mut self, progress: &Progress) {
        if progress.phase != self.phase {
            self.end();
            *self = Self::new(&progress.phase);
        } else if progress.fraction > 0.0 && self.last_line.elapsed() >= PROGRESS {
            self.last_line = Instant::now();
            let seconds = self.since.elapsed().as_secs();
            info!(
                "{}: {:.0} % after {seconds} s",
                title(&self.phase),
                progress.fraction * 100.0
            );
        }
    }

    fn end(&self) {
        if self.phase != "ready" {
            info!(
                "{}: {:.2} s",
                title(&self.phase),
                self.since.elapsed().as_secs_f64()
            );
        }
    }
}

/// What a phase of the shards' `Warmup` (or before it, of the router) does, in a person's words.
fn title(phase: &str) -> &str {
    match phase {
        "start" => "router started",
        "connect" => "shard processes started",
        "load" => "weights loaded",
        "pack" => "weights packed",
        "kv" => "KV cache allocated",
        "graphs" => "warm-up done",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_a_starting_and_a_ready_router() {
        let load = Progress {
            phase: "load".to_owned(),
            fraction: 0.5,
        };
        for (answer, health) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Health::Ready),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"phase\":\"load\",\"fraction\":0.5}",
                Health::Starting(load.clone()),
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n21\r\n{\"phase\":\"load\",\"fraction\":0.5}\r\n0\r\n",
                Health::Starting(load),
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n}{",
                Health::Unknown,
            ),
            ("", Health::Unknown),
        ] {
            assert_eq!(parse(answer), health, "{answer}");
        }
    }

    #[test]
    fn a_wildcard_address_is_reached_on_loopback() {
        for (listening, reached) in [
            ("0.0.0.0:3", "127.0.0.1:3"),
            ("[::]:3", "[::1]:3"),
            ("10.0.0.1:3", "10.0.0.1:3"),
        ] {
            assert_eq!(
                reachable(listening.parse().unwrap()),
                reached.parse().unwrap()
            );
        }
    }
}
