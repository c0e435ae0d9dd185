//! Plain f64 versions of the kernels: loops and formulas, nothing clever.

pub mod rmsnorm;
