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
mod head_distributions;
mod head_sm90;
mod layernorm;
mod lerp;
mod loss_batch;
mod loss_difference;
mod loss_likelihood;
mod loss_list;
mod loss_rows;
mod loss_separate;

mod residual;
mod rmsnorm;
mod rmsprop;
mod rope;
mod swiglu;
mod token_mask;
