//! y = gelu(gate) * up

use super::gelu::{gelu, slope};

pub fn fwd(gate_up: &[f64], ffn: usize) -> Vec<f64> {
    gate_up.chunks(2 * ffn).flat_map(|row| (0..ffn).map(|c| gelu(row[c]) * row[ffn + c])).collect()
}

/// Returns `dgate_up`.
pub fn bwd(dy: &[f64], gate_up: &[f64], ffn: usize) -> Vec<f64> {
    let mut dgate_up = vec![0.0; gate_up.len()];
    for (r, row) in gate_up.chunks(2 * ffn).enumerate() {
        for c in 0..ffn {
            let (gate, up, dy) = (row[c], row[ffn + c], dy[r * ffn + c]);
            dgate_up[2 * r * ffn + c] = dy * up * slope(gate);
            dgate_up[2 * r * ffn + ffn + c] = dy * gelu(gate);
        }
    }
    dgate_up
}
