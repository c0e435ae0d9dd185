//! Benches of kernels and of whole steps, and what their results say: `warpo bench`, which `cargo bench` runs too.

mod cases;
pub mod compare;
mod flush;
pub mod kernels;
mod random;
#[cfg(feature = "figures")]
pub mod roofline;
mod shapes;
pub mod step;
mod times;

use std::io::{Write, stdout};

/// Writes a line of a table.
fn print(line: &str) -> anyhow::Result<()> {
    use anyhow::Context;
    writeln!(stdout(), "{line}").context("standard output: cannot be written")
}

/// Writes a line of a table, formatted.
macro_rules! row {
    ($($word:tt)*) => { $crate::bench::print(&format!($($word)*))? };
}
use row;
