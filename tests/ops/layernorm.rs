use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::layernorm,
};

use crate::{
    oracles,
    support::{assert_within_rule, cast, for_each_device, normal, round_to, roundoff, type_name, widen},
};

/// (rows, hidden): one row, ragged, exact warps and slices, more rows than a slice, wider than a warp or CTA takes at once.
const SHAPES: &[(usize, usize)] = &[(1, 8), (3, 40), (5, 33), (8, 128), (131, 24), (9, 520)];
const EPS: f32 = 1e-5;

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

/// Values whose mean is as large as their spread.
fn input<T: Float>(seed: u64, len: usize) -> Vec<T> {
    cast(&normal(seed, len).into_iter().map(|x| x + 1.0).collect::<Vec<_>>())
}

fn fwd<T: Float>(device: &Device, on: &str) {
    for &(rows, hidden) in SHAPES {
        let x: Vec<T> = input(1, rows * hidden);
        let (w, b): (Vec<T>, Vec<T>) = (cast(&normal(2, hidden)), cast(&normal(3, hidden)));
        let (want, want_stats) = oracles::layernorm::fwd(&widen(&x), &widen(&w), &widen(&b), f64::from(EPS));
        let y = device.alloc::<T>(rows * hidden).unwrap();
        let stats = device.alloc::<f32>(2 * rows).unwrap();
        let [x, w, b] = [x, w, b].map(|values| device.upload(&values).unwrap());
        layernorm::fwd(device, &y, &stats, &x, &w, &b, EPS, rows, hidden).unwrap();

        let what = format!("layernorm fwd {} {rows}x{hidden} on {on}", type_name::<T>());
        // Mean and deviation carry a roundoff for each of the log-deep sums of eight and 32, about 16, on values up to
        // 6; they meet rstd, largest in the smallest row, and weights up to 4.
        let largest = want_stats.iter().skip(1).step_by(2).fold(1.0f64, |a, &b| a.max(b));
        let allowance = 6.0 * 4.0 * 16.0 * largest * roundoff::<f32>();
        let got = widen(&device.download(&y).unwrap());
        assert_within_rule(&format!("{what}: y"), &got, &want, &round_to::<T>(&want), allowance);
        let got = widen(&device.download(&stats).unwrap());
        assert_within_rule(&format!("{what}: stats"), &got, &want_stats, &want_stats, allowance * largest);
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &(rows, hidden) in SHAPES {
        let x: Vec<T> = input(4, rows * hidden);
        let dy: Vec<T> = cast(&normal(5, rows * hidden));
        let w: Vec<T> = cast(&normal(6, hidden));
        let residual: Vec<T> = cast(&normal(7, rows * hidden));
        let zero = vec![0.0; hidden];
        let (_, want_stats) = oracles::layernorm::fwd(&widen(&x), &widen(&w), &zero, f64::from(EPS));
        let (mut want_dx, want_dw, want_db) =
            oracles::layernorm::bwd(&widen(&dy), &widen(&x), &widen(&w), f64::from(EPS));
        want_dx.iter_mut().zip(widen(&residual)).for_each(|(d, r)| *d += r);

        let stats = device.upload(&want_stats.iter().map(|&r| r as f32).collect::<Vec<_>>()).unwrap();
        let dx = device.upload(&residual).unwrap();
        let (dw, db) = (device.zeros::<f32>(hidden).unwrap(), device.zeros::<f32>(hidden).unwrap());
        let partials = device.alloc::<f32>(layernorm::bwd_partials(rows, hidden)).unwrap();
        let [dy, x, w] = [dy, x, w].map(|values| device.upload(&values).unwrap());
        layernorm::bwd(device, &dx, &dw, &db, &partials, &dy, &x, &w, &stats, true, rows, hidden).unwrap();

        let what = format!("layernorm bwd {} {rows}x{hidden} on {on}", type_name::<T>());
        // Sums of up to `rows` (or `hidden`) products of size at most 25, each rounded in f32; dx meets rstd again.
        let largest = want_stats.iter().skip(1).step_by(2).fold(1.0f64, |a, &b| a.max(b));
        let allowance = 25.0 * largest * rows.max(hidden) as f64 * roundoff::<f32>();
        let got = widen(&device.download(&dx).unwrap());
        assert_within_rule(&format!("{what}: dx"), &got, &want_dx, &round_to::<T>(&want_dx), allowance);
        for (name, got, want) in [("dw", dw, want_dw), ("db", db, want_db)] {
            let got = widen(&device.download(&got).unwrap());
            assert_within_rule(&format!("{what}: {name}"), &got, &want, &want, allowance);
        }
    }
}
