//! From gradients to the next parameters: clipping, AdamW, the learning-rate schedule. Knows no model.

pub mod adamw;
pub mod clip;
pub mod schedule;

pub use adamw::{AdamW, Queued, Settings, Update};
pub use schedule::{LearningRate, Schedule};
