//! Where the rows of a step come from.
//!
//! A feed gives the work of one step after another and knows where it stands, so that a run goes on from a checkpoint.

mod file;
mod held_out;

use std::ops::Range;

use anyhow::Result;

pub use file::FileFeed;
pub use held_out::HeldOut;

use crate::{
    data::{batches, loader::Position, trees::Trees},
    forest::{Forest, Tree},
    roles::{Roles, reference::RowValues},
    stop::Stop,
};

/// A source of work for a policy of element type `T`.
pub trait Feed<T> {
    /// The rows of the next step. A feed that makes rows looks at `stop` meanwhile, and then gives what it has.
    ///
    /// # Errors
    /// Rows make no sense, or cannot be read or made.
    fn next(&mut self, roles: &Roles<T>, stop: &Stop) -> Result<Work>;

    /// Where the step after the last one begins, for a checkpoint.
    fn position(&self) -> Position;

    /// Passes over the data so far.
    fn epochs(&self) -> f64;
}

/// The rows of one step, packed.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// In the order of their packs.
    pub trees: Vec<Tree>,
    /// Of each micro-batch, its trees.
    pub packs: Vec<Range<usize>>,
    /// The reference's log-probabilities of every row of each tree, where they come with the rows.
    pub reference: Option<Vec<Vec<f32>>>,
}

impl Work {
    /// The planned `packs` of `trees`, with the values they have in `reference`, which is empty where the loss has none.
    ///
    /// # Errors
    /// Trees or values cannot be read.
    pub fn new(trees: &Trees, packs: &[Vec<usize>], reference: &RowValues) -> Result<Self> {
        let rows = || packs.iter().flatten().copied();
        let mut end = 0;
        let ranges = packs.iter().map(|pack| {
            end += pack.len();
            end - pack.len()..end
        });
        let values = || rows().map(|row| reference.row(row)).collect::<Result<_>>();
        Ok(Self {
            packs: ranges.collect(),
            trees: rows().map(|row| trees.tree(row)).collect::<Result<_>>()?,
            reference: (!reference.is_empty()).then(values).transpose()?,
        })
    }

    /// These rows of `trees` in packs of at most `budget` tokens.
    ///
    /// # Errors
    /// A row is longer than the budget, or cannot be read.
    pub fn of(trees: &Trees, rows: &[u32], budget: usize, reference: &RowValues) -> Result<Self> {
        let packs = batches::plan(trees, rows, budget)?;
        Self::new(trees, &(0..packs.len()).map(|pack| packs.rows(pack)).collect::<Vec<_>>(), reference)
    }

    /// The index tables of every pack.
    ///
    /// # Errors
    /// A tree makes no sense.
    pub fn forests(&self) -> Result<Vec<Forest>> {
        self.packs.iter().map(|pack| Forest::pack(&self.trees[pack.clone()])).collect()
    }

    /// The reference's values of a pack's rows, back to back.
    pub fn reference_of(&self, pack: &Range<usize>) -> Option<Vec<f32>> {
        self.reference.as_ref().map(|values| values[pack.clone()].concat())
    }
}
