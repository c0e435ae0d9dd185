//! Several responses with a score, a rank or a label each.

use anyhow::{Result, bail, ensure};

use super::{
    Body, Column, Fields, Text,
    messages::{not_empty, response, text},
    values::{items, label, number},
};

impl Fields<'_> {
    pub(super) fn list(&mut self) -> Result<(Option<Text>, Body)> {
        let name = self.name(Column::Responses).to_owned();
        let given: Vec<Column> =
            [Column::Scores, Column::Ranks, Column::Labels].into_iter().filter(|&column| self.has(column)).collect();
        let &[by] = &given[..] else {
            bail!(
                "`{name}` comes with {} of `scores`, `ranks` and `labels`: give exactly one; the row has {}",
                given.len(),
                self.found()
            );
        };
        let prompt_name = self.name(Column::Prompt).to_owned();
        let prompt = self.needed_prompt("a list of responses needs the prompt they answer")?;
        let mut responses = Vec::new();
        for (i, value) in items(&name, self.take(Column::Responses).unwrap_or_default())?.into_iter().enumerate() {
            let part = format!("{name}[{i}]");
            let text = response(&part, &prompt_name, &prompt, text(&part, value)?)?;
            not_empty(&part, &text)?;
            responses.push(text);
        }
        ensure!(!responses.is_empty(), "field `{name}` is an empty list: give responses or remove the row");
        let by_name = self.name(by).to_owned();
        let values = items(&by_name, self.take(by).unwrap_or_default())?;
        ensure!(
            values.len() == responses.len(),
            "`{name}` has {} entries and `{by_name}` {}: give one for each response",
            responses.len(),
            values.len()
        );
        let (mut scores, mut labels) = (Vec::new(), Vec::new());
        for (i, value) in values.iter().enumerate() {
            let part = format!("{by_name}[{i}]");
            match by {
                Column::Labels => labels.push(label(&part, value)?),
                Column::Ranks => {
                    let rank = number(&part, value)?;
                    ensure!(rank >= 1.0, "`{part}` is {rank}: ranks begin with 1, the best");
                    scores.push(-rank);
                }
                _ => scores.push(number(&part, value)?),
            }
        }
        Ok((Some(prompt), Body::List { responses, scores, labels }))
    }
}
