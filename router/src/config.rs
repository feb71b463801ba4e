//! Every flag of the router, declared once: `launcher` flattens these structs and hands them on as one JSON value.
//! After start nothing reads the environment and nothing changes a config.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// A number of things, within reason: what is beyond would overflow somewhere, or is a typing error.
pub fn count(range: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// A year: what is beyond is a typing error.
const MAX_SECONDS: f64 = 31_536_000.0;

/// Seconds, whole or not.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds is expected".to_owned())?;
    if seconds > 0.0 && seconds <= MAX_SECONDS {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(format!("{text} is not > 0 and <= {MAX_SECONDS}"))
}

/// All that a router needs to know.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    #[command(flatten)]
    pub model: ModelConfig,
    #[command(flatten)]
    pub engine: EngineConfig,
    #[command(flatten)]
    pub limits: LimitsConfig,
    #[command(flatten)]
    pub batching: BatchingConfig,
    #[command(flatten)]
    pub http: HttpConfig,
    #[command(flatten)]
    pub log: LogConfig,
}

/// What is served.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder with `config.json`, `tokenizer.json`, `generation_config.json` and `tokenizer_config.json`
    #[arg(long)]
    pub model_path: PathBuf,
    /// Name under which the model is served; the folder's own name if absent
    #[arg(long)]
    pub model_name: Option<String>,
    /// Commit of a hub's model, for /info
    #[arg(long, hide = true)]
    pub model_sha: Option<String>,
    /// Tokenizer to take in place of the folder's `tokenizer.json`
    #[arg(long, hide = true)]
    pub tokenizer_path: Option<PathBuf>,
    /// What the launcher's `--model-id` says; requests may name the model by it
    #[arg(long, hide = true)]
    pub model_id: Option<String>,
}

impl ModelConfig {
    /// A folder that has all its files.
    pub fn of_folder(folder: &Path, name: Option<String>) -> Self {
        Self {
            model_path: folder.to_owned(),
            model_name: name,
            model_sha: None,
            tokenizer_path: None,
            model_id: None,
        }
    }
}

/// Where the shards listen.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// Unix sockets of the shards, in rank order; may be repeated
    #[arg(long = "shard-socket", required = true)]
    pub shard_sockets: Vec<PathBuf>,
    #[command(flatten)]
    pub step: StepConfig,
    /// Exit when the parent process is no longer this one
    #[arg(long, hide = true)]
    pub parent_pid: Option<u32>,
}

/// How the Step stream is driven; the launcher's shards need it too.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Batching")]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    /// Plans in flight, at most what the shard offers
    #[arg(long, env = "STEP_DEPTH", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3))]
    pub step_depth: u32,
}

/// What one client may ask for.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Limits")]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Requests in the server at once, running and waiting; one more is answered with 429
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 128, value_parser = count(1..=1_000_000))]
    pub max_concurrent_requests: usize,
    /// Most requests that wait for their first step; one more is answered with 429
    /// [default: as many as --max-concurrent-requests lets in]
    #[arg(long, env = "MAX_QUEUE_SIZE", value_parser = count(1..=1_000_000))]
    pub max_queue_size: Option<usize>,
    /// Seconds that a request may wait for its first step before it is answered with 429 [default: no limit]
    #[arg(long, env = "QUEUE_TIMEOUT", value_parser = seconds)]
    pub queue_timeout: Option<Duration>,
    /// Largest `best_of`; more than 1 is not supported yet, so this number is only shown by /info
    #[arg(long, env = "MAX_BEST_OF", default_value_t = 2)]
    pub max_best_of: usize,
    /// Most stop strings in one request
    #[arg(long, env = "MAX_STOP_SEQUENCES", default_value_t = 4)]
    pub max_stop_sequences: usize,
    /// Largest `top_n_tokens` and `top_logprobs`
    #[arg(long, env = "MAX_TOP_N_TOKENS", default_value_t = 20)]
    pub max_top_n_tokens: u32,
    /// Most prompts in one /v1/completions request
    #[arg(long, env = "MAX_CLIENT_BATCH_SIZE", default_value_t = 4)]
    pub max_client_batch_size: usize,
    /// Longest prompt, in tokens; max-total-tokens - 1 if absent
    #[arg(long, env = "MAX_INPUT_TOKENS")]
    pub max_input_tokens: Option<usize>,
    /// Longest prompt plus answer, in tokens; what the model and the KV cache hold if absent
    #[arg(long, env = "MAX_TOTAL_TOKENS")]
    pub max_total_tokens: Option<usize>,
    /// Largest request body, in bytes
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000, value_parser = count(1..=u32::MAX.into()))]
    pub payload_limit: usize,
    /// Threads that tokenize prompts
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2, value_parser = count(1..=1024))]
    pub validation_workers: usize,
}

/// What one step may hold.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Batching")]
#[serde(deny_unknown_fields)]
pub struct BatchingConfig {
    /// Most prompt tokens in one step; longer prompts are cut into chunks
    /// [default: 4096 on a GPU, 512 on a CPU, at most the model's positions]
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", value_parser = count(1..=1_000_000_000))]
    pub max_batch_prefill_tokens: Option<usize>,
    /// Most requests in one step [default: what the shard offers]
    #[arg(long, env = "MAX_BATCH_SIZE", value_parser = count(1..=65_536))]
    pub max_batch_size: Option<usize>,
    /// Milliseconds that a step beside running streams should take at most; prompts are cut into chunks accordingly, but have
    /// up to half of each step, and this long, where the streams alone take more than half of it
    #[arg(long, env = "TARGET_ITL_MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub target_itl_ms: u64,
    /// KV cache that a request must find before it starts
    #[arg(long, env = "RESERVE", value_enum, default_value_t = Reserve::Estimate)]
    pub reserve: Reserve,
    /// Keep the KV cache of prompts and answers for prompts that begin alike
    #[arg(
        long,
        env = "PREFIX_CACHING",
        default_value_t = true,
        action = ArgAction::Set,
        value_parser = BoolishValueParser::new()
    )]
    pub prefix_caching: bool,
}

/// Values of `--reserve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Reserve {
    /// Its prompt and as long an answer as most have; if that was too little, a request is stopped and goes on later
    Estimate,
    /// All that it may take: no request is ever stopped, and fewer run at once
    Full,
}

/// The HTTP side.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "HTTP")]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on; a name is looked up, the machine's own means all interfaces
    #[arg(long, env = "HOSTNAME", default_value = "0.0.0.0")]
    pub hostname: String,
    /// Port to listen on; 0 takes a free one and prints it
    #[arg(long, short, env = "PORT", default_value_t = 3000)]
    pub port: u16,
    /// Name of the model in /v1 requests and answers, beside its own [default: the model's folder name]
    #[arg(long, env = "SERVED_MODEL_NAME")]
    pub served_model_name: Option<String>,
    /// File to take in place of the model's `tokenizer_config.json`, its chat template included; a file that
    /// ends in .jinja is the chat template alone
    #[arg(long, env = "TOKENIZER_CONFIG_PATH")]
    pub tokenizer_config_path: Option<PathBuf>,
    /// Native streams that fail before their first token answer with the error's status instead of 200 and an event
    #[arg(long, env = "STREAM_ERROR_STATUS", value_parser = BoolishValueParser::new())]
    pub stream_error_status: bool,
    /// Seconds that running requests get after a stop signal
    #[arg(
        long,
        short = 'g',
        env = "GRACEFUL_TERMINATION_TIMEOUT",
        default_value_t = 90,
        value_parser = clap::value_parser!(u64).range(..=31_536_000)
    )]
    pub graceful_termination_timeout: u64,
    /// Origins whose scripts may read answers; may be repeated, or a list with commas [default: all]
    #[arg(long, env = "CORS_ALLOW_ORIGIN", value_delimiter = ',')]
    pub cors_allow_origin: Vec<String>,
}

/// What is logged, and how.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Observability")]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Log as JSON lines
    #[arg(long, env = "JSON_OUTPUT", value_parser = BoolishValueParser::new())]
    pub json_output: bool,
    /// debug, info, warn, error, or a tracing filter
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::driver::DriverConfig;
    use crate::scheduler::{self, Policy};

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        config: RouterConfig,
    }

    /// As the router gets it from the launcher.
    fn parse(flags: &[&str]) -> RouterConfig {
        let required = ["router", "--model-path", "m", "--shard-socket", "s"];
        let flags = required.iter().chain(flags);
        let json = serde_json::to_string(&Flags::parse_from(flags).config).unwrap();
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn the_flags_of_scheduling_reach_the_scheduler() {
        let policy = |flags: &[&str]| DriverConfig::from(&parse(flags)).policy;
        assert_eq!(policy(&[]), Policy::default());
        let given = policy(&[
            "--max-queue-size=7",
            "--target-itl-ms=20",
            "--reserve=full",
            "--prefix-caching=0",
        ]);
        let expected = Policy {
            prefix_cache: false,
            reserve: scheduler::Reserve::Full,
            target_itl: Duration::from_millis(20),
            max_queue: 7,
        };
        assert_eq!(given, expected);
        let timeout = parse(&["--queue-timeout", "0.5"]).limits.queue_timeout;
        assert_eq!(timeout, Some(Duration::from_millis(500)));
    }

    #[test]
    fn seconds_are_positive_and_may_have_a_fraction() {
        assert_eq!(seconds("3"), Ok(Duration::from_secs(3)));
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["0", "-1", "nan", "inf", "31536001", "1e300", "", "3s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
