//! Plain f64 versions of the kernels: loops and formulas, nothing clever.

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod embedding;
pub mod geglu;
pub mod gelu;
pub mod gemm;
pub mod grad_norm;
pub mod head;
pub mod layernorm;
pub mod lerp;
pub mod losses;
pub mod model;
pub mod preference_loss;
pub mod residual;
pub mod rmsnorm;
pub mod rmsprop;
pub mod rope;
pub mod swiglu;
