//! Messages of a conversation: their forms, and how whole conversations part into prompt and responses.

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::{Text, excerpt, kind};

/// What a message is compared by; other keys, such as an `id`, do not make it another message.
const SAID: [&str; 8] =
    ["role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning"];

/// Splits two whole conversations into the messages they begin with in common, and what is left of each.
pub(super) fn split(
    names: &[String; 2],
    chosen: Vec<Value>,
    rejected: Vec<Value>,
) -> Result<(Option<Text>, Text, Text)> {
    let common = chosen.iter().zip(&rejected).take_while(|(chosen, rejected)| same(chosen, rejected)).count();
    let [a, b] = names;
    ensure!(
        common > 0,
        "`{a}` and `{b}` have no first message in common: give whole conversations, or the question as `prompt`"
    );
    for (short, long, length) in [(a, b, chosen.len()), (b, a, rejected.len())] {
        ensure!(common < length, "`{short}` is the beginning of `{long}`: nothing is left to answer with");
    }
    ensure!(
        role(&chosen[common - 1]) != "assistant",
        "`{a}` and `{b}` part after a message from `assistant`: they must part where `assistant` answers"
    );
    let rest = |name: &str, messages: Vec<Value>| {
        let rest = messages[common..].to_vec();
        from_assistant(name, &rest).map(|()| Text::Chat(rest))
    };
    let prompt = Text::Chat(chosen[..common].to_vec());
    Ok((Some(prompt), rest(a, chosen)?, rest(b, rejected)?))
}

/// A response in the form of its prompt: bare text that answers messages is a message from the assistant.
pub(super) fn response(name: &str, prompt_name: &str, prompt: &Text, text: Text) -> Result<Text> {
    match (prompt, text) {
        (Text::Chat(_), Text::Plain(content)) => Ok(Text::Chat(vec![json!({"role": "assistant", "content": content})])),
        (Text::Plain(_), Text::Chat(_)) => {
            bail!("`{prompt_name}` is text and `{name}` messages: give `{prompt_name}` as messages")
        }
        (Text::Chat(_), Text::Chat(messages)) => from_assistant(name, &messages).map(|()| Text::Chat(messages)),
        (Text::Plain(_), text @ Text::Plain(_)) => Ok(text),
    }
}

fn from_assistant(name: &str, messages: &[Value]) -> Result<()> {
    for (which, message) in [("first", messages.first()), ("last", messages.last())] {
        let role = message.map(role).unwrap_or_default();
        ensure!(
            role == "assistant",
            "the {which} message of `{name}` is from `{}`: a response begins and ends with `assistant`; what comes \
             before belongs in `prompt`",
            role.escape_debug()
        );
    }
    Ok(())
}

/// The role of a message; nothing where it has none.
pub(in crate::data) fn role(message: &Value) -> &str {
    message["role"].as_str().unwrap_or_default()
}

/// Text, or messages; messages may come as their JSON text.
pub(super) fn text(name: &str, value: Value) -> Result<Text> {
    match value {
        Value::String(text) => match from_text(&text) {
            Some(messages) => self::text(name, messages),
            None => {
                let start = text.trim_start();
                ensure!(
                    !["[{'role'", "[{'from'", "[{'content'"].iter().any(|form| start.starts_with(form)),
                    "field `{name}` is the text of a Python list of messages ({}): give the list, or its JSON text",
                    excerpt(&text)
                );
                Ok(Text::Plain(text))
            }
        },
        Value::Array(messages) => {
            ensure!(!messages.is_empty(), "field `{name}` is an empty list: give messages or remove the row");
            let messages = messages.into_iter().enumerate().map(|(i, value)| message(&format!("{name}[{i}]"), value));
            Ok(Text::Chat(messages.collect::<Result<_>>()?))
        }
        value => bail!("field `{name}` is {}: give text or a list of messages", kind(&value)),
    }
}

/// The messages whose JSON a text is.
fn from_text(text: &str) -> Option<Value> {
    let text = text.trim();
    let looks = text.starts_with('[') && ["\"role\"", "\"from\""].iter().any(|key| text.contains(key));
    let value: Value = looks.then(|| serde_json::from_str(text).ok())??;
    let is_message = |message: &Value| {
        let has = |keys: [&str; 2]| message[keys[0]].is_string() && message.get(keys[1]).is_some();
        has(["role", "content"]) || has(["from", "value"]) || has(["role", "tool_calls"])
    };
    value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(is_message)).then_some(value)
}

fn same(a: &Value, b: &Value) -> bool {
    SAID.iter().all(|&key| a.get(key).filter(|value| !value.is_null()) == b.get(key).filter(|value| !value.is_null()))
}

/// A message of ShareGPT's form as everybody else writes it.
fn from_sharegpt(name: &str, mut fields: Map<String, Value>) -> Result<Map<String, Value>> {
    let (Some(from), Some(value)) = (fields.shift_remove("from"), fields.shift_remove("value")) else {
        return Ok(fields);
    };
    let role = match from.as_str().unwrap_or_default() {
        "human" | "user" => "user",
        "gpt" | "chatgpt" | "bard" | "assistant" | "bot" | "model" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        "function_call" => {
            let call: Option<Value> = value.as_str().and_then(|text| serde_json::from_str(text).ok());
            let calls: Option<Vec<Value>> = call.map(|call| call.as_array().cloned().unwrap_or_else(|| vec![call]));
            let Some(calls) = calls else { bail!("`{name}.value` is {}: give the call as JSON text", kind(&value)) };
            let calls: Vec<Value> = calls.iter().map(|call| json!({"type": "function", "function": call})).collect();
            fields.extend([
                ("role".into(), "assistant".into()),
                ("content".into(), "".into()),
                ("tool_calls".into(), calls.into()),
            ]);
            return Ok(fields);
        }
        other => bail!(
            "`{name}.from` is {}: give `human`, `gpt`, `system`, `function_call` or `observation`",
            excerpt(other)
        ),
    };
    fields.extend([("role".into(), role.into()), ("content".into(), value)]);
    Ok(fields)
}

fn message(name: &str, value: Value) -> Result<Value> {
    let Value::Object(mut fields) = value else {
        bail!("`{name}` is {}: a message is {{\"role\": …, \"content\": …}}", kind(&value));
    };
    if !fields.contains_key("role") {
        fields = from_sharegpt(name, fields)?;
    }
    match fields.get("role") {
        Some(Value::String(role)) if !role.trim().is_empty() => {}
        Some(value) => bail!("`{name}.role` is {}: give `system`, `user`, `assistant` or `tool`", kind(value)),
        None => bail!("`{name}` has no `role`: give `system`, `user`, `assistant` or `tool`"),
    }
    // A struct of a Parquet file has all of its fields in every message.
    fields.retain(|key, value| key == "content" || !value.is_null());
    match fields.get("content") {
        Some(Value::String(_) | Value::Array(_)) => {}
        None | Some(Value::Null) if fields.contains_key("tool_calls") => {}
        None | Some(Value::Null) if fields.contains_key("reasoning_content") => {}
        Some(value) => bail!("`{name}.content` is {}: give text", kind(value)),
        None => bail!("`{name}` has no `content`: give its text"),
    }
    Ok(Value::Object(fields))
}

/// A response must say something; a call of a tool does.
pub(super) fn not_empty(name: &str, text: &Text) -> Result<()> {
    let blank = |message: &Value| {
        message.get("tool_calls").is_none() && message["content"].as_str().is_some_and(|text| text.trim().is_empty())
    };
    match text {
        Text::Plain(text) => {
            ensure!(
                !text.trim().is_empty(),
                "field `{name}` is empty ({}): give the response or remove the row",
                excerpt(text)
            );
        }
        Text::Chat(messages) => {
            for (i, message) in messages.iter().enumerate().filter(|(_, message)| role(message) == "assistant") {
                ensure!(!blank(message), "`{name}[{i}].content` is empty: give the response or remove the row");
            }
        }
    }
    Ok(())
}

pub(super) fn is_assistant(message: &Value) -> bool {
    role(message) == "assistant"
}
