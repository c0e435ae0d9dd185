//! Heads beside the vocabulary's: whatever reads the last hidden states and is trained through them.

use anyhow::Result;

use super::{Batch, Model};
use crate::device::{Buffer, Float};

/// A head with its slopes: scalars or vectors, of the last token, of every token or of their mean. What it computes forward is
/// its own; [`Model::hidden`] is what it reads.
pub trait OutputHead<T> {
    /// Adds to `dhidden` (tokens, hidden) the gradient of the loss by `hidden` (tokens, hidden), and to the head's own gradients
    /// theirs.
    ///
    /// # Errors
    /// A launch fails.
    fn backward(&self, dhidden: &Buffer<T>, hidden: &Buffer<T>, batch: &Batch) -> Result<()>;
}

impl<T: Float> Model<T> {
    /// The last hidden states (tokens, hidden), behind the final norm; needs [`forward`](Self::forward) on the same batch. The
    /// buffer is the model's own: the next pass overwrites it.
    pub fn hidden(&self, batch: &Batch) -> Buffer<T> {
        self.part(self.plan.spans.hidden, batch.tokens * self.config.hidden)
    }
}
