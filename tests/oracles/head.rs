//! logp = z[y] - log sum exp(z) with z = W x, or with a soft cap z = cap tanh(W x / cap), and its gradients.

/// Sizes of the oracle's matrices.
#[derive(Clone, Copy)]
pub struct Dims {
    pub vocab: usize,
    pub hidden: usize,
    pub softcap: Option<f32>,
}

/// Logits of every row, without padding.
pub fn logits(hidden_states: &[f64], weight: &[f64], source: &[i32], dims: Dims) -> Vec<f64> {
    let Dims { vocab, hidden, .. } = dims;
    let row = |&s: &i32| &hidden_states[s as usize * hidden..][..hidden];
    let dot = |x: &[f64], v: usize| -> f64 { x.iter().zip(&weight[v * hidden..]).map(|(x, w)| x * w).sum() };
    source.iter().flat_map(|s| (0..vocab).map(move |v| dot(row(s), v))).collect()
}

/// What the soft cap makes of logits.
pub fn capped(logits: &[f64], softcap: Option<f32>) -> Vec<f64> {
    let cap = |z: &f64| softcap.map(f64::from).map_or(*z, |cap| cap * (z / cap).tanh());
    logits.iter().map(cap).collect()
}

/// Returns `(logps, lse)` of rows of logits that the soft cap has not seen.
pub fn logps(logits: &[f64], targets: &[i32], softcap: Option<f32>, vocab: usize) -> (Vec<f64>, Vec<f64>) {
    let row = |(z, &y): (&[f64], &i32)| {
        let maximum = z.iter().fold(f64::NEG_INFINITY, |m, &z| m.max(z));
        let log_sum = z.iter().map(|z| (z - maximum).exp()).sum::<f64>().ln();
        (z[y as usize] - maximum - log_sum, maximum + log_sum)
    };
    capped(logits, softcap).chunks(vocab).zip(targets).map(row).unzip()
}

/// Entropy of each row's distribution, -sum p log p.
pub fn entropies(logits: &[f64], softcap: Option<f32>, vocab: usize) -> Vec<f64> {
    let row = |z: &[f64]| {
        let maximum = z.iter().fold(f64::NEG_INFINITY, |m, &z| m.max(z));
        let log_sum = z.iter().map(|z| (z - maximum).exp()).sum::<f64>().ln();
        // A probability that rounds to 0 adds nothing.
        let term = |z: &f64| (z - maximum - log_sum).exp() * (z - maximum - log_sum);
        -z.iter().map(term).filter(|term| term.is_finite()).sum::<f64>()
    };
    capped(logits, softcap).chunks(vocab).map(row).collect()
}

/// 1 where the target's logit is the largest of its row, else 0.
pub fn top1(logits: &[f64], targets: &[i32], vocab: usize) -> Vec<f64> {
    let hit = |(z, &y): (&[f64], &i32)| f64::from(u8::from(z.iter().all(|other| z[y as usize] >= *other)));
    logits.chunks(vocab).zip(targets).map(hit).collect()
}

/// c (onehot - p) (1 - (z / cap)^2)
pub fn dlogits(
    logits: &[f64],
    lse: &[f64],
    coefficients: &[f64],
    targets: &[i32],
    softcap: Option<f32>,
    vocab: usize,
) -> Vec<f64> {
    let slope = |z: f64| softcap.map_or(1.0, |cap| 1.0 - (z / f64::from(cap)).powi(2));
    let mut dz = Vec::new();
    for (r, z) in capped(logits, softcap).chunks(vocab).enumerate() {
        let onehot = |v: usize| f64::from(v == targets[r] as usize);
        dz.extend((0..vocab).map(|v| coefficients[r] * (onehot(v) - (z[v] - lse[r]).exp()) * slope(z[v])));
    }
    dz
}

/// Returns `(dhidden, dweight)`.
pub fn bwd(
    hidden_states: &[f64],
    weight: &[f64],
    coefficients: &[f64],
    source: &[i32],
    targets: &[i32],
    dims: Dims,
) -> (Vec<f64>, Vec<f64>) {
    let Dims { vocab, hidden, softcap } = dims;
    let z = logits(hidden_states, weight, source, dims);
    let (_, lse) = logps(&z, targets, softcap, vocab);
    let dz = dlogits(&z, &lse, coefficients, targets, softcap, vocab);
    let mut dhidden = vec![0.0; hidden_states.len()];
    let mut dweight = vec![0.0; weight.len()];
    for (r, dz) in dz.chunks(vocab).enumerate() {
        let token = source[r] as usize * hidden;
        for v in 0..vocab {
            for c in 0..hidden {
                dhidden[token + c] += dz[v] * weight[v * hidden + c];
                dweight[v * hidden + c] += dz[v] * hidden_states[token + c];
            }
        }
    }
    (dhidden, dweight)
}
