//! Kernel tests, one file per stem.

mod adamw;
mod attention;
mod embedding;
mod gemm;
mod grad_norm;
mod head;
mod preference_loss;
mod residual;
mod rmsnorm;
mod rope;
mod swiglu;
