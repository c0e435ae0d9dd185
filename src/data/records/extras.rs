//! What a row has for some losses only: numbers of its responses, a rationale, a prompt of the rejected side.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Body, Column, Fields, Text};
use crate::forest::Value as Kind;

/// What a row has for some losses only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// Numbers that come with the responses, in their order.
    pub values: Vec<(Kind, Vec<f64>)>,
    /// Why the chosen response is the better one: a prompt of its own, and the reasons.
    pub rationale: Option<[String; 2]>,
    /// What the rejected response answers, where that is not the prompt; plain text.
    pub rejected_prompt: Option<String>,
}

impl Fields<'_> {
    /// A field that is a number; any other is not ours: published sets name theirs as they like.
    fn number(&self, column: Column) -> Option<f64> {
        self.fields.get(self.name(column))?.as_f64().filter(|number| number.is_finite())
    }

    /// Numbers of the responses, and the refusal of those no loss could use.
    pub(super) fn values(&self, body: &Body) -> Result<Vec<(Kind, Vec<f64>)>> {
        let given = |kind, columns: &[Column]| {
            let numbers: Option<Vec<f64>> = columns.iter().map(|&column| self.number(column)).collect();
            if numbers.is_some() {
                columns.iter().for_each(|&column| self.mark_used(self.name(column)));
            }
            numbers.map(|numbers| (kind, numbers))
        };
        let values: Vec<(Kind, Vec<f64>)> = match body {
            Body::Pair { .. } => {
                let sides = [
                    (Kind::Score, [Column::ScoreChosen, Column::ScoreRejected]),
                    (Kind::WinRate, [Column::WinRateChosen, Column::WinRateRejected]),
                    (Kind::Visits, [Column::VisitsChosen, Column::VisitsRejected]),
                    (Kind::Preference, [Column::Preference; 2]),
                    (Kind::Margin, [Column::Margin; 2]),
                    (Kind::Uncertainty, [Column::Uncertainty; 2]),
                    (Kind::JudgeLogit, [Column::JudgeLogit; 2]),
                    (Kind::Group, [Column::Group; 2]),
                ];
                sides.into_iter().filter_map(|(kind, columns)| given(kind, &columns)).collect()
            }
            Body::Unpaired { .. } | Body::Completion { .. } => {
                given(Kind::Score, &[Column::Score]).into_iter().collect()
            }
            Body::Tree { nodes } => {
                let visits: Option<Vec<f64>> = nodes.iter().map(|node| node.visits).collect();
                visits.map(|visits| (Kind::Visits, visits)).into_iter().collect()
            }
            Body::List { .. } => Vec::new(),
        };
        for (kind, numbers) in &values {
            let refused = numbers.iter().find_map(|&number| Some((number, kind.refusal(number)?)));
            if let Some((number, wanted)) = refused {
                bail!("a {} of {number}: must be {wanted}", kind.name());
            }
        }
        Ok(values)
    }

    pub(super) fn rationale(&mut self) -> Result<Option<[String; 2]>> {
        let names = [Column::RationalePrompt, Column::Rationale].map(|column| self.name(column).to_owned());
        // A rationale without a prompt is no field of ours.
        if !self.has(Column::RationalePrompt) {
            return Ok(None);
        }
        match [Column::RationalePrompt, Column::Rationale].map(|column| self.take(column)) {
            [Some(Value::String(prompt)), Some(Value::String(rationale))] => Ok(Some([prompt, rationale])),
            _ => bail!("fields `{}` and `{}`: give both, as text", names[0], names[1]),
        }
    }

    pub(super) fn rejected_prompt(&mut self, prompt: &Option<Text>, body: &Body) -> Result<Option<String>> {
        let name = self.name(Column::RejectedPrompt).to_owned();
        match (self.take(Column::RejectedPrompt), prompt, body) {
            (None, ..) => Ok(None),
            (Some(Value::String(other)), Some(Text::Plain(_)), Body::Pair { chosen: Text::Plain(_), .. }) => {
                Ok(Some(other))
            }
            _ => bail!("`{name}`: goes with a plain `prompt`, `chosen` and `rejected`: give all four as text"),
        }
    }
}
