//! What people and files are told: lines and progress on the terminal, records of `metrics.jsonl`, and their words.
//!
//! Only this room and the command line print.

#[cfg_attr(not(feature = "cli"), path = "no_bar.rs")]
mod bar;
pub mod journal;
pub mod lines;
pub mod metrics;
pub mod terminal;
