use std::iter::repeat;

use half::bf16;
use warpo::{
    device::{Buffer, DType, Device, Float},
    ops::adamw::{self, Hyper, Tensors},
};

use crate::{
    oracles,
    support::{assert_same_bits, assert_within_rule, for_each_device, max_abs, normal, roundoff, type_name, widen},
};

/// (elements, decayed elements): one element, ragged with the boundary inside a chunk, exact, all and none decayed.
const SHAPES: &[(usize, usize)] = &[(1, 1), (13, 5), (64, 64), (1024, 16), (1029, 1003), (40, 0)];
const STEPS: u64 = 5;
const HYPER: Hyper = Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

#[test]
fn step_f32() {
    for_each_device(|device, on| {
        for &(elements, decay) in SHAPES {
            follow(device, on, &State::<f32>::new(device, elements), decay);
        }
    });
}

#[test]
fn step_bf16() {
    for_each_device(|device, on| {
        for &(elements, decay) in SHAPES {
            let state = State::<bf16>::new(device, elements);
            follow(device, on, &state, decay);
            let halves: (Vec<bf16>, Vec<u16>) = state.masters(device).into_iter().map(bf16::split).unzip();
            assert_same_bits(&format!("adamw weights on {on}"), &device.download(&state.params).unwrap(), &halves.0);
            assert_same_bits(&format!("adamw low bits on {on}"), &device.download(&state.low).unwrap(), &halves.1);
        }
    });
}

struct State<T> {
    params: Buffer<T>,
    low: Buffer<u16>,
    m: Buffer<f32>,
    v: Buffer<f32>,
    progress: Buffer<f64>,
}

impl<T: Float> State<T> {
    fn new(device: &Device, elements: usize) -> Self {
        let (weights, low): (Vec<T>, Vec<u16>) = normal(1, elements).into_iter().map(T::split).unzip();
        let low = if T::DTYPE == DType::F32 { &[] } else { &low[..] };
        let (params, low) = (device.upload(&weights).unwrap(), device.upload(low).unwrap());
        let progress = device.upload(&adamw::progress(0, HYPER.beta1, HYPER.beta2)).unwrap();
        Self { params, low, m: device.zeros(elements).unwrap(), v: device.zeros(elements).unwrap(), progress }
    }

    fn masters(&self, device: &Device) -> Vec<f32> {
        let (weights, low) = (device.download(&self.params).unwrap(), device.download(&self.low).unwrap());
        let low = low.into_iter().chain(repeat(0));
        weights.into_iter().zip(low).map(|(weight, low)| weight.join(low)).collect()
    }

    fn step(&self, device: &Device, grads: &[f32], stats: [f32; 3], decay: usize) {
        let grads = device.upload(grads).unwrap();
        let stats = device.upload(&stats).unwrap();
        let Self { params, low, m, v, progress } = self;
        let (grads, stats) = (&grads, &stats);
        let tensors = Tensors { params, low, grads, stats, progress, decay_elements: decay };
        adamw::step(device, &tensors, [m, v], HYPER).unwrap();
    }

    fn download(&self, device: &Device) -> [Vec<f32>; 3] {
        let [m, v] = [&self.m, &self.v].map(|buffer| device.download(buffer).unwrap());
        [self.masters(device), m, v]
    }
}

fn follow<T: Float>(device: &Device, on: &str, state: &State<T>, decay: usize) {
    let elements = state.params.len();
    let mut w = widen(&normal(1, elements));
    let (mut m, mut v) = (vec![0.0; elements], vec![0.0; elements]);
    for step in 1..=STEPS {
        // Gradients from tiny to large, as a model has them.
        let grads: Vec<f32> =
            normal(10 + step, elements).iter().enumerate().map(|(i, g)| g * 10f32.powi(i as i32 % 7 - 5)).collect();
        state.step(device, &grads, [3.0, 0.5, 1.0], decay);
        oracles::adamw::step(&mut w, &mut m, &mut v, &widen(&grads), 0.5, (HYPER, step), decay);
    }
    let what = format!("adamw {} {elements}, {decay} decayed on {on}", type_name::<T>());
    let [got_w, got_m, got_v] = state.download(device).map(|data| widen(&data));
    // Per step m and v take four roundings (constant, product, product, sum), v two more for the square.
    let steps = STEPS as f64;
    let unit = roundoff::<f32>();
    assert_within_rule(&format!("{what}: m"), &got_m, &m, &m, 4.0 * steps * unit * max_abs(&m));
    assert_within_rule(&format!("{what}: v"), &got_v, &v, &v, 6.0 * steps * unit * max_abs(&v));
    // Per step the weight is rounded once, and moves by at most lr * (10 + weight decay * 5) with a relative error of
    // that of m, half that of v and six operations.
    let change = HYPER.lr * (10.0 + HYPER.weight_decay * 5.0);
    let allowance = steps * unit * (max_abs(&w) + change * (7.0 * steps + 6.0));
    assert_within_rule(&format!("{what}: w"), &got_w, &w, &w, allowance);
}

#[test]
fn gradients_that_are_not_finite_change_nothing() {
    for_each_device(|device, on| {
        let elements = 29;
        let state = State::<bf16>::new(device, elements);
        let grads = normal(4, elements);
        state.step(device, &grads, [1.0, 1.0, 1.0], 7);
        let (before, params_before) = (state.download(device), device.download(&state.params).unwrap());
        let bad = vec![f32::NAN; elements];
        state.step(device, &bad, [f32::NAN, f32::NAN, 0.0], 7);
        for (after, before) in state.download(device).iter().zip(&before) {
            assert_same_bits(&format!("state on {on}"), after, before);
        }
        assert_same_bits(&format!("params on {on}"), &device.download(&state.params).unwrap(), &params_before);
        assert_eq!(device.download(&state.progress).unwrap()[adamw::UPDATES], 1.0, "on {on}");
    });
}

/// A run that resumes after any number of updates has what one has that was never stopped, bit for bit.
#[test]
fn progress_is_what_the_device_counts() {
    for_each_device(|device, on| {
        let state = State::<f32>::new(device, 3);
        for updates in 1..=40 {
            state.step(device, &[0.5; 3], [1.0, 1.0, 1.0], 0);
            let got = device.download(&state.progress).unwrap();
            let want = adamw::progress(updates, HYPER.beta1, HYPER.beta2);
            assert_same_bits(&format!("after {updates} on {on}"), &got[..3], &want[..3]);
            // Of update t, in f64: the power is off by t roundings, and its distance from 1 is at least 1e-3 of it.
            let t = updates as i32;
            let exact = [HYPER.lr / (1.0 - HYPER.beta1.powi(t)), 1.0 / (1.0 - HYPER.beta2.powi(t)).sqrt()];
            for (got, want) in got[3..].iter().zip(exact) {
                assert!((got / want - 1.0).abs() < f64::from(t + 4) * 1e3 * f64::EPSILON, "on {on}: {got}, {want}");
            }
        }
    });
}

#[test]
fn refusals_name_the_value() {
    let device = crate::support::fast_device(1);
    let buffer = device.zeros::<f32>(4).unwrap();
    let stats = device.zeros::<f32>(3).unwrap();
    let progress = device.zeros::<f64>(4).unwrap();
    let step = |decay| {
        let ([m, v, grads], low) = ([&buffer; 3], device.zeros(0).unwrap());
        let (low, stats, progress) = (&low, &stats, &progress);
        let tensors = Tensors { params: &buffer, low, grads, stats, progress, decay_elements: decay };
        adamw::step(&device, &tensors, [m, v], HYPER).unwrap_err().to_string()
    };
    assert_eq!(step(5), "adamw: decay of 5 of 4 elements");
    assert_eq!(step(4), "adamw progress: expected [5] = 5 elements, found 4");
}
