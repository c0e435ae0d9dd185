//! Whether a device can launch what a model launches, asked before anything is read or computed: a GPU of another kind than
//! the kernels were measured on may have less shared memory than one of them takes.

use anyhow::{Result, bail};

use super::ModelConfig;
use crate::{
    device::{DType, Device},
    ops::{SharedMemory, attention, gemm},
};

/// The kernels of a model that may ask for more shared memory than every GPU has; of its backward pass too if it `trains`.
pub fn shared_memory(device: &Device, config: &ModelConfig, precision: DType, trains: bool) -> Vec<SharedMemory> {
    let mut needs = gemm::shared_memory(device, precision);
    needs.extend(attention::shared_memory(device, precision, config.head_dim, trains));
    needs
}

/// Refuses a model with a kernel that the device has no shared memory for.
///
/// # Errors
/// Names the kernel, what it takes, what there is and what to do.
pub fn check_kernels(device: &Device, config: &ModelConfig, precision: DType, trains: bool) -> Result<()> {
    let most = device.max_smem_bytes();
    let lacks = |precision| {
        let needs = shared_memory(device, config, precision, trains);
        needs.into_iter().filter(|need| need.bytes > most).max_by_key(|need| need.bytes)
    };
    let Some(SharedMemory { kernel, bytes, .. }) = lacks(precision) else { return Ok(()) };
    let other = match precision {
        DType::Bf16 if lacks(DType::F32).is_none() => "set train.precision = \"f32\", or take a GPU that has more",
        _ => "take a GPU that has more",
    };
    bail!(
        "heads of {}: {kernel} takes {bytes} bytes of shared memory, of which {} has {most}: {other}",
        config.head_dim,
        device.describe()
    )
}
