//! One rule per field. Each gives the value in its final form, or an error with field, limit and value.

use std::collections::HashSet;

use super::{FieldNames, Result, ValidationError};
use crate::request::Scheduling;

/// Counts travel as signed words.
const MAX_COUNT: u32 = i32::MAX as u32;
/// They travel in one registration, and the shard adds them to the logits one by one.
const MAX_LOGIT_BIAS: usize = 1024;
/// A salt is a name or a digest, not a text.
const MAX_SALT_BYTES: usize = 256;

/// A number that the shard can hold. JSON knows no NaN, but 1e39 is infinite there.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an f32 is what the shard takes"
)]
fn to_f32(field: &str, value: f64) -> Result<f32> {
    let narrow = value as f32;
    if narrow.is_finite() {
        return Ok(narrow);
    }
    let limit = f32::MAX;
    let message = format!("`{field}` must be finite and at most {limit:e}. Given: {value:e}");
    Err(ValidationError::new(field, message))
}

pub(super) fn above_zero(field: &str, value: Option<f64>) -> Result<Option<f32>> {
    let Some(value) = value else { return Ok(None) };
    let narrow = normal(field, to_f32(field, value)?, value)?;
    if narrow > 0.0 {
        return Ok(Some(narrow));
    }
    let message = format!("`{field}` must be strictly positive (> 0). Given: {value}");
    Err(ValidationError::new(field, message))
}

/// What is above zero must be so on the shard too, where a processor may take a subnormal number for zero.
fn normal(field: &str, narrow: f32, value: f64) -> Result<f32> {
    if value <= 0.0 || narrow >= f32::MIN_POSITIVE {
        return Ok(narrow);
    }
    let limit = f32::MIN_POSITIVE;
    let message = format!("`{field}` must be >= {limit:e}. Given: {value:e}");
    Err(ValidationError::new(field, message))
}

pub(super) fn penalty(field: &str, value: Option<f64>) -> Result<f32> {
    let value = value.unwrap_or(0.0);
    if (-2.0..=2.0).contains(&value) {
        return to_f32(field, value);
    }
    let message = format!("`{field}` must be >= -2.0 and <= 2.0. Given: {value}");
    Err(ValidationError::new(field, message))
}

pub(super) fn share(field: &str, value: Option<f64>) -> Result<Option<f32>> {
    let Some(value) = value else { return Ok(None) };
    let narrow = normal(field, to_f32(field, value)?, value)?;
    if narrow > 0.0 && value <= 1.0 {
        return Ok(Some(narrow));
    }
    let message = format!("`{field}` must be > 0.0 and <= 1.0. Given: {value}");
    Err(ValidationError::new(field, message))
}

pub(super) fn min_p(value: Option<f64>) -> Result<Option<f32>> {
    let Some(value) = value else { return Ok(None) };
    let narrow = to_f32("min_p", value)?;
    if value >= 0.0 && narrow < 1.0 {
        return Ok(Some(narrow));
    }
    let message = format!("`min_p` must be >= 0.0 and < 1.0. Given: {value}");
    Err(ValidationError::new("min_p", message))
}

pub(super) fn count(field: &str, value: Option<i64>) -> Result<Option<u32>> {
    let Some(value) = value else { return Ok(None) };
    let message = match u32::try_from(value) {
        Ok(count @ 1..=MAX_COUNT) => return Ok(Some(count)),
        _ if value < 1 => format!("`{field}` must be strictly positive (>= 1). Given: {value}"),
        _ => format!("`{field}` must be <= {MAX_COUNT}. Given: {value}"),
    };
    Err(ValidationError::new(field, message))
}

pub(super) fn min_new_tokens(
    names: FieldNames,
    value: Option<i64>,
    max_new_tokens: Option<u32>,
) -> Result<u32> {
    let field = names.min_new_tokens;
    let value = value.unwrap_or(0);
    let cap = max_new_tokens.unwrap_or(MAX_COUNT);
    match u32::try_from(value) {
        Ok(min) if min <= cap => Ok(min),
        _ => {
            let max_new_tokens = names.max_new_tokens;
            let message =
                format!("`{field}` must be >= 0 and <= {cap} (`{max_new_tokens}`). Given: {value}");
            Err(ValidationError::new(field, message))
        }
    }
}

pub(super) fn stop_strings(stop: &[String], cap: usize) -> Result<()> {
    if stop.len() > cap {
        let message = format!(
            "`stop` supports up to {cap} stop sequences. Given: {}",
            stop.len()
        );
        return Err(ValidationError::new("stop", message));
    }
    if stop.iter().any(String::is_empty) {
        let message = "`stop` sequences must have at least 1 character. Given: \"\"".to_owned();
        return Err(ValidationError::new("stop", message));
    }
    Ok(())
}

pub(super) fn truncate(value: Option<i64>, cap: usize) -> Result<Option<usize>> {
    let Some(value) = value else { return Ok(None) };
    match usize::try_from(value) {
        Ok(truncate) if (1..=cap).contains(&truncate) => Ok(Some(truncate)),
        _ => {
            let message =
                format!("`truncate` must be strictly positive and <= {cap}. Given: {value}");
            Err(ValidationError::new("truncate", message))
        }
    }
}

pub(super) fn top_n_tokens(field: &str, value: Option<i64>, cap: u32) -> Result<u32> {
    let value = value.unwrap_or(0);
    match u32::try_from(value) {
        Ok(num) if num <= cap => Ok(num),
        _ => {
            let message = format!("`{field}` must be >= 0 and <= {cap}. Given: {value}");
            Err(ValidationError::new(field, message))
        }
    }
}

/// In Triton's sense: 0 is the default, 1 the highest class.
pub(super) fn class(priority: Option<i64>) -> Result<u8> {
    let priority = priority.unwrap_or(0);
    match u8::try_from(priority) {
        Ok(0) => Ok(Scheduling::DEFAULT_CLASS),
        Ok(class @ 1..=Scheduling::CLASSES) => Ok(class),
        _ => {
            let limit = Scheduling::CLASSES;
            let message = format!("`priority` must be >= 0 and <= {limit}. Given: {priority}");
            Err(ValidationError::new("priority", message))
        }
    }
}

pub(super) fn cache_salt(salt: Option<&str>) -> Result<Option<&str>> {
    let length = salt.map_or(1, str::len);
    if (1..=MAX_SALT_BYTES).contains(&length) {
        return Ok(salt);
    }
    // The value itself is a secret.
    let field = "cache_salt";
    let message =
        format!("`{field}` must have >= 1 and <= {MAX_SALT_BYTES} bytes. Given: {length}");
    Err(ValidationError::new(field, message))
}

/// Keys are token ids as strings, as OpenAI has them, and each id is written in one way only.
pub(super) fn logit_bias(bias: Vec<(String, f64)>, vocab_size: usize) -> Result<Vec<(u32, f32)>> {
    let field = "logit_bias";
    if bias.len() > MAX_LOGIT_BIAS {
        let given = bias.len();
        let message = format!("`{field}` must have <= {MAX_LOGIT_BIAS} entries. Given: {given}");
        return Err(ValidationError::new(field, message));
    }
    let mut seen = HashSet::with_capacity(bias.len());
    bias.into_iter()
        .map(|(key, value)| {
            let id = key
                .parse::<u32>()
                .ok()
                .filter(|&id| (id as usize) < vocab_size && id.to_string() == key);
            let Some(id) = id else {
                let message =
                    format!("`{field}` keys must be token ids < {vocab_size}. Given: {key:?}");
                return Err(ValidationError::new(field, message));
            };
            if !seen.insert(id) {
                let message =
                    format!("`{field}` must name each token id once. Given: {key:?} twice");
                return Err(ValidationError::new(field, message));
            }
            if !(-100.0..=100.0).contains(&value) {
                let message =
                    format!("`{field}` values must be >= -100 and <= 100. Given: {value}");
                return Err(ValidationError::new(field, message));
            }
            Ok((id, to_f32(field, value)?))
        })
        .collect()
}
