//! y = (x - mean) / sqrt(variance + eps) * w + b

fn normed(row: &[f64], eps: f64) -> (Vec<f64>, f64, f64) {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    let rstd = 1.0 / (variance + eps).sqrt();
    (row.iter().map(|x| (x - mean) * rstd).collect(), mean, rstd)
}

/// Returns `y` and mean and rstd of every row.
pub fn fwd(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut stats) = (Vec::new(), Vec::new());
    for row in x.chunks(w.len()) {
        let (n, mean, rstd) = normed(row, eps);
        y.extend(n.iter().zip(w).zip(b).map(|((n, w), b)| n * w + b));
        stats.extend([mean, rstd]);
    }
    (y, stats)
}

/// Returns `(dx, dw, db)`.
pub fn bwd(dy: &[f64], x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let hidden = w.len();
    let (mut dx, mut dw, mut db) = (Vec::new(), vec![0.0; hidden], vec![0.0; hidden]);
    for (dy, x) in dy.chunks(hidden).zip(x.chunks(hidden)) {
        let (n, _, rstd) = normed(x, eps);
        let g: Vec<f64> = dy.iter().zip(w).map(|(d, w)| d * w).collect();
        let mean = g.iter().sum::<f64>() / hidden as f64;
        let along = g.iter().zip(&n).map(|(g, n)| g * n).sum::<f64>() / hidden as f64;
        for c in 0..hidden {
            dx.push(rstd * (g[c] - mean - n[c] * along));
            dw[c] += dy[c] * n[c];
            db[c] += dy[c];
        }
    }
    (dx, dw, db)
}
