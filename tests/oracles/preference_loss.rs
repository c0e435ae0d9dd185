//! DPO with label smoothing and a likelihood term, straight from the formulas.

/// Strength and normalisation of the two terms.
#[derive(Clone, Copy)]
pub struct Params {
    pub beta: f64,
    pub label_smoothing: f64,
    pub dpo_scale: f64,
    pub sft_scale: f64,
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Returns `(stats, loss)`: per pair the eight columns, and the pairs' share of the step's loss.
pub fn pairs(
    logps: &[f64],
    ref_logps: &[f64],
    sequence_rows: &[i32],
    pair_table: &[i32],
    params: Params,
) -> (Vec<f64>, f64) {
    let Params { beta, label_smoothing: e, dpo_scale, sft_scale } = params;
    let range = |sequence: i32| {
        let sequence = sequence as usize;
        sequence_rows[sequence] as usize..sequence_rows[sequence + 1] as usize
    };
    let sum = |sequence: i32| logps[range(sequence)].iter().sum::<f64>();
    let rho = |sequence: i32| range(sequence).map(|row| logps[row] - ref_logps[row]).sum::<f64>();
    let (mut stats, mut total) = (Vec::new(), 0.0);
    for pair in pair_table.chunks(2) {
        let (chosen, rejected) = (pair[0], pair[1]);
        let u = beta * (rho(chosen) - rho(rejected));
        let loss = (1.0 - e) * softplus(-u) + e * softplus(u);
        let slope = dpo_scale * beta * (e * sigmoid(u) - (1.0 - e) * sigmoid(-u));
        stats.extend([loss, -sum(chosen), beta * rho(chosen), beta * rho(rejected), sum(chosen), sum(rejected)]);
        stats.extend([slope - sft_scale, -slope]);
        total += dpo_scale * loss - sft_scale * sum(chosen);
    }
    (stats, total)
}

/// d loss / d logp of every row.
pub fn coefficients(stats: &[f64], sequence_rows: &[i32], pair_table: &[i32]) -> Vec<f64> {
    let mut coefficients = vec![0.0; *sequence_rows.last().unwrap() as usize];
    for (stats, pair) in stats.chunks(8).zip(pair_table.chunks(2)) {
        for (&sequence, slope) in pair.iter().zip(&stats[6..]) {
            let rows = sequence_rows[sequence as usize] as usize..sequence_rows[sequence as usize + 1] as usize;
            coefficients[rows].iter_mut().for_each(|c| *c += slope);
        }
    }
    coefficients
}
