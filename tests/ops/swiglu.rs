use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::swiglu,
};

use crate::{
    oracles,
    support::{assert_within_rule, cast, for_each_device, normal, round_to, roundoff, type_name, widen},
};

/// (rows, ffn): one row, ragged, exact chunks, more than one CTA.
const SHAPES: &[(usize, usize)] = &[(1, 8), (1, 3), (3, 40), (5, 33), (8, 128), (67, 24)];

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

/// Normal values, and in the first row gates far in both tails, where exp overflows.
fn input<T: Float>(rows: usize, ffn: usize) -> Vec<T> {
    let mut gate_up = normal(1, rows * 2 * ffn);
    gate_up.iter_mut().zip([-200.0, 200.0, -90.0]).take(ffn).for_each(|(gate, far)| *gate = far);
    cast(&gate_up)
}

fn fwd<T: Float>(device: &Device, on: &str) {
    for &(rows, ffn) in SHAPES {
        let gate_up = input::<T>(rows, ffn);
        let want = oracles::swiglu::fwd(&widen(&gate_up), ffn);
        let y = device.alloc::<T>(rows * ffn).unwrap();
        swiglu::fwd(device, &y, &device.upload(&gate_up).unwrap(), rows, ffn).unwrap();

        let what = format!("swiglu fwd {} {rows}x{ffn} on {on}", type_name::<T>());
        // exp to 2 ulp, then four operations: eight roundoffs relative to at most 200 * 5.
        let allowance = 8.0 * 1000.0 * roundoff::<f32>();
        assert_within_rule(&what, &widen(&device.download(&y).unwrap()), &want, &round_to::<T>(&want), allowance);
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &(rows, ffn) in SHAPES {
        let gate_up = input::<T>(rows, ffn);
        let dy: Vec<T> = cast(&normal(2, rows * ffn));
        let want = oracles::swiglu::bwd(&widen(&dy), &widen(&gate_up), ffn);
        // In place: each thread has read what it overwrites.
        let dgate_up = device.upload(&gate_up).unwrap();
        swiglu::bwd(device, &dgate_up, &device.upload(&dy).unwrap(), &dgate_up, rows, ffn).unwrap();

        let what = format!("swiglu bwd {} {rows}x{ffn} on {on}", type_name::<T>());
        // Six roundoffs in the sigmoid, five more operations, relative to at most 5 * 200. The factor 1 - s loses
        // digits where s is near 1, but its error there is an absolute one of the same size.
        let allowance = 11.0 * 1000.0 * roundoff::<f32>();
        let got = widen(&device.download(&dgate_up).unwrap());
        assert_within_rule(&what, &got, &want, &round_to::<T>(&want), allowance);
    }
}
