//! The built program: what a user types and what comes back.

mod bad_input;
mod data;
mod files;
mod hostile;
mod losses;
mod score;
mod scratch;
mod signals;
mod terminal;
