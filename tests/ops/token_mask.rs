//! The masks' gradients are tested with their loss; here, kernels on every device and in both precisions.

use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::token_mask::{self, Activations, Weights},
};

use crate::support::{cast, for_each_device, normal, widen};

const TOKENS: usize = 11;
/// More than a warp's lanes, no multiple of them.
const WIDTH: usize = 45;
const SOURCES: [i32; 9] = [0, 3, 3, 4, 10, 7, 1, 2, 9];
const SEQUENCES: [i32; 5] = [0, 1, 5, 5, 9];
const LAYERS: usize = 3;

fn upload_all<T: Float>(device: &Device) -> (Vec<f64>, warpo::device::Buffer<T>, warpo::device::Buffer<i32>) {
    let x = cast::<T>(&normal(1, TOKENS * WIDTH));
    (widen(&x), device.upload(&x).unwrap(), device.upload(&SOURCES).unwrap())
}

fn fixed<T: Float>(device: &Device, on: &str) {
    let (x, on_device, row_source) = upload_all::<T>(device);
    let from = Activations { x: &on_device, row_source: &row_source, width: WIDTH };
    let (means, mask) = (device.alloc(SOURCES.len()).unwrap(), device.zeros(SOURCES.len()).unwrap());
    token_mask::means(device, &means, from).unwrap();
    token_mask::stretch(device, &mask, &means, &device.upload(&SEQUENCES).unwrap(), 0.5).unwrap();
    let want: Vec<f64> =
        SOURCES.iter().map(|&s| x[s as usize * WIDTH..][..WIDTH].iter().sum::<f64>() / WIDTH as f64).collect();
    let got = device.download(&mask).unwrap();
    for ends in SEQUENCES.windows(2) {
        let own = &want[ends[0] as usize..ends[1] as usize];
        let (low, high) = own.iter().fold((f64::MAX, f64::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        for (i, x) in own.iter().enumerate() {
            let want = 0.5 * if high > low { (x - low) / (high - low) } else { 1.0 };
            // A mean of 45 numbers in f32, divided by a range of at least a tenth.
            let got = f64::from(got[ends[0] as usize + i]);
            assert!((got - want).abs() < 1e-5, "{on}: {got} for {want}");
        }
    }
}

#[test]
fn fixed_masks() {
    for_each_device(|device, on| {
        fixed::<f32>(device, on);
        fixed::<bf16>(device, on);
    });
}

struct Learned {
    norm_weight: Vec<f32>,
    norm_bias: Vec<f32>,
    w: Vec<f32>,
    b: Vec<f32>,
    gamma: Vec<f32>,
}

impl Learned {
    fn new() -> Self {
        let near = |seed, len, mean: f32| normal(seed, len).iter().map(|x| mean + 0.2 * x).collect::<Vec<f32>>();
        Self {
            norm_weight: near(2, WIDTH, 1.0),
            norm_bias: near(3, WIDTH, 0.0),
            w: near(4, LAYERS * WIDTH, 0.0),
            b: near(5, LAYERS, 0.3),
            gamma: near(6, LAYERS, 0.3),
        }
    }

    /// Loss `sum of slope * mask` with one element of everything moved by `change`.
    fn value(&self, x: &[f64], slopes: &[f32], moved: (usize, usize, f64)) -> f64 {
        let at = |tensor: usize, values: &[f32], i: usize| {
            f64::from(values[i]) + if moved.0 == tensor && moved.1 == i { moved.2 } else { 0.0 }
        };
        let mut total = 0.0;
        for (row, &source) in SOURCES.iter().enumerate() {
            let x = &x[source as usize * WIDTH..][..WIDTH];
            let mean = x.iter().sum::<f64>() / WIDTH as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            let mut sum = 0.0;
            for layer in 0..LAYERS {
                let normed = |c: usize| {
                    (x[c] - mean) / (variance + 1e-5).sqrt() * at(0, &self.norm_weight, c) + at(1, &self.norm_bias, c)
                };
                let dot: f64 = (0..WIDTH).map(|c| at(2, &self.w, layer * WIDTH + c) * normed(c)).sum();
                sum += at(4, &self.gamma, layer) * (dot + at(3, &self.b, layer)).max(0.0);
            }
            total += f64::from(slopes[row]) * sum.max(0.0);
        }
        total
    }
}

fn learned<T: Float>(device: &Device, on: &str) {
    let (x, on_device, row_source) = upload_all::<T>(device);
    let parts = Learned::new();
    let from = Activations { x: &on_device, row_source: &row_source, width: WIDTH };
    let rows = SOURCES.len();
    let upload = |values: &[f32]| device.upload(values).unwrap();
    let (w, b, gamma) = (upload(&parts.w), upload(&parts.b), upload(&parts.gamma));
    let (norm_weight, norm_bias) = (upload(&parts.norm_weight), upload(&parts.norm_bias));
    let weights = |layer: usize| Weights {
        norm_weight: norm_weight.clone(),
        norm_bias: norm_bias.clone(),
        w: w.slice(layer * WIDTH..(layer + 1) * WIDTH),
        b: b.slice(layer..layer + 1),
    };
    let zeros = |len: usize| device.zeros::<f32>(len).unwrap();
    let (pre, stats, mask) = (zeros(LAYERS * rows), zeros(2 * LAYERS * rows), zeros(rows));
    let layer_of = |layer: usize| {
        (pre.slice(layer * rows..(layer + 1) * rows), stats.slice(2 * layer * rows..2 * (layer + 1) * rows))
    };
    for layer in 0..LAYERS {
        let (pre, stats) = layer_of(layer);
        token_mask::layer(device, &pre, &stats, from, &weights(layer)).unwrap();
    }
    token_mask::mix(device, &mask, &pre, &gamma).unwrap();
    let slopes = normal(8, rows);
    let got: f64 =
        device.download(&mask).unwrap().iter().zip(&slopes).map(|(&m, &s)| f64::from(m) * f64::from(s)).sum();
    let want = parts.value(&x, &slopes, (9, 0, 0.0));
    // Sums of a few hundred f32 products.
    assert!((got - want).abs() < 1e-5, "{on}: {got} for {want}");

    let grads = [zeros(WIDTH), zeros(WIDTH), zeros(LAYERS * WIDTH), zeros(LAYERS), zeros(LAYERS)];
    let dpre = zeros(LAYERS * rows);
    token_mask::mix_bwd(device, &dpre, &grads[4], &upload(&slopes), &mask, &pre, &gamma).unwrap();
    for layer in 0..LAYERS {
        let own = Weights {
            norm_weight: grads[0].clone(),
            norm_bias: grads[1].clone(),
            w: grads[2].slice(layer * WIDTH..(layer + 1) * WIDTH),
            b: grads[3].slice(layer..layer + 1),
        };
        let dpre = dpre.slice(layer * rows..(layer + 1) * rows);
        token_mask::layer_bwd(device, &own, &dpre, &layer_of(layer).1, from, &weights(layer)).unwrap();
    }
    for (tensor, grads) in grads.iter().enumerate() {
        for (i, &got) in device.download(grads).unwrap().iter().enumerate() {
            let h = 1e-6;
            let slope =
                (parts.value(&x, &slopes, (tensor, i, h)) - parts.value(&x, &slopes, (tensor, i, -h))) / (2.0 * h);
            // Linear but for the norm's weight times w: rounding alone, of f64 over the step and of f32 sums of nine rows.
            assert!((f64::from(got) - slope).abs() < 2e-5, "{on}: tensor {tensor}, element {i}: {got} for {slope}");
        }
    }
}

#[test]
fn learned_masks() {
    for_each_device(|device, on| {
        learned::<f32>(device, on);
        learned::<bf16>(device, on);
    });
}
