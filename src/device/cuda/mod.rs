//! GPUs through the CUDA driver.

use anyhow::{Result, bail};

use super::{Arg, DType, Kernel, Launch, MemoryUse};

pub struct CudaEvent;
pub struct CudaMemory;
impl CudaMemory {
    pub fn address(&self) -> u64 {
        0
    }
}
pub struct CudaDevice;
/// True if a driver is installed and shows a GPU.
pub fn is_present() -> bool {
    false
}
pub fn elapsed_ms(_: &CudaEvent, _: &CudaEvent) -> Result<f64> {
    bail!("no GPU")
}
impl CudaDevice {
    pub fn new(_ordinal: usize) -> Result<Self> {
        bail!("no NVIDIA driver: libcuda could not be loaded")
    }
    pub fn describe(&self) -> String {
        String::new()
    }
    pub fn sm_count(&self) -> usize {
        0
    }
    pub fn peak_flops(&self, _: DType) -> f64 {
        0.0
    }
    pub fn alloc(&self, _: usize) -> Result<CudaMemory> {
        bail!("no GPU")
    }
    pub fn copy_in(&self, _: u64, _: &[u8]) -> Result<()> {
        bail!("no GPU")
    }
    pub fn copy_out(&self, _: &mut [u8], _: u64) -> Result<()> {
        bail!("no GPU")
    }
    pub fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        bail!("no GPU")
    }
    pub fn fill_zero(&self, _: u64, _: usize) -> Result<()> {
        bail!("no GPU")
    }
    pub fn synchronize(&self) -> Result<()> {
        bail!("no GPU")
    }
    pub fn record(&self) -> Result<CudaEvent> {
        bail!("no GPU")
    }
    pub fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }
    /// # Safety
    /// As [`super::Device::launch`].
    pub unsafe fn launch(&self, _: &'static Kernel, _: Launch, _: &mut [Arg]) -> Result<()> {
        bail!("no GPU")
    }
}
