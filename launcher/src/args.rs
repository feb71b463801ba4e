//! The launcher's flags. Those of the router are flattened from its config, so that no flag is written twice.

use std::path::PathBuf;

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Args, Parser, ValueEnum};
use penstock_router::config::{
    BatchingConfig, HttpConfig, LimitsConfig, LogConfig, StepConfig, count,
};
use penstock_router::environment::{self, IgnoredVariable};

use crate::tgi_flags::TgiFlags;

/// Serves a language model: one router process and one shard process per GPU (or group of CPU threads).
#[derive(Parser, Debug)]
#[command(
    name = "launcher",
    version = penstock_router::version(),
    args_override_self = true,
    next_line_help = true,
    after_help = "Exit codes: 0 drained after a stop signal, 1 failed, 2 wrong usage, 3 model cannot be served."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) limits: LimitsConfig,
    #[command(flatten)]
    pub(crate) old_limits: OldLimits,
    #[command(flatten)]
    pub(crate) batching: BatchingConfig,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
    #[command(flatten)]
    pub(crate) step: StepConfig,
    #[command(flatten)]
    pub(crate) sharding: ShardingArgs,
    #[command(flatten)]
    pub(crate) http: HttpConfig,
    #[command(flatten)]
    pub(crate) log: LogConfig,
    #[command(flatten)]
    pub(crate) python: PythonArgs,
    #[command(flatten)]
    pub(crate) tgi: TgiFlags,
}

impl Cli {
    /// The command line and the environment, old names turned into new ones. Ends the process on wrong usage.
    pub(crate) fn read() -> (Self, Vec<IgnoredVariable>) {
        let (mut cli, ignored): (Self, _) = environment::parse();
        let old = cli.old_limits.max_input_length;
        cli.limits.max_input_tokens = cli.limits.max_input_tokens.or(old);
        (cli, ignored)
    }
}

/// What is served.
#[derive(Args, Debug)]
#[command(next_help_heading = "Essential")]
pub(crate) struct ModelArgs {
    /// Folder of the model, or its name on a hub, which is fetched into the cache [default: the bundled demo model]
    #[arg(long, env = "MODEL_ID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) model_id: Option<String>,
    /// Branch, tag or commit of a hub's model [default: main]
    #[arg(long, env = "REVISION", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) revision: Option<String>,
    /// Folder of fetched models [default: hub in `HF_HOME`]
    #[arg(long, env = "HUGGINGFACE_HUB_CACHE")]
    pub(crate) huggingface_hub_cache: Option<PathBuf>,
    /// Type to compute in; auto is the checkpoint's on a GPU, float32 on a CPU
    #[arg(long, env = "DTYPE", value_enum, default_value_t = Dtype::Auto)]
    pub(crate) dtype: Dtype,
    /// Where weights come from; dummy makes random ones from config.json alone, for measurements
    #[arg(long, env = "LOAD_FORMAT", value_enum, default_value_t = LoadFormat::Auto)]
    pub(crate) load_format: LoadFormat,
    /// Log what this runs on
    #[arg(long, short)]
    pub(crate) env: bool,
}

/// Names that TGI still knows.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct OldLimits {
    /// Old name of --max-input-tokens
    #[arg(long, env = "MAX_INPUT_LENGTH", conflicts_with = "max_input_tokens")]
    max_input_length: Option<usize>,
}

/// The shards' cache; a router takes it as it finds it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Batching")]
pub(crate) struct KvArgs {
    /// Most tokens in the KV cache [default: what fits the memory]
    #[arg(long, env = "MAX_BATCH_TOTAL_TOKENS", value_parser = count(1..=1_000_000_000_000))]
    pub(crate) max_batch_total_tokens: Option<usize>,
}

/// How the model is spread over processes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sharding")]
pub(crate) struct ShardingArgs {
    /// Spread the model over several shards (true), or not (false) [default: by --num-shard]
    #[arg(long, env = "SHARDED", value_parser = BoolishValueParser::new())]
    pub(crate) sharded: Option<bool>,
    /// Shard processes, each with its part of every layer [default: the GPUs named by `CUDA_VISIBLE_DEVICES`, else 1]
    #[arg(long, env = "NUM_SHARD", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) num_shard: Option<u32>,
    /// Where the shards compute; auto is a GPU if there is one
    #[arg(long, env = "DEVICE", value_enum, default_value_t = Device::Auto)]
    pub(crate) device: Device,
    /// How GPUs add up their parts of small steps: symmetric is a kernel over memory that all of them can read, not yet
    /// measured
    #[arg(long, env = "ALL_REDUCE", value_enum, default_value_t = AllReduce::Library)]
    pub(crate) all_reduce: AllReduce,
    /// GPUs of this instance, as CUDA reads it
    #[arg(long, env = "CUDA_VISIBLE_DEVICES", hide = true)]
    pub(crate) cuda_visible_devices: Option<String>,
    /// Test aid: fill the KV cache with NaN instead of zeros
    #[arg(long, env = "FILL_KV_WITH_NAN", hide = true, value_parser = BoolishValueParser::new())]
    pub(crate) fill_kv_with_nan: bool,
}

/// Which interpreter runs the shards.
#[derive(Args, Debug)]
#[command(next_help_heading = "Shard processes")]
pub(crate) struct PythonArgs {
    /// Python that has `penstock_server` [default: the one beside this program, else python3 on the PATH]
    #[arg(long, env = "PENSTOCK_PYTHON")]
    pub(crate) python: Option<PathBuf>,
    /// Folder where compiled kernels are kept [default: `penstock/triton` in `XDG_CACHE_HOME`]
    #[arg(long, env = "TRITON_CACHE_DIR")]
    pub(crate) kernel_cache_dir: Option<PathBuf>,
    /// The user's cache, as desktops name it
    #[arg(long, env = "XDG_CACHE_HOME", hide = true)]
    pub(crate) xdg_cache_home: Option<PathBuf>,
}

/// Compute types by TGI's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Dtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

impl Dtype {
    /// The name that shards and users know.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }
}

/// Forms of weights by vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum LoadFormat {
    /// What the folder has; safetensors are all that can be read.
    Auto,
    Safetensors,
    /// None: random ones, and no file of weights is looked at.
    Dummy,
}

impl LoadFormat {
    /// The name that shards and users know.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Safetensors => "safetensors",
            Self::Dummy => "dummy",
        }
    }
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Device {
    Auto,
    Cpu,
    Cuda,
}

/// What adds up the ranks' parts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum AllReduce {
    /// NCCL, on CPUs gloo.
    Library,
    /// Our kernel, where a tensor is small.
    Symmetric,
}

impl AllReduce {
    /// The name that shards and users know.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Symmetric => "symmetric",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use clap::CommandFactory;

    use super::*;
    use crate::tgi_flags::{Effect, TGI_FLAGS};

    #[test]
    fn flags_are_well_formed_and_declared_once() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_the_environment_name_that_tgi_would_give_it() {
        let command = Cli::command();
        let ours = BTreeSet::from([
            "device",
            "step-depth",
            "python",
            "kernel-cache-dir",
            "fill-kv-with-nan",
            "cuda-visible-devices",
        ]);
        // Not in TGI either: shells use ENV for a file to read.
        let without = ["help", "version", "env"];
        for argument in command
            .get_arguments()
            .filter(|argument| !without.contains(&argument.get_id().as_str()))
        {
            let flag = argument.get_long().expect("every flag has a long form");
            let environment = argument
                .get_env()
                .expect("every flag has an environment name")
                .to_string_lossy();
            if !ours.contains(flag) {
                assert_eq!(environment, flag.to_uppercase().replace('-', "_"));
            }
        }
    }

    /// Every row of the flags in docs/from-tgi.md.
    fn documented() -> BTreeMap<String, String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/from-tgi.md");
        let text = std::fs::read_to_string(path).unwrap();
        let rows = text.lines().filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let flag = cells.get(1)?.strip_prefix("`--")?.strip_suffix('`')?;
            Some((flag.to_owned(), (*cells.get(2)?).to_owned()))
        });
        rows.collect()
    }

    #[test]
    fn the_documentation_knows_every_flag_and_what_becomes_of_it() {
        let documented = documented();
        let command = Cli::command();
        let visible = command.get_arguments().filter(|flag| !flag.is_hide_set());
        let flags: BTreeSet<&str> = visible.filter_map(|flag| flag.get_long()).collect();
        let described: BTreeSet<&str> = documented.keys().map(String::as_str).collect();
        assert_eq!(described, flags);
        let effects: BTreeMap<&str, &str> = TGI_FLAGS
            .iter()
            .map(|flag| match flag.effect {
                Effect::Ignored(_) => (flag.name, "not yet: ignored"),
                Effect::Refused(_) => (flag.name, "not yet: refused"),
            })
            .collect();
        for (flag, status) in &documented {
            match effects.get(flag.as_str()) {
                Some(effect) => assert_eq!(status, effect, "{flag}"),
                None => assert!(
                    ["same", "changed", "new"].contains(&status.as_str()),
                    "{flag}: {status}"
                ),
            }
        }
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() {
        let cli = Cli::try_parse_from(["launcher", "--port", "1", "--port", "2"]).unwrap();
        assert_eq!(cli.http.port, 2);
    }

    /// At the edges nothing overflows, and beyond them the flag is named.
    #[test]
    fn numbers_have_ranges() {
        for (flag, largest) in [
            ("--max-concurrent-requests", 1_000_000),
            ("--max-queue-size", 1_000_000),
            ("--target-itl-ms", 60_000),
            ("--payload-limit", u32::MAX.into()),
            ("--validation-workers", 1024),
            ("--max-batch-size", 65_536),
            ("--max-batch-prefill-tokens", 1_000_000_000),
            ("--max-batch-total-tokens", 1_000_000_000_000),
            ("--graceful-termination-timeout", 31_536_000),
        ] {
            let parse =
                |value: u64| Cli::try_parse_from(["launcher", flag, value.to_string().as_str()]);
            assert!(parse(largest).is_ok(), "{flag}");
            for value in [largest + 1, u64::MAX] {
                let error = parse(value).unwrap_err().to_string();
                assert!(
                    error.contains(flag) && error.contains("is not in"),
                    "{error}"
                );
            }
        }
        for flag in [
            "--max-concurrent-requests",
            "--max-queue-size",
            "--max-batch-size",
            "--target-itl-ms",
            "--validation-workers",
            "--queue-timeout",
        ] {
            assert!(
                Cli::try_parse_from(["launcher", flag, "0"]).is_err(),
                "{flag}"
            );
        }
    }
}
