//! y + weight (x - y)

pub fn lerp(y: &[f64], x: &[f64], weight: f64) -> Vec<f64> {
    y.iter().zip(x).map(|(y, x)| (1.0 - weight) * y + weight * x).collect()
}
