//! From flags, model and machine to the numbers of a shard: KV blocks, rows, tokens, seats, threads. On a CPU the KV
//! cache is sized here and everything is checked against the memory; on a GPU the shard measures.

use crate::args::{Cli, Dtype};
use crate::checkpoint::Checkpoint;
use crate::failure::Failure;
use crate::memory::Available;

/// Tokens of a KV block, on CPU and GPU.
pub(crate) const TOKENS_PER_BLOCK: u64 = 16;
/// What a shard process needs beside weights and KV: Python, torch, activations.
const BYTES_PER_RANK: u64 = 1 << 30;
/// Rows of a step unless `--max-batch-size` says otherwise; the largest decode size of a GPU.
const DEFAULT_MAX_ROWS: u64 = 256;
/// Memory for penalty counts, and bytes that one token of the vocabulary takes in a lane (a count and a mask).
const PENALTY_LANES_BYTES: u64 = 64 << 20;
const LANE_BYTES_PER_TOKEN: u64 = 8;

/// What the shards run on.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cuda: bool,
    pub(crate) cores: u64,
    /// The processor multiplies bfloat16 natively.
    pub(crate) bfloat16: bool,
    pub(crate) memory: Option<Available>,
}

/// The numbers of every shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Scratch block included; `None`: the shard measures.
    pub(crate) num_blocks: Option<u64>,
    pub(crate) max_rows: u64,
    pub(crate) max_step_tokens: u64,
    pub(crate) max_seq_len: u64,
    pub(crate) num_seats: u64,
    pub(crate) num_penalty_lanes: u64,
    pub(crate) num_threads: u64,
}

/// Sizes that fit, or the refusal with the flag to change.
pub(crate) fn sizes(
    cli: &Cli,
    model: &Checkpoint,
    machine: &Machine,
    num_ranks: u64,
) -> Result<Sizes, Failure> {
    check_heads(model, num_ranks)?;
    check_limits(cli, model)?;
    let max_rows = number(cli.batching.max_batch_size)
        .unwrap_or_else(|| DEFAULT_MAX_ROWS.min(count(cli.limits.max_concurrent_requests)));
    let prefill = number(cli.batching.max_batch_prefill_tokens).unwrap_or_else(|| {
        model
            .max_positions
            .min(if machine.cuda { 4096 } else { 512 })
    });
    let wanted_seq_len = number(cli.limits.max_total_tokens).unwrap_or(model.max_positions);
    let num_blocks = if machine.cuda {
        number(cli.kv.max_batch_total_tokens).map(blocks_for)
    } else {
        Some(blocks_for(cpu_kv_tokens(cli, model, machine, num_ranks)?))
    };
    let pool_tokens = num_blocks.map_or(u64::MAX, |blocks| (blocks - 1) * TOKENS_PER_BLOCK);
    let lanes = (PENALTY_LANES_BYTES / (model.vocab_size * LANE_BYTES_PER_TOKEN)).max(8);
    Ok(Sizes {
        num_blocks,
        max_rows,
        // Decode rows take their token beside the prompt chunks, so a full batch never starves a prompt.
        max_step_tokens: prefill + max_rows,
        max_seq_len: wanted_seq_len.min(pool_tokens),
        // A seat returns only when its last plan is acknowledged; with twice the rows a whole batch can turn over at once.
        num_seats: max_rows * 2,
        num_penalty_lanes: lanes.min(max_rows),
        num_threads: (machine.cores / num_ranks).max(1),
    })
}

fn check_heads(model: &Checkpoint, num_ranks: u64) -> Result<(), Failure> {
    let kv_fits = model.num_kv_heads.is_multiple_of(num_ranks)
        || num_ranks.is_multiple_of(model.num_kv_heads);
    if model.num_heads.is_multiple_of(num_ranks) && kv_fits {
        return Ok(());
    }
    let possible: Vec<String> = (1..=8_u64)
        .filter(|&ranks| {
            model.num_heads.is_multiple_of(ranks)
                && (model.num_kv_heads.is_multiple_of(ranks)
                    || ranks.is_multiple_of(model.num_kv_heads))
        })
        .map(|ranks| ranks.to_string())
        .collect();
    Err(Failure::Usage(format!(
        "--num-shard {num_ranks} does not fit this model: its {} query heads must divide by the shards, and its {} KV \
         heads by the shards or the shards by them; possible are {}",
        model.num_heads,
        model.num_kv_heads,
        possible.join(", ")
    )))
}

fn check_limits(cli: &Cli, model: &Checkpoint) -> Result<(), Failure> {
    let usage = |text: String| Err(Failure::Usage(text));
    if cli.limits.max_input_tokens == Some(0) {
        return usage("--max-input-tokens must be at least 1".to_owned());
    }
    let positions = model.max_positions;
    let total = number(cli.limits.max_total_tokens);
    if let Some(total) = total.filter(|&total| total < 2 || total > positions) {
        return usage(format!(
            "--max-total-tokens {total} must lie between 2 and the model's {positions} positions"
        ));
    }
    let total_or_positions = total.unwrap_or(positions);
    if let Some(input) =
        number(cli.limits.max_input_tokens).filter(|&input| input >= total_or_positions)
    {
        let limit = if total.is_some() {
            "--max-total-tokens"
        } else {
            "the model's positions,"
        };
        return usage(format!(
            "--max-input-tokens {input} must be below {limit} {total_or_positions}"
        ));
    }
    if let Some(batch) = number(cli.kv.max_batch_total_tokens) {
        let least = total.unwrap_or(2);
        if batch < least {
            return usage(format!(
                "--max-batch-total-tokens {batch} must be at least --max-total-tokens {least}"
            ));
        }
    }
    Ok(())
}

/// Tokens of the KV cache on a CPU: the flag, else a quarter of what the weights leave, at most what all requests
/// together can use, at least one request of `--max-total-tokens`.
fn cpu_kv_tokens(
    cli: &Cli,
    model: &Checkpoint,
    machine: &Machine,
    num_ranks: u64,
) -> Result<u64, Failure> {
    let need = Need::new(cli, model, machine, num_ranks);
    let explicit_total = number(cli.limits.max_total_tokens);
    let tokens = number(cli.kv.max_batch_total_tokens).unwrap_or_else(|| {
        let seq_len = explicit_total.unwrap_or(model.max_positions);
        let useful = seq_len.saturating_mul(count(cli.limits.max_concurrent_requests));
        let quarter = need
            .left_for_kv()
            .map_or(u64::MAX, |left| left / 4 / need.kv_bytes_per_token);
        let least = explicit_total.unwrap_or_else(|| seq_len.min(TOKENS_PER_BLOCK * 16));
        useful.min(quarter).max(least)
    });
    need.check(tokens, cli).map(|()| tokens)
}

/// The terms of the memory check, over all ranks of this machine.
#[derive(Debug)]
struct Need {
    weight_bytes: u64,
    kv_bytes_per_token: u64,
    process_bytes: u64,
    available: Option<Available>,
    num_ranks: u64,
}

impl Need {
    fn new(cli: &Cli, model: &Checkpoint, machine: &Machine, num_ranks: u64) -> Self {
        let element = if cli.model.dtype == Dtype::Bfloat16 && machine.bfloat16 {
            2
        } else {
            4
        };
        // More ranks than KV heads: each rank keeps a copy of one head.
        let kv_heads = model.num_kv_heads.max(num_ranks);
        Self {
            weight_bytes: model.weights.elements.saturating_mul(element),
            kv_bytes_per_token: [model.num_layers, 2, kv_heads, model.head_dim, element]
                .into_iter()
                .fold(1, u64::saturating_mul),
            process_bytes: BYTES_PER_RANK * num_ranks,
            available: machine.memory.clone(),
            num_ranks,
        }
    }

    fn left_for_kv(&self) -> Option<u64> {
        let available = self.available.as_ref()?.bytes;
        Some(
            available
                .saturating_sub(self.weight_bytes)
                .saturating_sub(self.process_bytes),
        )
    }

    fn check(&self, kv_tokens: u64, cli: &Cli) -> Result<(), Failure> {
        let kv_bytes = blocks_for(kv_tokens)
            .saturating_mul(TOKENS_PER_BLOCK)
            .saturating_mul(self.kv_bytes_per_token);
        let (Some(available), Some(left)) = (&self.available, self.left_for_kv()) else {
            return Ok(());
        };
        if kv_bytes <= left {
            return Ok(());
        }
        let fitting = (left / self.kv_bytes_per_token).saturating_sub(TOKENS_PER_BLOCK);
        let remedy = if fitting < TOKENS_PER_BLOCK {
            "choose a smaller model, or a machine with more memory".to_owned()
        } else if cli.kv.max_batch_total_tokens.is_some() {
            format!("lower --max-batch-total-tokens to at most {fitting}")
        } else {
            format!("lower --max-total-tokens to at most {fitting}")
        };
        Err(Failure::Failed(format!(
            "not enough memory: weights {} + KV cache {} (for {kv_tokens} tokens) + {} for {} shard process{} exceed the {} \
             available on {}; {remedy}",
            gib(self.weight_bytes),
            gib(kv_bytes),
            gib(self.process_bytes),
            self.num_ranks,
            if self.num_ranks == 1 { "" } else { "es" },
            gib(available.bytes),
            available.limited_by,
        )))
    }
}

/// Blocks for so many tokens, and the scratch block.
fn blocks_for(tokens: u64) -> u64 {
    tokens.div_ceil(TOKENS_PER_BLOCK) + 1
}

fn number(value: Option<usize>) -> Option<u64> {
    value.map(count)
}

fn count(value: usize) -> u64 {
    u64::try_from(value).expect("usize is at most 64 bits")
}

fn gib(bytes: u64) -> String {
    let hundredths = (u128::from(bytes) * 100).div_ceil(1 << 30);
    format!("{}.{:02} GiB", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
#[path = "sizing_tests.rs"]
mod tests;
