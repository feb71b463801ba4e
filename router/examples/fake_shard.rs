//! The fake engine as a shard process of its own: the integer model behind gRPC on a unix socket.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use penstock_router::engine::fake::{FakeConfig, Faults, serve};

/// Serves the integer model as one rank of a shard group. Ends when its standard input does.
#[derive(Parser)]
struct Args {
    /// Unix socket to listen on
    #[arg(long)]
    socket: PathBuf,
    /// Step k ends at max(its arrival, the end of step k-1) plus this
    #[arg(long, default_value_t = 0.0)]
    step_ms: f64,
    #[arg(long, default_value_t = 0)]
    rank: u32,
    #[arg(long, default_value_t = 1)]
    num_ranks: u32,
    #[arg(long, default_value_t = 1000)]
    vocab_size: u32,
    #[arg(long, default_value_t = 2049)]
    num_blocks: u32,
    /// Microseconds that a step takes longer for each token that is fed
    #[arg(long, default_value_t = 0)]
    fed_token_us: u64,
    #[arg(long, default_value_t = 3)]
    depth: u32,
    /// Requests that may run at once
    #[arg(long, default_value_t = 256)]
    num_seats: u32,
    #[arg(long, default_value_t = 4096)]
    max_positions: u32,
    /// Log-probabilities are -1 times the microseconds, modulo 2^23, at which their result went out
    #[arg(long)]
    stamped: bool,
    /// From this plan on the checksum of the sampled ids is wrong
    #[arg(long)]
    wrong_ids_from: Option<u64>,
    /// This plan ends the stream with an error
    #[arg(long)]
    fail_at: Option<u64>,
    /// Stay after standard input has ended
    #[arg(long)]
    detached: bool,
}

/// Whole numbers of this size are exact.
fn stamp() -> f32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    let micros = (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000) % (1 << 23);
    -(micros as f32)
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut config = FakeConfig {
        step_time: Duration::from_secs_f64(args.step_ms / 1000.0),
        ..FakeConfig::default()
    };
    config.info.num_ranks = args.num_ranks;
    config.fed_token_time = Duration::from_micros(args.fed_token_us);
    config.info.vocab_size = args.vocab_size;
    config.info.depth = args.depth;
    config.info.groups[0].num_blocks = args.num_blocks;
    config.info.max_positions = args.max_positions;
    config.info.num_seats = args.num_seats;
    while config.info.decode_sizes.last() < Some(&args.num_seats) {
        // Steps that hold all rows and a prompt beside them.
        config
            .info
            .decode_sizes
            .extend(config.info.decode_sizes.last().map(|size| size * 2));
        config
            .info
            .mixed_sizes
            .extend(config.info.mixed_sizes.last().map(|size| size * 2));
    }
    config.stamp = args.stamped.then_some(stamp);
    let faults = Faults {
        wrong_ids_from: args.wrong_ids_from,
        fail_at: args.fail_at,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let serving = serve(&args.socket, config, args.rank, faults);
    if args.detached {
        return Ok(runtime.block_on(serving)?);
    }
    let (closed, parent_gone) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Whoever started us holds the other end, and takes it along when it dies.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = closed.send(());
    });
    runtime.block_on(async {
        tokio::select! {
            served = serving => Ok(served?),
            _ = parent_gone => Ok(()),
        }
    })
}
