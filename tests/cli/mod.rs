//! The built program: what a user types and what comes back.

mod bad_input;
mod data;
mod files;
mod forward;
mod hostile;
mod hub;
mod init;
mod losses;
mod report;
mod score;
mod scratch;
mod screen;
mod signals;
mod special_files;
mod terminal;
