//! D (m, n) = A B, the sum over k written out.

use warpo::ops::gemm::{Gemm, Order};

/// Returns D without padding, and the sum of the terms' magnitudes per element, which bounds rounding errors.
pub fn run(gemm: &Gemm, a: &[f64], b: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let Gemm { order, m, n, k, lda, ldb, .. } = *gemm;
    let mut d = vec![0.0; m * n];
    let mut magnitude = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let term = match order {
                    Order::Nt => a[i * lda + l] * b[j * ldb + l],
                    Order::Nn => a[i * lda + l] * b[l * ldb + j],
                    Order::Tn => a[l * lda + i] * b[l * ldb + j],
                };
                d[i * n + j] += term;
                magnitude[i * n + j] += term.abs();
            }
        }
    }
    (d, magnitude)
}
