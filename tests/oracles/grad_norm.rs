//! norm = sqrt(sum g²), and torch.nn.utils.clip_grad_norm_'s factor.

/// Returns `(norm, scale)`.
pub fn run(grads: &[f64], max_norm: f64) -> (f64, f64) {
    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
    let scale = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    (norm, scale)
}
