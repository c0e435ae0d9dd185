//! Rows of files, in the order that a seed gives them.

use anyhow::Result;

use super::{Feed, Work};
use crate::{
    data::{
        Dataset,
        loader::{Loader, Position},
    },
    roles::{Roles, reference::RowValues},
    stop::Stop,
};

/// The rows of a set, over and over.
pub struct FileFeed {
    data: Dataset,
    loader: Loader,
    reference: RowValues,
}

impl FileFeed {
    /// The rows of `data` in the loader's order, with the values they have in `reference`, which is empty where the loss has
    /// none.
    pub fn new(data: Dataset, loader: Loader, reference: RowValues) -> Self {
        Self { data, loader, reference }
    }
}

impl<T> Feed<T> for FileFeed {
    fn next(&mut self, _roles: &Roles<T>, _stop: &Stop) -> Result<Work> {
        Work::new(&self.data.trees, &self.loader.next_step(), &self.reference)
    }

    fn position(&self) -> Position {
        self.loader.position()
    }

    fn epochs(&self) -> f64 {
        self.loader.epochs()
    }
}
