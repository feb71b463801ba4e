//! Python's string and list methods that templates call and minijinja's compatibility layer lacks.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Widths that templates pad to are small; a larger one is an attempt to fill the memory.
const MAX_WIDTH: usize = 10_000;

pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let (ValueKind::String, Some(text)) = (value.kind(), value.as_str())
        && let Some(result) = string_method(text, method, args)?
    {
        return Ok(result);
    }
    if value.kind() == ValueKind::Seq && method == "index" {
        let (wanted,): (Value,) = from_args(args)?;
        let position = value.try_iter()?.position(|item| item == wanted);
        return position
            .map(Value::from)
            .ok_or_else(|| invalid("value is not in list"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let parts = partition(text, separator, method == "rpartition")?;
            Value::from(parts.map(str::to_owned).to_vec())
        }
        "rsplit" => {
            let (separator, max): (Option<&str>, Option<i64>) = from_args(args)?;
            Value::from(rsplit(text, separator, max)?)
        }
        "index" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = text
                .find(wanted)
                .ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let digits = text.trim_start_matches(['+', '-']);
            let sign = &text[..text.len() - digits.len()];
            let num = missing(text, width)?;
            Value::from(format!("{sign}{}{digits}", "0".repeat(num)))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let (fill, num) = (fill.unwrap_or(" "), missing(text, width)?);
            let left = match method {
                "ljust" => 0,
                "rjust" => num,
                // As CPython: the odd space goes left where the width is odd too.
                _ => num / 2 + (num & width & 1),
            };
            Value::from(format!(
                "{}{text}{}",
                fill.repeat(left),
                fill.repeat(num - left)
            ))
        }
        _ => return Ok(None),
    }))
}

fn missing(text: &str, width: usize) -> Result<usize, Error> {
    if width > MAX_WIDTH {
        return Err(invalid("width is too large"));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

fn partition<'a>(text: &'a str, separator: &'a str, last: bool) -> Result<[&'a str; 3], Error> {
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let found = if last {
        text.rsplit_once(separator)
    } else {
        text.split_once(separator)
    };
    Ok(match found {
        Some((before, after)) => [before, separator, after],
        None if last => ["", "", text],
        None => [text, "", ""],
    })
}

fn rsplit(text: &str, separator: Option<&str>, max: Option<i64>) -> Result<Vec<String>, Error> {
    let max = max
        .and_then(|max| usize::try_from(max).ok())
        .unwrap_or(usize::MAX - 1);
    let mut parts: Vec<String> = match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => text
            .rsplitn(max + 1, separator)
            .map(str::to_owned)
            .collect(),
        None => {
            let mut rest = text.trim_end();
            let mut parts = Vec::new();
            while !rest.is_empty() {
                let at = if parts.len() == max {
                    None
                } else {
                    rest.rfind(char::is_whitespace)
                };
                let start = at.map_or(0, |at| {
                    at + rest[at..].chars().next().map_or(1, char::len_utf8)
                });
                parts.push(
                    if at.is_none() {
                        rest.trim_start()
                    } else {
                        &rest[start..]
                    }
                    .to_owned(),
                );
                rest = rest[..at.unwrap_or(0)].trim_end();
            }
            parts.retain(|part| !part.is_empty());
            parts
        }
    };
    parts.reverse();
    Ok(parts)
}
