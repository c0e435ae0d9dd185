//! y = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))

fn inner(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + inner(x).tanh())
}

/// d gelu / dx
pub fn slope(x: f64) -> f64 {
    let t = inner(x).tanh();
    let d = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * d
}

pub fn fwd(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| gelu(x)).collect()
}

pub fn bwd(dy: &[f64], x: &[f64]) -> Vec<f64> {
    dy.iter().zip(x).map(|(dy, &x)| dy * slope(x)).collect()
}
