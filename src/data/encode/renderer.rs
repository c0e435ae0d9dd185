//! A template with what a row gives it: conversations as text, and the borders that were found in equal texts.

use std::{cell::RefCell, collections::HashMap};

use anyhow::Result;
use serde_json::Value;

use crate::data::template::{Templates, Variables};

/// A template with what the row gives it.
pub(super) struct Renderer<'a> {
    pub templates: &'a Templates,
    variables: Variables<'a>,
    pub gaps: Gaps,
}

/// Offsets of borders by the text between two pieces, with their roles: equal gaps are split alike, so that a long
/// conversation is rendered a few times and not twice a turn.
#[derive(Default)]
pub(super) struct Gaps(RefCell<HashMap<(String, bool), usize>>);

impl<'a> Renderer<'a> {
    pub fn new(templates: &'a Templates, variables: Variables<'a>) -> Self {
        Self { templates, variables, gaps: Gaps::default() }
    }

    /// The conversation as text, with the beginning of a generation behind it if that is asked for.
    pub fn render(&self, messages: &[Value], generation: bool) -> Result<String> {
        self.templates.render(messages, &self.variables, generation)
    }
}

impl Gaps {
    /// The border in a gap that was met before, else what `split` finds.
    pub fn find(
        &self,
        gap: Option<(String, usize)>,
        is_start: bool,
        split: impl FnOnce() -> Result<usize>,
    ) -> Result<usize> {
        let Some((text, from)) = gap else { return split() };
        let key = (text, is_start);
        if let Some(offset) = self.0.borrow().get(&key) {
            return Ok(from + offset);
        }
        let at = split()?;
        if let Some(offset) = at.checked_sub(from) {
            self.0.borrow_mut().insert(key, offset);
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What makes a conversation of many turns linear: borders in equal gaps are looked for once.
    #[test]
    fn a_gap_that_was_met_before_is_split_alike() {
        let gaps = Gaps::default();
        let mut asked = 0;
        for from in [10, 50, 90] {
            let at = gaps.find(Some(("[user, assistant]<end>".into(), from)), true, || {
                asked += 1;
                Ok(from + 4)
            });
            assert_eq!(at.unwrap(), from + 4);
        }
        assert_eq!(asked, 1);
        // The end of a turn is another border than its start.
        let end = gaps.find(Some(("[user, assistant]<end>".into(), 10)), false, || Ok(12));
        assert_eq!(end.unwrap(), 12);
    }
}
