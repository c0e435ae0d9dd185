//! Finding the driver and its GPUs without ever panicking: every way this can fail is one sentence.

use std::fmt;

use anyhow::{Result, anyhow, bail, ensure};
use cudarc::driver::{
    result::{self, DriverError},
    sys::{self, CUdevice_attribute as Attribute},
};

/// Symbols the device uses. The bindings panic on one that is missing, so they are looked up before the first call.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventQuery",
    "cuEventElapsedTime_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphExecUpdate_v2",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuDeviceGetDefaultMemPool",
    "cuMemPoolGetAttribute",
    "cuMemPoolSetAttribute",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemGetInfo_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuTensorMapEncodeTiled",
];

/// The CUDA version whose driver understands what nvcc 13 writes.
const MIN_DRIVER: i32 = 13000;

/// Why there is no GPU to use. `auto` goes on without one; every other error of the driver ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoGpu(&'static str);

const NO_DRIVER: NoGpu =
    NoGpu("no NVIDIA driver: libcuda could not be loaded; install the driver or use --device host");
const NO_DEVICE: NoGpu = NoGpu("the NVIDIA driver shows no GPU; --device host runs without one");

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NoGpu {}

/// What the driver tells about a GPU without making a context on it.
#[derive(Clone, Debug)]
pub struct GpuInfo {
    /// The driver's number of it.
    pub ordinal: usize,
    /// As the driver has it.
    pub name: String,
    /// Major and minor compute capability.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sm_count: usize,
    /// All of its memory.
    pub memory_bytes: usize,
    /// Largest clock of its multiprocessors.
    pub clock_khz: usize,
    /// Dynamic shared memory that a CTA may ask for.
    pub max_smem_bytes: usize,
}

/// A driver error with the driver's own words.
pub(super) fn explain(error: DriverError) -> anyhow::Error {
    match error.error_string() {
        Ok(text) => anyhow!("{:?}: {}", error.0, text.to_string_lossy()),
        Err(_) => anyhow!("{:?}", error.0),
    }
}

/// Loads and starts the driver.
///
/// # Errors
/// [`NoGpu`], or the driver is too old or cannot start.
pub fn init() -> Result<()> {
    // SAFETY: opens the driver library and closes it; calls nothing in it.
    ensure!(unsafe { sys::is_culib_present() }, NO_DRIVER);
    // SAFETY: the library was there just now; symbols are looked up, not called.
    let missing = unsafe {
        let library = sys::culib();
        SYMBOLS.iter().find(|name| library.get::<*const ()>(name.as_bytes()).is_err())
    };
    if let Some(name) = missing {
        bail!("the NVIDIA driver has no `{name}`: one for CUDA 13.0 (580 or newer) is needed");
    }
    // By number first: the text needs a driver that has started.
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => bail!(NO_DEVICE),
        started => started
            .map_err(|e| anyhow!("the NVIDIA driver does not start: {:?}; --device host runs without one", e.0))?,
    }
    let (major, minor) = version()?;
    ensure!(
        major * 1000 + minor * 10 >= MIN_DRIVER,
        "the NVIDIA driver is for CUDA {major}.{minor}; one for CUDA 13.0 (580 or newer) is needed"
    );
    Ok(())
}

/// The CUDA version the driver is for.
///
/// # Errors
/// The driver refuses.
pub fn version() -> Result<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the pointer is valid for the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(explain)?;
    Ok((version / 1000, version % 1000 / 10))
}

/// GPUs the driver shows, maybe none.
///
/// # Errors
/// As [`init`].
pub fn count() -> Result<usize> {
    init()?;
    Ok(result::device::get_count().map_err(explain)? as usize)
}

/// What the driver tells about GPU number `ordinal`.
///
/// # Errors
/// As [`init`], or there are fewer GPUs.
pub fn info(ordinal: usize) -> Result<GpuInfo> {
    let present = count()?;
    ensure!(present > 0, NO_DEVICE);
    ensure!(ordinal < present, "device cuda:{ordinal} requested, {present} present: cuda:0 to cuda:{}", present - 1);
    read(ordinal).map_err(|e| explain(e).context(format!("cuda:{ordinal}")))
}

fn read(ordinal: usize) -> Result<GpuInfo, DriverError> {
    let device = result::device::get(ordinal as i32)?;
    // SAFETY: `device` came from the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map(|value| value as usize);
    Ok(GpuInfo {
        ordinal,
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device)? },
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        max_smem_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (cuda:{}, compute capability {}.{}, {} SMs, {:.1} GiB)",
            self.name,
            self.ordinal,
            self.capability.0,
            self.capability.1,
            self.sm_count,
            self.memory_bytes as f64 / (1u64 << 30) as f64
        )
    }
}

#[cfg(test)]
mod tests {
    use super::SYMBOLS;

    /// The stand-in has what the program calls, for the bindings panic on any other symbol; so the list has to have the same.
    #[test]
    fn every_symbol_that_is_called_is_looked_up() {
        let stand_in = include_str!("../../../tests/cuda/fake_driver.c");
        let mut called: Vec<&str> = stand_in
            .lines()
            .filter_map(|line| line.strip_prefix("int cu")?.split_once('(').map(|(name, _)| name))
            .collect();
        let mut listed: Vec<&str> = SYMBOLS.iter().filter_map(|name| name.strip_prefix("cu")).collect();
        called.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, called);
    }
}
