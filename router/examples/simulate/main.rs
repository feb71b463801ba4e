//! What would the scheduler do? The router's own scheduler and two other policies on the same made-up machine, in virtual
//! time: see docs/scheduling.md.

mod generate;
mod random;
#[expect(
    dead_code,
    reason = "the tests read more of it than the program prints"
)]
mod sim;

use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, ValueEnum};
use penstock_router::scheduler::{Policy, Reserve};
use sim::machine::Machine;
use sim::penstock::Penstock;
use sim::replica::Replica;
use sim::report::{Objectives, Report};
use sim::routing::{Router, Routing};
use sim::server::Server;
use sim::tgi::Tgi;
use sim::trace::Entry;
use sim::vllm::Vllm;
use sim::world::World;

#[derive(Parser)]
#[command(about = "Schedulers in virtual time")]
enum Cli {
    /// Write a made-up trace to the standard output
    Generate(generate::Args),
    /// Run a trace under one or several policies
    Run(Run),
}

#[derive(Args)]
struct Run {
    trace: PathBuf,
    #[arg(long, default_value = "h100-8b")]
    machine: String,
    /// penstock, vllm-N (N tokens a step) or tgi
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "penstock,vllm-8192,vllm-2048,tgi"
    )]
    policy: Vec<String>,
    /// Tokens of keys and values, if not the machine's
    #[arg(long)]
    kv_tokens: Option<usize>,
    /// Steps with prompt tokens run at their own size
    #[arg(long)]
    no_padding: bool,
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    #[arg(long, value_delimiter = ',', default_value = "least-loaded")]
    routing: Vec<RoutingName>,
    #[command(flatten)]
    penstock: PenstockFlags,
    /// A request counts as good with its first token after so many seconds at most ...
    #[arg(long, default_value_t = 2.0)]
    ttft_s: f64,
    /// ... and 99 % of the gaps between its tokens no longer than this
    #[arg(long, default_value_t = 100.0)]
    itl_ms: f64,
    /// JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct PenstockFlags {
    #[arg(long, default_value_t = 50.0)]
    target_itl_ms: f64,
    /// Reserve all that a request may generate
    #[arg(long)]
    reserve_full: bool,
    #[arg(long)]
    no_prefix_cache: bool,
    #[arg(long)]
    max_queue: Option<usize>,
    /// Plans in flight; 1 is as idle a host as the other policies have here
    #[arg(long, default_value_t = 2)]
    depth: u32,
    #[arg(long)]
    queue_timeout_s: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoutingName {
    Random,
    LeastLoaded,
    Prefix,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::Generate(ref args) => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            for entry in generate::trace(args) {
                serde_json::to_writer(&mut out, &entry)?;
                writeln!(out)?;
            }
            out.flush()?;
            Ok(())
        }
        Cli::Run(ref args) => run(args),
    }
}

fn run(args: &Run) -> anyhow::Result<()> {
    let trace = read(&args.trace)?;
    let mut machine = Machine::named(&args.machine).context("machines are h100-8b and cpu-135m")?;
    machine.kv_tokens = args.kv_tokens.unwrap_or(machine.kv_tokens);
    machine.depth = args.penstock.depth;
    if args.no_padding {
        machine.padded_sizes.clear();
    }
    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(out, "{}", Report::HEAD)?;
    }
    for policy in &args.policy {
        for &routing in &args.routing {
            let (report, details) = run_policy(args, policy, routing, &machine, &trace)?;
            let name = match args.replicas {
                1 => policy.clone(),
                count => format!("{policy}, {count} x {}", routing.name()),
            };
            if args.json {
                let mut line = serde_json::to_value(&report)?;
                line["name"] = name.into();
                line["details"] = details;
                writeln!(out, "{line}")?;
            } else {
                writeln!(out, "{}", report.row(&name))?;
            }
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let file =
        fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut trace: Vec<Entry> = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let entry: Entry = serde_json::from_str(&line?)
            .with_context(|| format!("line {} of {}", number + 1, path.display()))?;
        if entry.prompt_tokens() == 0 || entry.max_tokens == 0 {
            bail!("line {}: a request has a prompt and an answer", number + 1);
        }
        trace.push(entry);
    }
    trace.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
    Ok(trace)
}

fn run_policy(
    args: &Run,
    policy: &str,
    routing: RoutingName,
    machine: &Machine,
    trace: &[Entry],
) -> anyhow::Result<(Report, serde_json::Value)> {
    let objectives = Objectives {
        first_token: Duration::from_secs_f64(args.ttft_s),
        gap: Duration::from_secs_f64(args.itl_ms / 1e3),
    };
    let router = Router::new(routing.into(), args.replicas, machine.kv_tokens);
    if policy == "penstock" {
        let queue_timeout = args.penstock.queue_timeout_s.map(Duration::from_secs_f64);
        let make = || Penstock::new(machine, args.penstock.policy(), queue_timeout);
        let world = world(args.replicas, make, machine, router, trace);
        let counters = world
            .replicas
            .iter()
            .map(|replica| replica.server.counters());
        let waits = counters.clone().map(|counters| counters.waits);
        let waits = waits.fold([0; 6], |sum, next| {
            std::array::from_fn(|at| sum[at] + next[at])
        });
        let details = serde_json::json!({
            "waits_turn_full_seats_blocks_shared_long": waits,
            "prefill_steps": counters.clone().map(|counters| counters.prefill_steps).sum::<u64>(),
            "decode_steps": counters.clone().map(|counters| counters.decode_steps).sum::<u64>(),
            "wasted_rows": counters.map(|counters| counters.wasted_rows).sum::<u64>(),
        });
        return Ok((Report::new(&world.records, objectives), details));
    }
    let records = if policy == "tgi" {
        world(args.replicas, || Tgi::new(machine), machine, router, trace).records
    } else if let Some(budget) = policy.strip_prefix("vllm-") {
        let budget: u32 = budget.parse().context("vllm-N: N is a number of tokens")?;
        world(
            args.replicas,
            || Vllm::new(machine, budget),
            machine,
            router,
            trace,
        )
        .records
    } else {
        bail!("unknown policy {policy}");
    };
    Ok((Report::new(&records, objectives), serde_json::Value::Null))
}

fn world<S: Server>(
    num_replicas: usize,
    make: impl Fn() -> S,
    machine: &Machine,
    router: Router,
    trace: &[Entry],
) -> World<S> {
    let replicas = (0..num_replicas).map(|_| Replica::new(make(), machine.clone()));
    let mut world = World::new(replicas.collect(), router);
    world.run(trace);
    world
}

impl PenstockFlags {
    fn policy(&self) -> Policy {
        Policy {
            prefix_cache: !self.no_prefix_cache,
            reserve: match self.reserve_full {
                true => Reserve::Full,
                false => Reserve::Estimate,
            },
            target_itl: Duration::from_secs_f64(self.target_itl_ms / 1e3),
            max_queue: self.max_queue.unwrap_or(usize::MAX),
        }
    }
}

impl RoutingName {
    fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::LeastLoaded => "least loaded",
            Self::Prefix => "prefix",
        }
    }
}

impl From<RoutingName> for Routing {
    fn from(name: RoutingName) -> Self {
        match name {
            RoutingName::Random => Self::Random,
            RoutingName::LeastLoaded => Self::LeastLoaded,
            RoutingName::Prefix => Self::Prefix,
        }
    }
}
