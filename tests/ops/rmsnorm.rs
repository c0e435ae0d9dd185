use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::rmsnorm::{self, RmsNorm},
};

use crate::{
    oracles,
    support::{assert_within_rule, cast, for_each_device, normal, round_to, roundoff, type_name, widen},
};

/// (rows, hidden): one row, ragged, exact warps and slices, more rows than a slice, wider than a warp or CTA takes at once,
/// one row a warp.
const SHAPES: &[(usize, usize)] = &[(1, 8), (3, 40), (5, 33), (8, 128), (131, 24), (9, 520), (5, 2048)];
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

fn fwd<T: Float>(device: &Device, on: &str) {
    for &(rows, hidden) in SHAPES {
        let x: Vec<T> = cast(&normal(1, rows * hidden));
        let w: Vec<T> = cast(&normal(2, hidden));
        let (want, want_rrms) = oracles::rmsnorm::fwd(&widen(&x), &widen(&w), f64::from(EPS));
        let y = device.alloc::<T>(rows * hidden).unwrap();
        let rrms = device.alloc::<f32>(rows).unwrap();
        let (x, w) = (device.upload(&x).unwrap(), device.upload(&w).unwrap());
        rmsnorm::fwd(device, &y, &rrms, &x, &w, &RmsNorm::new(rows, hidden, EPS)).unwrap();

        let what = format!("rmsnorm fwd {} {rows}x{hidden} on {on}", type_name::<T>());
        // f32 arithmetic: about four roundings on values up to 5 on top of the rounding of the result.
        let allowance = 5.0 * 8.0 * roundoff::<f32>();
        let got = widen(&device.download(&y).unwrap());
        assert_within_rule(&format!("{what}: y"), &got, &want, &round_to::<T>(&want), allowance);
        let got = widen(&device.download(&rrms).unwrap());
        assert_within_rule(&format!("{what}: rrms"), &got, &want_rrms, &want_rrms, allowance * want_rrms[0].max(1.0));
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &(rows, hidden) in SHAPES {
        let dy: Vec<T> = cast(&normal(3, rows * hidden));
        let x: Vec<T> = cast(&normal(4, rows * hidden));
        let w: Vec<T> = cast(&normal(5, hidden));
        let residual: Vec<T> = cast(&normal(6, rows * hidden));
        let (mut want_dx, want_dw) = oracles::rmsnorm::bwd(&widen(&dy), &widen(&x), &widen(&w), f64::from(EPS));
        want_dx.iter_mut().zip(widen(&residual)).for_each(|(d, r)| *d += r);

        let (_, want_rrms) = oracles::rmsnorm::fwd(&widen(&x), &widen(&w), f64::from(EPS));
        let rrms = device.upload(&want_rrms.iter().map(|&r| r as f32).collect::<Vec<_>>()).unwrap();
        let dx = device.upload(&residual).unwrap();
        let dw = device.zeros::<f32>(hidden).unwrap();
        let partials = device.alloc::<f32>(rmsnorm::bwd_partials(rows, hidden)).unwrap();
        let (dy, x, w) = (device.upload(&dy).unwrap(), device.upload(&x).unwrap(), device.upload(&w).unwrap());
        let norm = RmsNorm::new(rows, hidden, EPS);
        rmsnorm::bwd(device, &dx, &dw, &partials, &dy, &x, &w, &rrms, &norm, true).unwrap();

        let what = format!("rmsnorm bwd {} {rows}x{hidden} on {on}", type_name::<T>());
        // Sums of up to `rows` (or `hidden`) products of size at most 25, each rounded in f32.
        let allowance = 25.0 * rows.max(hidden) as f64 * roundoff::<f32>();
        let got = widen(&device.download(&dx).unwrap());
        assert_within_rule(&format!("{what}: dx"), &got, &want_dx, &round_to::<T>(&want_dx), allowance);
        let got = widen(&device.download(&dw).unwrap());
        assert_within_rule(&format!("{what}: dw"), &got, &want_dw, &want_dw, allowance);
    }
}

/// The heads of a token inside wider rows, with 1 added to every weight: as the same rows by themselves, and nothing
/// beside them is touched.
#[test]
fn rows_in_groups_with_an_offset() {
    const TOKENS: usize = 21;
    const GROUP: usize = 3;
    const HIDDEN: usize = 32;
    const X_PITCH: usize = 136;
    const Y_PITCH: usize = 168;
    let rows = TOKENS * GROUP;
    let norm =
        RmsNorm { offset: 1.0, group: GROUP, x_pitch: X_PITCH, y_pitch: Y_PITCH, ..RmsNorm::new(rows, HIDDEN, EPS) };
    let (wide_x, wide_dy, w) = (normal(7, TOKENS * X_PITCH), normal(8, TOKENS * Y_PITCH), normal(9, HIDDEN));
    let packed = |wide: &[f32], pitch| -> Vec<f64> {
        wide.chunks(pitch).flat_map(|token| &token[..GROUP * HIDDEN]).map(|&v| f64::from(v)).collect()
    };
    let shifted: Vec<f64> = w.iter().map(|&w| f64::from(w) + 1.0).collect();
    let (x, dy) = (packed(&wide_x, X_PITCH), packed(&wide_dy, Y_PITCH));
    let (want_y, want_rrms) = oracles::rmsnorm::fwd(&x, &shifted, f64::from(EPS));
    let (want_dx, want_dw) = oracles::rmsnorm::bwd(&dy, &x, &shifted, f64::from(EPS));
    for_each_device(|device, on| {
        let (x, w) = (device.upload(&wide_x).unwrap(), device.upload(&w).unwrap());
        let y = device.upload(&wide_dy).unwrap();
        let rrms = device.alloc::<f32>(rows).unwrap();
        rmsnorm::fwd(device, &y, &rrms, &x, &w, &norm).unwrap();
        let got = device.download(&y).unwrap();
        // The allowances of the plain tests: values up to 5, weights up to 4; sums of up to `rows` products.
        let allowance = 5.0 * 4.0 * 8.0 * roundoff::<f32>();
        assert_within_rule(&format!("y on {on}"), &packed(&got, Y_PITCH), &want_y, &want_y, allowance);
        let got_rrms = widen(&device.download(&rrms).unwrap());
        assert_within_rule(&format!("rrms on {on}"), &got_rrms, &want_rrms, &want_rrms, allowance);

        // In place, as the backward pass runs it.
        let d = device.upload(&wide_dy).unwrap();
        let dw = device.zeros::<f32>(HIDDEN).unwrap();
        let partials = device.alloc::<f32>(rmsnorm::bwd_partials(rows, HIDDEN)).unwrap();
        rmsnorm::bwd(device, &d, &dw, &partials, &d, &x, &w, &rrms, &norm, false).unwrap();
        let got_dx = device.download(&d).unwrap();
        let allowance = 4.0 * 25.0 * rows as f64 * roundoff::<f32>();
        assert_within_rule(&format!("dx on {on}"), &packed(&got_dx, Y_PITCH), &want_dx, &want_dx, allowance);
        let got_dw = widen(&device.download(&dw).unwrap());
        assert_within_rule(&format!("dw on {on}"), &got_dw, &want_dw, &want_dw, allowance);
        for (token, (after, before)) in got.chunks(Y_PITCH).zip(wide_dy.chunks(Y_PITCH)).enumerate() {
            assert_eq!(after[GROUP * HIDDEN..], before[GROUP * HIDDEN..], "beside token {token} on {on}");
        }
    });
}
