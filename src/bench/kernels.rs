//! Times every kernel of a training step.
//!
//! On a GPU: normal random data, device events, the L2 cache read over before each run so that it holds nothing of the run's
//! and nothing that has yet to be written, median and spread of at least 20 runs.
//! The roof is the longer of bytes / memory bandwidth and FLOPs / peak, each tensor counted once. Products of bf16 are also
//! timed in cuBLASLt, if that can be loaded, on the same buffers in turn with ours; on Hopper every case that takes its units
//! is timed by the portable kernels as well. On the host device the table holds what the counts say about the GPU's shapes,
//! and every case runs once at a small shape.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    cases::{self, Case, GPU_SIZE, Product, SMALL_SIZE},
    flush::Flush,
    row,
    times::Times,
};
use crate::{
    device::{Arch, Choice, CudaOptions, DType, Device, GemmBackend, HostOptions},
    ops::gemm::library::Library,
};

/// Bytes that are copied to find out the bandwidth.
const COPIED_BYTES: usize = 512 << 20;
/// On the host device the shapes of released models are so many times smaller.
const SMALL_SHARE: usize = 128;
const MIN_RUNS: usize = 20;
const ENOUGH_MS: f64 = 200.0;

/// What is timed, and where.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Where.
    pub device: Choice,
    /// Part of the names of kernels; all without one.
    pub filter: String,
}

/// Runs the cases, printing a row each, and gives their results: an object each, with the times of all runs.
///
/// # Errors
/// There is no such device, or a launch fails.
pub fn run(options: &KernelOptions) -> Result<Vec<Value>> {
    let host = HostOptions { gemm: GemmBackend::Kernel, ..HostOptions::default() };
    let device = Device::open(options.device, host)?;
    row!("{}\n", device.describe());
    match device.is_cuda() {
        true => on_gpu(&device, options.device, &options.filter),
        false => on_host(&device, &options.filter),
    }
}

/// A GPU and what its kernels are compared with.
struct Gpu<'a> {
    device: &'a Device,
    /// The same GPU by its portable kernels, where it has others.
    portable: Option<Device>,
    vendor: Option<Library>,
    flush: Flush,
    /// Bytes a second.
    bandwidth: f64,
}

fn on_gpu(device: &Device, choice: Choice, filter: &str) -> Result<Vec<Value>> {
    let gpu = Gpu::open(device, choice)?;
    row!(
        "\n| kernel | shape | µs | spread | rate | % of roof | of cuBLASLt's rate | of the portable kernels' |\n\
         | --- | --- | ---: | --- | --- | ---: | ---: | ---: |"
    );
    let (mut results, mut ratios) = (Vec::new(), Vec::new());
    for case in cases::all(&GPU_SIZE, 1).into_iter().filter(|case| case.name.contains(filter)) {
        let timed = gpu.time(case)?;
        if !timed.shape.ends_with(cases::NOT_SPLIT) {
            ratios.extend(timed.vendor.map(|vendor| vendor / timed.own.median()));
        }
        results.push(timed.report(&gpu)?);
    }
    if !ratios.is_empty() {
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        row!("\n{} products at {mean:.3} of cuBLASLt's rate (geometric mean)", ratios.len());
    }
    Ok(results)
}

impl<'a> Gpu<'a> {
    fn open(device: &'a Device, choice: Choice) -> Result<Self> {
        let bandwidth = match device.peak_bandwidth() {
            Some(known) => known,
            None => measured_bandwidth(device)?,
        };
        row!("roof: {:.0} GB/s", bandwidth / 1e9);
        let vendor = match Library::open(device) {
            Ok(library) => Some(library),
            Err(why) => {
                row!("no library to compare with: {why:#}");
                None
            }
        };
        let ordinal = if let Choice::Cuda(ordinal) = choice { ordinal } else { 0 };
        let portable = CudaOptions { portable: true, ..CudaOptions::default() };
        let portable = (device.arch() == Arch::Sm90).then(|| Device::cuda_with(ordinal, portable)).transpose()?;
        Ok(Self { device, portable, vendor, flush: Flush::new(device)?, bandwidth })
    }

    fn time(&self, case: Case) -> Result<Timed> {
        let Case { name, shape, dtype, flops, bytes, prepare } = case;
        let prepared = prepare(self.device).with_context(|| format!("{name} {shape}"))?;
        let of = |device: &Device, run: &dyn Fn(&Device) -> Result<()>| {
            runs(
                device,
                || run(device),
                || {
                    prepared.reset.as_ref().map_or(Ok(()), |reset| reset(device))?;
                    self.flush.run(device)
                },
            )
        };
        let mut ours = of(self.device, &prepared.run)?;
        let mut vendor = None;
        if let (Some(library), Some(product)) = (&self.vendor, &prepared.product) {
            // In turn, so that both see the same clocks.
            vendor = Some(median(of(self.device, &plan(library, product)?)?));
            ours.extend(of(self.device, &prepared.run)?);
        }
        let portable = self.portable.as_ref().filter(|_| uses_units(&name, dtype));
        let portable = portable.map(|device| of(device, &prepared.run).map(median)).transpose()?;
        let own = Times::of(ours.clone()).context("no run")?;
        Ok(Timed { name, shape, dtype, flops, bytes, ms: ours, own, vendor, portable })
    }
}

/// A case and its times, in milliseconds.
struct Timed {
    name: String,
    shape: String,
    dtype: DType,
    flops: f64,
    bytes: f64,
    /// Of each run, in their order.
    ms: Vec<f64>,
    /// The same.
    own: Times,
    /// The median of the vendor's library.
    vendor: Option<f64>,
    /// The median of the portable kernels.
    portable: Option<f64>,
}

impl Timed {
    /// One row of the table, and the result.
    fn report(&self, gpu: &Gpu) -> Result<Value> {
        let Self { name, shape, dtype, flops, bytes, ms, own, vendor, portable } = self;
        let (device, peak) = (gpu.device, gpu.device.peak_flops(*dtype));
        let (own, [low, high]) = (own.median(), own.spread());
        let (by_memory, by_compute) = (bytes / gpu.bandwidth, flops / peak);
        let share = by_memory.max(by_compute) * 1e3 / own;
        let rate = match by_compute > by_memory {
            true => format!("{:.1} TFLOP/s", flops / own / 1e9),
            false => format!("{:.0} GB/s", bytes / own / 1e6),
        };
        let ratio = |other: &Option<f64>| other.map_or(String::new(), |other| format!("{:.2}", other / own));
        row!(
            "| {name} | {shape} | {:.1} | {:.1} to {:.1} | {rate} | {:.1} | {} | {} |",
            own * 1e3,
            low * 1e3,
            high * 1e3,
            100.0 * share,
            ratio(vendor),
            ratio(portable)
        );
        Ok(json!({
            "kernel": name, "shape": shape, "ms": ms, "flops": flops, "bytes": bytes, "share_of_roof": share,
            "cublaslt_ms": vendor, "portable_ms": portable, "device": device.describe(),
            "dtype": format!("{dtype:?}").to_lowercase(), "peak_flops": peak, "bandwidth": gpu.bandwidth,
        }))
    }
}

/// Whether there are kernels with Hopper's units for a case.
fn uses_units(name: &str, dtype: DType) -> bool {
    let families = ["gemm_", "attention_", "head_", "swiglu_project", "rope_project"];
    dtype == DType::Bf16 && families.iter().any(|family| name.starts_with(family))
}

type LibraryRun<'a> = Box<dyn Fn(&Device) -> Result<()> + 'a>;

/// The vendor's product on the same buffers.
fn plan<'a>(library: &'a Library, product: &Product) -> Result<LibraryRun<'a>> {
    let Product { gemm, d, wide, a, b } = product;
    Ok(match wide {
        Some(wide) => {
            let planned = library.plan(gemm, wide, a, b)?;
            Box::new(move |device| planned.run(device))
        }
        None => {
            let planned = library.plan(gemm, d, a, b)?;
            Box::new(move |device| planned.run(device))
        }
    })
}

fn on_host(device: &Device, filter: &str) -> Result<Vec<Value>> {
    row!("| kernel | shape | MFLOP | MB | FLOP/byte | small run |\n| --- | --- | ---: | ---: | ---: | ---: |");
    let small = cases::all(&SMALL_SIZE, SMALL_SHARE);
    let mut results = Vec::new();
    for (case, small) in cases::all(&GPU_SIZE, 1).into_iter().zip(small).filter(|(case, _)| case.name.contains(filter))
    {
        let prepared = (small.prepare)(device).with_context(|| format!("{} {}", small.name, small.shape))?;
        let start = Instant::now();
        (prepared.run)(device).with_context(|| format!("{} {}", small.name, small.shape))?;
        let Case { name, shape, flops, bytes, .. } = &case;
        row!(
            "| {name} | {shape} | {:.1} | {:.1} | {:.1} | {:.0} µs |",
            flops / 1e6,
            bytes / 1e6,
            flops / bytes,
            start.elapsed().as_secs_f64() * 1e6
        );
        results.push(json!({"kernel": name, "shape": shape, "flops": flops, "bytes": bytes}));
    }
    Ok(results)
}

/// Milliseconds of runs, each between two events on the device.
fn runs(device: &Device, run: impl Fn() -> Result<()>, before: impl Fn() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..3 {
        run()?;
    }
    let mut times = Vec::new();
    while times.len() < MIN_RUNS || times.iter().sum::<f64>() < ENOUGH_MS && times.len() < 10 * MIN_RUNS {
        // The flush is still running when the events and the launch are queued, so launching costs nothing in between.
        before()?;
        let start = device.record()?;
        run()?;
        let end = device.record()?;
        times.push(device.elapsed_ms(&start, &end)?);
    }
    Ok(times)
}

fn median(runs: Vec<f64>) -> f64 {
    Times::of(runs).map_or(f64::NAN, |times| times.median())
}

/// Bytes read and written a second by a copy on the device.
fn measured_bandwidth(device: &Device) -> Result<f64> {
    let (a, b) = (device.zeros::<u8>(COPIED_BYTES)?, device.alloc::<u8>(COPIED_BYTES)?);
    let ms = median(runs(device, || device.copy(&b, &a), || Ok(()))?);
    Ok(2.0 * a.bytes() as f64 / ms * 1e3)
}
