use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::bias,
};

use crate::{
    oracles,
    support::{assert_within_rule, cast, for_each_device, normal, round_to, roundoff, type_name, widen},
};

/// (rows, width): one row, ragged, exact chunks and slices, more rows than a slice, wider than one CTA sums.
const SHAPES: &[(usize, usize)] = &[(1, 8), (3, 13), (64, 128), (131, 24), (9, 520)];

#[test]
fn add_f32() {
    for_each_device(add::<f32>);
}

#[test]
fn add_bf16() {
    for_each_device(add::<bf16>);
}

#[test]
fn bwd_f32() {
    for_each_device(bwd::<f32>);
}

#[test]
fn bwd_bf16() {
    for_each_device(bwd::<bf16>);
}

fn add<T: Float>(device: &Device, on: &str) {
    for &(rows, width) in SHAPES {
        let (y, b): (Vec<T>, Vec<T>) = (cast(&normal(1, rows * width)), cast(&normal(2, width)));
        let want = oracles::bias::add(&widen(&y), &widen(&b));
        let (y, b) = (device.upload(&y).unwrap(), device.upload(&b).unwrap());
        bias::add(device, &y, &b, rows, width).unwrap();

        let what = format!("bias add {} {rows}x{width} on {on}", type_name::<T>());
        // One addition of values up to 5.
        let allowance = 10.0 * roundoff::<f32>();
        assert_within_rule(&what, &widen(&device.download(&y).unwrap()), &want, &round_to::<T>(&want), allowance);
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &(rows, width) in SHAPES {
        let dy: Vec<T> = cast(&normal(3, rows * width));
        let before = normal(4, width);
        let mut want = oracles::bias::bwd(&widen(&dy), width);
        want.iter_mut().zip(&before).for_each(|(d, b)| *d += f64::from(*b));
        let (db, dy) = (device.upload(&before).unwrap(), device.upload(&dy).unwrap());
        let partials = device.alloc(bias::bwd_partials(rows, width)).unwrap();
        bias::bwd(device, &db, &partials, &dy, rows, width).unwrap();

        let what = format!("bias bwd {} {rows}x{width} on {on}", type_name::<T>());
        // `rows` additions in f32, each partial sum at most 5 per row.
        let allowance = 5.0 * (rows * rows + 1) as f64 * roundoff::<f32>();
        assert_within_rule(&what, &widen(&device.download(&db).unwrap()), &want, &want, allowance);
    }
}
