//! y = x / sqrt(mean(x²) + eps) * w

/// Returns `(y, rrms)`.
pub fn fwd(x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let hidden = w.len();
    let mut y = Vec::new();
    let mut rrms = Vec::new();
    for row in x.chunks(hidden) {
        let mean_square: f64 = row.iter().map(|v| v * v).sum::<f64>() / hidden as f64;
        let scale = 1.0 / (mean_square + eps).sqrt();
        rrms.push(scale);
        y.extend(row.iter().zip(w).map(|(v, w)| v * scale * w));
    }
    (y, rrms)
}

/// Returns `(dx, dw)`.
pub fn bwd(dy: &[f64], x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let hidden = w.len();
    let (_, rrms) = fwd(x, w, eps);
    let mut dx = vec![0.0; x.len()];
    let mut dw = vec![0.0; hidden];
    for (r, scale) in rrms.iter().enumerate() {
        let range = r * hidden..(r + 1) * hidden;
        let (dy, x, dx) = (&dy[range.clone()], &x[range.clone()], &mut dx[range]);
        let dot: f64 = (0..hidden).map(|c| dy[c] * w[c] * x[c]).sum();
        for c in 0..hidden {
            dx[c] = scale * dy[c] * w[c] - x[c] * scale.powi(3) * dot / hidden as f64;
            dw[c] += dy[c] * x[c] * scale;
        }
    }
    (dx, dw)
}
