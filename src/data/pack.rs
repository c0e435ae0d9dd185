//! Whole trees into micro-batches of a fixed token budget.

use anyhow::{Result, ensure};

use crate::forest::{Forest, Tree};

/// A packed part of a step.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Which trees of the step it holds, in the order they are packed.
    pub members: Vec<usize>,
    pub forest: Forest,
}

/// Packs the trees of one step, first fit in the order given: a tree goes into the first micro-batch with room.
///
/// # Errors
/// A tree longer than the budget, by name and both numbers.
pub fn micro_batches(trees: &[&Tree], budget: usize) -> Result<Vec<MicroBatch>> {
    let mut bins: Vec<(usize, Vec<usize>)> = Vec::new();
    for (index, tree) in trees.iter().enumerate() {
        let tokens = tree.tokens();
        ensure!(
            tokens <= budget,
            "{}: the tree has {tokens} tokens, `batch.tokens` = {budget}: shorten it or raise batch.tokens",
            tree.name
        );
        match bins.iter_mut().find(|(used, _)| used + tokens <= budget) {
            Some((used, members)) => {
                *used += tokens;
                members.push(index);
            }
            None => bins.push((tokens, vec![index])),
        }
    }
    let pack = |(_, members): (usize, Vec<usize>)| {
        let forest = Forest::pack(members.iter().map(|&index| trees[index]))?;
        Ok(MicroBatch { members, forest })
    };
    bins.into_iter().map(pack).collect()
}
