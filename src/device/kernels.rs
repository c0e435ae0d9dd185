//! Typed launchers, one per kernel entry, written by the build from the signatures in `kernels/*.cu`.
//!
//! An entry pair `op_pass_f32` / `op_pass_bf16` becomes one function `stem::op_pass<T: Float>`.

#![allow(clippy::too_many_arguments, clippy::missing_safety_doc)]

include!(concat!(env!("OUT_DIR"), "/launchers.rs"));
