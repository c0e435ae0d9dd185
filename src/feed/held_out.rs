//! The rows that are looked at and not learnt from, every one once.

use anyhow::Result;

use super::Work;
use crate::{
    data::{Dataset, batches, pack::Packs},
    forest::Tree,
    roles::reference::RowValues,
};

/// A set in packs.
#[derive(Default)]
pub struct HeldOut {
    data: Dataset,
    packs: Packs,
    reference: RowValues,
}

impl HeldOut {
    /// All rows of `data` in packs of at most `budget` tokens, with the values they have in `reference`, which is empty where
    /// the loss has none.
    ///
    /// # Errors
    /// A row is longer than the budget.
    pub fn new(data: Dataset, budget: usize, reference: RowValues) -> Result<Self> {
        let packs = batches::plan_all(&data.trees, budget)?;
        Ok(Self { data, packs, reference })
    }

    /// How many packs there are.
    pub fn packs(&self) -> usize {
        self.packs.len()
    }

    /// The trees of a pack.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn trees(&self, pack: usize) -> Result<Vec<Tree>> {
        self.packs.pack(pack).iter().map(|&row| self.data.trees.tree(row as usize)).collect()
    }

    /// One pack: index tables and values of one at a time are in memory.
    ///
    /// # Errors
    /// Its rows cannot be read.
    pub fn work(&self, pack: usize) -> Result<Work> {
        Work::new(&self.data.trees, &[self.packs.rows(pack)], &self.reference)
    }
}
