//! TGI's flags that do nothing here yet, as one table. All are known, on the command line and in the environment, so that
//! a deployment moves without being rewritten; what becomes of one depends on what is lost without it.
//!
//! A flag is refused if a server without it would give other answers, take more than it was granted, or let in who
//! should stay out: nobody reads a warning that comes too late. It is ignored with a warning if it only says how or
//! where something is done, or if the requests that need it are refused one by one.

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use tracing::warn;

use crate::failure::Failure;

/// One of TGI's flags.
#[derive(Debug)]
pub(crate) struct TgiFlag {
    pub(crate) name: &'static str,
    heading: &'static str,
    meaning: &'static str,
    pub(crate) effect: Effect,
    /// What its value is called; a switch has none.
    value_name: Option<&'static str>,
    /// Values that ask for what happens anyway.
    neutral: &'static [&'static str],
}

/// What becomes of a flag, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect {
    Ignored(&'static str),
    Refused(&'static str),
}

pub(crate) const TGI_FLAGS: &[TgiFlag] = &[
    ignored(
        "Essential",
        "trust-remote-code",
        "Run code that comes with the model",
        "a model's own code is never run",
    ),
    refused(
        "Essential",
        "kv-cache-dtype",
        "Type of the KV cache",
        "the KV cache has the type that the model computes in",
    )
    .takes("KV_CACHE_DTYPE"),
    ignored(
        "Essential",
        "weights-cache-override",
        "Folder of weights that goes before the cache",
        "weights are read from the model's folder",
    )
    .takes("WEIGHTS_CACHE_OVERRIDE"),
    ignored(
        "Limits",
        "max-image-fetch-size",
        "Largest image that is fetched, in bytes",
        "requests with images are refused",
    )
    .takes("MAX_IMAGE_FETCH_SIZE"),
    ignored(
        "Batching",
        "waiting-served-ratio",
        "Waiting over running requests at which prompts go first",
        "a request joins the running ones as soon as there is room",
    )
    .takes("WAITING_SERVED_RATIO"),
    ignored(
        "Batching",
        "max-waiting-tokens",
        "Steps after which waiting requests go first",
        "a request joins the running ones as soon as there is room",
    )
    .takes("MAX_WAITING_TOKENS"),
    ignored(
        "Batching",
        "cuda-graphs",
        "Batch sizes to capture as CUDA graphs",
        "the sizes follow --max-batch-size",
    )
    .takes("CUDA_GRAPHS"),
    refused(
        "Batching",
        "cuda-memory-fraction",
        "Share of the GPU's memory to use",
        "all free memory would be taken; limit the KV cache with --max-batch-total-tokens",
    )
    .takes("CUDA_MEMORY_FRACTION")
    .unless(&["1", "1.0"]),
    ignored(
        "Sharding",
        "shard-uds-path",
        "Prefix of the shards' sockets",
        "each instance makes a private folder for them",
    )
    .takes("SHARD_UDS_PATH"),
    ignored(
        "Sharding",
        "master-addr",
        "Address where the shards meet",
        "shards meet in the private folder",
    )
    .takes("MASTER_ADDR"),
    ignored(
        "Sharding",
        "master-port",
        "Port where the shards meet",
        "shards meet in the private folder",
    )
    .takes("MASTER_PORT"),
    ignored(
        "Sharding",
        "disable-custom-kernels",
        "Do without the CUDA kernels for BLOOM",
        "there are none",
    ),
    refused(
        "Quantization",
        "quantize",
        "How weights are, or are to be, quantized",
        "weights are served as they are stored",
    )
    .takes("QUANTIZE"),
    refused(
        "RoPE",
        "rope-scaling",
        "Stretch positions: linear or dynamic",
        "positions are those of the model's config.json",
    )
    .takes("ROPE_SCALING"),
    refused(
        "RoPE",
        "rope-factor",
        "By how much positions are stretched",
        "positions are those of the model's config.json",
    )
    .takes("ROPE_FACTOR"),
    refused(
        "LoRA",
        "lora-adapters",
        "Adapters to serve beside the model",
        "only the model itself would answer",
    )
    .takes("LORA_ADAPTERS"),
    refused(
        "Speculation",
        "speculate",
        "Tokens to guess ahead",
        "each step makes one token",
    )
    .takes("SPECULATE")
    .unless(&["0"]),
    ignored(
        "Generation",
        "disable-grammar-support",
        "Refuse requests with a grammar",
        "they are refused in any case",
    ),
    ignored(
        "Generation",
        "enable-prefill-logprobs",
        "Answer with log-probabilities of the prompt",
        "requests that ask for them are refused",
    ),
    ignored(
        "Generation",
        "watermark-gamma",
        "Share of the vocabulary that a watermark favours",
        "requests that ask for a watermark are refused",
    )
    .takes("WATERMARK_GAMMA"),
    ignored(
        "Generation",
        "watermark-delta",
        "By how much a watermark favours it",
        "requests that ask for a watermark are refused",
    )
    .takes("WATERMARK_DELTA"),
    ignored(
        "Observability",
        "otlp-endpoint",
        "Where traces are sent",
        "there are no traces",
    )
    .takes("OTLP_ENDPOINT"),
    ignored(
        "Observability",
        "otlp-service-name",
        "Name of this server in traces",
        "there are no traces",
    )
    .takes("OTLP_SERVICE_NAME"),
    ignored(
        "Observability",
        "prometheus-port",
        "Port for metrics alone",
        "/metrics is served on --port",
    )
    .takes("PROMETHEUS_PORT"),
    ignored(
        "Observability",
        "usage-stats",
        "Tell the maker about the use: on, off or no-stack",
        "nothing is ever sent",
    )
    .takes("USAGE_STATS")
    .unless(&["off"]),
    refused(
        "HTTP",
        "api-key",
        "Key that requests must carry",
        "requests without the key would be answered; put a proxy that checks it in front",
    )
    .takes("API_KEY"),
    ignored(
        "HTTP",
        "ngrok",
        "Open a tunnel to the server",
        "no tunnel is opened",
    ),
    ignored(
        "HTTP",
        "ngrok-authtoken",
        "Token of the tunnel",
        "no tunnel is opened",
    )
    .takes("NGROK_AUTHTOKEN"),
    ignored(
        "HTTP",
        "ngrok-edge",
        "Edge of the tunnel",
        "no tunnel is opened",
    )
    .takes("NGROK_EDGE"),
];

/// Those that only somebody sets who means a model of their own.
const MODEL_SETTINGS: [&str; 6] = [
    "trust-remote-code",
    "kv-cache-dtype",
    "quantize",
    "rope-scaling",
    "rope-factor",
    "lora-adapters",
];

const fn ignored(
    heading: &'static str,
    name: &'static str,
    meaning: &'static str,
    why: &'static str,
) -> TgiFlag {
    TgiFlag {
        name,
        heading,
        meaning,
        effect: Effect::Ignored(why),
        value_name: None,
        neutral: &[],
    }
}

const fn refused(
    heading: &'static str,
    name: &'static str,
    meaning: &'static str,
    why: &'static str,
) -> TgiFlag {
    TgiFlag {
        effect: Effect::Refused(why),
        ..ignored(heading, name, meaning, why)
    }
}

impl TgiFlag {
    const fn takes(self, value_name: &'static str) -> Self {
        Self {
            value_name: Some(value_name),
            ..self
        }
    }

    const fn unless(self, neutral: &'static [&'static str]) -> Self {
        Self { neutral, ..self }
    }

    /// In the environment.
    pub(crate) fn variable(&self) -> String {
        self.name.to_uppercase().replace('-', "_")
    }

    fn argument(&self) -> Arg {
        let effect = match self.effect {
            Effect::Ignored(_) => "ignored",
            Effect::Refused(_) => "refused",
        };
        let argument = Arg::new(self.name)
            .long(self.name)
            .env(self.variable())
            .help(format!("{} (not supported yet: {effect})", self.meaning))
            .help_heading(self.heading);
        match self.value_name {
            Some(value_name) => argument
                .value_name(value_name)
                .action(ArgAction::Append)
                .allow_negative_numbers(true),
            None => argument
                .action(ArgAction::SetTrue)
                .value_parser(BoolishValueParser::new()),
        }
    }

    /// Whether somebody asked for what does not happen anyway.
    fn is_asked_for(&self, matches: &ArgMatches) -> bool {
        match matches.value_source(self.name) {
            None | Some(ValueSource::DefaultValue) => false,
            Some(_) if self.value_name.is_none() => matches.get_flag(self.name),
            Some(_) => matches
                .get_many::<String>(self.name)
                .is_some_and(|mut values| values.any(|value| !self.neutral.contains(&&**value))),
        }
    }
}

/// Those of the table that were given.
#[derive(Debug)]
pub(crate) struct TgiFlags {
    given: Vec<&'static TgiFlag>,
}

impl TgiFlags {
    /// The first that somebody sets who means a model of their own.
    pub(crate) fn model_setting(&self) -> Option<&'static TgiFlag> {
        let mut given = self.given.iter().copied();
        given.find(|flag| MODEL_SETTINGS.contains(&flag.name))
    }

    /// Warns of what is ignored, then refuses what must be.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let mut refusals = Vec::new();
        for TgiFlag { name, effect, .. } in &self.given {
            match effect {
                Effect::Ignored(why) => {
                    warn!("--{name} is not supported yet and has no effect: {why}");
                }
                Effect::Refused(why) => {
                    refusals.push(format!("--{name} is not supported yet: {why}"));
                }
            }
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(Failure::Usage(refusals.join("\n")))
        }
    }
}

impl FromArgMatches for TgiFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let asked_for = TGI_FLAGS.iter().filter(|flag| flag.is_asked_for(matches));
        Ok(Self {
            given: asked_for.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for TgiFlags {
    fn augment_args(command: Command) -> Command {
        let arguments = TGI_FLAGS.iter().map(TgiFlag::argument);
        arguments.fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
