//! The host device itself: what strict mode reports, and what the emulated instructions mean.

mod banks;
mod buffers;
mod mistakes;
mod schedules;
mod semantics;
mod sound;
mod units;

use warpo::device::{Arg, Buffer, DType, Device, Float, Kernel, Launch, TensorMap};

/// Images of the tests' kernels for GPUs of compute capability 9.0; none if the build found no compiler.
#[allow(unused_imports)]
mod cubins {
    use warpo::device::cuda::{Cubin, images::Aligned};

    pub static ALL: &[Cubin] = include!(concat!(env!("OUT_DIR"), "/test_cubins.rs"));
}

/// Launchers of `tests/kernels`, written by the build.
#[allow(dead_code, unused_imports)]
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/test_launchers.rs"));
}
