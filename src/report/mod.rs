//! What people and files are told: lines and progress on the terminal, records of `metrics.jsonl`, and their words.
//!
//! Only this room and the command line print.

mod bar;
pub mod history;
pub mod journal;
pub mod lines;
pub mod metrics;
mod numbers;
pub mod settings;
pub mod summary;
pub mod terminal;

/// The resolved configuration in a run's folder.
pub const CONFIG: &str = "config.toml";
/// A record a step and an evaluation.
pub const METRICS: &str = "metrics.jsonl";
