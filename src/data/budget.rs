//! Trees against the budget of a micro-batch. Looked at behind the token cache, so that another budget tokenises nothing
//! again.

use anyhow::{Result, bail};

use super::{Dataset, OnError, how_to_skip, no_row, trees::Trees};
use crate::forest::Tree;

impl Dataset {
    /// Leaves out, or refuses, trees of more than `budget` tokens; `name` is the file's.
    ///
    /// # Errors
    /// With `OnError::Stop` the first such row; with `OnError::Skip` that no row is left.
    pub fn fit(&mut self, name: &str, budget: usize, on_error: OnError) -> Result<()> {
        let tokens = self.trees.tokens();
        let bad: Vec<usize> = (0..tokens.len()).filter(|&row| tokens[row] as usize > budget).collect();
        let Some(&first) = bad.first() else { return Ok(()) };
        let why = |row: usize| Ok(why(&self.trees.tree(row)?, budget));
        if on_error == OnError::Stop {
            bail!("{} {}", why(first)?, how_to_skip(bad.len(), tokens.len()));
        }
        let mut skipped = bad.iter().map(|&row| why(row)).collect::<Result<Vec<_>>>()?;
        if bad.len() == tokens.len() {
            self.trees = Trees::default();
            self.skipped.append(&mut skipped);
            bail!("{}", no_row(name, self.rows() + self.skipped.len(), self.skipped.first()));
        }
        if !self.weights.is_empty() {
            let mut rows = 0..;
            self.weights.retain(|_| rows.next().is_none_or(|row| bad.binary_search(&row).is_err()));
        }
        self.trees.leave_out(&bad)?;
        self.skipped.append(&mut skipped);
        Ok(())
    }
}

fn why(tree: &Tree, budget: usize) -> String {
    let roots = tree.segments.iter().filter(|segment| segment.parent.is_none() && segment.scored).count();
    let what = match tree.pairs[..] {
        [] => "the whole tree",
        _ if roots > 1 => "the tree of both sides",
        _ => "the tree of prompt and both responses",
    };
    let (name, tokens) = (&tree.name, tree.tokens());
    format!("{name}: {what} has {tokens} tokens, `batch.tokens` = {budget}: shorten it or raise batch.tokens")
}
