//! `warpo doctor`: what this program can run on, and what it was built from.

use std::{fmt::Write as _, process::ExitCode, time::Instant};

use anyhow::Result;

use crate::device::{
    Device, HostOptions,
    cuda::{CudaDevice, CudaOptions, EMBEDDED, GpuInfo, driver},
    kernels,
};

/// What the link to a GPU is timed with.
const LINK_BYTES: usize = 256 << 20;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> Result<ExitCode> {
    super::print(&report()?)?;
    Ok(ExitCode::SUCCESS)
}

fn report() -> Result<String> {
    let mut text = format!("warpo {}\n", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(text, "built with: {}", env!("BUILT_WITH"));
    let _ = writeln!(text, "host:       {}", Device::host(HostOptions::default())?.describe());
    match driver::count().and_then(|count| (0..count).map(driver::info).collect::<Result<Vec<_>>>()) {
        Err(why) => {
            let _ = writeln!(text, "cuda:       {why:#}");
        }
        Ok(gpus) => {
            let (major, minor) = driver::version()?;
            let _ = writeln!(text, "driver:     for CUDA {major}.{minor}");
            gpus.iter().for_each(|gpu| text += &describe(gpu));
        }
    }
    text += &embedded();
    Ok(text)
}

/// A GPU, and whether the driver takes every kernel.
fn describe(gpu: &GpuInfo) -> String {
    let loaded = CudaDevice::new(gpu.ordinal, CudaOptions::default()).and_then(|device| device.load_all());
    let kernels = match loaded {
        Ok(count) => format!("loads all {count} kernels; {}", link(gpu.ordinal)),
        Err(why) => format!("cannot run: {why:#}"),
    };
    format!("cuda:{}      {gpu}: {kernels}\n", gpu.ordinal)
}

/// How fast copies to and from page-locked memory are, both at once: what moments in the host's memory wait for.
fn link(ordinal: usize) -> String {
    match bandwidth(ordinal) {
        Ok(rate) => format!("copies {rate:.1} GB/s to and from the host at once"),
        Err(why) => format!("copies from the host fail: {why:#}"),
    }
}

/// GB/s each way, of the fastest of three rounds.
fn bandwidth(ordinal: usize) -> Result<f64> {
    let device = Device::cuda(ordinal)?;
    let (from, to) = (device.pinned::<u8>(LINK_BYTES)?, device.pinned::<u8>(LINK_BYTES)?);
    let (target, source) = (device.zeros::<u8>(LINK_BYTES)?, device.zeros::<u8>(LINK_BYTES)?);
    let mut best = 0.0_f64;
    for _ in 0..3 {
        device.synchronize()?;
        let start = Instant::now();
        device.copy_from_pinned(&target, &from, 0..LINK_BYTES)?;
        device.copy_to_pinned(&to, 0..LINK_BYTES, &source)?;
        device.synchronize()?;
        best = best.max(LINK_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    Ok(best)
}

fn embedded() -> String {
    let modules = EMBEDDED.by_module();
    if modules.is_empty() {
        return "kernels:    for the host only; built without nvcc (scripts/install-nvcc.sh installs it)\n".into();
    }
    let width = modules.keys().map(|module| module.len()).max().unwrap_or(0);
    let mut text = format!("kernels:    by {}\n", EMBEDDED.toolchain);
    for (module, archs) in modules {
        let entries = kernels::ALL.iter().filter(|kernel| kernel.module == module).count();
        let archs: Vec<String> = archs.iter().map(|arch| arch_name(arch)).collect();
        let _ = writeln!(text, "  {module:width$}  {entries:2} entry points for {}", archs.join(", "));
    }
    text
}

fn arch_name(arch: &str) -> String {
    match arch.strip_prefix("compute_") {
        Some(_) => format!("PTX {arch}"),
        None => format!("sm_{arch}"),
    }
}
