//! The router as a program of its own: started by the launcher with one JSON config, or by hand with flags.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use penstock_router::ServeError;
use penstock_router::config::RouterConfig;
use penstock_router::environment::{self, IgnoredVariable};
use penstock_router::signals::StopSignals;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Speaks HTTP to clients and the Step protocol to shards.
#[derive(Parser)]
#[command(
    name = "router",
    version = penstock_router::version(),
    after_help = "With --config-stdin as the only argument, the configuration is read from standard input as one JSON object."
)]
struct Cli {
    #[command(flatten)]
    config: RouterConfig,
}

/// What was asked for, and variables that look as if they asked for something.
struct Given {
    config: RouterConfig,
    ignored: Vec<IgnoredVariable>,
}

#[expect(clippy::print_stderr, reason = "without a config there is no log")]
fn main() -> ExitCode {
    let (runtime, signals, Given { config, ignored }) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    match run(&runtime, signals, config, &ignored) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            let code = error.downcast_ref().map_or(1, ServeError::exit_code);
            ExitCode::from(code)
        }
    }
}

/// Listens for signals before the launcher's config is read: a signal that comes sooner kills, one that comes later is
/// answered by a drain.
fn prepare() -> Result<(Runtime, StopSignals, Given)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let signals = {
        let _context = runtime.enter();
        StopSignals::listen()?
    };
    Ok((runtime, signals, read_config()?))
}

/// As many open files as the system lets us have: the usual soft limit of 1024 is fewer than connections may be open.
fn allow_many_connections() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

fn read_config() -> Result<Given> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_none_or(|argument| argument != "--config-stdin")
    {
        let (Cli { config }, ignored) = environment::parse();
        return Ok(Given { config, ignored });
    }
    ensure!(
        arguments.next().is_none(),
        "--config-stdin takes no other argument"
    );
    // First of all: whoever kills the launcher must not leave us behind.
    set_pdeathsig(Signal::SIGKILL).context("cannot ask for a parent-death signal")?;
    let config: RouterConfig = serde_json::from_reader(std::io::stdin().lock())
        .context("the configuration on standard input")?;
    if let Some(parent) = config.engine.parent_pid {
        // The launcher may have died before the signal was asked for.
        ensure!(
            u32::try_from(getppid().as_raw()) == Ok(parent),
            "the launcher {parent} is gone"
        );
    }
    Ok(Given {
        config,
        ignored: Vec::new(),
    })
}

fn run(
    runtime: &Runtime,
    mut signals: StopSignals,
    config: RouterConfig,
    ignored: &[IgnoredVariable],
) -> Result<()> {
    penstock_router::telemetry::init(&config.log)?;
    for variable in ignored {
        tracing::warn!("{variable}");
    }
    allow_many_connections();
    // The launcher ends a router that shall not go on with SIGKILL; whatever else comes is a copy of its SIGTERM, or
    // somebody's who signals all processes.
    let drains_to_the_end = config.engine.parent_pid.is_some();
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut serving = Box::pin(penstock_router::serve(config, shutdown.clone()));
        loop {
            tokio::select! {
                outcome = &mut serving => return Ok(outcome?),
                _ = signals.next() => {}
            }
            if !shutdown.is_cancelled() {
                info!("draining");
                shutdown.cancel();
            } else {
                ensure!(drains_to_the_end, "a second signal: stopped at once");
            }
        }
    })
}
