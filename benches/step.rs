//! `cargo bench --bench step -- ARGUMENTS` is `warpo bench step ARGUMENTS`.

use std::process::ExitCode;

fn main() -> ExitCode {
    warpo::cli::main_of(&["bench", "step"])
}
