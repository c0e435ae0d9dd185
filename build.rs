//! Builds every `kernels/*.cu` twice over: into cubins for the GPU (nvcc) and into the host device's library (the C++
//! compiler), and writes the typed launchers from the entry points' signatures.

#[path = "build/compile.rs"]
mod compile;
#[path = "build/host.rs"]
mod host;
#[path = "build/launchers.rs"]
mod launchers;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/signatures.rs"]
mod signatures;

use std::{env, fs, path::PathBuf, process::Command};

fn main() {
    // `.cuda` is not listed: naming a path that does not exist would run this script every time. The script that
    // makes it touches build.rs instead.
    for path in ["kernels", "tests/kernels", "build", "build.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for var in ["NVCC", "CUDA_HOME", "CUDA_ARCHS", "CUDA_LINEINFO", "REQUIRE_NVCC", "WAIT_LIMIT"] {
        println!("cargo::rerun-if-env-changed={var}");
    }
    if let Err(why) = run() {
        // One panic-free exit keeps cargo's report to the message itself.
        eprintln!("{why}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let modules = signatures::read_folder("kernels".as_ref())?;
    write(&out.join("launchers.rs"), &launchers::source(&modules)?)?;
    host::build(&modules, &out)?;
    let test_modules = signatures::read_folder("tests/kernels".as_ref())?;
    write(&out.join("test_launchers.rs"), &launchers::source(&test_modules)?)?;
    host::build_for_tests(&test_modules, &out)?;
    println!("cargo::rustc-env=BUILT_WITH={}", toolchain());
    let [cubins, test_cubins] = nvcc::build(&modules, &test_modules, &out)?;
    write(&out.join("test_cubins.rs"), &test_cubins)?;
    write(&out.join("cubins.rs"), &cubins)
}

/// The Rust and C++ compilers by name and release.
fn toolchain() -> String {
    let rustc = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()));
    let first_line = |mut command: Command| {
        let text = command.arg("--version").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("unknown").to_string()
    };
    format!("{}; {}", first_line(rustc), first_line(host::compiler()))
}

/// Leaves the file alone if nothing changed, so that what depends on it is not rebuilt.
fn write(path: &std::path::Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
