//! What the policy is measured against: log-probabilities of the starting weights.

pub mod cache;
mod hash;
pub mod pass;
mod values;

pub use pass::{Pass, compute};
pub use values::{Loaded, RowValues, data_key, load, save};
