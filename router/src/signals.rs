//! SIGTERM and SIGINT as a server should take them. Who stops one process often tells it twice: GNU `timeout` signals
//! its child and then its group, a service manager all processes of a unit, a terminal its whole foreground group.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// A signal that comes this soon after another is a copy of it, not a second wish.
const COPIES: Duration = Duration::from_secs(1);

/// The requests to stop.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    last: Option<Instant>,
}

impl StopSignals {
    /// From here on the signals no longer end the process. Needs a Tokio runtime around it.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            last: None,
        })
    }

    /// The name of the next signal that is not a copy.
    pub async fn next(&mut self) -> &'static str {
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            let now = Instant::now();
            if self
                .last
                .is_none_or(|last| now.duration_since(last) >= COPIES)
            {
                self.last = Some(now);
                return name;
            }
        }
    }
}
