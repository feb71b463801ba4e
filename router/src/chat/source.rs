//! Where a model's chat template comes from: the first of these that has one: the operator's file, the folder's template
//! files, its `tokenizer_config.json`. Knows no templates, only where they lie.

use std::path::Path;

use serde_json::Value;

use crate::model::{ModelError, read, read_json, read_path};

/// Of several named templates the one for all chats, else the one for chats with tools, which takes others too.
const NAMES: [&str; 2] = ["default", "tool_use"];

/// `tokenizer_config.json`, or what the operator put in its place.
#[derive(Debug)]
pub(crate) struct TokenizerConfig {
    pub(crate) fields: Value,
    /// What the operator's file says about the template, which then wins over the folder's files.
    operators: Option<Value>,
}

impl TokenizerConfig {
    /// `flag` is `--tokenizer-config-path`.
    pub(crate) fn read(folder: &Path, flag: Option<&Path>) -> Result<Self, ModelError> {
        let own = || Ok(read_json(folder, "tokenizer_config.json")?.unwrap_or_default());
        let Some(path) = flag else {
            return Ok(Self {
                fields: own()?,
                operators: None,
            });
        };
        let unreadable = |reason: String| ModelError::Unreadable {
            path: path.to_owned(),
            reason: format!("{reason} (--tokenizer-config-path)"),
        };
        let text = read_path(path)?;
        let text = text.ok_or_else(|| unreadable("there is no such file".to_owned()))?;
        if path.extension().is_some_and(|ending| ending == "jinja") {
            return Ok(Self {
                fields: own()?,
                operators: Some(text.into()),
            });
        }
        let fields: Value = serde_json::from_str(&text)
            .map_err(|error| unreadable(format!("not JSON: {error}")))?;
        Ok(Self {
            operators: Some(fields["chat_template"].clone()),
            fields,
        })
    }
}

/// The template's text, or why there is none.
pub(crate) fn find(
    folder: &Path,
    config: &TokenizerConfig,
) -> Result<Result<String, String>, ModelError> {
    let mut reasons = Vec::new();
    let mut look = |place: &str, field: &Value| match named(field) {
        Ok(found) => found,
        Err(reason) => {
            reasons.push(format!("; {place}: {reason}"));
            None
        }
    };
    if let Some(field) = &config.operators
        && let Some(found) = look("--tokenizer-config-path", field)
    {
        return Ok(Ok(found));
    }
    if let Some(found) = read(folder, "chat_template.jinja")? {
        return Ok(Ok(found));
    }
    let file = "chat_template.json";
    let json = read_json(folder, file)?.unwrap_or_default();
    if let Some(found) = look(file, &json["chat_template"]) {
        return Ok(Ok(found));
    }
    if config.operators.is_none()
        && let Some(found) = look("tokenizer_config.json", &config.fields["chat_template"])
    {
        return Ok(Ok(found));
    }
    Ok(Err(format!(
        "the model has no chat template: none in the file of --tokenizer-config-path, chat_template.jinja, \
         chat_template.json (chat_template) or tokenizer_config.json (chat_template){}",
        reasons.concat()
    )))
}

/// `chat_template` is a string, or a list of `{name, template}`.
fn named(field: &Value) -> Result<Option<String>, String> {
    let list = match field {
        Value::Null => return Ok(None),
        Value::String(template) => return Ok(Some(template.clone())),
        Value::Array(list) => list,
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err("neither a string nor a list of named templates".to_owned());
        }
    };
    let found = NAMES.iter().find_map(|name| {
        let entry = list.iter().find(|entry| entry["name"] == **name)?;
        entry["template"].as_str()
    });
    found.map(|found| Some(found.to_owned())).ok_or_else(|| {
        let names: Vec<&str> = list
            .iter()
            .filter_map(|entry| entry["name"].as_str())
            .collect();
        format!(
            "none is named `default` or `tool_use`, only: {}",
            names.join(", ")
        )
    })
}
