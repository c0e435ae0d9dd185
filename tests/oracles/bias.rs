//! y += b for every row

pub fn add(y: &[f64], b: &[f64]) -> Vec<f64> {
    y.iter().enumerate().map(|(i, y)| y + b[i % b.len()]).collect()
}

/// Returns `db`.
pub fn bwd(dy: &[f64], width: usize) -> Vec<f64> {
    (0..width).map(|c| dy.chunks(width).map(|row| row[c]).sum()).collect()
}
