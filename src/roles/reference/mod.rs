//! What the policy is measured against: log-probabilities of the starting weights.

pub mod cache;
mod keys;
pub mod pass;
mod values;

pub use keys::data_key;
pub use pass::{ReferencePass, compute};
pub use values::{LoadedValues, RowValues, ValueFile, load};
