//! Peak rates of known GPUs, from their data sheets.

use super::{super::DType, GpuInfo};

/// Part of the name, dense bf16 tensor-core TFLOP/s, f32 TFLOP/s, GB/s of memory. The first match counts, so the
/// narrower name stands first. Figures without sparsity, with f32 accumulation.
const KNOWN: &[(&str, f64, f64, f64)] = &[
    ("GH200", 989.4, 66.9, 4000.0),
    ("H200 NVL", 835.5, 60.3, 4800.0),
    ("H200", 989.4, 66.9, 4800.0),
    ("H100 PCIe", 756.4, 51.2, 2039.0),
    ("H100 NVL", 835.5, 60.3, 3938.0),
    ("H100", 989.4, 66.9, 3352.0),
    ("H800", 989.4, 66.9, 3352.0),
    ("A100-SXM4-40GB", 312.0, 19.5, 1555.0),
    ("A100-PCIE-40GB", 312.0, 19.5, 1555.0),
    ("A100", 312.0, 19.5, 2039.0),
    ("A800", 312.0, 19.5, 2039.0),
    ("L40S", 362.0, 91.6, 864.0),
    ("L40", 181.0, 90.5, 864.0),
    ("L4", 121.0, 30.3, 300.0),
    ("A40", 149.7, 37.4, 696.0),
    ("A30", 165.0, 10.3, 933.0),
    ("A10G", 70.0, 35.0, 600.0),
    ("RTX 4090", 165.2, 82.6, 1008.0),
    ("RTX 3090", 71.0, 35.6, 936.0),
];

fn known(name: &str) -> Option<&'static (&'static str, f64, f64, f64)> {
    KNOWN.iter().find(|row| name.contains(row.0))
}

/// Dense FLOP/s for products of `dtype`. A GPU that is not in the table gets multiprocessors × clock × the FLOPs a
/// clock of its generation.
pub fn flops(gpu: &GpuInfo, dtype: DType) -> f64 {
    let tensor = dtype == DType::Bf16;
    if let Some((_, bf16, f32, _)) = known(&gpu.name) {
        return if tensor { bf16 * 1e12 } else { f32 * 1e12 };
    }
    let per_clock = match (tensor, gpu.capability) {
        (true, (8, 0)) => 2048.0,
        (true, (8, _)) => 1024.0,
        (true, (9, _)) => 4096.0,
        (true, (10, _)) => 8192.0,
        (true, _) => 2048.0,
        (false, (8, 0)) => 128.0,
        (false, _) => 256.0,
    };
    gpu.sm_count as f64 * gpu.clock_khz as f64 * 1e3 * per_clock
}

/// Bytes a second of device memory, where the data sheet is known.
pub fn bandwidth(gpu: &GpuInfo) -> Option<f64> {
    known(&gpu.name).map(|row| row.3 * 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str, capability: (u32, u32)) -> GpuInfo {
        GpuInfo {
            ordinal: 0,
            name: name.into(),
            capability,
            sm_count: 132,
            memory_bytes: 80 << 30,
            clock_khz: 1_830_000,
            max_smem_bytes: 232_448,
        }
    }

    #[test]
    fn names_are_matched_from_narrow_to_wide() {
        let bf16 = |name: &str| flops(&gpu(name, (9, 0)), DType::Bf16);
        assert_eq!(bf16("NVIDIA H100 80GB HBM3"), 989.4 * 1e12);
        assert_eq!(bf16("NVIDIA H100 PCIe"), 756.4 * 1e12);
        assert_eq!(bf16("NVIDIA H200"), 989.4 * 1e12);
        assert_eq!(bf16("NVIDIA A100-SXM4-80GB"), 312.0 * 1e12);
        assert_eq!(flops(&gpu("NVIDIA H100 80GB HBM3", (9, 0)), DType::F32), 66.9 * 1e12);
    }

    /// The formula gives the data sheet's figure for a Hopper chip at the data sheet's clock.
    #[test]
    fn an_unknown_gpu_is_computed() {
        let got = flops(&gpu("unheard of", (9, 0)), DType::Bf16);
        assert!((got / 989.4e12 - 1.0).abs() < 0.01, "{got:e}");
    }
}
