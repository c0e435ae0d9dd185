//! Cubins: every kernel for every architecture, and PTX for the ones to come.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    compile::{self, Job},
    ptxas,
    signatures::Module,
};

/// 80 serves every 8.x device; 90a is Hopper with its own units; the driver compiles PTX of compute_80 for newer ones.
const DEFAULT_ARCHS: &str = "80,90a,compute_80";

/// The tests' kernels that run on a GPU too: they use every instruction of `kernels/ptx`.
const TEST_STEM: &str = "units_sm90";

/// Compiles the cubins and returns the Rust expressions of the table that embeds them, and of the slice that embeds those
/// of the tests.
pub fn build(modules: &[Module], test_modules: &[Module], out: &Path) -> Result<[String; 2], String> {
    let Some(nvcc) = find()? else {
        if env::var_os("REQUIRE_NVCC").is_some() {
            return Err("nvcc not found; run scripts/install-nvcc.sh or set NVCC or CUDA_HOME".into());
        }
        println!("cargo::warning=nvcc not found; building without GPU kernels (scripts/install-nvcc.sh installs it)");
        return Ok(["CubinTable { toolchain: \"\", cubins: &[] }".into(), "&[]".into()]);
    };
    let folder = out.join("cubins");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let archs = env::var("CUDA_ARCHS").unwrap_or(DEFAULT_ARCHS.into());
    let mut jobs = Vec::new();
    let mut rows = String::new();
    for module in modules {
        for arch in archs.split(',').filter(|arch| wanted(&module.stem, arch)) {
            let job = job(&nvcc, module, arch, &folder);
            rows += &row(&module.stem, arch, &job.output);
            jobs.push(job);
        }
    }
    let tests = out.join("test_cubins");
    fs::create_dir_all(&tests).map_err(|e| e.to_string())?;
    let mut test_rows = String::new();
    let tested = test_modules.iter().filter(|module| module.stem == TEST_STEM);
    for module in tested.filter(|_| archs.split(',').any(|arch| arch == "90a")) {
        let job = job(&nvcc, module, "90a", &tests);
        test_rows += &row(&module.stem, "90a", &job.output);
        jobs.push(job);
    }
    let texts: Vec<PathBuf> = jobs.iter().map(|job| job.output.clone()).filter(|p| ended(p) != *p).collect();
    compile::run_all(jobs)?;
    texts.iter().try_for_each(|ptx| end(ptx))?;
    let table = format!("CubinTable {{ toolchain: {:?}, cubins: &[\n{rows}] }}", version(&nvcc));
    Ok([table, format!("&[\n{test_rows}]")])
}

/// The expression that embeds one image.
fn row(stem: &str, arch: &str, output: &Path) -> String {
    let image = if is_ptx(arch) { ended(output) } else { output.into() };
    format!("    Cubin {{ module: {stem:?}, arch: {arch:?}, image: &Aligned(*include_bytes!({image:?})) }},\n")
}

/// A stem ending in `_sm90` is built for 9.0a only, `_sm80` for the others, any other stem for all.
fn wanted(stem: &str, arch: &str) -> bool {
    let hopper = arch == "90a";
    !(stem.ends_with("_sm90") && !hopper || stem.ends_with("_sm80") && hopper)
}

fn is_ptx(arch: &str) -> bool {
    arch.starts_with("compute_")
}

/// Where the zero-ended copy of a PTX file stands; a cubin's own place.
fn ended(output: &Path) -> PathBuf {
    if output.extension().is_some_and(|x| x == "ptx") { output.with_extension("ptx0") } else { output.into() }
}

/// The driver reads PTX up to a zero byte.
fn end(ptx: &Path) -> Result<(), String> {
    let text = fs::read_to_string(ptx).map_err(|e| format!("{}: {e}", ptx.display()))?;
    crate::write(&ended(ptx), &(text + "\0"))
}

fn find() -> Result<Option<PathBuf>, String> {
    let works = |p: &PathBuf| Command::new(p).arg("--version").output().is_ok_and(|o| o.status.success());
    if let Some(nvcc) = env::var_os("NVCC").map(PathBuf::from) {
        // Asked for by name: another one would be a surprise.
        return if works(&nvcc) { Ok(Some(nvcc)) } else { Err(format!("NVCC={}: it does not run", nvcc.display())) };
    }
    let candidates = [
        env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc")),
        Some("nvcc".into()),
        Some("/usr/local/cuda/bin/nvcc".into()),
        Some(".cuda/bin/nvcc".into()),
    ];
    Ok(candidates.into_iter().flatten().find(works))
}

fn version(nvcc: &Path) -> String {
    let text = Command::new(nvcc).arg("--version").output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let text = text.unwrap_or_default();
    let release = text.lines().find_map(|line| line.split(", V").nth(1)).unwrap_or("unknown release");
    format!("nvcc {release}")
}

fn job(nvcc: &Path, module: &Module, arch: &str, folder: &Path) -> Job {
    let Module { folder: sources, stem, .. } = module;
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-Ikernels/ptx", "-Ikernels/lib", "-Ikernels"]);
    let (name, output) = if is_ptx(arch) {
        command.args(["--ptx", &format!("-arch={arch}")]);
        (arch.to_string(), folder.join(format!("{stem}.{arch}.ptx")))
    } else {
        command.args(["--cubin", "-Xptxas=-v", &format!("-arch=sm_{arch}")]);
        // For profilers and compute-sanitizer; it carries the PTX along, which makes a cubin three times as large.
        command.args(env::var_os("CUDA_LINEINFO").map(|_| "-lineinfo"));
        // A wait that takes longer stops the kernel instead of hanging. Only Hopper's kernels wait so.
        let limit = env::var("WAIT_LIMIT").ok().filter(|_| stem.ends_with("_sm90"));
        command.args(limit.map(|limit| format!("-DWAIT_LIMIT={limit}")));
        (format!("sm_{arch}"), folder.join(format!("{stem}.sm_{arch}.cubin")))
    };
    command.args(["-MD", "-MF"]).arg(Job::depfile(&output));
    command.arg("-o").arg(&output).arg(format!("{sources}/{stem}.cu"));
    Job { what: format!("{sources}/{stem}.cu for {name}"), command, output, judge: ptxas::judge }
}
