//! AdamW as in torch.optim.AdamW, one element at a time.

use warpo::ops::adamw::Hyper;

/// Updates `w`, `m`, `v` in place; `step` counts from 1.
pub fn step(
    w: &mut [f64],
    m: &mut [f64],
    v: &mut [f64],
    grads: &[f64],
    scale: f64,
    (hyper, step): (Hyper, u64),
    decay: usize,
) {
    let Hyper { lr, beta1, beta2, eps, weight_decay } = hyper;
    let correction1 = 1.0 - beta1.powi(step as i32);
    let correction2 = 1.0 - beta2.powi(step as i32);
    for i in 0..w.len() {
        let g = scale * grads[i];
        if i < decay {
            w[i] *= 1.0 - lr * weight_decay;
        }
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        w[i] -= lr * (m[i] / correction1) / ((v[i] / correction2).sqrt() + eps);
    }
}
