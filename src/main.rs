//! The `warpo` program. Exit code 0: done; 1: failed; 2: wrong usage; 130: interrupted and saved.

use std::{
    io::{Write, stderr},
    process::ExitCode,
};

use warpo::escape::visible;

fn main() -> ExitCode {
    match warpo::cli::run() {
        Ok(code) => code,
        Err(why) => {
            let line = format!("{why:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            // Whoever reads may be gone: the exit code still tells.
            let _ = writeln!(stderr(), "error: {}", visible(&line));
            ExitCode::FAILURE
        }
    }
}
