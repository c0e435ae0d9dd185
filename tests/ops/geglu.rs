use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::geglu,
};

use crate::{
    oracles,
    support::{assert_within_rule, cast, for_each_device, max_abs, normal, round_to, roundoff, type_name, widen},
};

/// (rows, ffn): one row, ragged, exact chunks, more than one CTA.
const SHAPES: &[(usize, usize)] = &[(1, 8), (1, 3), (3, 40), (5, 33), (8, 128), (67, 24)];

/// As in the tests of gelu: relative to gate times up.
const FWD_ROUNDOFFS: f64 = 4.0 * 13.0 + 9.0;
const BWD_ROUNDOFFS: f64 = 3.0 * FWD_ROUNDOFFS;

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

fn fwd<T: Float>(device: &Device, on: &str) {
    for &(rows, ffn) in SHAPES {
        let gate_up: Vec<T> = cast(&normal(1, rows * 2 * ffn));
        let want = oracles::geglu::fwd(&widen(&gate_up), ffn);
        let y = device.alloc::<T>(rows * ffn).unwrap();
        geglu::fwd(device, &y, &device.upload(&gate_up).unwrap(), rows, ffn).unwrap();

        let what = format!("geglu fwd {} {rows}x{ffn} on {on}", type_name::<T>());
        let allowance = FWD_ROUNDOFFS * roundoff::<f32>() * max_abs(&widen(&gate_up)).powi(2);
        assert_within_rule(&what, &widen(&device.download(&y).unwrap()), &want, &round_to::<T>(&want), allowance);
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &(rows, ffn) in SHAPES {
        let gate_up: Vec<T> = cast(&normal(1, rows * 2 * ffn));
        let dy: Vec<T> = cast(&normal(2, rows * ffn));
        let want = oracles::geglu::bwd(&widen(&dy), &widen(&gate_up), ffn);
        // In place: each thread has read what it overwrites.
        let (dgate_up, y) = (device.upload(&gate_up).unwrap(), device.upload(&dy).unwrap());
        geglu::bwd(device, &dgate_up, &y, &y, &dgate_up, rows, ffn).unwrap();

        let what = format!("geglu bwd {} {rows}x{ffn} on {on}", type_name::<T>());
        let allowance =
            BWD_ROUNDOFFS * roundoff::<f32>() * max_abs(&widen(&dy)) * max_abs(&widen(&gate_up)).powi(2).max(1.0);
        let got = widen(&device.download(&dgate_up).unwrap());
        assert_within_rule(&what, &got, &want, &round_to::<T>(&want), allowance);
        let forward = device.alloc::<T>(rows * ffn).unwrap();
        geglu::fwd(device, &forward, &device.upload(&gate_up).unwrap(), rows, ffn).unwrap();
        let [again, forward] = [y, forward].map(|y| device.download(&y).unwrap());
        assert!(again == forward, "{what}: y is not that of the forward pass");
    }
}
