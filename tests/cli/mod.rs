//! The built program: what a user types and what comes back.

mod bad_input;
mod data;
mod hostile;
mod files;
mod losses;
mod score;
mod scratch;
