//! Are two plans really in flight? A fake shard in a process of its own ends step k at max(arrival, end of k-1) + T on an
//! absolute clock; the router's driver burns W per plan. With plans in flight the work hides behind the step; the run at
//! depth 1 is the negative control. Prints one JSON line per depth; the peer is the shard's own limit.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use penstock_router::driver::{
    Command, DriverConfig, DriverHandle, EngineStatus, InjectedWork, spawn,
};
use penstock_router::engine::grpc::GrpcConnector;
use penstock_router::event::{Delivery, Output};
use penstock_router::request::{Request, RequestId, SamplingParams, Scheduling};
use penstock_router::scheduler::Policy;
use tokio::sync::mpsc;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 10.0)]
    step_ms: f64,
    /// Burnt by the driver for every plan
    #[arg(long, default_value_t = 4.0)]
    work_ms: f64,
    #[arg(long, default_value_t = 64)]
    rows: u64,
    /// Tokens per row
    #[arg(long, default_value_t = 300)]
    tokens: u32,
    /// Exit with an error unless depth 2 reaches 95 % of the limit and depth 1 at most 80 %
    #[arg(long)]
    check: bool,
}

/// Ends with this process: its standard input closes.
struct Shard(Child);

impl Shard {
    fn start(socket: &Path, step_ms: f64) -> anyhow::Result<Self> {
        let program: PathBuf = std::env::current_exe()?.with_file_name("fake_shard");
        let child = Process::new(&program)
            .arg("--socket")
            .arg(socket)
            .arg("--step-ms")
            .arg(step_ms.to_string())
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self(child))
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for depth in [1, 2, 3] {
        let (share, in_time) = runtime.block_on(measure(&args, depth))?;
        let limit = 1000.0 / args.step_ms;
        let case = format!(
            "depth {depth}, {} rows, {} ms steps, {} ms of work per plan",
            args.rows, args.step_ms, args.work_ms
        );
        print(&case, "steps/s", share * limit, limit)?;
        print(
            &case,
            "steps at whose end the next plan was there",
            in_time,
            1.0,
        )?;
        if args.check && depth == 1 {
            ensure!(share <= 0.80, "depth 1 hides work: {share:.3} of the limit");
        }
        if args.check && depth == 2 {
            ensure!(share >= 0.95, "depth 2 reaches {share:.3} of the limit");
        }
    }
    Ok(())
}

fn print(case: &str, unit: &str, value: f64, limit: f64) -> anyhow::Result<()> {
    let line = serde_json::json!({
        "bench": "overlap",
        "case": case,
        "value": value,
        "unit": unit,
        "peer": "the shard's limit",
        "peer_value": limit,
        "ratio": value / limit,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// The share of the shard's limit that decode steps reach, first and last tenth of the tokens left out; and the share of
/// decode steps with a successor at whose end the successor's plan had arrived.
async fn measure(args: &Args, depth: u32) -> anyhow::Result<(f64, f64)> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("shard.sock");
    let _shard = Shard::start(&socket, args.step_ms)?;
    let config = DriverConfig {
        depth,
        max_batch_prefill_tokens: None,
        max_batch_size: None,
        policy: Policy::default(),
        injected_work: InjectedWork::Burn(Duration::from_secs_f64(args.work_ms / 1000.0)),
    };
    let (sender, mut deliveries) = mpsc::channel(64);
    let mut handle = spawn(config, GrpcConnector::new(vec![socket]), sender)?;
    handle
        .status
        .wait_for(|status| matches!(status, EngineStatus::Ready(_)))
        .await?;
    submit(&handle, args).await?;
    // When the first row got its n-th token.
    let mut times = Vec::new();
    let mut ended = 0;
    while ended < args.rows {
        let batch = deliveries.recv().await.context("the driver ended")?;
        for Delivery { request, output } in batch {
            match output {
                Output::Token(_) if request == RequestId(0) => times.push(Instant::now()),
                Output::Token(_) | Output::Started { .. } | Output::Preempted => (),
                Output::Finished { .. } => ended += 1,
                Output::Failed(failure) => anyhow::bail!("{request:?}: {failure}"),
            }
        }
    }
    let (from, to) = (times.len() / 10, times.len() * 9 / 10);
    let per_step = (times[to] - times[from]).as_secs_f64() / (to - from) as f64;
    let stats = handle.stats.get();
    let in_time = stats.decode_steps_with_successor_waiting as f64
        / stats.decode_steps_with_successor.max(1) as f64;
    Ok((args.step_ms / 1000.0 / per_step, in_time))
}

async fn submit(handle: &DriverHandle, args: &Args) -> anyhow::Result<()> {
    for id in 0..args.rows {
        let request = Request {
            id: RequestId(id),
            prompt_ids: (1..9).collect(),
            sampling: SamplingParams::greedy(0),
            max_new_tokens: args.tokens,
            stop_ids: Arc::new([]),
            logprobs: None,
            scheduling: Scheduling::default(),
        };
        handle.commands.send(Command::Submit(request)).await?;
    }
    Ok(())
}
