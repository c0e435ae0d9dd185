use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::gelu,
};

use crate::{
    oracles,
    support::{assert_within_rule, cast, for_each_device, max_abs, normal, round_to, roundoff, type_name, widen},
};

/// One element, ragged, exact chunks, more than one CTA.
const SHAPES: &[usize] = &[1, 13, 64, 2100];

/// The exponent -2u is rounded four times and at most 13 where the gate still counts, exp adds 4 roundoffs, sum, quotient
/// and product one each: relative to |x|.
const FWD_ROUNDOFFS: f64 = 4.0 * 13.0 + 8.0;
/// As forward, and the second term's factor x² slope reaches 10 where the gate's rest is 1/4.
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
    for &elements in SHAPES {
        let x: Vec<T> = cast(&normal(1, elements));
        let want = oracles::gelu::fwd(&widen(&x));
        let y = device.alloc::<T>(elements).unwrap();
        gelu::fwd(device, &y, &device.upload(&x).unwrap(), elements).unwrap();

        let what = format!("gelu fwd {} {elements} on {on}", type_name::<T>());
        let allowance = FWD_ROUNDOFFS * roundoff::<f32>() * max_abs(&widen(&x));
        assert_within_rule(&what, &widen(&device.download(&y).unwrap()), &want, &round_to::<T>(&want), allowance);
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &elements in SHAPES {
        let (x, dy): (Vec<T>, Vec<T>) = (cast(&normal(1, elements)), cast(&normal(2, elements)));
        let want = oracles::gelu::bwd(&widen(&dy), &widen(&x));
        // In place: each thread has read what it overwrites.
        let (dx, y) = (device.upload(&x).unwrap(), device.upload(&dy).unwrap());
        gelu::bwd(device, &dx, &y, &y, &dx, elements).unwrap();

        let what = format!("gelu bwd {} {elements} on {on}", type_name::<T>());
        let allowance = BWD_ROUNDOFFS * roundoff::<f32>() * max_abs(&widen(&dy)) * max_abs(&widen(&x)).max(1.0);
        assert_within_rule(&what, &widen(&device.download(&dx).unwrap()), &want, &round_to::<T>(&want), allowance);
        let forward = device.alloc::<T>(elements).unwrap();
        gelu::fwd(device, &forward, &device.upload(&x).unwrap(), elements).unwrap();
        let [again, forward] = [y, forward].map(|y| device.download(&y).unwrap());
        assert!(again == forward, "{what}: y is not that of the forward pass");
    }
}

/// The oracle's slope is the derivative of its value.
#[test]
fn slopes_are_differences() {
    const H: f64 = 1e-5;
    for i in -60..=60 {
        let x = f64::from(i) / 10.0;
        let difference = (oracles::gelu::gelu(x + H) - oracles::gelu::gelu(x - H)) / (2.0 * H);
        // The third derivative is below 3: H² / 6 of it, and the rounding of two values below 6 over 2 H.
        let limit = 0.5 * H * H + 6.0 * f64::EPSILON / H;
        assert!((oracles::gelu::slope(x) - difference).abs() < limit, "at {x}");
    }
}

/// Far in both tails the cube leaves the range of f32 or the exponential does, and the results are the limits.
#[test]
fn far_in_the_tails() {
    for_each_device(|device, on| {
        let x = device.upload(&[-1e30f32, -100.0, -20.0, 20.0, 100.0, 1e30]).unwrap();
        let y = device.alloc::<f32>(6).unwrap();
        gelu::fwd(device, &y, &x, 6).unwrap();
        let got: Vec<f32> = device.download(&y).unwrap().into_iter().map(f32::abs).collect();
        assert_eq!(got, [0.0, 0.0, 0.0, 20.0, 100.0, 1e30], "y on {on}");
        let dy = device.upload(&[2.0f32; 6]).unwrap();
        gelu::bwd(device, &y, &dy, &dy, &x, 6).unwrap();
        let got: Vec<f32> = device.download(&y).unwrap().into_iter().map(f32::abs).collect();
        assert_eq!(got, [0.0, 0.0, 0.0, 2.0, 2.0, 2.0], "dx on {on}");
    });
}
