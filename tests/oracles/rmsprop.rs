//! RMSprop as in torch.optim.RMSprop, neither centred nor with momentum, one element at a time.

use warpo::ops::rmsprop::Hyper;

/// Updates `w` and `square_avg` in place; the first `decay` elements are decayed.
pub fn step(w: &mut [f64], square_avg: &mut [f64], grads: &[f64], scale: f64, hyper: Hyper, decay: usize) {
    let Hyper { lr, alpha, eps, weight_decay } = hyper;
    for i in 0..w.len() {
        let g = scale * grads[i] + if i < decay { weight_decay * w[i] } else { 0.0 };
        square_avg[i] = alpha * square_avg[i] + (1.0 - alpha) * g * g;
        w[i] -= lr * g / (square_avg[i].sqrt() + eps);
    }
}
