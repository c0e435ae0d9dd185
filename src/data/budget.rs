//! Trees against the budget of a micro-batch. Looked at behind the token cache, so that another budget tokenises nothing
//! again.

use anyhow::{Result, bail};

use super::{Dataset, OnError, how_to_skip, no_row};
use crate::forest::Tree;

impl Dataset {
    /// Leaves out, or refuses, trees of more than `budget` tokens; `name` is the file's.
    ///
    /// # Errors
    /// With `OnError::Stop` the first such row; with `OnError::Skip` that no row is left.
    pub fn fit(&mut self, name: &str, budget: usize, on_error: OnError) -> Result<()> {
        let too_long = |tree: &Tree| tree.tokens() > budget;
        let mut bad = self.trees.iter().filter(|tree| too_long(tree)).map(|tree| why(tree, budget)).collect::<Vec<_>>();
        let Some(first) = bad.first() else { return Ok(()) };
        if on_error == OnError::Stop {
            bail!("{first} {}", how_to_skip(bad.len(), self.trees.len()));
        }
        if bad.len() == self.trees.len() {
            self.trees.clear();
            self.skipped.append(&mut bad);
            bail!("{}", no_row(name, self.rows() + self.skipped.len(), self.skipped.first()));
        }
        if !self.weights.is_empty() {
            let mut keep = self.trees.iter().map(|tree| !too_long(tree));
            self.weights.retain(|_| keep.next().unwrap_or(true));
        }
        self.trees.retain(|tree| !too_long(tree));
        self.skipped.append(&mut bad);
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
