//! y[t] = table[ids[t]]

pub fn fwd(ids: &[i32], table: &[f64], hidden: usize) -> Vec<f64> {
    ids.iter().flat_map(|&id| &table[id as usize * hidden..][..hidden]).copied().collect()
}

/// Returns what is added to the gradient of the table.
pub fn bwd(dy: &[f64], ids: &[i32], hidden: usize, vocab: usize) -> Vec<f64> {
    let mut dtable = vec![0.0; vocab * hidden];
    for (t, &id) in ids.iter().enumerate() {
        for c in 0..hidden {
            dtable[id as usize * hidden + c] += dy[t * hidden + c];
        }
    }
    dtable
}
