//! The `warpo` program. Exit code 0: done; 1: failed; 2: wrong usage; 130: interrupted and saved.

use std::process::ExitCode;

fn main() -> ExitCode {
    match warpo::cli::run() {
        Ok(code) => code,
        Err(why) => {
            let line = format!("{why:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("error: {line}");
            ExitCode::FAILURE
        }
    }
}
