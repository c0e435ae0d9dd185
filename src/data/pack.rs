//! Whole trees into packs of a fixed token budget.

use std::{cmp::Reverse, collections::BTreeMap};

use anyhow::{Result, ensure};

use super::trees::Trees;

/// Packs of trees, by the trees' numbers: one behind the other, four bytes a tree and a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packs {
    members: Vec<u32>,
    ends: Vec<u32>,
}

impl Packs {
    /// How many packs there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The trees of a pack.
    pub fn pack(&self, number: usize) -> &[u32] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.members[start as usize..self.ends[number] as usize]
    }

    /// The trees of a pack, to find them by.
    pub fn rows(&self, number: usize) -> Vec<usize> {
        self.pack(number).iter().map(|&tree| tree as usize).collect()
    }

    /// The packs in their order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &[u32]> {
        (0..self.len()).map(|number| self.pack(number))
    }

    /// The trees of all packs.
    pub fn members(&self) -> &[u32] {
        &self.members
    }

    /// Adds a pack.
    pub fn push(&mut self, pack: &[u32]) {
        self.members.extend_from_slice(pack);
        self.ends.push(self.members.len() as u32);
    }

    /// The same packs of trees that have other numbers.
    pub fn renamed(mut self, number: impl Fn(u32) -> u32) -> Self {
        self.members.iter_mut().for_each(|member| *member = number(*member));
        self
    }
}

impl<'a> FromIterator<&'a [u32]> for Packs {
    fn from_iter<I: IntoIterator<Item = &'a [u32]>>(packs: I) -> Self {
        let mut all = Self::default();
        packs.into_iter().for_each(|pack| all.push(pack));
        all
    }
}

/// Which trees share a pack, from their lengths alone: best fit, longest first (a tree goes into the fullest pack that
/// has room for it). The same lengths give the same packs; `n log n` for n trees. Members of a pack ascend, and packs
/// are in the order of their first members.
///
/// # Errors
/// A tree longer than the budget, by its index.
pub fn plan(lengths: &[u32], budget: usize) -> Result<Packs> {
    let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
    order.sort_unstable_by_key(|&tree| (Reverse(lengths[tree as usize]), tree));
    if let Some(&longest) = order.first() {
        let tokens = lengths[longest as usize];
        ensure!(tokens as usize <= budget, "tree {longest} has {tokens} tokens, the budget is {budget}");
    }
    let mut packs: u32 = 0;
    let mut pack_of = vec![0; lengths.len()];
    let mut by_room: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for tree in order {
        let tokens = lengths[tree as usize] as usize;
        let room = by_room.range(tokens..).next().map(|(&room, _)| room);
        let pack = match room {
            Some(room) => take_from(&mut by_room, room),
            None => {
                packs += 1;
                packs - 1
            }
        };
        pack_of[tree as usize] = pack;
        by_room.entry(room.unwrap_or(budget) - tokens).or_default().push(pack);
    }
    Ok(gather(&pack_of, packs as usize))
}

/// A pack with exactly this room, which there is.
fn take_from(by_room: &mut BTreeMap<usize, Vec<u32>>, room: usize) -> u32 {
    let packs = by_room.get_mut(&room).expect("the room was found");
    let pack = packs.pop().expect("no list of packs is empty");
    if packs.is_empty() {
        by_room.remove(&room);
    }
    pack
}

/// The trees of each of `count` packs, ascending, the packs in the order of their first trees.
fn gather(pack_of: &[u32], count: usize) -> Packs {
    let mut sizes = vec![0u32; count];
    pack_of.iter().for_each(|&pack| sizes[pack as usize] += 1);
    // Where the next tree of a pack goes, known from its first tree on.
    let mut next = vec![u32::MAX; count];
    let (mut members, mut ends) = (vec![0; pack_of.len()], Vec::with_capacity(count));
    for (tree, &pack) in pack_of.iter().enumerate() {
        let place = &mut next[pack as usize];
        if *place == u32::MAX {
            *place = ends.last().copied().unwrap_or(0);
            ends.push(*place + sizes[pack as usize]);
        }
        members[*place as usize] = tree as u32;
        *place += 1;
    }
    Packs { members, ends }
}

/// Refuses a tree longer than the budget.
///
/// # Errors
/// The first such tree, by name and both numbers; or its file cannot be read.
pub fn check(trees: &Trees, budget: usize) -> Result<()> {
    let Some(row) = trees.tokens().iter().position(|&tokens| tokens as usize > budget) else { return Ok(()) };
    let (tokens, name) = (trees.tokens()[row], trees.tree(row)?.name);
    anyhow::bail!("{name}: the tree has {tokens} tokens, `batch.tokens` = {budget}: shorten it or raise batch.tokens")
}
