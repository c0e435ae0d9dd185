//! The `warpo` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    warpo::cli::main()
}
