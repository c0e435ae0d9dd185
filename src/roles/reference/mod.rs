//! What the policy is measured against: log-probabilities of the starting weights.

pub mod cache;
mod keys;
pub mod pass;
mod values;

pub use keys::data_key;
pub use pass::{Pass, compute};
pub use values::{Loaded, RowValues, ValueFile, load};
