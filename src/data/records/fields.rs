//! The fields of one row by our names: which are there, which were read, and those that every form may have.

use std::{cell::RefCell, collections::BTreeSet};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::{
    Column, Columns, Note, Text,
    messages::{role, text},
    values::{from_json_text, kind},
};

pub(super) struct Fields<'a> {
    pub fields: Map<String, Value>,
    columns: &'a Columns,
    /// The file's names of what was read.
    used: RefCell<BTreeSet<String>>,
    pub notes: Vec<Note>,
}

impl<'a> Fields<'a> {
    pub fn new(fields: Map<String, Value>, columns: &'a Columns) -> Self {
        Self { fields, columns, used: RefCell::default(), notes: Vec::new() }
    }
}

impl Fields<'_> {
    /// The file's name of a field.
    pub(super) fn name(&self, column: Column) -> &str {
        let own = column.name();
        let alias = match column {
            Column::Responses => "completions",
            Column::Messages => "conversations",
            _ => own,
        };
        match self.columns.get(&column) {
            Some(name) => name,
            None if !self.fields.contains_key(own) && self.fields.contains_key(alias) => alias,
            None => own,
        }
    }

    /// Names of the fields that are not null.
    pub(super) fn given(&self) -> Vec<String> {
        self.fields.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn notes_on_unread(&mut self, given: Vec<String>) {
        let used = self.used.borrow();
        let unread = given.into_iter().filter(|name| !used.contains(name));
        self.notes.extend(unread.map(|name| Note::Unread(format!("`{}`", name.escape_debug()))));
    }

    pub(super) fn mark_used(&self, name: &str) {
        self.used.borrow_mut().insert(name.to_owned());
    }

    /// A mapped name that is nowhere in the row is a slip; what the map takes a name from is not read under it.
    pub(super) fn check_columns(&self) -> Result<()> {
        for (column, name) in self.columns {
            ensure!(
                self.fields.contains_key(name),
                "column `{name}` is missing, `data.columns.{}` names it; the row has {}",
                column.name(),
                self.found()
            );
        }
        Ok(())
    }

    pub(super) fn has(&self, column: Column) -> bool {
        self.fields.get(self.name(column)).is_some_and(|value| !value.is_null())
    }

    pub(super) fn take(&mut self, column: Column) -> Option<Value> {
        let name = self.name(column).to_owned();
        self.mark_used(&name);
        self.fields.get_mut(&name).map(Value::take).filter(|value| !value.is_null())
    }

    pub(super) fn need(&mut self, column: Column, form: &str) -> Result<Value> {
        let name = self.name(column).to_owned();
        let state = if self.fields.contains_key(&name) { "null" } else { "missing" };
        let found = self.found();
        self.take(column).with_context(|| format!("field `{name}` is {state}: {form}; the row has {found}"))
    }

    pub(super) fn found(&self) -> String {
        match self.fields.len() {
            0 => "no fields".into(),
            _ => self.fields.keys().map(|name| format!("`{}`", name.escape_debug())).collect::<Vec<_>>().join(", "),
        }
    }

    pub(super) fn tools(&mut self) -> Result<Vec<Value>> {
        let name = self.name(Column::Tools).to_owned();
        match self.take(Column::Tools).map(from_json_text) {
            None => Ok(Vec::new()),
            // Tables often hold each tool as its JSON text.
            Some(Value::Array(tools)) => Ok(tools.into_iter().map(from_json_text).collect()),
            Some(value) => bail!("field `{name}` is {}: give a list of tools, or its JSON text", kind(&value)),
        }
    }

    pub(super) fn template_kwargs(&mut self) -> Result<Map<String, Value>> {
        let name = self.name(Column::ChatTemplateKwargs).to_owned();
        match self.take(Column::ChatTemplateKwargs).map(from_json_text) {
            None => Ok(Map::new()),
            Some(Value::Object(kwargs)) => Ok(kwargs),
            Some(value) => bail!("field `{name}` is {}: give an object of template variables", kind(&value)),
        }
    }

    pub(super) fn prompt(&mut self) -> Result<Option<Text>> {
        let name = self.name(Column::Prompt).to_owned();
        let prompt = self.take(Column::Prompt).map(|value| text(&name, value)).transpose()?;
        if let Some(Text::Chat(messages)) = &prompt {
            ensure!(
                messages.last().is_none_or(|last| role(last) != "assistant"),
                "the last message of `{name}` is from `assistant`, and a response would follow it: end it with the \
                 message that is answered"
            );
        }
        Ok(prompt)
    }

    pub(super) fn needed_prompt(&mut self, form: &str) -> Result<Text> {
        match self.prompt()? {
            Some(prompt) => Ok(prompt),
            None => Err(self.need(Column::Prompt, form).err().unwrap_or_else(|| anyhow!("no prompt"))),
        }
    }
}
