//! What a row of a data file says: one [`Record`], whatever form the row has. Further fields are ignored.
//!
//! Owns names and shapes of fields and the refusal of a row that makes no sense. Knows nothing about tokens.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

/// One example.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What all responses continue; `None` where the row has no prompt of its own (implicit prompt, plain document):
    /// then what the responses have in common at their start is the prompt.
    pub prompt: Option<Text>,
    pub body: Body,
    /// Tool definitions for the chat template (JSON schemas or what the template takes); empty if the row has none.
    pub tools: Vec<Value>,
    /// Further variables for the chat template, such as `enable_thinking`; they win over the configuration's.
    pub template_kwargs: Map<String, Value>,
}

/// Plain text, or messages for the model's chat template.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    Plain(String),
    /// Objects with `role` and `content` at least, handed to the template as they are (`tool_calls`, ...).
    Chat(Vec<Value>),
}

/// What the row asks for. All texts of a row are plain or all are messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Pair {
        chosen: Text,
        rejected: Text,
    },
    /// K responses to one prompt with one score (higher is better; ranks come as minus the rank) or one label each.
    List {
        responses: Vec<Text>,
        scores: Vec<f64>,
        labels: Vec<bool>,
    },
    /// One response that is desirable or not.
    Unpaired {
        completion: Text,
        label: bool,
    },
    /// Supervised training: the completion is learnt, the prompt is not. A plain document is a completion without prompt.
    Completion {
        completion: Text,
    },
    /// Steps that continue the prompt (`parent` `None`) or an earlier step. Parents come before their children.
    Tree {
        nodes: Vec<Node>,
    },
}

/// A step of a [`Body::Tree`].
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub parent: Option<usize>,
    pub text: Text,
    pub score: Option<f64>,
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
    let prompt = text_field(&fields, "prompt")?;
    let [chosen, rejected] = [text_field(&fields, "chosen")?, text_field(&fields, "rejected")?];
    for (name, response) in [("chosen", &chosen), ("rejected", &rejected)] {
        ensure!(
            !response.trim().is_empty(),
            "field `{name}` is empty ({response:?}): give the response or remove the row"
        );
    }
    ensure!(
        chosen != rejected,
        "fields `chosen` and `rejected` are equal ({}): there is nothing to prefer, remove the row",
        excerpt(&chosen)
    );
    Ok(Record {
        prompt: Some(Text::Plain(prompt)),
        body: Body::Pair { chosen: Text::Plain(chosen), rejected: Text::Plain(rejected) },
        tools: Vec::new(),
        template_kwargs: Map::new(),
    })
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
