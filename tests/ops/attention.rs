use half::bf16;
use warpo::{
    device::{Device, Float},
    forest::{Forest, Segment, Tree},
    ops::attention::{self, Dims, Mask},
};

use crate::{
    oracles::attention::{self as oracle, EXACT, Rounding},
    support::{
        assert_within_rule, cast, fast_device, for_each_device, max_abs, normal, roundoff, strict_devices, type_name,
        widen,
    },
};

/// One segment: parent, tokens.
pub(super) type Shape = &'static [(Option<usize>, usize)];

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) trees: &'static [Shape],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f32>,
}

pub(super) const ROOT: Option<usize> = None;
pub(super) const PAIR: Shape = &[(ROOT, 5), (Some(0), 4), (Some(0), 3)];
pub(super) const DEEP: Shape =
    &[(ROOT, 4), (Some(0), 3), (Some(1), 5), (Some(1), 2), (Some(0), 6), (Some(4), 1), (Some(4), 7)];
pub(super) const LIST: Shape = &[
    (ROOT, 7),
    (Some(0), 3),
    (Some(0), 1),
    (Some(0), 9),
    (Some(0), 2),
    (Some(0), 4),
    (Some(0), 5),
    (Some(0), 8),
    (Some(0), 6),
];

/// Two responses of more than a tile behind one prompt.
pub(super) const LONG: &[Shape] = &[PAIR, &[(ROOT, 30), (Some(0), 90), (Some(0), 40)]];

pub(super) const PLAIN: Case =
    Case { name: "", trees: &[], heads: 1, kv_heads: 1, head_dim: 32, window: None, softcap: None };
const WIDE: Case = Case { heads: 2, head_dim: 256, ..PLAIN };

/// Ragged and exact tiles of 64 tokens, tiles that are skipped, full and partial, every head size and several group
/// sizes; small, because strict mode is slow.
const CASES: &[Case] = &[
    Case { name: "one token", trees: &[&[(ROOT, 1)]], heads: 1, kv_heads: 1, head_dim: 32, ..PLAIN },
    Case { name: "list of 8", trees: &[LIST], heads: 3, kv_heads: 1, head_dim: 32, ..PLAIN },
    Case { name: "63 tokens", trees: &[PAIR, DEEP, &[(ROOT, 23)]], heads: 2, kv_heads: 2, head_dim: 32, ..PLAIN },
    Case {
        name: "64 tokens",
        trees: &[DEEP, PAIR, DEEP, &[(ROOT, 1)], &[(ROOT, 2)]],
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        ..PLAIN
    },
    Case {
        name: "65 tokens",
        trees: &[&[(ROOT, 17)], DEEP, &[(ROOT, 8), (Some(0), 12)]],
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
        ..PLAIN
    },
    Case { name: "a document of 130", trees: &[&[(ROOT, 130)]], heads: 1, kv_heads: 1, head_dim: 32, ..PLAIN },
    Case {
        name: "a skipped tile",
        trees: &[PAIR, &[(ROOT, 30), (Some(0), 110), (Some(0), 40)]],
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        ..PLAIN
    },
    Case { name: "head size 64", trees: &[PAIR, LIST, PAIR], heads: 2, kv_heads: 1, head_dim: 64, ..PLAIN },
    Case { name: "head size 96", trees: &[PAIR, LIST, PAIR], heads: 1, kv_heads: 1, head_dim: 96, ..PLAIN },
    Case { name: "head size 128", trees: &[PAIR, LIST, PAIR], heads: 2, kv_heads: 1, head_dim: 128, ..PLAIN },
    Case { name: "head size 256", trees: &[PAIR, LIST, PAIR], heads: 2, kv_heads: 1, head_dim: 256, ..PLAIN },
    Case { name: "a window of one", trees: &[PAIR, DEEP], window: Some(1), ..PLAIN },
    Case { name: "a window of two", trees: &[PAIR, DEEP], window: Some(2), ..PLAIN },
    Case { name: "a window over tiles", trees: LONG, heads: 2, kv_heads: 1, window: Some(35), ..PLAIN },
    Case { name: "a window of everything", trees: &[PAIR, LIST], window: Some(usize::MAX), ..PLAIN },
    Case { name: "soft cap", trees: LONG, softcap: Some(1.5), ..PLAIN },
    Case { name: "window and soft cap", trees: &[LIST, DEEP], window: Some(6), softcap: Some(1.5), ..WIDE },
];

#[test]
fn fwd_f32() {
    for_each_device(fwd::<f32>);
}

#[test]
fn fwd_bf16() {
    for_each_device(fwd::<bf16>);
}

#[test]
fn bwd_f32() {
    for_each_device(bwd::<f32>);
}

#[test]
fn bwd_bf16() {
    for_each_device(bwd::<bf16>);
}

#[test]
fn other_sequences_change_no_bit_f32() {
    for_each_device(other_sequences_change_no_bit::<f32>);
}

#[test]
fn other_sequences_change_no_bit_bf16() {
    for_each_device(other_sequences_change_no_bit::<bf16>);
}

#[test]
fn schedules_change_no_bit_f32() {
    schedules_change_no_bit::<f32>();
}

#[test]
fn schedules_change_no_bit_bf16() {
    schedules_change_no_bit::<bf16>();
}

#[test]
fn refuses_what_it_cannot_run() {
    let device = fast_device(1);
    let refused = |dims: Dims| {
        let (f, i) = (device.alloc::<f32>(1).unwrap(), device.alloc::<i32>(1).unwrap());
        let mask = Mask { subtree_end: i.clone(), tile_bounds: i.clone(), position: i, mean_keys: 1 };
        attention::fwd(&device, &f, &f, &f, &mask, 1.0, &dims).unwrap_err().to_string()
    };
    let plain = Dims { tokens: 1, heads: 1, kv_heads: 1, head_dim: 64, window: None, softcap: None };
    let refusal = |heads, kv_heads, head_dim| refused(Dims { heads, kv_heads, head_dim, ..plain });
    assert_eq!(refusal(2, 1, 48), "attention: head_dim 48: expected 32, 64, 96, 128 or 256");
    assert_eq!(refusal(3, 2, 64), "attention: 3 heads do not share 2 key heads evenly");
    assert_eq!(refusal(2, 1, 64), "attention tile_bounds: expected [1, 2] = 2 elements, found 1");
    assert_eq!(
        refused(Dims { window: Some(0), ..plain }),
        "attention: a window of 0 positions: a token always sees itself, expected 1 or more"
    );
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let want = format!("attention: soft cap {cap}: expected a positive number");
        assert_eq!(refused(Dims { softcap: Some(cap), ..plain }), want);
    }
}

/// The oracle's gradients against central differences of its own `sum of dout * out`.
#[test]
fn oracle_agrees_with_central_differences() {
    let bounds = [(None, None), (Some(4), None), (None, Some(0.8)), (Some(4), Some(0.8))];
    for (window, softcap) in bounds {
        let case = Case { trees: &[PAIR], heads: 2, head_dim: 3, window, softcap, ..PLAIN };
        let Inputs { forest, dims, scale, qkv, dout } = Inputs::<f32>::new(&case);
        let (qkv, dout, scale) = (widen(&qkv), widen(&dout), f64::from(scale));
        let loss = |qkv: &[f64]| -> f64 {
            let (out, _) = oracle::fwd(qkv, &forest, scale, &dims, &EXACT);
            out.iter().zip(&dout).map(|(out, dout)| out * dout).sum()
        };
        let gradient = oracle::bwd(&dout, &qkv, &forest, scale, &dims, &EXACT);
        // Truncation h²/6 times a third derivative of order 100, and rounding 1e-16 * 50 / h.
        let h = 1e-5;
        for i in 0..qkv.len() {
            let moved = |by: f64| {
                let mut at = qkv.clone();
                at[i] += by;
                loss(&at)
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * h);
            let found = gradient[i];
            assert!((slope - found).abs() < 1e-8, "{window:?} {softcap:?} {i}: {found} and difference {slope}");
        }
    }
}

/// What goes into a forward and a backward pass.
pub(super) struct Inputs<T> {
    pub(super) forest: Forest,
    pub(super) dims: Dims,
    pub(super) scale: f32,
    pub(super) qkv: Vec<T>,
    pub(super) dout: Vec<T>,
}

/// What comes out of them.
#[derive(PartialEq)]
pub(super) struct Outputs<T> {
    out: Vec<T>,
    lse: Vec<f32>,
    dqkv: Vec<T>,
}

impl<T: Float> Inputs<T> {
    pub(super) fn new(case: &Case) -> Self {
        let trees: Vec<Tree> = case.trees.iter().map(|shape| tree(shape)).collect();
        let forest = Forest::pack(&trees).unwrap();
        let Case { heads, kv_heads, head_dim, window, softcap, .. } = *case;
        let dims = Dims { tokens: forest.len(), heads, kv_heads, head_dim, window, softcap };
        Self {
            qkv: cast(&normal(11, dims.tokens * (dims.heads + 2 * dims.kv_heads) * dims.head_dim)),
            dout: cast(&normal(12, dims.tokens * dims.heads * dims.head_dim)),
            scale: 1.0 / (case.head_dim as f32).sqrt(),
            forest,
            dims,
        }
    }

    pub(super) fn mask(&self, device: &Device) -> Mask {
        let [subtree_end, tile_bounds, position] =
            [&self.forest.subtree_end, &self.forest.tile_bounds, &self.forest.position]
                .map(|x| device.upload(x).unwrap());
        Mask { subtree_end, tile_bounds, position, mean_keys: self.forest.mean_keys() }
    }

    /// Runs both passes; every output starts as NaN, so that what is not written shows.
    pub(super) fn run(&self, device: &Device) -> Outputs<T> {
        let nan = |len| device.upload(&vec![T::from_f32(f32::NAN); len]).unwrap();
        let nan_f32 = |len| device.upload(&vec![f32::NAN; len]).unwrap();
        let (out, dqkv) = (nan(self.dout.len()), nan(self.qkv.len()));
        let (lse, delta) = (nan_f32(self.dims.heads * self.dims.tokens), nan_f32(self.dims.heads * self.dims.tokens));
        let (qkv, dout) = (device.upload(&self.qkv).unwrap(), device.upload(&self.dout).unwrap());
        let mask = self.mask(device);
        attention::fwd(device, &out, &lse, &qkv, &mask, self.scale, &self.dims).unwrap();
        attention::bwd(device, &dqkv, &delta, &dout, &out, &lse, &qkv, &mask, None, self.scale, &self.dims).unwrap();
        Outputs {
            out: device.download(&out).unwrap(),
            lse: device.download(&lse).unwrap(),
            dqkv: device.download(&dqkv).unwrap(),
        }
    }
}

fn tree(shape: Shape) -> Tree {
    let segment =
        |&(parent, tokens): &(Option<usize>, usize)| Segment { parent, tokens: vec![0; tokens], ..Segment::default() };
    Tree { name: "test".into(), segments: shape.iter().map(segment).collect(), ..Tree::default() }
}

/// Accumulates in f32, and rounds to `T` what the kernels store or feed to a matrix product.
pub(super) const fn naive<T: Float>() -> Rounding<'static> {
    Rounding { each: &|x| f64::from(x as f32), stored: &|x| f64::from(T::from_f32(x as f32).to_f32()) }
}

/// Both exponentials of a probability are within 2^-22, four roundings of f32, and a result is a sum of terms weighted
/// by probabilities; a factor of 2 for terms that cancel.
pub(super) fn allowance(want: &[f64]) -> f64 {
    2.0 * 8.0 * roundoff::<f32>() * want.iter().fold(0.0, |top, x| f64::max(top, x.abs()))
}

fn fwd<T: Float>(device: &Device, on: &str) {
    for case in CASES {
        let inputs = Inputs::<T>::new(case);
        let (qkv, scale) = (widen(&inputs.qkv), f64::from(inputs.scale));
        let (want, want_lse) = oracle::fwd(&qkv, &inputs.forest, scale, &inputs.dims, &EXACT);
        let (naive, naive_lse) = oracle::fwd(&qkv, &inputs.forest, scale, &inputs.dims, &naive::<T>());
        let got = inputs.run(device);
        let what = format!("attention fwd {} {} on {on}", type_name::<T>(), case.name);
        assert_within_rule(&format!("{what}: out"), &widen(&got.out), &want, &naive, allowance(&want));
        assert_within_rule(&format!("{what}: lse"), &widen(&got.lse), &want_lse, &naive_lse, allowance(&want_lse));
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for case in CASES {
        let inputs = Inputs::<T>::new(case);
        let (qkv, dout, scale) = (widen(&inputs.qkv), widen(&inputs.dout), f64::from(inputs.scale));
        let want = oracle::bwd(&dout, &qkv, &inputs.forest, scale, &inputs.dims, &EXACT);
        let naive = oracle::bwd(&dout, &qkv, &inputs.forest, scale, &inputs.dims, &naive::<T>());
        let got = widen(&inputs.run(device).dqkv);
        judge_parts(&format!("attention bwd {} {} on {on}", type_name::<T>(), case.name), &inputs, &got, &want, &naive);
    }
}

/// Queries, keys and values differ in size, and each is judged by its own.
pub(super) fn judge_parts<T: Float>(what: &str, inputs: &Inputs<T>, got: &[f64], want: &[f64], naive: &[f64]) {
    let Dims { tokens, heads, kv_heads, head_dim, window, .. } = inputs.dims;
    let alone = tokens == 1 || window == Some(1);
    let slots = [("dq", 0..heads), ("dk", heads..heads + kv_heads), ("dv", heads + kv_heads..heads + 2 * kv_heads)];
    for (name, slots) in slots {
        let pick = |data: &[f64]| -> Vec<f64> {
            let rows = data.chunks((heads + 2 * kv_heads) * head_dim);
            rows.flat_map(|row| row[slots.start * head_dim..slots.end * head_dim].to_vec()).collect()
        };
        let (got, want, naive) = (pick(got), pick(want), pick(naive));
        let allowance = allowance(&want) + if alone { cancelled(inputs) } else { 0.0 };
        assert_within_rule(&format!("{what}: {name}"), &got, &want, &naive, allowance);
    }
}

/// A token that sees itself alone has dq = dk = 0: ds = p (dp - delta) are two equal sums of head_dim products. Each is off
/// by at most head_dim roundoffs of f32 on its terms; ds then meets one query or key.
fn cancelled<T: Float>(inputs: &Inputs<T>) -> f64 {
    let [x, dout] = [&inputs.qkv, &inputs.dout].map(|data| max_abs(&widen(data)));
    let head_dim = inputs.dims.head_dim as f64;
    2.0 * head_dim * roundoff::<f32>() * (head_dim * dout * x) * f64::from(inputs.scale) * x
}

/// A response does not see its siblings or other trees, so nothing about them may reach its bits.
fn other_sequences_change_no_bit<T: Float>(device: &Device, on: &str) {
    const TREES: &[Shape] = &[&[(ROOT, 20), (Some(0), 70), (Some(0), 45)], PAIR];
    let case = Case { name: "two trees", trees: TREES, heads: 2, kv_heads: 1, ..PLAIN };
    let before = Inputs::<T>::new(&case);
    // All of the first response: its scores rise above everything else.
    let mut after = Inputs::<T>::new(&case);
    let width = before.qkv.len() / before.dims.tokens;
    let out_width = before.dout.len() / before.dims.tokens;
    let louder = |x: &mut T| *x = T::from_f32(x.to_f32() * -30.0 + 1.0);
    after.qkv[20 * width..90 * width].iter_mut().for_each(louder);
    after.dout[20 * out_width..90 * out_width].iter_mut().for_each(louder);
    let (a, b) = (before.run(device), after.run(device));

    let rows = |data: &[T], tokens: std::ops::Range<usize>| {
        let width = data.len() / before.dims.tokens;
        data[tokens.start * width..tokens.end * width].to_vec()
    };
    let what = format!("attention {} on {on}", type_name::<T>());
    let tokens = before.dims.tokens;
    assert!(rows(&a.out, 0..20) == rows(&b.out, 0..20), "{what}: out of the prompt changed");
    assert!(rows(&a.out, 20..90) != rows(&b.out, 20..90), "{what}: out of the changed response did not");
    assert!(rows(&a.out, 90..tokens) == rows(&b.out, 90..tokens), "{what}: out of another sequence changed");
    assert!(rows(&a.dqkv, 90..tokens) == rows(&b.dqkv, 90..tokens), "{what}: dqkv of another sequence changed");
    for head in 0..2 {
        let lse = |data: &[f32]| data[head * tokens + 90..(head + 1) * tokens].to_vec();
        assert!(lse(&a.lse) == lse(&b.lse), "{what}: lse of another sequence changed");
    }
}

fn schedules_change_no_bit<T: Float>() {
    let case = &CASES[6];
    let inputs = Inputs::<T>::new(case);
    let want = inputs.run(&fast_device(1));
    for threads in [2, 3, 5] {
        assert!(inputs.run(&fast_device(threads)) == want, "{threads} worker threads changed bits");
    }
    for (device, name) in strict_devices() {
        assert!(inputs.run(&device) == want, "{name} changed bits");
    }
}
