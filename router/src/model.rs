//! What the router reads from a model folder: the tokenizer, the ids that end an answer, and the chat template. The
//! weights are the shard's affair.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::chat::source::{self, TokenizerConfig};
use crate::chat::template::ChatTemplate;
use crate::config::ModelConfig;
use crate::vocabulary::Vocabulary;

/// A model folder as the router needs it.
#[derive(Debug)]
pub struct Model {
    /// Under which it is served.
    pub name: String,
    /// A hub's commit.
    pub sha: Option<String>,
    pub tokenizer: Arc<Tokenizer>,
    pub vocabulary: Arc<Vocabulary>,
    /// Any of them ends an answer.
    pub eos_ids: Arc<[u32]>,
    /// What config.json says; the shard has the last word.
    pub max_positions: Option<usize>,
    /// Or why chat is not possible.
    pub chat: Result<ChatTemplate, String>,
}

/// A folder that cannot be served. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{} is missing in the model folder {}", .file, .folder.display())]
    Missing { folder: PathBuf, file: &'static str },
    #[error("{}: {reason}", .path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{}: {field} should be {expected}", .path.display())]
    Field {
        path: PathBuf,
        field: &'static str,
        expected: &'static str,
    },
}

/// With `min_new_tokens` they travel with the request, and a shard takes no more.
const MAX_END_TOKENS: usize = 1024;

impl Model {
    /// Reads `config.json` and `tokenizer.json`, and where they are `generation_config.json`, `tokenizer_config.json` and
    /// the chat template's file.
    pub fn load(folder: &Path, name: Option<String>) -> Result<Self, ModelError> {
        Self::load_with(&ModelConfig::of_folder(folder, name), None)
    }

    /// The same for all that flags can say: `--tokenizer-config-path` is the second argument.
    pub fn load_with(
        model: &ModelConfig,
        tokenizer_config: Option<&Path>,
    ) -> Result<Self, ModelError> {
        let folder = model.model_path.as_path();
        let config = read_json(folder, "config.json")?.ok_or(ModelError::Missing {
            folder: folder.to_owned(),
            file: "config.json",
        })?;
        let generation_config = read_json(folder, "generation_config.json")?.unwrap_or_default();
        let tokenizer_config = TokenizerConfig::read(folder, tokenizer_config)?;
        let tokenizer = read_tokenizer(folder, model.tokenizer_path.as_deref())?;
        let special_tokens = special_tokens(&tokenizer_config.fields);
        let eos_ids = eos_ids(folder, &config, &generation_config)?.unwrap_or_else(|| {
            let eos = special_tokens.get("eos_token");
            eos.and_then(|token| tokenizer.token_to_id(token))
                .into_iter()
                .collect()
        });
        let eos_ids = within_vocabulary(eos_ids, vocab_size(&config));
        if eos_ids.len() > MAX_END_TOKENS {
            return Err(ModelError::Field {
                path: folder.join("generation_config.json"),
                field: "eos_token_id",
                expected: "at most 1024 ids",
            });
        }
        if eos_ids.is_empty() {
            tracing::warn!(
                "no eos_token_id in config.json or generation_config.json: answers end by length only"
            );
        }
        let folder_name = || {
            folder
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        Ok(Self {
            sha: model.model_sha.clone(),
            name: model
                .model_name
                .clone()
                .or_else(folder_name)
                .unwrap_or_else(|| "model".to_owned()),
            vocabulary: Arc::new(Vocabulary::new(&tokenizer)),
            tokenizer,
            eos_ids: eos_ids.into(),
            max_positions: max_positions(&config),
            chat: chat_template(folder, &tokenizer_config, special_tokens)?,
        })
    }
}

pub(crate) fn read(folder: &Path, file: &'static str) -> Result<Option<String>, ModelError> {
    read_path(&folder.join(file))
}

/// `None` if there is no such file.
pub(crate) fn read_path(path: &Path) -> Result<Option<String>, ModelError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ModelError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        }),
    }
}

pub(crate) fn read_json(folder: &Path, file: &'static str) -> Result<Option<Value>, ModelError> {
    let Some(text) = read(folder, file)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|error| ModelError::Unreadable {
        path: folder.join(file),
        reason: format!("not JSON: {error}"),
    })
}

fn read_tokenizer(folder: &Path, elsewhere: Option<&Path>) -> Result<Arc<Tokenizer>, ModelError> {
    let file = "tokenizer.json";
    let path = elsewhere.map_or_else(|| folder.join(file), Path::to_owned);
    let text = read_path(&path)?.ok_or(ModelError::Missing {
        folder: folder.to_owned(),
        file,
    })?;
    let unreadable = |error: tokenizers::Error| ModelError::Unreadable {
        path: path.clone(),
        reason: error.to_string(),
    };
    let mut tokenizer = Tokenizer::from_bytes(text).map_err(unreadable)?;
    // Left over from training in some files: it would cut prompts without a word.
    tokenizer.with_truncation(None).map_err(unreadable)?;
    tokenizer.with_padding(None);
    Ok(Arc::new(tokenizer))
}

/// The union of both files, in their order; `None` where neither says anything.
fn eos_ids(
    folder: &Path,
    config: &Value,
    generation_config: &Value,
) -> Result<Option<Vec<u32>>, ModelError> {
    let sources = [
        ("generation_config.json", generation_config),
        ("config.json", config),
        ("config.json", &config["text_config"]),
    ];
    let mut ids = Vec::new();
    let mut found = false;
    for (file, source) in sources {
        let field = &source["eos_token_id"];
        if field.is_null() {
            continue;
        }
        found = true;
        let list = match field {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in list {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| ModelError::Field {
                path: folder.join(file),
                field: "eos_token_id",
                expected: "a token id or a list of them",
            })?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(found.then_some(ids))
}

fn max_positions(config: &Value) -> Option<usize> {
    number(
        config,
        &["max_position_embeddings", "max_seq_len", "n_positions"],
    )
}

fn vocab_size(config: &Value) -> Option<usize> {
    number(config, &["vocab_size"])
}

/// The first of these fields that config.json has.
fn number(config: &Value, names: &[&str]) -> Option<usize> {
    [config, &config["text_config"]]
        .into_iter()
        .flat_map(|source| names.iter().map(|name| source[name].as_u64()))
        .flatten()
        .next()
        .and_then(|number| usize::try_from(number).ok())
}

/// The ids that the model can produce. Others end no answer, and must not reach the shard.
fn within_vocabulary(mut ids: Vec<u32>, vocab_size: Option<usize>) -> Vec<u32> {
    if let Some(vocab_size) = vocab_size {
        ids.retain(|&id| {
            let known = (id as usize) < vocab_size;
            if !known {
                tracing::warn!(
                    id,
                    vocab_size,
                    "an end token outside the vocabulary is left out"
                );
            }
            known
        });
    }
    ids
}

/// `bos_token` and its like, which templates use; a string, or an object with `content`.
fn special_tokens(tokenizer_config: &Value) -> BTreeMap<String, String> {
    let Some(fields) = tokenizer_config.as_object() else {
        return BTreeMap::new();
    };
    fields
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| {
            let content = value.as_str().or_else(|| value["content"].as_str())?;
            Some((name.clone(), content.to_owned()))
        })
        .collect()
}

/// Why chat is not possible is for its clients; a file that cannot be read ends the start.
fn chat_template(
    folder: &Path,
    tokenizer_config: &TokenizerConfig,
    special_tokens: BTreeMap<String, String>,
) -> Result<Result<ChatTemplate, String>, ModelError> {
    let found = source::find(folder, tokenizer_config)?;
    Ok(found.and_then(|source| {
        ChatTemplate::new(&source, special_tokens).map_err(|error| {
            tracing::warn!(%error, "the chat template does not compile: chat is refused");
            format!("the model's chat template does not compile: {error}")
        })
    }))
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
