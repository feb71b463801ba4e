//! A model's chat template, rendered as transformers renders it with jinja2. minijinja differs in white space, JSON,
//! how values print, and a few tests and methods; what is set here closes those gaps.

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::{methods, python, strftime};

/// Ends an endless loop in some 50 ms and bounds memory to some 64 MB. Conversations of 2,000 messages need 166,000.
const FUEL: u64 = 1_000_000;

/// Marks the end of an answer that is to be continued; templates strip or move text, so it is searched, not counted.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Names under which clients send a message's reasoning; templates find it under the first two.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A compiled template with the model's special tokens.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

/// The template raised, or cannot be compiled.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

impl From<Error> for TemplateError {
    fn from(error: Error) -> Self {
        // What `raise_exception` says is meant for the user; anything else also needs the place.
        match (error.detail(), error.line()) {
            (Some(detail), _)
                if error.kind() == ErrorKind::InvalidOperation && is_raised(detail) =>
            {
                Self(detail.trim_start_matches(RAISED).to_owned())
            }
            (Some(detail), Some(line)) => Self(format!("{}: {detail} (line {line})", error.kind())),
            (None, Some(line)) => Self(format!("{} (line {line})", error.kind())),
            (_, None) => Self(error.to_string()),
        }
    }
}

const RAISED: &str = "\u{1}";

fn is_raised(detail: &str) -> bool {
    detail.starts_with(RAISED)
}

impl ChatTemplate {
    /// Compiles `source`.
    pub fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, TemplateError> {
        Self::with_clock(source, special_tokens, SystemTime::now)
    }

    fn with_clock(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        clock: fn() -> SystemTime,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .keep_trailing_newline(false)
            .build()?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(|output, _, value| {
            if !value.is_undefined() {
                output.write_str(&python::display(value)?)?;
            }
            Ok(())
        });
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", |value: Value| python::display(&value));
        environment.add_test("iterable", |value: Value| {
            !value.is_none() && value.try_iter().is_ok()
        });
        environment.add_test("sequence", |value: Value| {
            use ValueKind::{Map, Seq, String};
            matches!(value.kind(), Seq | String | Map)
        });
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("{RAISED}{message}"),
                ))
            },
        );
        environment.add_function("strftime_now", move |format: String| {
            strftime::format(&format, clock())
        });
        environment.set_unknown_method_callback(methods::call);
        environment.add_template_owned("chat", rewrite_generation_tags(source))?;
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// The prompt for these messages. If the last one is the assistant's, the prompt ends inside it, so that the answer
    /// continues it.
    pub fn render(&self, messages: &[Json]) -> Result<String, TemplateError> {
        let mut messages = messages.to_vec();
        messages.iter_mut().for_each(alias_reasoning);
        let continued = match messages.last_mut() {
            Some(last) if last["role"] == "assistant" => mark_end(last),
            _ => None,
        };
        let rendered = self.run(&messages, continued.is_none())?;
        let Some(continued) = continued else {
            return Ok(rendered);
        };
        let end = rendered.rfind(CONTINUE_MARK.trim_end());
        let Some(end) = end.filter(|_| rendered.contains(continued.trim())) else {
            let message =
                "the chat template changes the last assistant message, so it cannot be continued";
            return Err(TemplateError(message.to_owned()));
        };
        let kept = &rendered[..end];
        // The template stripped the mark's space, so it would have stripped the message's own too.
        let kept_spacing = rendered[end..].starts_with(CONTINUE_MARK);
        Ok(if kept_spacing { kept } else { kept.trim_end() }.to_owned())
    }

    fn run(&self, messages: &[Json], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let mut context: BTreeMap<String, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.clone(), Value::from(token.as_str())))
            .collect();
        context.insert("messages".to_owned(), Value::from(Serde(messages)));
        context.insert(
            "add_generation_prompt".to_owned(),
            Value::from(add_generation_prompt),
        );
        // transformers always passes these two.
        context.insert("tools".to_owned(), Value::from(()));
        context.insert("documents".to_owned(), Value::from(()));
        let template = self.environment.get_template("chat")?;
        Ok(template.render(Value::from(context))?)
    }
}

fn alias_reasoning(message: &mut Json) {
    let Some(fields) = message.as_object_mut() else {
        return;
    };
    let reasoning = REASONING_FIELDS
        .iter()
        .find_map(|name| fields.get(*name).filter(|value| !value.is_null()).cloned());
    if let Some(reasoning) = reasoning {
        let mut aliased = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
        aliased.append(fields);
        aliased.insert("reasoning_content".to_owned(), reasoning);
        *fields = aliased;
    }
}

/// Appends the mark to the message's text and returns what it was; `None` if it has none that could be continued.
fn mark_end(message: &mut Json) -> Option<String> {
    let text = match &mut message["content"] {
        Json::String(text) if !text.is_empty() => text,
        Json::Array(parts) => {
            parts
                .iter_mut()
                .rev()
                .find_map(|part| match part.get_mut("text") {
                    Some(Json::String(text)) => Some(text),
                    _ => None,
                })?
        }
        _ => return None,
    };
    let original = text.clone();
    text.push_str(CONTINUE_MARK);
    Some(original)
}

/// `{% generation %}` marks the assistant's tokens for training. A `with` block has the same white space and scope.
fn rewrite_generation_tags(source: &str) -> String {
    let mut rewritten = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start + 2..start + len];
        let body = tag.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        let replacement = match body {
            "generation" => Some("with __generation = 1"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        rewritten.push_str(&rest[..start + 2]);
        match replacement {
            Some(replacement) => rewritten.push_str(&tag.replacen(body, replacement, 1)),
            None => rewritten.push_str(tag),
        }
        rest = &rest[start + len..];
    }
    rewritten.push_str(rest);
    rewritten
}

/// `json.dumps` as transformers binds it: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja hands filters their arguments by value"
)]
fn tojson(value: Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => kwargs.get(name)?,
        };
        Ok(value.filter(|value| !value.is_none()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?;
    let separators = argument(2, "separators")?;
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    kwargs.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(indent)?.min(64))),
        },
    };
    let (item, key) = match separators {
        Some(pair) => {
            let part = |index| pair.get_item_by_index(index).map(|part| part.to_string());
            (part(0)?, part(1)?)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    python::dumps(
        &value,
        &python::JsonStyle {
            ensure_ascii,
            indent,
            item,
            key,
            sort_keys,
        },
    )
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
