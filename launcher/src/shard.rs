//! The shard processes: one JSON config each, the same program on every rank.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio::process::Command;

use crate::args::Cli;
use crate::logs;
use crate::preflight::Preflight;
use crate::sizing::{Sizes, TOKENS_PER_BLOCK};

/// `penstock_server.config.ShardConfig`, field by field; that side refuses unknown and missing keys.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShardConfig {
    model_path: PathBuf,
    rank: u32,
    num_ranks: u32,
    socket_path: PathBuf,
    rendezvous_path: PathBuf,
    dtype: &'static str,
    load_format: &'static str,
    device: &'static str,
    all_reduce: &'static str,
    tokens_per_block: u64,
    num_blocks: Option<u64>,
    max_rows: u64,
    max_step_tokens: u64,
    max_seq_len: u64,
    num_seats: u64,
    num_penalty_lanes: u64,
    step_depth: u32,
    num_threads: u64,
    parent_pid: u32,
    log_level: &'static str,
    json_output: bool,
    fill_kv_with_nan: bool,
}

impl ShardConfig {
    /// What all ranks have in common; `for_rank` fills in the rest.
    pub(crate) fn template(cli: &Cli, preflight: &Preflight) -> Self {
        let Sizes {
            num_blocks,
            max_rows,
            max_step_tokens,
            max_seq_len,
            num_seats,
            num_penalty_lanes,
            num_threads,
        } = preflight.sizes.clone();
        Self {
            model_path: preflight.model.folder.clone(),
            rank: 0,
            num_ranks: preflight.num_ranks,
            socket_path: PathBuf::new(),
            rendezvous_path: PathBuf::new(),
            dtype: cli.model.dtype.name(),
            load_format: cli.model.load_format.name(),
            device: if preflight.cuda { "cuda" } else { "cpu" },
            all_reduce: cli.sharding.all_reduce.name(),
            tokens_per_block: TOKENS_PER_BLOCK,
            num_blocks,
            max_rows,
            max_step_tokens,
            max_seq_len,
            num_seats,
            num_penalty_lanes,
            step_depth: cli.step.step_depth,
            num_threads,
            parent_pid: std::process::id(),
            log_level: logs::shard_level(&cli.log.log_level),
            json_output: cli.log.json_output,
            fill_kv_with_nan: cli.sharding.fill_kv_with_nan,
        }
    }

    /// The config of one rank in its group's `generation`: the sockets stay, the rendezvous file is fresh.
    pub(crate) fn for_rank(&self, rank: u32, generation: u32, folder: &Path) -> Self {
        Self {
            rank,
            socket_path: socket_path(folder, rank),
            rendezvous_path: folder.join(format!("rendezvous-{generation}")),
            ..self.clone()
        }
    }

    pub(crate) fn num_ranks(&self) -> u32 {
        self.num_ranks
    }
}

/// Where a rank listens.
pub(crate) fn socket_path(folder: &Path, rank: u32) -> PathBuf {
    folder.join(format!("shard-{rank}.sock"))
}

/// The program of a shard, and the folder where its compiler keeps kernels. `-P`: the working directory must not shadow a
/// package.
pub(crate) fn command(python: &Path, kernel_cache: Option<&Path>) -> Command {
    let mut command = Command::new(python);
    command.args(["-P", "-m", "penstock_server"]);
    if let Some(folder) = kernel_cache {
        command.env("TRITON_CACHE_DIR", folder);
    }
    command
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_shard_is_told_where_its_compiler_keeps_kernels() {
        let told = |folder: Option<&Path>| {
            let command = command(Path::new("python"), folder);
            let mut variables = command.as_std().get_envs();
            variables.find_map(|(name, value)| {
                (name == "TRITON_CACHE_DIR").then(|| value.map(OsStr::to_owned))
            })
        };
        assert_eq!(
            told(Some(Path::new("/kernels"))),
            Some(Some("/kernels".into()))
        );
        assert_eq!(told(None), None);
    }
}
