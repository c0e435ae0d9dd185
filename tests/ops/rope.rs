use half::bf16;
use warpo::{
    device::{Device, Fault, Float},
    ops::{
        gemm::Gemm,
        gemm::sm90::{Plan, Tile},
        rope::{self, Heads, Rotary},
    },
};

use crate::{
    oracles,
    support::{
        assert_same_bits, assert_within_rule, cast, every_fault_is_caught, fast_hopper, for_each_device, normal,
        round_to, roundoff, strict_hoppers, type_name, widen,
    },
};

/// (tokens, heads, kv_heads, head_dim): one token, ragged heads, the head sizes of attention, more than one CTA.
const SHAPES: &[(usize, usize, usize, usize)] =
    &[(1, 1, 1, 2), (3, 2, 1, 6), (5, 3, 1, 20), (7, 4, 2, 32), (3, 2, 2, 64), (2, 3, 1, 96), (9, 4, 1, 128)];

#[test]
fn apply_f32() {
    for_each_device(|device, on| {
        apply::<f32>(device, on, false);
        apply::<f32>(device, on, true);
    });
}

#[test]
fn apply_bf16() {
    for_each_device(|device, on| {
        apply::<bf16>(device, on, false);
        apply::<bf16>(device, on, true);
    });
}

fn apply<T: Float>(device: &Device, on: &str, inverse: bool) {
    for &(tokens, heads, kv_heads, head_dim) in SHAPES {
        let width = (heads + 2 * kv_heads) * head_dim;
        let positions = tokens + 3;
        let [cos, sin] = tables(positions, head_dim);
        let position: Vec<i32> = (0..tokens).map(|t| ((t * 5 + 2) % positions) as i32).collect();
        let before: Vec<T> = cast(&normal(1, tokens * width));
        let (wide, direction) = (widen(&before), if inverse { -1.0 } else { 1.0 });
        let want =
            oracles::rope::apply(&wide, &position, &widen(&cos), &widen(&sin), direction, heads, kv_heads, head_dim);

        let qkv = device.upload(&before).unwrap();
        let position = device.upload(&position).unwrap();
        let rotary = Rotary { cos: device.upload(&cos).unwrap(), sin: device.upload(&sin).unwrap() };
        rope::apply(device, &qkv, &position, &rotary, inverse, &Heads { heads, kv_heads, head_dim }).unwrap();

        let got = device.download(&qkv).unwrap();
        let shape = format!("{tokens}x({heads}+2*{kv_heads})x{head_dim}");
        let what = format!("rope {} {shape} inverse {inverse} on {on}", type_name::<T>());
        // Three roundings in f32 on values up to 5 * sqrt(2).
        let allowance = 3.0 * 8.0 * roundoff::<f32>();
        assert_within_rule(&what, &widen(&got), &want, &round_to::<T>(&want), allowance);
        for t in 0..tokens {
            let values = t * width + (heads + kv_heads) * head_dim..(t + 1) * width;
            assert_same_bits(&format!("{what}: values of token {t}"), &got[values.clone()], &before[values]);
        }
    }
}

/// Tables of angles for positions below `positions`, as a model of this head size has them.
pub(super) fn tables(positions: usize, head_dim: usize) -> [Vec<f32>; 2] {
    let half = head_dim / 2;
    let angle = |i: usize| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
    let table = |of: fn(f64) -> f64| (0..positions * half).map(|i| of(angle(i)) as f32).collect();
    [table(f64::cos), table(f64::sin)]
}

/// The product before the rotation.
struct Projection<T> {
    heads: Heads,
    tokens: usize,
    hidden: usize,
    x: Vec<T>,
    w: Vec<T>,
    bias: Option<Vec<T>>,
    position: Vec<i32>,
    tables: [Vec<f32>; 2],
}

impl<T: Float> Projection<T> {
    fn new(tokens: usize, hidden: usize, [heads, kv_heads, head_dim]: [usize; 3], biased: bool) -> Self {
        let heads = Heads { heads, kv_heads, head_dim };
        let w: Vec<f32> = normal(2, heads.width() * hidden).iter().map(|x| x / (hidden as f32).sqrt()).collect();
        Self {
            heads,
            tokens,
            hidden,
            x: cast(&normal(1, tokens * hidden)),
            w: cast(&w),
            bias: biased.then(|| cast(&normal(3, heads.width()))),
            position: (0..tokens).map(|t| ((t * 5 + 2) % (tokens + 3)) as i32).collect(),
            tables: tables(tokens + 3, head_dim),
        }
    }

    /// By the plan, or by whatever the device takes.
    fn run(&self, device: &Device, stages: Option<usize>) -> anyhow::Result<Vec<T>> {
        let Self { heads, tokens, hidden, .. } = self;
        let sizes = [*tokens, *hidden];
        let qkv = device.upload(&vec![T::from_f32(f32::NAN); tokens * heads.width()])?;
        let (x, w, position) = (device.upload(&self.x)?, device.upload(&self.w)?, device.upload(&self.position)?);
        let bias = self.bias.as_ref().map(|bias| device.upload(bias)).transpose()?;
        let [cos, sin] = self.tables.each_ref().map(|table| device.upload(table).unwrap());
        let rotary = Rotary { cos, sin };
        match stages {
            Some(stages) => {
                // Two clusters.
                let plan = Plan::with_tile(&Gemm::nt(*tokens, heads.width(), *hidden), Tile::M128N256, 4);
                let (qkv, x, w, bias) = (qkv.cast(), x.cast(), w.cast(), bias.map(|bias| bias.cast()));
                let plan = Plan { stages, ..plan };
                rope::project_planned(device, &plan, &qkv, &x, &w, bias.as_ref(), &position, &rotary, heads, sizes)?;
            }
            None => rope::project(device, &qkv, &x, &w, bias.as_ref(), &position, &rotary, heads, sizes)?,
        }
        device.download(&qkv)
    }

    fn check(&self, device: &Device, on: &str, stages: Option<usize>) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let width = self.heads.width();
        let (mut product, magnitude) =
            oracles::gemm::run(&Gemm::nt(self.tokens, width, self.hidden), &widen(&self.x), &widen(&self.w));
        let bias = self.bias.as_ref().map_or(vec![0.0; width], |bias| widen(bias));
        product.iter_mut().enumerate().for_each(|(i, x)| *x += bias[i % width]);
        let [cos, sin] = self.tables.each_ref().map(|table| widen(table));
        let turn = |x: &[f64]| oracles::rope::apply(x, &self.position, &cos, &sin, 1.0, heads, kv_heads, head_dim);
        let (want, naive) = (turn(&product), round_to::<T>(&turn(&round_to::<T>(&product))));
        let what = format!(
            "rope project {} {}x{width}x{} {:?} on {on}",
            type_name::<T>(),
            self.tokens,
            self.hidden,
            self.heads
        );
        let got = self.run(device, stages).unwrap_or_else(|why| panic!("{what}: {why:#}"));
        // Each addition of the sum is off by a roundoff of at most the sum of magnitudes; the rotation by three of values up
        // to sqrt(2) times as large.
        let largest = magnitude.iter().chain(&bias).fold(0.0f64, |top, x| top.max(x.abs()));
        let allowance = 1.5 * (self.hidden as f64 + 4.0) * roundoff::<f32>() * largest;
        assert_within_rule(&what, &widen(&got), &want, &naive, allowance);
    }
}

/// Heads across tiles of the product, rows and columns that do not fill the last, with and without a bias.
#[test]
fn the_product_and_the_rotation() {
    for_each_device(|device, on| {
        Projection::<f32>::new(9, 24, [3, 1, 32], true).check(device, on, None);
        Projection::<bf16>::new(9, 24, [3, 1, 32], true).check(device, on, None);
        Projection::<bf16>::new(9, 24, [2, 1, 64], false).check(device, on, None);
    });
    for (device, on) in strict_hoppers() {
        for stages in [None, Some(1)] {
            Projection::<bf16>::new(9, 24, [2, 1, 64], true).check(&device, &on, stages);
            Projection::<bf16>::new(130, 40, [5, 2, 64], false).check(&device, &on, stages);
            Projection::<bf16>::new(300, 136, [3, 1, 128], true).check(&device, &on, stages);
        }
    }
}

#[test]
fn depths_and_schedules_change_no_bit_of_the_projection() {
    let case = Projection::<bf16>::new(300, 5 * 64, [5, 2, 64], true);
    let want = case.run(&fast_hopper(2), Some(4)).unwrap();
    for (device, on) in strict_hoppers() {
        for stages in [1, 2] {
            assert!(case.run(&device, Some(stages)).unwrap() == want, "{stages} slots on {on}");
        }
    }
}

#[test]
fn every_fault_of_the_projection_is_caught() {
    let case = Projection::<bf16>::new(260, 5 * 64, [5, 2, 64], true);
    let want = case.run(&strict_hoppers()[0].0, Some(2)).unwrap();
    every_fault_is_caught(&Fault::ALL, |device| Ok(case.run(device, Some(2))? == want));
}
