use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::residual,
};

use crate::{
    oracles,
    support::{assert_same_bits, cast, for_each_device, normal, round_to, type_name, widen},
};

/// One element, ragged, exact chunks, exact CTA, more than one CTA.
const SHAPES: &[usize] = &[1, 13, 64, 1024, 2500];

#[test]
fn add_f32() {
    for_each_device(add::<f32>);
}

#[test]
fn add_bf16() {
    for_each_device(add::<bf16>);
}

fn add<T: Float>(device: &Device, on: &str) {
    for &elements in SHAPES {
        // One element more than is added: a start that is not a multiple of 16 bytes takes the other path.
        let a: Vec<T> = cast(&normal(1, elements + 1));
        let b: Vec<T> = cast(&normal(2, elements + 1));
        for skip in [0, 1] {
            let range = skip..skip + elements;
            let y = device.upload(&a).unwrap();
            let part = y.slice(range.clone());
            let b_part = device.upload(&b).unwrap().slice(range.clone());
            residual::add(device, &part, &part, &b_part, elements).unwrap();

            let sum = oracles::residual::add(&widen(&a[range.clone()]), &widen(&b[range.clone()]));
            let mut want = widen(&a);
            want[range].copy_from_slice(&round_to::<T>(&sum));
            let what = format!("residual add {} {elements} from {skip} on {on}", type_name::<T>());
            assert_same_bits(&what, &widen(&device.download(&y).unwrap()), &want);
        }
    }
}
