//! One select loop over children, signals, readiness and the restart timer. Nothing here polls once the server is ready.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use penstock_router::signals::StopSignals;
use tokio::process::Command;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{error, info, warn};

use crate::failure::Failure;
use crate::logs::{Output, Source};
use crate::process::{Exit, Process, Sinks, describe};
use crate::ready::{reachable, wait_until_ready};
use crate::runtime_folder::RuntimeFolder;
use crate::shard::{self, ShardConfig};

/// Restarts of the shard group that are tried within the window; the next death ends the server.
const MAX_RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(600);
/// What the router gets beyond its own drain limit, and the shards after it, before they are killed.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// Killed shards of a group have this long to end before the next group starts; their memory and sockets are in its way.
const KILLED_GRACE: Duration = Duration::from_secs(60);
/// A shard or router that finds the model unusable ends with this code (the launcher's own for the same).
const MODEL_UNUSABLE: i32 = 3;

/// All that is needed to run, decided before the first process starts.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) address: SocketAddr,
    pub(crate) model_name: String,
    pub(crate) python: PathBuf,
    /// None where the shards compile no kernels.
    pub(crate) kernel_cache: Option<PathBuf>,
    pub(crate) router: PathBuf,
    pub(crate) router_config: String,
    pub(crate) shard_config: ShardConfig,
    pub(crate) folder: RuntimeFolder,
    pub(crate) drain_timeout: Duration,
    pub(crate) started: std::time::Instant,
}

/// Runs until a signal has drained everything (`Ok`) or something failed.
pub(crate) async fn supervise(
    launch: Launch,
    output: Output,
    mut signals: StopSignals,
) -> Result<(), Failure> {
    let (exits_in, exits) = channel(64);
    let mut supervisor = Supervisor {
        sinks: Sinks {
            output,
            exits: exits_in,
        },
        exits,
        shards: BTreeMap::new(),
        num_shards_alive: 0,
        generation: 0,
        router: None,
        restart_at: None,
        restarts: VecDeque::new(),
        was_ready: false,
        launch,
    };
    let outcome = supervisor.run(&mut signals).await;
    supervisor.kill_all().await;
    outcome
}

struct Supervisor {
    launch: Launch,
    sinks: Sinks,
    exits: Receiver<Exit>,
    router: Option<Process>,
    /// By rank; each handle goes as soon as its end is seen, so that no reused process id is ever signalled.
    shards: BTreeMap<u32, Process>,
    /// Shards, of any generation, whose end has not been seen.
    num_shards_alive: usize,
    generation: u32,
    /// When the next group starts; `Some` from a group's death until then.
    restart_at: Option<Instant>,
    /// Times of the restarts within the window.
    restarts: VecDeque<Instant>,
    was_ready: bool,
}

type Readiness = Pin<Box<dyn Future<Output = ()>>>;

impl Supervisor {
    async fn run(&mut self, signals: &mut StopSignals) -> Result<(), Failure> {
        self.start_shards()?;
        self.start_router()?;
        let mut readiness: Readiness = Box::pin(wait_until_ready(self.launch.address));
        loop {
            let restart = self.restart_at.filter(|_| self.num_shards_alive == 0);
            let waits = self.restart_at.filter(|_| self.num_shards_alive > 0);
            tokio::select! {
                // Whoever tells all processes to stop must not see a restart or a failure.
                biased;
                name = signals.next() => {
                    info!("{name}: no new requests are taken, running ones get {} s", self.launch.drain_timeout.as_secs());
                    return self.drain(signals).await;
                }
                exit = self.exits.recv() => {
                    if let Some(exit) = exit {
                        self.on_exit(&exit)?;
                        if self.restart_at.is_some() {
                            readiness = Box::pin(pending());
                        }
                    }
                }
                () = &mut readiness => {
                    readiness = Box::pin(pending());
                    self.announce();
                }
                () = sleep_until(restart.unwrap_or_else(Instant::now)), if restart.is_some() => {
                    self.restart_at = None;
                    self.start_shards()?;
                    readiness = Box::pin(wait_until_ready(self.launch.address));
                }
                () = sleep_until(waits.unwrap_or_else(Instant::now) + KILLED_GRACE), if waits.is_some() => {
                    return Err(Failure::Failed(format!(
                        "{} killed shard(s) have not ended within {} s, the kernel holds them: giving up",
                        self.num_shards_alive,
                        KILLED_GRACE.as_secs()
                    )));
                }
            }
        }
    }

    fn start_shards(&mut self) -> Result<(), Failure> {
        self.generation += 1;
        self.shards.clear();
        for rank in 0..self.launch.shard_config.num_ranks() {
            let folder = self.launch.folder.path();
            let socket = shard::socket_path(folder, rank);
            if socket.exists() {
                std::fs::remove_file(&socket).map_err(|error| {
                    Failure::io(format!("cannot remove {}", socket.display()), &error)
                })?;
            }
            let config = to_json(&self.launch.shard_config.for_rank(
                rank,
                self.generation,
                folder,
            ))?;
            let command = shard::command(&self.launch.python, self.launch.kernel_cache.as_deref());
            let source = Source::Shard { rank };
            let shard =
                Process::spawn(command, config, source, self.generation, self.sinks.clone())
                    .map_err(|error| {
                        Failure::io(
                            format!(
                                "cannot start {} for shard {rank}",
                                self.launch.python.display()
                            ),
                            &error,
                        )
                    })?;
            self.shards.insert(rank, shard);
            self.num_shards_alive += 1;
        }
        Ok(())
    }

    fn start_router(&mut self) -> Result<(), Failure> {
        let mut command = Command::new(&self.launch.router);
        command.arg("--config-stdin");
        let config = self.launch.router_config.clone();
        let router = Process::spawn(command, config, Source::Router, 0, self.sinks.clone())
            .map_err(|error| {
                Failure::io(
                    format!("cannot start {}", self.launch.router.display()),
                    &error,
                )
            })?;
        self.router = Some(router);
        Ok(())
    }

    /// A router's death ends the server; a shard's death ends its group, which is started again.
    fn on_exit(&mut self, exit: &Exit) -> Result<(), Failure> {
        let Source::Shard { rank } = exit.source else {
            self.router = None;
            return Err(of_child(exit, format!("the router {}", report(exit))));
        };
        self.num_shards_alive -= 1;
        if exit.generation != self.generation || self.restart_at.is_some() {
            return Ok(());
        }
        // Ranks without their peers wait in a collective for ever; dropping the handles kills them.
        self.shards.clear();
        if !self.was_ready {
            return Err(of_child(exit, format!("shard {rank} {}", report(exit))));
        }
        let now = Instant::now();
        self.restarts
            .retain(|&restart| now.duration_since(restart) < RESTART_WINDOW);
        let attempt = self.restarts.len();
        if attempt == MAX_RESTARTS {
            let minutes = RESTART_WINDOW.as_secs() / 60;
            return Err(Failure::Failed(format!(
                "shard {rank} {}\nit is death {} within {minutes} minutes: giving up",
                report(exit),
                MAX_RESTARTS + 1
            )));
        }
        error!("shard {rank} {}", report(exit));
        let delay = backoff(attempt);
        warn!(
            "restarting all shards in {} s (restart {} of {MAX_RESTARTS})",
            delay.as_secs(),
            attempt + 1
        );
        self.restarts.push_back(now + delay);
        self.restart_at = Some(now + delay);
        Ok(())
    }

    fn announce(&mut self) {
        let name = &self.launch.model_name;
        if self.was_ready {
            info!("serving {name} again");
            return;
        }
        self.was_ready = true;
        let url = format!("http://{}", reachable(self.launch.address));
        let seconds = self.launch.started.elapsed().as_secs_f64();
        info!(
            "Connected: {name} is served on {url} after {seconds:.1} s; try\n  curl -N {url}/generate_stream \
             -H 'content-type: application/json' \
             -d '{{\"inputs\": \"Once upon a time, a fox\", \"parameters\": {{\"max_new_tokens\": 150}}}}'"
        );
    }

    /// The router first, so that running requests keep their shards; then the shards. A second signal ends it all.
    async fn drain(&mut self, signals: &mut StopSignals) -> Result<(), Failure> {
        if let Some(router) = &self.router {
            router.terminate();
        }
        let deadline = Instant::now() + self.launch.drain_timeout + EXIT_GRACE;
        while self.router.is_some() {
            let exit = tokio::select! {
                exit = timeout_at(deadline, self.exits.recv()) => exit,
                name = signals.next() => return Err(Failure::Failed(format!("{name} again: stopped at once"))),
            };
            match exit {
                Ok(Some(exit)) => self.note_exit_while_stopping(&exit)?,
                Ok(None) | Err(_) => {
                    return Err(Failure::Failed(
                        "the router did not stop in time".to_owned(),
                    ));
                }
            }
        }
        for shard in self.shards.values() {
            shard.terminate();
        }
        let deadline = Instant::now() + EXIT_GRACE;
        while self.num_shards_alive > 0 {
            tokio::select! {
                exit = timeout_at(deadline, self.exits.recv()) => match exit {
                    Ok(Some(exit)) => self.note_exit_while_stopping(&exit)?,
                    Ok(None) | Err(_) => {
                        warn!("a shard did not stop within {} s and is killed", EXIT_GRACE.as_secs());
                        break;
                    }
                },
                name = signals.next() => return Err(Failure::Failed(format!("{name} again: stopped at once"))),
            }
        }
        info!("stopped");
        Ok(())
    }

    fn note_exit_while_stopping(&mut self, exit: &Exit) -> Result<(), Failure> {
        match exit.source {
            Source::Shard { rank } => {
                self.num_shards_alive -= 1;
                if exit.generation == self.generation {
                    self.shards.remove(&rank);
                }
            }
            Source::Router if is_clean_end(exit.status) => self.router = None,
            // These ended before the shards began.
            Source::Helper { .. } => {}
            Source::Router => {
                return Err(Failure::Failed(format!(
                    "while draining the router {}",
                    report(exit)
                )));
            }
        }
        Ok(())
    }

    /// Ends whatever still runs and sees it end, so that nobody is left when the launcher returns.
    async fn kill_all(&mut self) {
        let mut running = self.num_shards_alive + usize::from(self.router.is_some());
        self.router = None;
        self.shards.clear();
        while running > 0 {
            if timeout(EXIT_GRACE, self.exits.recv()).await.is_err() {
                warn!("{running} killed processes have not ended; the kernel holds them");
                return;
            }
            running -= 1;
        }
    }
}

/// None before the first restart, then 1, 2, 4, 8 seconds.
fn backoff(attempt: usize) -> Duration {
    match attempt {
        0 => Duration::ZERO,
        _ => Duration::from_secs(1 << (attempt - 1).min(6)),
    }
}

/// A child's end as the launcher's own.
fn of_child(exit: &Exit, text: String) -> Failure {
    if exit.status.code() == Some(MODEL_UNUSABLE) {
        Failure::Model(text)
    } else {
        Failure::Failed(text)
    }
}

fn report(exit: &Exit) -> String {
    let mut text = describe(exit.status);
    if !exit.last_lines.is_empty() {
        text.push_str("; its last lines:\n  ");
        text.push_str(&exit.last_lines.join("\n  "));
    }
    text
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|error| Failure::Failed(format!("cannot write a config: {error}")))
}

/// A router that a signal met before it listened for signals had no request yet.
fn is_clean_end(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(Signal::SIGTERM as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_later_ones_wait() {
        let delays: Vec<_> = (0..MAX_RESTARTS)
            .map(|attempt| backoff(attempt).as_secs())
            .collect();
        assert_eq!(delays, [0, 1, 2, 4, 8]);
    }
}
