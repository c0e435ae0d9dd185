//! Typed launchers, one per kernel entry, written by the build from the signatures in `kernels/*.cu`.
//!
//! An entry pair `op_pass_f32` / `op_pass_bf16` is one kernel for `T: Float`. Its arguments are a structure with the kernel's
//! own names, `stem::OpPass { .. }`, so that two buffers of one type cannot be swapped unseen, and [`Device::launch`] is
//! reached by `.launch(device, launch)`. Kernels of a file that take the same parameters share a structure, named by what
//! their names have in common, and are functions of it: `stem::op_pass_variant(device, launch, OpPass { .. })`.

include!(concat!(env!("OUT_DIR"), "/launchers.rs"));
