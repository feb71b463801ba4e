//! The one command. Reads the flags once, refuses early what cannot work, starts shards and router, and watches them.

mod about;
mod args;
mod checkpoint;
mod failure;
mod helper;
mod kernel_cache;
mod logs;
mod memory;
mod preflight;
mod process;
mod ready;
mod runtime_folder;
mod safetensors;
mod shard;
mod sizing;
mod source;
mod supervise;
mod tgi_flags;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use penstock_router::config::{EngineConfig, ModelConfig, RouterConfig};
use penstock_router::signals::StopSignals;
use tracing::{error, info, warn};

use crate::args::Cli;
use crate::failure::Failure;
use crate::logs::Output;
use crate::preflight::Preflight;
use crate::runtime_folder::RuntimeFolder;
use crate::shard::ShardConfig;
use crate::supervise::Launch;

fn main() -> ExitCode {
    let started = Instant::now();
    let (cli, ignored) = Cli::read();
    let output = match logs::start(&cli.log) {
        Ok(output) => output,
        Err(failure) => return refuse_without_log(&failure),
    };
    for variable in &ignored {
        warn!("{variable}");
    }
    if cli.model.env {
        info!("{}", about::this_machine());
    }
    let code = match launch(&cli, &output, started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure}");
            failure.exit_code()
        }
    };
    output.flush();
    code
}

/// The log's own configuration is wrong, so the message goes to standard error, as clap's do.
#[expect(clippy::print_stderr, reason = "there is no log yet")]
fn refuse_without_log(failure: &Failure) -> ExitCode {
    eprintln!("error: {failure}");
    failure.exit_code()
}

fn launch(cli: &Cli, output: &Output, started: Instant) -> Result<(), Failure> {
    let early = preflight::check_early(cli)?;
    // One thread, the main one: the children's parent-death signal fires when the thread that started them ends.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the event loop", &error))?
        .block_on(async {
            let mut signals = StopSignals::listen()
                .map_err(|error| Failure::io("cannot listen for signals", &error))?;
            match source::locate(&early, &cli.model, output, &mut signals).await? {
                Some(located) => {
                    let preflight = preflight::check(cli, early, located)?;
                    let launch = plan(cli, &preflight, started)?;
                    supervise::supervise(launch, output.clone(), signals).await
                }
                None => Ok(()),
            }
        })
}

/// All that is decided before the first process starts.
fn plan(cli: &Cli, preflight: &Preflight, started: Instant) -> Result<Launch, Failure> {
    let folder = RuntimeFolder::create(&std::env::temp_dir())?;
    let router_config = router_config(cli, preflight, &folder);
    describe(preflight);
    Ok(Launch {
        address: preflight.address,
        model_name: served_name(cli, preflight),
        python: preflight.python.clone(),
        kernel_cache: preflight
            .cuda
            .then(|| kernel_cache::folder(&cli.python, &folder.path().join("triton"))),
        router: preflight::own_path()?.with_file_name("router"),
        router_config: serde_json::to_string(&router_config).map_err(|error| {
            Failure::Failed(format!("cannot write the router's config: {error}"))
        })?,
        shard_config: ShardConfig::template(cli, preflight),
        folder,
        drain_timeout: Duration::from_secs(cli.http.graceful_termination_timeout),
        started,
    })
}

fn router_config(cli: &Cli, preflight: &Preflight, folder: &RuntimeFolder) -> RouterConfig {
    let mut http = cli.http.clone();
    http.hostname = preflight.address.ip().to_string();
    http.port = preflight.address.port();
    RouterConfig {
        model: ModelConfig {
            model_path: preflight.model.folder.clone(),
            model_name: preflight.model_name.clone(),
            model_sha: preflight.model_sha.clone(),
            tokenizer_path: preflight.tokenizer_path.clone(),
            model_id: cli.model.model_id.clone(),
        },
        engine: EngineConfig {
            shard_sockets: (0..preflight.num_ranks)
                .map(|rank| shard::socket_path(folder.path(), rank))
                .collect(),
            step: cli.step.clone(),
            parent_pid: Some(std::process::id()),
        },
        limits: cli.limits.clone(),
        batching: cli.batching.clone(),
        http,
        log: cli.log.clone(),
    }
}

fn served_name(cli: &Cli, preflight: &Preflight) -> String {
    let folder = &preflight.model.folder;
    let of_folder = || {
        folder
            .file_name()
            .unwrap_or(folder.as_os_str())
            .to_string_lossy()
            .into_owned()
    };
    let served = cli.http.served_model_name.clone();
    served
        .filter(|name| !name.is_empty())
        .or_else(|| preflight.model_name.clone())
        .unwrap_or_else(of_folder)
}

fn describe(preflight: &Preflight) {
    let sizes = &preflight.sizes;
    let device = if preflight.cuda { "GPU" } else { "CPU" };
    let kv = match sizes.num_blocks {
        Some(blocks) => format!(
            "KV cache of {} tokens",
            (blocks - 1) * sizing::TOKENS_PER_BLOCK
        ),
        None => "KV cache sized by the shards".to_owned(),
    };
    info!(
        "starting {} on {} {device} shard(s), {} thread(s) each, {kv}, up to {} tokens a request",
        preflight.model.folder.display(),
        preflight.num_ranks,
        sizes.num_threads,
        sizes.max_seq_len,
    );
}
