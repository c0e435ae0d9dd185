//! Which rows are the same: their keys, sorted.

use anyhow::{Result, ensure};

use super::cache::row_key;
use crate::{
    cache::{Key, KeyBuilder},
    data::trees::Trees,
};

/// Bits of a key that tell rows apart: two of ten million differ in all 256 and agree in these in one of 10^14 runs.
const KEPT: usize = 96;

/// Sixteen bytes a row: the first bits of its key, and its number, counted through both sets.
pub struct RowKeys {
    entries: Vec<u128>,
    /// One bit an entry, of which that of a key's first entry counts.
    found: Vec<u64>,
    /// What all rows of both sets give together.
    pub data: Key,
}

/// Entries of one key: a place in the table, and the rows' numbers.
#[derive(Clone, Copy)]
pub struct Same<'a> {
    first: usize,
    entries: &'a [u128],
}

impl Same<'_> {
    /// The rows, ascending.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().map(|&entry| entry as u32 as usize)
    }

    /// Where the key stands, for [`RowKeys::set_found`].
    pub fn place(&self) -> usize {
        self.first
    }
}

impl RowKeys {
    /// The keys of all rows of both sets, none of which was found.
    ///
    /// # Errors
    /// Rows cannot be read, or are too many.
    pub fn new(sets: [&Trees; 2]) -> Result<Self> {
        let rows = sets.iter().map(|trees| trees.len()).sum::<usize>();
        ensure!(u32::try_from(rows).is_ok(), "{rows} rows in both sets: a run takes {} at most: give fewer", u32::MAX);
        let mut entries = Vec::with_capacity(rows);
        let data = data_key(sets, |key| {
            entries.push(kept(key) << 32 | entries.len() as u128);
        })?;
        entries.sort_unstable();
        let found = vec![0; entries.len().div_ceil(64)];
        Ok(Self { entries, found, data })
    }

    /// The rows with this key, if there are any.
    pub fn of(&self, key: &Key) -> Option<Same<'_>> {
        let bits = kept(key);
        let first = self.entries.partition_point(|&entry| entry >> 32 < bits);
        let count = self.entries[first..].iter().take_while(|&&entry| entry >> 32 == bits).count();
        (count > 0).then(|| Same { first, entries: &self.entries[first..first + count] })
    }

    /// Whether these rows were found.
    pub fn is_found(&self, same: Same) -> bool {
        self.found[same.first / 64] >> (same.first % 64) & 1 == 1
    }

    /// These rows were found.
    pub fn set_found(&mut self, first: usize) {
        self.found[first / 64] |= 1 << (first % 64);
    }

    /// None was found.
    pub fn forget_found(&mut self) {
        self.found.fill(0);
    }

    /// The first row of every key that was not found, ascending.
    pub fn missing(&self) -> Vec<u32> {
        let mut rows = Vec::new();
        let mut first = 0;
        for same in self.entries.chunk_by(|a, b| a >> 32 == b >> 32) {
            if !self.is_found(Same { first, entries: same }) {
                rows.push(same[0] as u32);
            }
            first += same.len();
        }
        rows.sort_unstable();
        rows
    }

    /// Rows of both sets.
    pub fn rows(&self) -> usize {
        self.entries.len()
    }
}

fn kept(key: &Key) -> u128 {
    key.0.iter().take(KEPT / 8).fold(0, |bits, &byte| bits << 8 | u128::from(byte))
}

/// What the reference log-probabilities of a run belong to: tokens, trees and masks of both files. `each` hears of the rows'
/// own keys.
///
/// # Errors
/// Rows cannot be read.
pub fn data_key(sets: [&Trees; 2], mut each: impl FnMut(&Key)) -> Result<Key> {
    let mut key = KeyBuilder::new("reference data 2");
    for trees in sets {
        key.long_part("rows", 32 * trees.len() as u64, |take| {
            trees.visit(row_key, |_, key| {
                take(&key.0);
                each(&key);
                Ok(())
            })
        })?;
    }
    Ok(key.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::Tree;

    #[test]
    fn a_row_that_stands_twice_is_missing_once() {
        let tree = |token: u32| Tree::pair("t", vec![token, 1], vec![2], vec![3]);
        let sets = [vec![5, 6, 5, 7], vec![7, 8, 6]].map(|set| set.into_iter().map(tree).collect::<Trees>());
        let mut keys = RowKeys::new([&sets[0], &sets[1]]).unwrap();
        assert_eq!(keys.missing(), [0, 1, 3, 5]);
        let same = |keys: &RowKeys, token| keys.of(&row_key(&tree(token))).map(|same| same.rows().collect::<Vec<_>>());
        assert_eq!(
            [5, 6, 7, 8, 9].map(|token| same(&keys, token).unwrap_or_default()),
            [vec![0, 2], vec![1, 6], vec![3, 4], vec![5], vec![]]
        );
        let seven = keys.of(&row_key(&tree(7))).unwrap().place();
        keys.set_found(seven);
        assert_eq!(keys.missing(), [0, 1, 5]);
        assert_ne!(keys.data, RowKeys::new([&sets[1], &sets[0]]).unwrap().data);
    }
}
