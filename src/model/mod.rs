//! Llama-style decoders: what they are, where their weights lie, and their passes.
//!
//! Owns parameters, gradients and activations of one model. Knows nothing about losses, data or optimizers.

mod config;
pub mod files;
mod layout;
pub mod weights;

pub use config::{CONFIG_FILE, ModelConfig};
pub use layout::{LayerRanges, Layout, TensorSpec};
