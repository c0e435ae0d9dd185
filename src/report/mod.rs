//! What people and files are told: lines and progress on the terminal, records of `metrics.jsonl`, and their words.
//!
//! Only this room and the command line print.

mod bar;
#[cfg(feature = "figures")]
mod colour;
pub mod events;
#[cfg(feature = "figures")]
mod figure;
pub mod history;
pub mod journal;
pub mod lines;
pub mod metrics;
pub mod numbers;
#[cfg(feature = "figures")]
mod page;
pub mod pairs;
#[cfg(feature = "figures")]
mod panels;
#[cfg(feature = "figures")]
pub mod pictures;
mod records;
pub mod settings;
pub mod summary;
pub mod terminal;
#[cfg(feature = "figures")]
mod thin;
mod watch;

/// The resolved configuration in a run's folder.
pub const CONFIG: &str = "config.toml";
/// The held-out pairs by their margin, widest first, as the last evaluation found them.
pub const MARGINS: &str = "held_out.jsonl";
/// A record a step and an evaluation.
pub const METRICS: &str = "metrics.jsonl";

/// What pages and figures of this program have near their beginning.
#[cfg(feature = "figures")]
const MARK: &str = "<!-- warpo report -->";
