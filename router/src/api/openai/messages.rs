//! The messages of a chat, on their way to the template.

use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorKind};
use crate::validation::ValidationError;

/// Checks each message and joins text parts; everything else in it is for the template.
pub(super) fn check_messages(messages: Vec<Map<String, Value>>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        let message = "`messages` must have >= 1 message. Given: 0".to_owned();
        return Err(ValidationError::new("messages", message).into());
    }
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, mut message)| {
            let at = |field: &str| format!("messages[{index}].{field}");
            if !message.get("role").is_some_and(Value::is_string) {
                return Err(wrong(&at("role"), "a string", message.get("role")));
            }
            let has_calls = message
                .get("tool_calls")
                .is_some_and(|calls| !calls.is_null());
            let content = match message.remove("content") {
                Some(Value::String(text)) => text,
                Some(Value::Array(parts)) => join_parts(&parts, &at("content"))?,
                // An assistant that only called tools. Many templates raise on null.
                None | Some(Value::Null) if has_calls => String::new(),
                other => {
                    return Err(wrong(
                        &at("content"),
                        "a string or a list of parts",
                        other.as_ref(),
                    ));
                }
            };
            message.insert("content".to_owned(), content.into());
            Ok(Value::Object(message))
        });
    messages.collect()
}

fn join_parts(parts: &[Value], at: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(part)) => text.push_str(part),
            (Some("text"), None) => {
                return Err(wrong(
                    &format!("{at}[{index}].text"),
                    "a string",
                    part.get("text"),
                ));
            }
            (Some(kind), _) => {
                let field = format!("{at}[{index}]");
                let kind: String = kind.chars().take(50).collect();
                let message = format!("`{field}`: parts of type `{kind}` are not supported yet");
                return Err(ValidationError::new(&field, message).into());
            }
            (None, _) => {
                return Err(wrong(
                    &format!("{at}[{index}].type"),
                    "a string",
                    part.get("type"),
                ));
            }
        }
    }
    Ok(text)
}

fn wrong(field: &str, expected: &str, given: Option<&Value>) -> ApiError {
    let given = match given {
        None => "nothing",
        Some(Value::Null) => "null",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a string",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    };
    let message = format!("Input validation error: `{field}` must be {expected}. Given: {given}");
    ApiError::new(ErrorKind::WrongType, message).with_param(field)
}
