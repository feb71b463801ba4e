//! Drives shards that run the integer model with the router's own scheduler, and holds every answer against the model's
//! pure function: prompts of many lengths, NaN rows, clients that go away. Ends with an error on the first wrong token.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Parser;
use penstock_router::driver::{
    Command, DriverConfig, DriverHandle, EngineStatus, InjectedWork, spawn,
};
use penstock_router::engine::fake::IntegerModel;
use penstock_router::engine::grpc::GrpcConnector;
use penstock_router::event::{Delivery, Failure, FinishReason, Output};
use penstock_router::request::{Request, RequestId, SamplingParams, Scheduling};
use penstock_router::scheduler::Policy;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

#[derive(Parser)]
struct Args {
    /// In rank order; may be repeated
    #[arg(long = "shard-socket", required = true)]
    shard_sockets: Vec<PathBuf>,
    #[arg(long, default_value_t = 2)]
    depth: u32,
    #[arg(long, default_value_t = 512)]
    vocab_size: u32,
    #[arg(long, default_value_t = 2)]
    num_layers: u32,
    #[arg(long, default_value_t = 4)]
    num_kv_heads: u32,
    #[arg(long, default_value_t = 200)]
    requests: u64,
    /// Longest prompt plus answer
    #[arg(long, default_value_t = 160)]
    max_len: u32,
    /// Most prompt tokens in one step
    #[arg(long)]
    chunk: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One request, and what is known of it.
struct Case {
    request: Request,
    has_nan: bool,
    /// The client goes away after this many tokens.
    leaves_after: Option<usize>,
    ids: Vec<u32>,
    end: Option<Result<FinishReason, Failure>>,
}

impl Case {
    fn random(id: u64, args: &Args, model: &IntegerModel, rng: &mut StdRng) -> Self {
        let prompt_len = rng.random_range(1..args.max_len);
        let max_new_tokens = rng.random_range(1..=args.max_len - prompt_len);
        let mut ids: Vec<u32> = (0..prompt_len)
            .map(|_| rng.random_range(0..model.nan_token()))
            .collect();
        let has_nan = rng.random_ratio(1, 16);
        if has_nan {
            let place = rng.random_range(0..ids.len());
            ids[place] = model.nan_token();
        }
        let stop_ids: Vec<u32> = match rng.random_range(0..4) {
            0 => (0..model.vocab_size() / 16).collect(),
            _ => Vec::new(),
        };
        Self {
            request: Request {
                id: RequestId(id),
                prompt_ids: ids.into(),
                sampling: SamplingParams::greedy(id),
                max_new_tokens,
                stop_ids: Arc::from(stop_ids),
                logprobs: None,
                scheduling: Scheduling::default(),
            },
            has_nan,
            leaves_after: rng
                .random_ratio(1, 3)
                .then(|| rng.random_range(0..max_new_tokens as usize)),
            ids: Vec::new(),
            end: None,
        }
    }

    fn is_over(&self) -> bool {
        self.end.is_some()
            || self
                .leaves_after
                .is_some_and(|count| self.ids.len() >= count)
    }

    fn check(&self, model: &mut IntegerModel) -> anyhow::Result<()> {
        let count = self.request.max_new_tokens as usize;
        let mut expected = model.generate(&self.request.prompt_ids, count);
        let stop_ids = &self.request.stop_ids;
        if let Some(stop) = expected.iter().position(|id| stop_ids.contains(id)) {
            expected.truncate(stop + 1);
        }
        let left = self.end.is_none();
        let right = if left {
            expected.starts_with(&self.ids)
        } else {
            expected == self.ids
        };
        ensure!(
            right,
            "{:?}: {:?}, expected {expected:?}",
            self.request.id,
            self.ids
        );
        if self.has_nan && !left {
            let failure = Some(Err(Failure::BadLogits));
            ensure!(self.end == failure, "{:?}: {:?}", self.request.id, self.end);
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(drive(&args))
}

async fn drive(args: &Args) -> anyhow::Result<()> {
    let mut model = IntegerModel::new(args.vocab_size, args.num_layers, args.num_kv_heads);
    let config = DriverConfig {
        depth: args.depth,
        max_batch_prefill_tokens: args.chunk,
        max_batch_size: None,
        policy: Policy::default(),
        injected_work: InjectedWork::None,
    };
    let (sender, mut deliveries) = mpsc::channel(64);
    let connector = GrpcConnector::new(args.shard_sockets.clone());
    let mut handle = spawn(config, connector, sender)?;
    let ready = |status: &EngineStatus| !matches!(status, EngineStatus::Starting { .. });
    let status = handle.status.wait_for(ready).await?.clone();
    if let EngineStatus::Down { reason } = status {
        anyhow::bail!("{reason}");
    }

    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut cases = HashMap::new();
    for id in 0..args.requests {
        let case = Case::random(id, args, &model, &mut rng);
        let command = Command::Submit(case.request.clone());
        cases.insert(case.request.id, case);
        handle.commands.send(command).await?;
    }
    // Clients that leave before their first token.
    for id in (0..args.requests).map(RequestId) {
        if cases[&id].is_over() {
            handle.commands.send(Command::Cancel(id)).await?;
        }
    }
    while !(0..args.requests).all(|id| cases[&RequestId(id)].is_over()) {
        let batch = deliveries.recv().await.context("the driver ended")?;
        for Delivery { request, output } in batch {
            take(&handle, cases.get_mut(&request), output).await?;
        }
    }
    for id in 0..args.requests {
        cases[&RequestId(id)].check(&mut model)?;
    }
    // Cancellations may still be on their way to the scheduler.
    let mut stats = handle.stats.get();
    while stats.scheduler.running + stats.scheduler.queued > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        stats = handle.stats.get();
    }
    ensure!(stats.scheduler.blocks_used == 0, "{stats:?}");
    ensure!(stats.engines_ready == 1, "{stats:?}");
    writeln!(
        std::io::stdout(),
        "{} requests are right; {stats:?}",
        args.requests
    )?;
    Ok(())
}

async fn take(
    handle: &DriverHandle,
    case: Option<&mut Case>,
    output: Output,
) -> anyhow::Result<()> {
    let case = case.context("a delivery for nobody")?;
    if case.is_over() {
        // Sent before the scheduler knew.
        ensure!(case.end.is_none(), "{:?} goes on", case.request.id);
        return Ok(());
    }
    match output {
        Output::Started { .. } | Output::Preempted => (),
        Output::Token(token) => case.ids.push(token.id),
        Output::Finished { reason, timings: _ } => case.end = Some(Ok(reason)),
        Output::Failed(failure) => {
            ensure!(case.has_nan, "{:?}: {failure}", case.request.id);
            case.end = Some(Err(failure));
        }
    }
    if case.end.is_none() && case.is_over() {
        handle
            .commands
            .send(Command::Cancel(case.request.id))
            .await?;
    }
    Ok(())
}
