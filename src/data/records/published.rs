//! Forms of published sets that have one sensible reading: Alpaca's fields, a system text in a column of its own.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{Body, Column, Fields, Note, Text, kind, role};

impl Fields<'_> {
    /// Rewrites Alpaca's fields as a prompt of messages and what answers it.
    pub(super) fn read_published(&mut self) -> Result<()> {
        let text = |name: &str| {
            self.fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let Some(instruction) = text("instruction") else { return Ok(()) };
        let input = text("input").filter(|input| !input.trim().is_empty());
        let asked = match &input {
            Some(input) => format!("{instruction}\n{input}"),
            None => instruction,
        };
        if self.name(Column::Prompt) == "instruction" {
            if input.is_some() {
                self.fields.insert("instruction".into(), asked.into());
                self.notes.push(Note::Reading("`input` is read as the line behind `instruction`".into()));
            }
            self.mark_used("input");
            return Ok(());
        }
        let answers = self.has(Column::Chosen) || self.has(Column::Completion) || text("output").is_some();
        if self.has(Column::Prompt) || !answers {
            return Ok(());
        }
        let mut messages = self.history()?;
        messages.push(json!({"role": "user", "content": asked}));
        self.fields.insert("prompt".into(), messages.into());
        if !self.has(Column::Chosen) && !self.has(Column::Completion) {
            let output = self.fields.get_mut("output").map(Value::take).unwrap_or_default();
            self.fields.insert("completion".into(), output);
            self.mark_used("output");
        }
        self.mark_used("instruction");
        self.mark_used("input");
        self.notes
            .push(Note::Reading("`instruction` (with `input`) is read as the user's message, as in Alpaca".into()));
        Ok(())
    }

    /// Alpaca's earlier turns: pairs of a question and its answer.
    fn history(&mut self) -> Result<Vec<Value>> {
        let mut messages = Vec::new();
        self.mark_used("history");
        match self.fields.get_mut("history").map(Value::take).unwrap_or_default() {
            Value::Null => {}
            Value::Array(turns) => {
                for (i, turn) in turns.iter().enumerate() {
                    let (Some(question), Some(answer), 2) =
                        (turn[0].as_str(), turn[1].as_str(), turn.as_array().map_or(0, Vec::len))
                    else {
                        bail!("`history[{i}]` is {}: give a question and its answer", kind(turn));
                    };
                    messages.push(json!({"role": "user", "content": question}));
                    messages.push(json!({"role": "assistant", "content": answer}));
                }
            }
            other => bail!("field `history` is {}: give a list of questions and answers", kind(&other)),
        }
        Ok(messages)
    }

    /// Puts a system text of its own column in front: as a message of a conversation, as a paragraph of plain text.
    pub(super) fn with_system(&mut self, prompt: Option<Text>, body: Body) -> Result<(Option<Text>, Body)> {
        let name = self.name(Column::System).to_owned();
        let Some(Value::String(system)) = self.fields.get(&name).cloned() else { return Ok((prompt, body)) };
        if system.trim().is_empty() {
            self.mark_used(&name);
            return Ok((prompt, body));
        }
        Ok(match (prompt, body) {
            (Some(Text::Chat(messages)), body) => {
                self.mark_used(&name);
                (Some(Text::Chat(in_front(&name, system, messages)?)), body)
            }
            (None, Body::Completion { completion: Text::Chat(messages) }) => {
                self.mark_used(&name);
                (None, Body::Completion { completion: Text::Chat(in_front(&name, system, messages)?) })
            }
            (Some(Text::Plain(prompt)), body) => {
                self.mark_used(&name);
                self.notes.push(Note::Reading(format!("`{name}` is read as a paragraph in front of the plain prompt")));
                (Some(Text::Plain(format!("{system}\n\n{prompt}"))), body)
            }
            // Without a prompt there is nothing that it would stand in front of: it stays unread, and that is said.
            other => other,
        })
    }

    /// A set such as SHP says by a number of its own which of two answers won.
    pub(super) fn check_order(&self, [chosen, rejected]: &[String; 2]) -> Result<()> {
        let label = self.fields.get("labels").filter(|label| label.is_number() || label.is_boolean());
        let second = label.is_some_and(|label| label.as_f64() == Some(0.0) || label.as_bool() == Some(false));
        ensure!(
            !second,
            "`labels` is {} beside `{chosen}` and `{rejected}`, so the second would be the better one: write the better \
             response as `chosen`, or remove the field",
            label.map(kind).unwrap_or_default()
        );
        Ok(())
    }
}

fn in_front(name: &str, system: String, mut messages: Vec<Value>) -> Result<Vec<Value>> {
    match messages.first().filter(|first| role(first) == "system") {
        Some(first) if first["content"].as_str().map(str::trim) == Some(system.trim()) => {}
        Some(_) => bail!("`{name}` and the first message are two system texts: remove one"),
        None => messages.insert(0, json!({"role": "system", "content": system})),
    }
    Ok(messages)
}
