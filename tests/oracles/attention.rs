//! softmax(scale q kᵀ) v under the dense mask of a forest, and its gradients; with a window and a soft cap where the
//! sizes ask for them. Every intermediate result passes through
//! a [`Rounding`], so that the same loops serve as the oracle and as the naive computation in low precision.

use warpo::{forest::Forest, ops::attention::Dims};

/// What a computation rounds: every product, sum and exponential, and what would be stored or fed to a matrix product.
pub struct Rounding<'a> {
    pub each: &'a dyn Fn(f64) -> f64,
    pub stored: &'a dyn Fn(f64) -> f64,
}

/// No rounding but f64's own.
pub const EXACT: Rounding<'static> = Rounding { each: &|x| x, stored: &|x| x };

impl Rounding<'_> {
    fn dot(&self, a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).fold(0.0, |sum, (x, y)| (self.each)(sum + (self.each)(x * y)))
    }

    fn add(&self, sum: &mut [f64], weight: f64, row: &[f64]) {
        sum.iter_mut().zip(row).for_each(|(s, x)| *s = (self.each)(*s + (self.each)(weight * x)));
    }
}

/// The rows of packed queries, keys and values.
struct Packed<'a> {
    data: &'a [f64],
    dims: Dims,
}

impl Packed<'_> {
    fn at(&self, token: usize, slot: usize) -> std::ops::Range<usize> {
        let start = (token * (self.dims.heads + 2 * self.dims.kv_heads) + slot) * self.dims.head_dim;
        start..start + self.dims.head_dim
    }
    fn q(&self, token: usize, head: usize) -> &[f64] {
        &self.data[self.at(token, head)]
    }
    fn k_at(&self, token: usize, head: usize) -> std::ops::Range<usize> {
        self.at(token, self.dims.heads + head * self.dims.kv_heads / self.dims.heads)
    }
    fn v_at(&self, token: usize, head: usize) -> std::ops::Range<usize> {
        self.at(token, self.dims.heads + self.dims.kv_heads + head * self.dims.kv_heads / self.dims.heads)
    }
}

/// With a soft cap: the cap, and the hyperbolic tangent that it multiplies.
fn tanh(qkv: &Packed, scale: f64, i: usize, j: usize, head: usize, r: &Rounding) -> Option<(f64, f64)> {
    let cap = f64::from(qkv.dims.softcap?);
    let x = (r.each)(scale * r.dot(qkv.q(i, head), &qkv.data[qkv.k_at(j, head)]));
    Some((cap, (r.each)((r.each)(x / cap).tanh())))
}

/// Probabilities of query `i`, 0 where it does not see, and the base-2 logarithm of the denominator.
fn probabilities(qkv: &Packed, forest: &Forest, scale: f64, i: usize, head: usize, r: &Rounding) -> (Vec<f64>, f64) {
    let score = |j| match tanh(qkv, scale, i, j, head, r) {
        Some((cap, t)) => (r.each)(cap * t),
        None => (r.each)(scale * r.dot(qkv.q(i, head), &qkv.data[qkv.k_at(j, head)])),
    };
    let distance = |j| (forest.position[i] - forest.position[j]) as usize;
    let sees = |j| forest.visible(i, j) && qkv.dims.window.is_none_or(|window| distance(j) < window);
    let scores: Vec<Option<f64>> = (0..=i).map(|j| sees(j).then(|| score(j))).collect();
    let top = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |s: &Option<f64>| s.map_or(0.0, |s| (r.each)((r.each)(s - top).exp()));
    let weights: Vec<f64> = scores.iter().map(weight).collect();
    let total = weights.iter().fold(0.0, |sum, w| (r.each)(sum + w));
    (weights.iter().map(|w| (r.each)(w / total)).collect(), (top + total.ln()) / std::f64::consts::LN_2)
}

/// Returns `(out, lse)`.
pub fn fwd(qkv: &[f64], forest: &Forest, scale: f64, dims: &Dims, r: &Rounding) -> (Vec<f64>, Vec<f64>) {
    let Dims { tokens, heads, head_dim, .. } = *dims;
    let qkv = Packed { data: qkv, dims: *dims };
    let mut out = vec![0.0; tokens * heads * head_dim];
    let mut lse = vec![0.0; heads * tokens];
    for (i, row) in out.chunks_mut(heads * head_dim).enumerate() {
        for (head, o) in row.chunks_mut(head_dim).enumerate() {
            let (p, log) = probabilities(&qkv, forest, scale, i, head, r);
            lse[head * tokens + i] = log;
            for (j, p) in p.into_iter().enumerate() {
                r.add(o, (r.stored)(p), &qkv.data[qkv.v_at(j, head)]);
            }
            o.iter_mut().for_each(|x| *x = (r.stored)(*x));
        }
    }
    (out, lse)
}

/// Returns `dqkv`.
pub fn bwd(dout: &[f64], qkv: &[f64], forest: &Forest, scale: f64, dims: &Dims, r: &Rounding) -> Vec<f64> {
    let Dims { tokens, heads, head_dim, .. } = *dims;
    let (out, _) = fwd(qkv, forest, scale, dims, r);
    let qkv = Packed { data: qkv, dims: *dims };
    let mut dqkv = vec![0.0; qkv.data.len()];
    for i in 0..tokens {
        for head in 0..heads {
            let own = (i * heads + head) * head_dim..(i * heads + head + 1) * head_dim;
            let dout = &dout[own.clone()];
            let delta = r.dot(dout, &out[own]);
            let (p, _) = probabilities(&qkv, forest, scale, i, head, r);
            for (j, p) in p.into_iter().enumerate() {
                let (k, v) = (qkv.k_at(j, head), qkv.v_at(j, head));
                let ds = (r.each)(p * (r.each)(r.dot(dout, &qkv.data[v.clone()]) - delta));
                let slope = tanh(&qkv, scale, i, j, head, r).map_or(1.0, |(_, t)| (r.each)(1.0 - (r.each)(t * t)));
                let ds = (r.stored)((r.each)(ds * slope));
                r.add(&mut dqkv[v], (r.stored)(p), dout);
                r.add(&mut dqkv[k.clone()], ds * scale, qkv.q(i, head));
                r.add(&mut dqkv[qkv.at(i, head)], ds * scale, &qkv.data[k]);
            }
        }
    }
    dqkv.iter().map(|&x| (r.stored)(x)).collect()
}
