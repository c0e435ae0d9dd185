//! Steps that branch.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Body, Column, Fields, Node, Note, Text,
    messages::{not_empty, text},
    values::{items, kind, number},
};

impl Fields<'_> {
    pub(super) fn tree(&mut self) -> Result<(Option<Text>, Body)> {
        let name = self.name(Column::Nodes).to_owned();
        let prompt_name = self.name(Column::Prompt).to_owned();
        let prompt = self.needed_prompt("a tree of steps needs the prompt it grows from")?;
        let values = items(&name, self.take(Column::Nodes).unwrap_or_default())?;
        ensure!(!values.is_empty(), "field `{name}` is an empty list: give steps or remove the row");
        let mut nodes = Vec::new();
        for (i, value) in values.into_iter().enumerate() {
            let part = format!("{name}[{i}]");
            let Value::Object(mut fields) = value else {
                bail!("`{part}` is {}: give {{\"parent\": …, \"text\": …}}", kind(&value));
            };
            let parent = match fields.get("parent") {
                None | Some(Value::Null) => None,
                Some(value) => Some(value.as_u64().filter(|&parent| parent < i as u64).with_context(|| {
                    format!("`{part}.parent` is {}: give null or the index of an earlier node", kind(value))
                })? as usize),
            };
            let score = fields.get("score").filter(|score| !score.is_null());
            let score = score.map(|score| number(&format!("{part}.score"), score)).transpose()?;
            let visits = fields.get("visits").filter(|visits| !visits.is_null());
            let visits = visits.map(|visits| number(&format!("{part}.visits"), visits)).transpose()?;
            let others = fields.keys().filter(|key| !["parent", "score", "visits", "text"].contains(&key.as_str()));
            self.notes.extend(others.map(|key| Note::Unread(format!("`{}` of nodes", key.escape_debug()))));
            let part = format!("{part}.text");
            let text = text(&part, fields.get_mut("text").map(Value::take).unwrap_or_default())?;
            ensure!(
                matches!(text, Text::Chat(_)) == matches!(prompt, Text::Chat(_)),
                "`{part}` and `{prompt_name}`: one is text, the other messages: give all texts of a row alike"
            );
            not_empty(&part, &text)?;
            nodes.push(Node { parent, text, score, visits });
        }
        Ok((Some(prompt), Body::Tree { nodes }))
    }
}
