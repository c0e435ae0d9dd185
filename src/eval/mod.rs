//! What a model says about data, without training it.

pub mod score;
mod summary;
