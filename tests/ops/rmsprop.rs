use std::iter::repeat;

use half::bf16;
use warpo::{
    device::{Buffer, DType, Device, Float},
    ops::rmsprop::{self, Hyper, Tensors},
};

use crate::{
    oracles,
    support::{assert_same_bits, assert_within_rule, for_each_device, max_abs, normal, roundoff, type_name, widen},
};

/// (elements, decayed elements): one element, ragged with the boundary inside a chunk, exact, all and none decayed.
const SHAPES: &[(usize, usize)] = &[(1, 1), (13, 5), (64, 64), (1024, 16), (1029, 1003), (40, 0)];
const STEPS: u64 = 5;
const HYPER: Hyper = Hyper { lr: 1e-2, alpha: 0.99, eps: 1e-8, weight_decay: 0.1 };

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
            assert_same_bits(&format!("rmsprop weights on {on}"), &device.download(&state.params).unwrap(), &halves.0);
            assert_same_bits(&format!("rmsprop low bits on {on}"), &device.download(&state.low).unwrap(), &halves.1);
        }
    });
}

struct State<T> {
    params: Buffer<T>,
    low: Buffer<u16>,
    square_avg: Buffer<f32>,
    updates: Buffer<f64>,
}

impl<T: Float> State<T> {
    fn new(device: &Device, elements: usize) -> Self {
        let (weights, low): (Vec<T>, Vec<u16>) = normal(1, elements).into_iter().map(T::split).unzip();
        let low = if T::DTYPE == DType::F32 { &[] } else { &low[..] };
        let (params, low) = (device.upload(&weights).unwrap(), device.upload(low).unwrap());
        Self { params, low, square_avg: device.zeros(elements).unwrap(), updates: device.zeros(1).unwrap() }
    }

    fn masters(&self, device: &Device) -> Vec<f32> {
        let (weights, low) = (device.download(&self.params).unwrap(), device.download(&self.low).unwrap());
        let low = low.into_iter().chain(repeat(0));
        weights.into_iter().zip(low).map(|(weight, low)| weight.join(low)).collect()
    }

    fn step(&self, device: &Device, grads: &[f32], stats: [f32; 3], decay: usize) {
        let (grads, stats) = (device.upload(grads).unwrap(), device.upload(&stats).unwrap());
        let Self { params, low, square_avg, updates } = self;
        let tensors = Tensors { params, low, square_avg, grads: &grads, stats: &stats, updates };
        rmsprop::step(device, &tensors, HYPER, decay).unwrap();
    }

    fn download(&self, device: &Device) -> [Vec<f32>; 2] {
        [self.masters(device), device.download(&self.square_avg).unwrap()]
    }
}

fn follow<T: Float>(device: &Device, on: &str, state: &State<T>, decay: usize) {
    let elements = state.params.len();
    let (mut w, mut square_avg) = (widen(&normal(1, elements)), vec![0.0; elements]);
    for step in 1..=STEPS {
        // Gradients from tiny to large, as a model has them.
        let grads: Vec<f32> =
            normal(10 + step, elements).iter().enumerate().map(|(i, g)| g * 10f32.powi(i as i32 % 7 - 5)).collect();
        state.step(device, &grads, [3.0, 0.5, 1.0], decay);
        oracles::rmsprop::step(&mut w, &mut square_avg, &widen(&grads), 0.5, HYPER, decay);
    }
    assert_eq!(device.download(&state.updates).unwrap(), [STEPS as f64], "on {on}");
    let what = format!("rmsprop {} {elements}, {decay} decayed on {on}", type_name::<T>());
    let [got_w, got_square] = state.download(device).map(|data| widen(&data));
    let (steps, unit) = (STEPS as f64, roundoff::<f32>());
    // A weight moves by at most lr / sqrt(1 - alpha) a step, with a relative error of that of its gradient, half that of the
    // mean and six operations. Where decay and gradient cancel, a gradient is off by a rounding of either, which the division
    // magnifies by the size of the mean's root: gradients of 5e-5 beside a decay of 0.1 of a weight of 1.
    let change = HYPER.lr / (1.0 - HYPER.alpha).sqrt();
    let slope = 5.0 + HYPER.weight_decay * max_abs(&w);
    assert_within_rule(
        &format!("{what}: mean"),
        &got_square,
        &square_avg,
        &square_avg,
        8.0 * steps * unit * slope * slope,
    );
    let allowance = steps * unit * (max_abs(&w) + change * (7.0 * steps + 6.0) * 8.0);
    assert_within_rule(&format!("{what}: w"), &got_w, &w, &w, allowance);
}

/// Steps of torch.optim.RMSprop(lr = 0.1, alpha = 0.99, eps = 1e-8, weight_decay = 0.5), by the formula of its documentation:
/// w = 1, gradients 2 and then -1.
#[test]
fn two_steps_by_hand() {
    let mut w = [1.0];
    let mut square_avg = [0.0];
    let hyper = Hyper { lr: 0.1, alpha: 0.99, eps: 1e-8, weight_decay: 0.5 };
    // g = 2.5, mean 0.0625, w = 1 - 0.1 * 2.5 / 0.25 = 0.
    oracles::rmsprop::step(&mut w, &mut square_avg, &[2.0], 1.0, hyper, 1);
    assert!((square_avg[0] - 0.0625).abs() < 1e-15 && w[0].abs() < 1e-7, "{square_avg:?} {w:?}");
    // g = -1, mean 0.99 * 0.0625 + 0.01 = 0.071875, w = 0.1 / sqrt(0.071875).
    oracles::rmsprop::step(&mut w, &mut square_avg, &[-1.0], 1.0, hyper, 1);
    assert!((square_avg[0] - 0.071875).abs() < 1e-9 && (w[0] - 0.373_002).abs() < 1e-6, "{square_avg:?} {w:?}");
}

#[test]
fn gradients_that_are_not_finite_change_nothing() {
    for_each_device(|device, on| {
        let elements = 29;
        let state = State::<bf16>::new(device, elements);
        state.step(device, &normal(4, elements), [1.0, 1.0, 1.0], 7);
        let (before, params_before) = (state.download(device), device.download(&state.params).unwrap());
        state.step(device, &vec![f32::NAN; elements], [f32::NAN, f32::NAN, 0.0], 7);
        for (after, before) in state.download(device).iter().zip(&before) {
            assert_same_bits(&format!("state on {on}"), after, before);
        }
        assert_same_bits(&format!("params on {on}"), &device.download(&state.params).unwrap(), &params_before);
        assert_eq!(device.download(&state.updates).unwrap(), [1.0], "on {on}");
    });
}

#[test]
fn refusals_name_the_value() {
    let device = crate::support::fast_device(1);
    let buffer = device.zeros::<f32>(4).unwrap();
    let (stats, updates) = (device.zeros::<f32>(3).unwrap(), device.zeros::<f64>(2).unwrap());
    let step = |updates: &Buffer<f64>, decay| {
        let ([params, square_avg, grads], low) = ([&buffer; 3], &device.zeros(0).unwrap());
        let tensors = Tensors { params, low, square_avg, grads, stats: &stats, updates };
        rmsprop::step(&device, &tensors, HYPER, decay).unwrap_err().to_string()
    };
    assert_eq!(step(&updates.slice(0..1), 5), "rmsprop: decay of 5 of 4 elements");
    assert_eq!(step(&updates, 4), "rmsprop updates: expected [1] = 1 elements, found 2");
}
