//! What people and files are told: lines and progress on the terminal, records of `metrics.jsonl`, and their words.
//!
//! Only this room and the command line print.

mod bar;
pub mod journal;
pub mod lines;
pub mod metrics;
pub mod terminal;
