//! The host device itself: what strict mode reports, and what the emulated instructions mean.

mod buffers;
mod mistakes;
mod schedules;
mod semantics;
mod units;

use warpo::device::{Arg, Buffer, DType, Device, Float, Kernel, Launch, TensorMap};

/// Launchers of `tests/kernels`, written by the build.
#[allow(dead_code, unused_imports, clippy::missing_safety_doc, clippy::too_many_arguments)]
mod kernels {
    include!(concat!(env!("OUT_DIR"), "/test_launchers.rs"));
}
