//! JSON values as rows hold them: read, or named in a refusal.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::data::source::json;

/// A list, or its JSON text, as tables often hold one.
pub(super) fn items(name: &str, value: Value) -> Result<Vec<Value>> {
    match from_json_text(value) {
        Value::Array(items) => Ok(items),
        value => bail!("field `{name}` is {}: give a list", kind(&value)),
    }
}

pub(super) fn number(name: &str, value: &Value) -> Result<f64> {
    // An integer beyond 64 bits is a number all the same.
    let number = value.as_f64().or_else(|| json::odd(value)?.parse().ok()).filter(|number| number.is_finite());
    number.with_context(|| format!("`{name}` is {}: give a finite number", kind(value)))
}

/// True or false; 1 and 0 as well, as tables often have them.
pub(super) fn label(name: &str, value: &Value) -> Result<bool> {
    match (value, value.as_f64()) {
        (Value::Bool(label), _) => Ok(*label),
        (_, Some(1.0)) => Ok(true),
        (_, Some(0.0)) => Ok(false),
        _ => bail!("`{name}` is {}: give true for desirable, false for undesirable", kind(value)),
    }
}

/// A nested value that a table holds as JSON text.
pub(super) fn from_json_text(value: Value) -> Value {
    match &value {
        Value::String(text) => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

pub(in crate::data) fn kind(value: &Value) -> String {
    if let Some(odd) = json::odd(value) {
        return odd.to_owned();
    }
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => format!("the number {value}"),
        Value::String(text) => format!("the text {}", excerpt(text)),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
    }
}

/// The start of a text in quotes, on one line.
pub(in crate::data) fn excerpt(text: &str) -> String {
    const CHARS: usize = 40;
    let start: String = text.chars().take(CHARS).collect();
    let rest = if text.chars().nth(CHARS).is_some() { "…" } else { "" };
    format!("{:?}{rest}", start)
}
