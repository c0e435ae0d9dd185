//! A chosen and a rejected response.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::{
    Body, Column, Fields, Text,
    messages::{is_assistant, not_empty, response, split, text},
    values::excerpt,
};

impl Fields<'_> {
    pub(super) fn pair(&mut self) -> Result<(Option<Text>, Body)> {
        const NEEDS: &str = "a preference pair needs `chosen` and `rejected`";
        let names = [self.name(Column::Chosen).to_owned(), self.name(Column::Rejected).to_owned()];
        let chosen = text(&names[0], single(self.need(Column::Chosen, NEEDS)?))?;
        let rejected = text(&names[1], single(self.need(Column::Rejected, NEEDS)?))?;
        self.check_order(&names)?;
        ensure!(
            chosen != rejected,
            "fields `{}` and `{}` are equal ({}): there is nothing to prefer, remove the row",
            names[0],
            names[1],
            start(&chosen)
        );
        let prompt_name = self.name(Column::Prompt).to_owned();
        let (prompt, chosen, rejected) = match (self.prompt()?, chosen, rejected) {
            (None, Text::Plain(chosen), Text::Plain(rejected)) => (None, Text::Plain(chosen), Text::Plain(rejected)),
            (None, Text::Chat(chosen), Text::Chat(rejected)) => {
                ensure!(
                    !self.fields.contains_key("conversations") || chosen.first() == rejected.first(),
                    "`conversations` beside `{}` and `{}`, which do not begin alike: name it the prompt, as in \
                     data.columns = {{ prompt = \"conversations\" }}",
                    names[0],
                    names[1]
                );
                split(&names, chosen, rejected)?
            }
            // A plain question, and answers that are messages.
            (Some(Text::Plain(question)), Text::Chat(chosen), Text::Chat(rejected))
                if [&chosen, &rejected].iter().all(|messages| messages.first().is_some_and(is_assistant)) =>
            {
                let prompt = Text::Chat(vec![serde_json::json!({"role": "user", "content": question})]);
                let chosen = response(&names[0], &prompt_name, &prompt, Text::Chat(chosen))?;
                let rejected = response(&names[1], &prompt_name, &prompt, Text::Chat(rejected))?;
                (Some(prompt), chosen, rejected)
            }
            // A plain copy of the question beside two whole conversations, as in published sets.
            (Some(Text::Plain(question)), Text::Chat(chosen), Text::Chat(rejected)) => {
                let (prompt, chosen, rejected) = split(&names, chosen, rejected)?;
                let asked = matches!(&prompt, Some(Text::Chat(messages)) if messages.iter().any(
                    |message| message["content"].as_str().is_some_and(|content| content.trim() == question.trim())));
                ensure!(
                    asked,
                    "`{prompt_name}` is text ({}) that is no message which `{}` and `{}` begin with: give messages",
                    excerpt(&question),
                    names[0],
                    names[1]
                );
                (prompt, chosen, rejected)
            }
            (Some(prompt), chosen, rejected) => {
                let chosen = response(&names[0], &prompt_name, &prompt, chosen)?;
                let rejected = response(&names[1], &prompt_name, &prompt, rejected)?;
                (Some(prompt), chosen, rejected)
            }
            (None, ..) => bail!("`{}` and `{}`: one is text, the other messages: give both alike", names[0], names[1]),
        };
        for (name, response) in names.iter().zip([&chosen, &rejected]) {
            not_empty(name, response)?;
        }
        Ok((prompt, Body::Pair { chosen, rejected }))
    }
}

/// One message in place of a list of one.
fn single(value: Value) -> Value {
    let is_message = value.get("role").is_some() || value.get("from").is_some();
    if is_message { Value::Array(vec![value]) } else { value }
}

fn start(text: &Text) -> String {
    match text {
        Text::Plain(text) => excerpt(text),
        Text::Chat(messages) => {
            let last = messages.last().and_then(|message| message["content"].as_str());
            excerpt(last.unwrap_or_default())
        }
    }
}
