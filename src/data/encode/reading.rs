//! Readings of a conversation that its template asks for: keys that say what is learnt, parts of content, arguments of
//! calls that come as JSON text.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::renderer::Renderer;
use crate::data::{
    notes::Note,
    records::{kind, role},
    template::Templates,
};

/// Keys of a message that are read whatever the template says.
const KEYS: [&str; 8] =
    ["role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning"];
/// Roles that templates know without naming them.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Takes `weight` out of the messages, notes what nothing reads, and gives back the assistant's messages behind the
/// prompt that are not to be learnt.
///
/// # Errors
/// A weight other than 0 and 1.
pub(super) fn tidy(
    templates: &Templates,
    messages: &mut [Value],
    prompt: usize,
    notes: &mut Vec<Note>,
) -> Result<Vec<usize>> {
    let mut muted = Vec::new();
    for (i, message) in messages.iter_mut().enumerate() {
        let Value::Object(fields) = message else { continue };
        // Not `remove`, which puts the last key in its place.
        let weight = fields.shift_remove("weight").filter(|weight| !weight.is_null());
        let is_learnt = match weight.as_ref().map(|weight| (weight.as_f64(), weight.as_bool())) {
            None | Some((Some(1.0), _) | (_, Some(true))) => true,
            Some((Some(0.0), _) | (_, Some(false))) => false,
            _ => bail!("message {}: `weight` is {}: give 0 or 1", i + 1, kind(&weight.unwrap_or_default())),
        };
        let unread = fields.keys().filter(|key| !KEYS.contains(&key.as_str()) && !templates.mentions(key));
        notes.extend(unread.map(|key| Note::Unread(format!("`{key}` of messages"))));
        let speaker = role(message);
        if !ROLES.contains(&speaker) && !templates.mentions(speaker) {
            notes.push(Note::Template(format!("does not know the role `{speaker}` of a message")));
        }
        if !is_learnt && i >= prompt && speaker == "assistant" {
            muted.push(i);
        }
    }
    Ok(muted)
}

/// Brings the conversations of a row into the form that their template can write.
///
/// # Errors
/// Content that is not text.
pub(super) fn settle(renderer: &Renderer, conversations: &mut [&mut Vec<Value>]) -> Result<()> {
    let any = |has: fn(&Value) -> bool, all: &[&mut Vec<Value>]| all.iter().any(|messages| messages.iter().any(has));
    let has_parts = |message: &Value| message["content"].is_array();
    let has_text = |message: &Value| calls(message).any(|call| text_arguments(call).is_some());
    conversations.iter().try_for_each(|messages| messages.iter().try_for_each(check_parts))?;
    if any(has_parts, conversations) && !conversations.iter().all(|messages| writes_parts(renderer, messages)) {
        each(conversations, join_parts);
    }
    if any(has_text, conversations) && !conversations.iter().all(|messages| writes_text(renderer, messages)) {
        each(conversations, parse_arguments);
    }
    Ok(())
}

fn each(conversations: &mut [&mut Vec<Value>], change: fn(&mut Value)) {
    conversations.iter_mut().for_each(|messages| messages.iter_mut().for_each(change));
}

/// Only text is read.
fn check_parts(message: &Value) -> Result<()> {
    for part in message["content"].as_array().into_iter().flatten() {
        let is_text = part.is_string() || part["text"].is_string();
        let what = part["type"].as_str().map_or_else(|| kind(part), |kind| format!("of type {kind:?}"));
        ensure!(is_text, "a part of a message's `content` is {what}: only text is read, remove the part or the row");
    }
    Ok(())
}

/// Whether the template takes a list of parts apart. One that takes content for text writes the list's Python or JSON
/// form, or fails.
fn writes_parts(renderer: &Renderer, messages: &[Value]) -> bool {
    let forms = ["'type': 'text'", "\"type\": \"text\"", "'text': '", "['"];
    renderer.render(messages, false).is_ok_and(|text| !forms.iter().any(|form| text.contains(form)))
}

fn join_parts(message: &mut Value) {
    if let Some(Value::Array(parts)) = message.get("content") {
        let texts = parts.iter().filter_map(|part| part.as_str().or_else(|| part["text"].as_str()));
        message["content"] = texts.collect::<String>().into();
    }
}

/// Whether the template writes arguments that come as JSON text without encoding them once more.
fn writes_text(renderer: &Renderer, messages: &[Value]) -> bool {
    let Ok(text) = renderer.render(messages, false) else { return false };
    let texts = messages.iter().flat_map(calls).filter_map(text_arguments);
    let twice = |arguments: &str| {
        let encoded = Value::from(arguments).to_string();
        text.contains(&encoded)
    };
    !texts.into_iter().any(twice)
}

fn parse_arguments(message: &mut Value) {
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let function = if call.get("function").is_some() { &mut call["function"] } else { call };
        if let Some(parsed) = function["arguments"].as_str().and_then(|text| serde_json::from_str(text).ok()) {
            function["arguments"] = parsed;
        }
    }
}

fn calls(message: &Value) -> impl Iterator<Item = &Value> {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    calls.into_iter().flatten().map(|call| call.get("function").unwrap_or(call))
}

/// The arguments of a call, if they are the JSON text of an object.
fn text_arguments(function: &Value) -> Option<&str> {
    let text = function.get("arguments")?.as_str()?;
    serde_json::from_str::<serde_json::Map<String, Value>>(text).is_ok().then_some(text)
}
