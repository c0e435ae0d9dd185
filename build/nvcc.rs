//! Cubins: every kernel for every architecture, with ptxas's complaints as errors.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    compile::{self, Job},
    signatures::Module,
};

/// 80 serves every 8.x device; 90a is Hopper with its own units.
const DEFAULT_ARCHS: &str = "80,90a";

/// Compiles the cubins and returns the Rust expression of the table that embeds them.
pub fn build(modules: &[Module], out: &Path) -> Result<String, String> {
    let Some(nvcc) = find() else {
        if env::var_os("REQUIRE_NVCC").is_some() {
            return Err("nvcc not found; run scripts/install-nvcc.sh or set NVCC or CUDA_HOME".into());
        }
        println!("cargo::warning=nvcc not found; building without GPU kernels (scripts/install-nvcc.sh installs it)");
        return Ok("CubinTable { toolchain: \"\", cubins: &[] }".into());
    };
    let folder = out.join("cubins");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let archs = env::var("CUDA_ARCHS").unwrap_or(DEFAULT_ARCHS.into());
    let mut jobs = Vec::new();
    let mut rows = String::new();
    for module in modules {
        for arch in archs.split(',').filter(|arch| wanted(&module.stem, arch)) {
            let cubin = folder.join(format!("{}.sm_{arch}.cubin", module.stem));
            rows += &format!(
                "    Cubin {{ module: {:?}, arch: {arch:?}, image: &Aligned(*include_bytes!({cubin:?})) }},\n",
                module.stem
            );
            jobs.push(job(&nvcc, &module.stem, arch, cubin));
        }
    }
    compile::run_all(jobs)?;
    Ok(format!("CubinTable {{ toolchain: {:?}, cubins: &[\n{rows}] }}", version(&nvcc)))
}

/// A stem ending in `_sm90` is built for 9.0a only, `_sm80` for the others, any other stem for all.
fn wanted(stem: &str, arch: &str) -> bool {
    let hopper = arch == "90a";
    !(stem.ends_with("_sm90") && !hopper || stem.ends_with("_sm80") && hopper)
}

fn find() -> Option<PathBuf> {
    let candidates = [
        env::var_os("NVCC").map(PathBuf::from),
        env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc")),
        Some("nvcc".into()),
        Some("/usr/local/cuda/bin/nvcc".into()),
        Some(".cuda/bin/nvcc".into()),
    ];
    let works = |p: &PathBuf| Command::new(p).arg("--version").output().is_ok_and(|o| o.status.success());
    candidates.into_iter().flatten().find(works)
}

fn version(nvcc: &Path) -> String {
    let text = Command::new(nvcc).arg("--version").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let text = text.unwrap_or_default();
    let release = text.lines().find_map(|line| line.split(", V").nth(1)).unwrap_or("unknown release");
    format!("nvcc {release}")
}

fn job(nvcc: &Path, stem: &str, arch: &str, cubin: PathBuf) -> Job {
    let mut command = Command::new(nvcc);
    command
        .args(["-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v", "-Ikernels/ptx", "-Ikernels/lib", "-Ikernels"])
        .args(["--cubin", "-MD", "-MF"])
        .arg(Job::depfile(&cubin))
        .arg(format!("-arch=sm_{arch}"))
        .arg("-o")
        .arg(&cubin)
        .arg(format!("kernels/{stem}.cu"));
    Job { what: format!("kernels/{stem}.cu for sm_{arch}"), command, output: cubin, judge }
}

/// ptxas exits 0 on spills, stack use and serialised wgmma; all cost too much to ship.
fn judge(log: &str) -> Vec<String> {
    let mut kernel = "";
    let mut bad = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().unwrap_or("");
        }
        let stack = line.contains("bytes stack frame")
            && !line.contains(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads");
        if line.contains("(C75") || stack {
            bad.push(format!("kernel `{kernel}`: {}", line.trim()));
        }
    }
    bad
}
