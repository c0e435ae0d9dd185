//! y = gate / (1 + exp(-gate)) * up

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn fwd(gate_up: &[f64], ffn: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for row in gate_up.chunks(2 * ffn) {
        y.extend((0..ffn).map(|c| row[c] * sigmoid(row[c]) * row[ffn + c]));
    }
    y
}

/// Returns `dgate_up`.
pub fn bwd(dy: &[f64], gate_up: &[f64], ffn: usize) -> Vec<f64> {
    let mut dgate_up = vec![0.0; gate_up.len()];
    for (r, row) in gate_up.chunks(2 * ffn).enumerate() {
        for c in 0..ffn {
            let (gate, up, dy) = (row[c], row[ffn + c], dy[r * ffn + c]);
            let s = sigmoid(gate);
            dgate_up[2 * r * ffn + c] = dy * up * (s + gate * s * (1.0 - s));
            dgate_up[2 * r * ffn + ffn + c] = dy * gate * s;
        }
    }
    dgate_up
}
