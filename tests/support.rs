//! Devices to test on, random data, and the comparison rule.

use std::path::{Path, PathBuf};

use half::bf16;
use warpo::device::{
    Arch, Choice, CudaOptions, Device, Element, Fault, Float, HostOptions, ThreadOrder, host::Completion,
};

/// Where `examples` and `tests/fixtures` are: in the project, or beside the test program if it came in a bundle.
pub fn root() -> PathBuf {
    let program = std::env::current_exe().expect("the program knows its place");
    let beside = program.parent().filter(|folder| folder.join("gpu-check.sh").is_file());
    beside.map_or(env!("CARGO_MANIFEST_DIR").into(), Path::to_path_buf)
}

/// Every device and schedule a kernel test runs on: the strict host device under four schedules and both completion
/// modes, the fast host device, and the GPU if there is one.
pub fn for_each_device(mut test: impl FnMut(&Device, &str)) {
    let host = || {
        let mut devices = strict_devices();
        devices.push((fast_device(2), "host".into()));
        devices
    };
    for (device, name) in with_gpu(host) {
        test(&device, &name);
    }
}

/// The host devices of [`for_each_device`]: kernels of the tests are for them alone.
pub fn for_each_host(mut test: impl FnMut(&Device, &str)) {
    strict_devices().iter().for_each(|(device, on)| test(device, on));
    test(&fast_device(2), "host");
}

/// The named host devices, and the GPU if there is one.
///
/// `TEST_DEVICE=host` leaves the GPU out; `TEST_DEVICE=cuda` or `cuda:N` takes that GPU alone and does not do without.
pub fn with_gpu<N: From<&'static str>>(host: impl FnOnce() -> Vec<(Device, N)>) -> Vec<(Device, N)> {
    // Every launch is waited for, so that a kernel that fails is named.
    let open = |ordinal| Device::cuda_with(ordinal, CudaOptions { check_launches: true, ..CudaOptions::default() });
    match chosen() {
        Choice::Host => host(),
        Choice::Cuda(ordinal) => vec![(open(ordinal).expect("TEST_DEVICE names a GPU that runs"), "cuda".into())],
        Choice::Auto => {
            let mut devices = host();
            match open(0) {
                Ok(device) => devices.push((device, "cuda".into())),
                Err(why) => println!("skipped on cuda: {why:#}"),
            }
            devices
        }
    }
}

fn chosen() -> Choice {
    std::env::var("TEST_DEVICE").unwrap_or("auto".into()).parse().expect("TEST_DEVICE")
}

/// The GPU of [`with_gpu`] with the kernels that every GPU runs.
pub fn portable_gpu() -> Device {
    let ordinal = if let Choice::Cuda(ordinal) = chosen() { ordinal } else { 0 };
    Device::cuda_with(ordinal, CudaOptions { check_launches: true, portable: true }).expect("a GPU that opened once")
}

const SCHEDULES: [(ThreadOrder, Completion); 4] = [
    (ThreadOrder::InOrder, Completion::Early),
    (ThreadOrder::Reversed, Completion::Late),
    (ThreadOrder::Random(7), Completion::Late),
    (ThreadOrder::Eager, Completion::Early),
];

/// The strict host device under every schedule.
pub fn strict_devices() -> Vec<(Device, String)> {
    SCHEDULES.into_iter().map(|(schedule, completion)| strict_device(schedule, completion, false)).collect()
}

/// Runs a kernel with every fault it could have: each must be reported, or be seen in a result that is not `right`, under
/// every schedule.
pub fn every_fault_is_caught(faults: &[Fault], mut is_right: impl FnMut(&Device) -> anyhow::Result<bool>) {
    for &fault in faults {
        for (schedule, completion) in SCHEDULES {
            let options = HostOptions { hopper: true, fault: Some(fault), ..HostOptions::strict(schedule, completion) };
            let device = Device::host(options).expect("the host device opens");
            match is_right(&device) {
                Ok(right) => assert!(!right, "{fault:?} goes unseen under {schedule:?} {completion:?}"),
                Err(why) => println!("{fault:?} under {schedule:?} {completion:?}: {why:#}"),
            }
        }
    }
}

fn strict_device(schedule: ThreadOrder, completion: Completion, hopper: bool) -> (Device, String) {
    let options = HostOptions { hopper, ..HostOptions::strict(schedule, completion) };
    let device = Device::host(options).expect("the host device opens");
    (device, format!("host strict {schedule:?} {completion:?}"))
}

/// The devices of [`for_each_device`] as GPUs of compute capability 9.0, and the GPU if it is one.
pub fn for_each_hopper(mut test: impl FnMut(&Device, &str)) {
    let host = || {
        let mut devices = strict_hoppers();
        devices.push((fast_hopper(2), "host".into()));
        devices
    };
    for (device, name) in with_gpu(host).into_iter().filter(|(device, _)| device.arch() == Arch::Sm90) {
        test(&device, &name);
    }
}

/// The strict host device as a GPU of compute capability 9.0, under every schedule.
pub fn strict_hoppers() -> Vec<(Device, String)> {
    SCHEDULES.into_iter().map(|(schedule, completion)| strict_device(schedule, completion, true)).collect()
}

/// The host device at full speed as a GPU of compute capability 9.0.
pub fn fast_hopper(threads: usize) -> Device {
    let gemm = warpo::device::GemmBackend::Kernel;
    Device::host(HostOptions { threads, gemm, hopper: true, ..HostOptions::default() }).expect("the host device opens")
}

/// The host device with emulated kernels at full speed.
pub fn fast_device(threads: usize) -> Device {
    let gemm = warpo::device::GemmBackend::Kernel;
    Device::host(HostOptions { threads, gemm, ..HostOptions::default() }).expect("the host device opens")
}

/// Normally distributed numbers from a fixed seed (splitmix64, Box-Muller).
pub fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len)
        .map(|_| ((-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
        .collect()
}

/// Rounds to `T`.
pub fn cast<T: Float>(data: &[f32]) -> Vec<T> {
    data.iter().map(|&x| T::from_f32(x)).collect()
}

/// The values as the oracles take them.
pub fn widen<T: Float>(data: &[T]) -> Vec<f64> {
    data.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// Rounds every value to `T` and back: what a naive low-precision computation does after each operation.
pub fn round_to<T: Float>(data: &[f64]) -> Vec<f64> {
    data.iter().map(|&x| f64::from(T::from_f32(x as f32).to_f32())).collect()
}

/// Largest absolute difference, and where.
pub fn max_error(got: &[f64], want: &[f64]) -> (f64, usize) {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let mut worst = (0.0, 0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (g - w).abs();
        if error > worst.0 || error.is_nan() {
            worst = (error, i);
        }
        if error.is_nan() {
            break;
        }
    }
    worst
}

/// `|got - want| / |want|`, Euclidean norms over the whole tensor.
pub fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let norm: f64 = want.iter().map(|&w| square(w)).sum();
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

/// The rule for low precision: the kernel's error may be twice that of a naive computation in the same precision,
/// plus `allowance`, which the caller derives.
pub fn assert_within_rule(what: &str, got: &[f64], want: &[f64], naive: &[f64], allowance: f64) {
    let (error, at) = max_error(got, want);
    let (naive_error, _) = max_error(naive, want);
    let limit = 2.0 * naive_error + allowance;
    assert!(
        error <= limit,
        "{what}: element {at}: {} instead of {}: error {error:.3e} over the limit {limit:.3e} (naive {naive_error:.3e})",
        got[at],
        want[at]
    );
}

/// Names of the two element types, for messages.
pub fn type_name<T: Float>() -> &'static str {
    match T::DTYPE {
        warpo::device::DType::Bf16 => "bf16",
        _ => "f32",
    }
}

/// Unit roundoff of `T`: half the distance from 1 to the next number.
pub fn roundoff<T: Float>() -> f64 {
    match T::DTYPE {
        warpo::device::DType::Bf16 => f64::from(bf16::EPSILON.to_f32()) / 2.0,
        _ => f64::from(f32::EPSILON) / 2.0,
    }
}

/// For copies and for sums in a stated order: every element has the same bits.
pub fn assert_same_bits<T: Element>(what: &str, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let differs = |(g, w): (&T, &T)| bytemuck::bytes_of(g) != bytemuck::bytes_of(w);
    let wrong: Vec<usize> = (0..got.len()).filter(|&i| differs((&got[i], &want[i]))).collect();
    if let Some(&first) = wrong.first() {
        let (got, want) = (got[first], want[first]);
        panic!("{what}: {} elements differ, the first is {first}: {got:?} instead of {want:?}", wrong.len());
    }
}

/// The largest magnitude.
pub fn max_abs(data: &[f64]) -> f64 {
    data.iter().fold(0.0, |most, x| x.abs().max(most))
}

/// A folder with these files.
pub fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::TempDir::new().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}
