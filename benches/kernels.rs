//! `cargo bench --bench kernels -- ARGUMENTS` is `warpo bench kernels ARGUMENTS`.

use std::process::ExitCode;

fn main() -> ExitCode {
    warpo::cli::main_of(&["bench", "kernels"])
}
