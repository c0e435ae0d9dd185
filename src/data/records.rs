//! Rows of plain-text preferences: one JSON object `{"prompt", "chosen", "rejected"}` a line, further fields ignored.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

/// One preference row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub prompt: String,
    pub chosen: String,
    pub rejected: String,
}

/// The lines of a file that are not blank, numbered from 1. A byte order mark at the start is dropped.
pub fn lines(bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let numbered = bytes.split(|&b| b == b'\n').enumerate().map(|(i, line)| (i + 1, line));
    numbered.filter(|(_, line)| !line.trim_ascii().is_empty()).collect()
}

/// Reads one line.
///
/// # Errors
/// What is wrong with the row and what to do, without its place.
pub fn parse(line: &[u8]) -> Result<Record> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        anyhow!("byte {} of the line (0x{:02x}) is not UTF-8: save the file as UTF-8", at + 1, line[at])
    })?;
    let value: Value = serde_json::from_str(text).map_err(|error| {
        // The line number within the row is always 1.
        let message = error.to_string().replace(" at line 1 column ", " at column ");
        anyhow!("broken JSON: {message}: write one JSON object a line")
    })?;
    let Value::Object(fields) = value else {
        bail!("the row is {}, not an object: write {{\"prompt\": …, \"chosen\": …, \"rejected\": …}}", kind(&value));
    };
    let record = Record {
        prompt: text_field(&fields, "prompt")?,
        chosen: text_field(&fields, "chosen")?,
        rejected: text_field(&fields, "rejected")?,
    };
    for (name, response) in [("chosen", &record.chosen), ("rejected", &record.rejected)] {
        ensure!(
            !response.trim().is_empty(),
            "field `{name}` is empty ({response:?}): give the response or remove the row"
        );
    }
    ensure!(
        record.chosen != record.rejected,
        "fields `chosen` and `rejected` are equal ({}): there is nothing to prefer, remove the row",
        excerpt(&record.chosen)
    );
    Ok(record)
}

fn text_field(fields: &Map<String, Value>, name: &str) -> Result<String> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ Value::Array(_)) => {
            bail!("field `{name}` is {}: conversational rows are not supported, give it as plain text", kind(value))
        }
        Some(value) => bail!("field `{name}` is {}: give it as text", kind(value)),
        None => bail!("field `{name}` is missing: every row needs `prompt`, `chosen` and `rejected`"),
    }
}

fn kind(value: &Value) -> String {
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
pub(super) fn excerpt(text: &str) -> String {
    const CHARS: usize = 40;
    let start: String = text.chars().take(CHARS).collect();
    let rest = if text.chars().nth(CHARS).is_some() { "…" } else { "" };
    format!("{:?}{rest}", start)
}
