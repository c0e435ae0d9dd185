//! Kernel tests, one file per stem.

mod adamw;
mod attention;
mod attention_sm90;
mod bias;
mod embedding;
mod geglu;
mod gelu;
mod gemm;
mod gemm_sm90;
mod grad_norm;
mod head;
mod head_sm90;
mod layernorm;

mod residual;
mod rmsnorm;
mod rope;
mod swiglu;
