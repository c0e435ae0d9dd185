//! One response, with or without a label, and whole documents and conversations.

use anyhow::{Result, bail, ensure};

use super::{
    Body, Column, Fields, Text,
    messages::{is_assistant, not_empty, response, text},
    values::label,
};

impl Fields<'_> {
    pub(super) fn completion(&mut self) -> Result<(Option<Text>, Body)> {
        for column in [Column::Text, Column::Messages] {
            let name = self.name(column).to_owned();
            if let Some(value) = self.take(column) {
                let completion = text(&name, value)?;
                match (&completion, column) {
                    (Text::Chat(messages), Column::Messages) => ensure!(
                        messages.iter().any(is_assistant),
                        "`{name}` has no message from `assistant`: there is nothing to learn, remove the row"
                    ),
                    (Text::Plain(_), Column::Text) => not_empty(&name, &completion)?,
                    (Text::Chat(messages), Column::Text) if messages.iter().any(is_assistant) => {}
                    _ => bail!("field `{name}`: `text` is plain text, `messages` a list of messages: rename the field"),
                }
                ensure!(
                    !self.has(Column::Prompt),
                    "`{name}` beside `{}`: a whole document has no prompt; remove it, or name the field `completion`",
                    self.name(Column::Prompt)
                );
                return Ok((None, Body::Completion { completion }));
            }
        }
        let name = self.name(Column::Completion).to_owned();
        let prompt_name = self.name(Column::Prompt).to_owned();
        let prompt = self.needed_prompt("a completion needs the prompt it continues")?;
        let value = self.need(Column::Completion, "a completion is needed")?;
        let completion = response(&name, &prompt_name, &prompt, text(&name, value)?)?;
        not_empty(&name, &completion)?;
        let label_name = self.name(Column::Label).to_owned();
        let body = match self.take(Column::Label) {
            Some(value) => Body::Unpaired { completion, label: label(&label_name, &value)? },
            None => Body::Completion { completion },
        };
        Ok((Some(prompt), body))
    }
}
