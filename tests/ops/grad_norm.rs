use warpo::{device::Device, ops::grad_norm};

use crate::{
    oracles,
    support::{assert_same_bits, fast_device, for_each_device, normal, roundoff, widen},
};

/// One element, ragged, one exact slice, several slices with a ragged end, more slices than one CTA holds.
const SHAPES: &[usize] = &[1, 5, 16_384, 2 * 16_384 + 1003, 5 * 16_384];

fn run(device: &Device, grads: &[f32], max_norm: f32) -> Vec<f32> {
    let stats = device.alloc(grad_norm::STATS).unwrap();
    let partials = device.alloc(grad_norm::partials(grads.len())).unwrap();
    let grads = device.upload(grads).unwrap();
    grad_norm::run(device, &stats, &partials, &grads, grads.len(), max_norm).unwrap();
    device.download(&stats).unwrap()
}

#[test]
fn norm_and_clip_factor() {
    for_each_device(|device, on| {
        for &elements in SHAPES {
            let grads = normal(1, elements);
            let true_norm = oracles::grad_norm::run(&widen(&grads), 0.0).0 as f32;
            for max_norm in [0.0, 1.0, 0.5 * true_norm, 2.0 * true_norm] {
                let (norm, scale) = oracles::grad_norm::run(&widen(&grads), f64::from(max_norm));
                let got = run(device, &grads, max_norm);
                let what = format!("grad_norm of {elements}, max_norm {max_norm} on {on}");
                // The sum is in f64: the norm is rounded once; the factor takes two operations more.
                let error = (f64::from(got[0]) / norm - 1.0).abs();
                assert!(error <= roundoff::<f32>(), "{what}: norm {} instead of {norm}", got[0]);
                let error = (f64::from(got[1]) / scale - 1.0).abs();
                assert!(error <= 3.0 * roundoff::<f32>(), "{what}: scale {} instead of {scale}", got[1]);
                assert_eq!(got[2], 1.0, "{what}: finite");
            }
        }
    });
}

#[test]
fn a_value_that_is_not_finite_is_found_anywhere() {
    let elements = 2 * 16_384 + 1003;
    for_each_device(|device, on| {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 3, 16_383, 16_384, 20_001, elements - 1] {
                let mut grads = vec![0.5; elements];
                grads[at] = bad;
                let stats = run(device, &grads, 1.0);
                assert_eq!(stats[2], 0.0, "{bad} at {at} on {on}: {stats:?}");
                assert!(!stats[0].is_finite(), "{bad} at {at} on {on}: {stats:?}");
            }
        }
    });
}

#[test]
fn large_and_zero_gradients_are_finite() {
    for_each_device(|device, on| {
        let stats = run(device, &vec![1e30; 300], 1.0);
        assert_eq!(stats[2], 1.0, "squares beyond f32 on {on}: {stats:?}");
        assert!((stats[0] / (1e30 * 300f32.sqrt()) - 1.0).abs() < 1e-6, "on {on}: {stats:?}");
        assert_eq!(run(device, &[0.0; 300], 1.0), [0.0, 1.0, 1.0], "on {on}");
        assert_eq!(run(device, &vec![f32::MAX; 300], 1.0)[2], 0.0, "a norm beyond f32 on {on}");
    });
}

#[test]
fn same_bits_for_any_number_of_worker_threads() {
    let grads = normal(2, 9 * 16_384 + 77);
    let want = run(&fast_device(1), &grads, 1.0);
    for threads in [2, 3] {
        assert_same_bits(&format!("{threads} threads"), &run(&fast_device(threads), &grads, 1.0), &want);
    }
}
