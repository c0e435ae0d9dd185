//! Times every kernel of a training step: `cargo bench -- [--device cuda|cuda:N|host] [NAME]`.
//!
//! On a GPU: normal random data, device events, the L2 cache flushed before each run, median of at least 20 runs. The
//! roof is the longer of bytes / memory bandwidth and FLOPs / peak, each tensor counted once. On the host device the
//! table holds what the counts say about the GPU's shapes, and every case runs once at a small shape.

mod cases;

use std::{env, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use warpo::device::{Choice, Device, GemmBackend, HostOptions};

use cases::{Case, GPU_SIZE, SMALL_SIZE};

/// More than the L2 cache of any GPU.
const FLUSH_BYTES: usize = 256 << 20;
const MIN_RUNS: usize = 20;
const ENOUGH_MS: f64 = 200.0;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut choice = Choice::Auto;
    let mut filter = String::new();
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--device" => choice = args.next().context("--device: expected auto, cuda, cuda:N or host")?.parse()?,
            name if !name.starts_with('-') => filter = name.into(),
            other => bail!("argument `{other}`: expected [--device auto|cuda|cuda:N|host] [NAME]"),
        }
    }
    let host = HostOptions { gemm: GemmBackend::Kernel, ..HostOptions::default() };
    let device = Device::open(choice, host)?;
    println!("{}\n", device.describe());
    if device.is_cuda() { on_gpu(&device, &filter) } else { on_host(&device, &filter) }
}

fn on_gpu(device: &Device, filter: &str) -> Result<()> {
    let bandwidth = match device.peak_bandwidth() {
        Some(known) => known,
        None => measured_bandwidth(device)?,
    };
    println!("roof: {:.0} GB/s\n", bandwidth / 1e9);
    println!("| kernel | shape | µs | rate | % of roof |\n| --- | --- | ---: | ---: | ---: |");
    let flush = device.alloc::<u8>(FLUSH_BYTES)?;
    for case in cases::all(&GPU_SIZE).into_iter().filter(|case| case.name.contains(filter)) {
        let Case { name, shape, dtype, flops, bytes, prepare } = case;
        let run = prepare(device).with_context(|| format!("{name} {shape}"))?;
        let ms = median_ms(device, || run(device), || device.fill_zero(&flush))?;
        let (by_memory, by_compute) = (bytes / bandwidth, flops / device.peak_flops(dtype));
        let roof = by_memory.max(by_compute);
        let rate = if by_compute > by_memory {
            format!("{:.1} TFLOP/s", flops / ms / 1e9)
        } else {
            format!("{:.0} GB/s", bytes / ms / 1e6)
        };
        println!("| {name} | {shape} | {:.1} | {rate} | {:.1} |", ms * 1e3, 100.0 * roof * 1e3 / ms);
    }
    Ok(())
}

fn on_host(device: &Device, filter: &str) -> Result<()> {
    println!("| kernel | shape | MFLOP | MB | FLOP/byte | small run |\n| --- | --- | ---: | ---: | ---: | ---: |");
    let small = cases::all(&SMALL_SIZE);
    for (case, small) in cases::all(&GPU_SIZE).into_iter().zip(small).filter(|(case, _)| case.name.contains(filter)) {
        let run = (small.prepare)(device).with_context(|| format!("{} {}", small.name, small.shape))?;
        let start = Instant::now();
        run(device).with_context(|| format!("{} {}", small.name, small.shape))?;
        let Case { name, shape, flops, bytes, .. } = &case;
        println!(
            "| {name} | {shape} | {:.1} | {:.1} | {:.1} | {:.0} µs |",
            flops / 1e6,
            bytes / 1e6,
            flops / bytes,
            start.elapsed().as_secs_f64() * 1e6
        );
    }
    Ok(())
}

/// Time of one run between two events on the device.
fn median_ms(device: &Device, run: impl Fn() -> Result<()>, before: impl Fn() -> Result<()>) -> Result<f64> {
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
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Bytes read and written a second by a copy on the device.
fn measured_bandwidth(device: &Device) -> Result<f64> {
    let (a, b) = (device.zeros::<u8>(2 * FLUSH_BYTES)?, device.alloc::<u8>(2 * FLUSH_BYTES)?);
    let ms = median_ms(device, || device.copy(&b, &a), || Ok(()))?;
    Ok(2.0 * a.bytes() as f64 / ms * 1e3)
}
