//! A model folder, judged in milliseconds: config, tokenizer, and the headers of the weight files. No weight is read.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::args::LoadFormat;
use crate::failure::Failure;
use crate::safetensors::{self, WeightTotals};

/// Architectures that the shard can load; the Python registry holds the same names (a test compares them).
pub(crate) const ARCHITECTURES: &[&str] = &["LlamaForCausalLM", "PenstockIntegerForCausalLM"];
/// Those whose output is a function of the tokens alone: they have no weight files.
const ARCHITECTURES_WITHOUT_WEIGHTS: &[&str] = &["PenstockIntegerForCausalLM"];
/// Activations that the shard knows, by the names that `hidden_act` uses (the same test compares them).
pub(crate) const ACTIVATIONS: &[&str] = &["silu", "swish"];

const TOKENIZER: &str = "tokenizer.json";

/// The largest number of a config: ids, positions and sizes are 32-bit integers in the shard.
const MAX_NUMBER: u64 = (1 << 31) - 1;

/// What the launcher must know of a model that it can serve.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) folder: PathBuf,
    pub(crate) num_layers: u64,
    pub(crate) num_heads: u64,
    pub(crate) num_kv_heads: u64,
    pub(crate) head_dim: u64,
    pub(crate) vocab_size: u64,
    pub(crate) max_positions: u64,
    pub(crate) weights: WeightTotals,
}

/// The keys of config.json that matter here; transformers writes many more.
#[derive(Debug, Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
    hidden_act: Option<String>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    tie_word_embeddings: Option<bool>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
}

/// A config that names something that can be served.
#[derive(Debug)]
pub(crate) struct Config {
    raw: RawConfig,
    path: PathBuf,
    /// Some architectures have none.
    has_weights: bool,
}

impl Config {
    /// Whether anything but config and tokenizer is read.
    pub(crate) fn has_weight_files(&self, load_format: LoadFormat) -> bool {
        self.has_weights && load_format != LoadFormat::Dummy
    }
}

/// Whether the folder has no tokenizer as the router reads it.
pub(crate) fn lacks_tokenizer(folder: &Path) -> bool {
    !folder.join(TOKENIZER).is_file()
}

/// Judges the config alone: it is there before the weights are fetched.
pub(crate) fn check_config(folder: &Path) -> Result<Config, Failure> {
    if !folder.is_dir() {
        return Err(Failure::Model(no_folder(folder)));
    }
    let path = folder.join("config.json");
    let raw: RawConfig = read_json(&path)?;
    let architecture = supported_architecture(&raw, &path)?;
    let has_weights = !ARCHITECTURES_WITHOUT_WEIGHTS.contains(&architecture);
    if has_weights {
        check_activation(&raw, &path)?;
    }
    Ok(Config {
        raw,
        path,
        has_weights,
    })
}

/// Reads everything that can be wrong with a model folder, or says what is. `tokenizer` is a file outside it.
pub(crate) fn inspect(
    folder: &Path,
    tokenizer: Option<&Path>,
    load_format: LoadFormat,
) -> Result<Checkpoint, Failure> {
    let config = check_config(folder)?;
    let own_tokenizer = folder.join(TOKENIZER);
    read_json::<IgnoredAny>(tokenizer.unwrap_or(&own_tokenizer))?;
    for name in ["tokenizer_config.json", "generation_config.json"] {
        let file = folder.join(name);
        if file.is_file() {
            read_json::<IgnoredAny>(&file)?;
        }
    }
    let weights = if config.has_weight_files(load_format) {
        safetensors::inspect(folder)?
    } else {
        WeightTotals::default()
    };
    let mut checkpoint = shape(&config.raw, folder, weights).map_err(|key| {
        Failure::Model(format!(
            "{} has no usable `{key}`: a number from 1 to {MAX_NUMBER} is needed",
            config.path.display()
        ))
    })?;
    if config.has_weights && load_format == LoadFormat::Dummy {
        checkpoint.weights.elements = elements(&config.raw, &checkpoint);
    }
    Ok(checkpoint)
}

/// Elements of the matrices that a config asks for: what dummy weights take. Norms and biases are too small to count.
fn elements(raw: &RawConfig, model: &Checkpoint) -> u64 {
    let hidden = raw
        .hidden_size
        .unwrap_or(model.num_heads.saturating_mul(model.head_dim));
    let heads = 2 * (model.num_heads + model.num_kv_heads);
    let attention = heads.saturating_mul(model.head_dim);
    let mlp = raw.intermediate_size.unwrap_or(0).saturating_mul(3);
    let layers = attention
        .saturating_add(mlp)
        .saturating_mul(model.num_layers);
    let tables = if raw.tie_word_embeddings == Some(true) {
        1
    } else {
        2
    };
    layers
        .saturating_add(model.vocab_size * tables)
        .saturating_mul(hidden)
}

/// The numbers of a config; the error is the key that is absent or out of range.
fn shape(
    raw: &RawConfig,
    folder: &Path,
    weights: WeightTotals,
) -> Result<Checkpoint, &'static str> {
    let positive = |value: Option<u64>, key: &'static str| {
        value.filter(|n| (1..=MAX_NUMBER).contains(n)).ok_or(key)
    };
    let num_heads = positive(raw.num_attention_heads, "num_attention_heads")?;
    let head_dim = match raw.head_dim {
        Some(head_dim) => positive(Some(head_dim), "head_dim")?,
        None => positive(
            raw.hidden_size.map(|hidden| hidden / num_heads),
            "hidden_size",
        )?,
    };
    Ok(Checkpoint {
        folder: folder.to_path_buf(),
        num_layers: positive(raw.num_hidden_layers, "num_hidden_layers")?,
        num_heads,
        num_kv_heads: positive(
            raw.num_key_value_heads.or(Some(num_heads)),
            "num_key_value_heads",
        )?,
        head_dim,
        vocab_size: positive(raw.vocab_size, "vocab_size")?,
        // transformers' own default for Llama; the shard has the same.
        max_positions: positive(
            raw.max_position_embeddings.or(Some(2048)),
            "max_position_embeddings",
        )?,
        weights,
    })
}

fn supported_architecture(raw: &RawConfig, path: &Path) -> Result<&'static str, Failure> {
    let named = raw.architectures.as_deref().unwrap_or_default();
    named
        .iter()
        .find_map(|name| ARCHITECTURES.iter().find(|known| **known == name.as_str()))
        .copied()
        .ok_or_else(|| {
            Failure::Model(format!(
                "{} names the architecture {}, which is not supported; supported are: {}",
                path.display(),
                if named.is_empty() {
                    "(none)".to_owned()
                } else {
                    named.join(", ")
                },
                ARCHITECTURES.join(", ")
            ))
        })
}

fn check_activation(raw: &RawConfig, path: &Path) -> Result<(), Failure> {
    let activation = raw.hidden_act.as_deref().unwrap_or("silu");
    if ACTIVATIONS.contains(&activation) {
        return Ok(());
    }
    Err(Failure::Model(format!(
        "{} names the activation {activation}, which is not supported; supported are: {}",
        path.display(),
        ACTIVATIONS.join(", ")
    )))
}

/// Parses a JSON file of the model folder.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = fs::read(path)
        .map_err(|error| Failure::Model(format!("cannot read {}: {error}", path.display())))?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::Model(format!("{} is broken: {error}", path.display())))
}

fn no_folder(folder: &Path) -> String {
    let shown = folder.display();
    if folder.exists() {
        return format!("--model-id {shown} is a file; name the folder that holds config.json");
    }
    format!(
        "there is no folder {shown}; --model-id takes the folder that holds config.json, or the name of a model of a hub"
    )
}

/// `name` or `owner/name`, as hubs write it.
pub(crate) fn looks_like_hub_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let allowed = |part: &&str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
    };
    parts.len() <= 2 && parts.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEGER: &str = r#"{"architectures":["PenstockIntegerForCausalLM"],"vocab_size":64,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":null,"head_dim":1,"hidden_size":4,"max_position_embeddings":128}"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn refusal(files: &[(&str, &str)]) -> String {
        match inspect(folder(files).path(), None, LoadFormat::Auto) {
            Err(Failure::Model(text)) => text,
            other => panic!("not refused as a model: {other:?}"),
        }
    }

    #[test]
    fn a_model_without_weights_needs_only_config_and_tokenizer() {
        let folder = folder(&[("config.json", INTEGER), ("tokenizer.json", "{}")]);
        let checkpoint = inspect(folder.path(), None, LoadFormat::Auto).unwrap();
        assert_eq!(
            (
                checkpoint.num_heads,
                checkpoint.num_kv_heads,
                checkpoint.max_positions
            ),
            (4, 4, 128)
        );
        assert_eq!(checkpoint.weights, WeightTotals::default());
    }

    #[test]
    fn dummy_weights_need_no_file_and_are_counted_for_the_memory() {
        const LLAMA: &str = r#"{"architectures":["LlamaForCausalLM"],"vocab_size":100,"num_hidden_layers":3,
            "num_attention_heads":4,"num_key_value_heads":2,"hidden_size":32,"intermediate_size":64}"#;
        let tied = LLAMA.replace(
            "\"vocab_size\"",
            "\"tie_word_embeddings\":true,\"vocab_size\"",
        );
        let layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64;
        for (config, tables) in [(LLAMA, 2), (tied.as_str(), 1)] {
            let folder = folder(&[("config.json", config), ("tokenizer.json", "{}")]);
            let dummy = inspect(folder.path(), None, LoadFormat::Dummy).unwrap();
            assert_eq!(dummy.weights.elements, 3 * layer + tables * 32 * 100);
            let refused = inspect(folder.path(), None, LoadFormat::Safetensors);
            assert!(matches!(refused, Err(Failure::Model(_))), "{refused:?}");
        }
    }

    #[test]
    fn refusals_name_the_file_and_the_remedy() {
        assert!(refusal(&[]).contains("config.json"));
        assert!(refusal(&[("config.json", "{")]).contains("is broken"));
        assert!(refusal(&[("config.json", INTEGER)]).contains("tokenizer.json"));
        let broken = [
            ("config.json", INTEGER),
            ("tokenizer.json", "{}"),
            ("generation_config.json", "["),
        ];
        assert!(refusal(&broken).contains("generation_config.json is broken"));
        for number in ["0", "2147483648", "4611686018427387904"] {
            let unusable =
                INTEGER.replace("\"vocab_size\":64", &format!("\"vocab_size\":{number}"));
            let text = refusal(&[("config.json", &unusable), ("tokenizer.json", "{}")]);
            assert!(text.contains("`vocab_size`"), "{text}");
        }
    }

    #[test]
    fn unknown_architecture_and_activation_list_what_is_supported() {
        let gpt = INTEGER.replace("PenstockInteger", "Gpt");
        assert!(
            refusal(&[("config.json", &gpt)])
                .contains("GptForCausalLM, which is not supported; supported are: Llama")
        );
        let none = INTEGER.replace("[\"PenstockIntegerForCausalLM\"]", "null");
        assert!(refusal(&[("config.json", &none)]).contains("(none)"));
        let swish = INTEGER
            .replace("PenstockInteger", "Llama")
            .replace("\"vocab_size\"", "\"hidden_act\":\"mish\",\"vocab_size\"");
        assert!(
            refusal(&[("config.json", &swish)])
                .contains("mish, which is not supported; supported are: silu, swish")
        );
    }

    #[test]
    fn a_hub_id_is_recognised() {
        for (text, hub) in [
            ("owner/model-7B", true),
            ("gpt2", true),
            ("/data/model", false),
            ("./model", false),
            ("a/b/c", false),
        ] {
            assert_eq!(looks_like_hub_id(text), hub, "{text}");
        }
    }
}
