//! Load on `/generate_stream` that costs little CPU: one thread, one epoll, no HTTP library, and nothing of an event is
//! parsed but its end and, where asked for, its time stamp. Prints one JSON object; judges nothing.

mod clients;
mod closed;
mod connection;
mod open;
mod process;

use std::io::Write;
use std::net::SocketAddr;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    load: Load,
}

/// What is asked, and of whom.
#[derive(Clone, clap::Args)]
struct Target {
    #[arg(long)]
    address: SocketAddr,
    /// The server's process, whose processor time and memory are read
    #[arg(long)]
    pid: u32,
    /// Of a shard behind it, which is not counted as somebody else's
    #[arg(long)]
    shard_pid: Option<u32>,
    /// Of every answer
    #[arg(long, default_value_t = 256)]
    tokens: u32,
    /// Log-probabilities are time stamps: how long tokens take is measured
    #[arg(long)]
    stamped: bool,
}

#[derive(Subcommand)]
enum Load {
    /// A fixed number of streams; one that has ended is followed by the next
    Closed(closed::Closed),
    /// Requests at a rate, whatever becomes of those before
    Open(open::Open),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let report = match args.load {
        Load::Closed(load) => load.run(&args.target)?,
        Load::Open(load) => load.run(&args.target)?,
    };
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}
