//! Whole trees into packs of a fixed token budget.

use std::{cmp::Reverse, collections::BTreeMap};

use anyhow::{Result, ensure};

use crate::forest::{Forest, Tree};

/// A packed part of a step.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Which trees of the step it holds, ascending: the order they are packed in.
    pub members: Vec<usize>,
    pub forest: Forest,
}

/// Which trees share a pack, from their lengths alone: best fit, longest first (a tree goes into the fullest pack that
/// has room for it). The same lengths give the same packs; `n log n` for n trees. Members of a pack ascend, and packs
/// are in the order of their first members.
///
/// # Errors
/// A tree longer than the budget, by its index.
pub fn plan(lengths: &[usize], budget: usize) -> Result<Vec<Vec<usize>>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_unstable_by_key(|&tree| (Reverse(lengths[tree]), tree));
    if let Some(&longest) = order.first() {
        let tokens = lengths[longest];
        ensure!(tokens <= budget, "tree {longest} has {tokens} tokens, the budget is {budget}");
    }
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for tree in order {
        let tokens = lengths[tree];
        let room = by_room.range(tokens..).next().map(|(&room, _)| room);
        let pack = match room {
            Some(room) => take_from(&mut by_room, room),
            None => {
                packs.push(Vec::new());
                packs.len() - 1
            }
        };
        packs[pack].push(tree);
        by_room.entry(room.unwrap_or(budget) - tokens).or_default().push(pack);
    }
    packs.iter_mut().for_each(|members| members.sort_unstable());
    packs.sort_unstable_by_key(|members| members[0]);
    Ok(packs)
}

/// A pack with exactly this room, which there is.
fn take_from(by_room: &mut BTreeMap<usize, Vec<usize>>, room: usize) -> usize {
    let packs = by_room.get_mut(&room).expect("the room was found");
    let pack = packs.pop().expect("no list of packs is empty");
    if packs.is_empty() {
        by_room.remove(&room);
    }
    pack
}

/// Refuses a tree longer than the budget.
///
/// # Errors
/// The first such tree, by name and both numbers.
pub fn check<'a>(trees: impl IntoIterator<Item = &'a Tree>, budget: usize) -> Result<()> {
    for tree in trees {
        let tokens = tree.tokens();
        ensure!(
            tokens <= budget,
            "{}: the tree has {tokens} tokens, `batch.tokens` = {budget}: shorten it or raise batch.tokens",
            tree.name
        );
    }
    Ok(())
}

/// Packs trees as [`plan`] says.
///
/// # Errors
/// A tree longer than the budget, by name and both numbers.
pub fn micro_batches(trees: &[&Tree], budget: usize) -> Result<Vec<MicroBatch>> {
    check(trees.iter().copied(), budget)?;
    let lengths: Vec<usize> = trees.iter().map(|tree| tree.tokens()).collect();
    let pack = |members: Vec<usize>| {
        let forest = Forest::pack(members.iter().map(|&index| trees[index]))?;
        Ok(MicroBatch { members, forest })
    };
    plan(&lengths, budget)?.into_iter().map(pack).collect()
}
