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

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

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
    // The instrumented build, and with it the kernels of its tests, which need it.
    let strict = env::var_os("CARGO_FEATURE_STRICT").is_some();
    let modules = signatures::read_folder("kernels".as_ref())?;
    write(&out.join("launchers.rs"), &launchers::source(&modules, strict)?)?;
    host::build(&modules, strict, &out)?;
    let mut test_modules = Vec::new();
    if strict {
        test_modules = signatures::read_folder("tests/kernels".as_ref())?;
        write(&out.join("test_launchers.rs"), &launchers::source(&test_modules, strict)?)?;
        host::build_for_tests(&test_modules, &out)?;
    }
    println!("cargo::rustc-env=BUILT_WITH={}", toolchain());
    println!("cargo::rustc-env=KERNELS_HASH={:016x}", kernels_hash()?);
    let [cubins, test_cubins] = nvcc::build(&modules, &test_modules, &out)?;
    write(&out.join("test_cubins.rs"), &test_cubins)?;
    write(&out.join("cubins.rs"), &cubins)
}

/// A hash of everything that makes the kernels what they are: their sources, how they are compiled, the compilers. The same
/// on every machine (FNV-1a).
fn kernels_hash() -> Result<u64, String> {
    let mut files = Vec::new();
    for folder in ["kernels", "build"] {
        list(folder.as_ref(), &mut files)?;
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut take = |bytes: &[u8]| {
        bytes.iter().for_each(|&byte| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    };
    for file in files {
        let bytes = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        take(file.to_string_lossy().as_bytes());
        take(&(bytes.len() as u64).to_le_bytes());
        take(&bytes);
    }
    take(toolchain().as_bytes());
    Ok(hash)
}

/// All files below `folder`.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        match path.is_dir() {
            true => list(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
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
fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
