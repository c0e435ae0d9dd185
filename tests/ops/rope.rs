use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::rope,
};

use crate::{
    oracles,
    support::{
        assert_same_bits, assert_within_rule, cast, for_each_device, normal, round_to, roundoff, type_name, widen,
    },
};

/// (tokens, heads, kv_heads, head_dim): one token, ragged heads, the head sizes of attention, more than one CTA.
const SHAPES: &[(usize, usize, usize, usize)] =
    &[(1, 1, 1, 2), (3, 2, 1, 6), (5, 3, 1, 20), (7, 4, 2, 32), (3, 2, 2, 64), (2, 3, 1, 96), (9, 4, 1, 128)];

#[test]
fn apply_f32() {
    for_each_device(|device, on| {
        apply::<f32>(device, on, false);
        apply::<f32>(device, on, true);
    });
}

#[test]
fn apply_bf16() {
    for_each_device(|device, on| {
        apply::<bf16>(device, on, false);
        apply::<bf16>(device, on, true);
    });
}

fn apply<T: Float>(device: &Device, on: &str, inverse: bool) {
    for &(tokens, heads, kv_heads, head_dim) in SHAPES {
        let (half, width) = (head_dim / 2, (heads + 2 * kv_heads) * head_dim);
        let angle = |i: usize| (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
        let positions = tokens + 3;
        let cos: Vec<f32> = (0..positions * half).map(|i| angle(i).cos() as f32).collect();
        let sin: Vec<f32> = (0..positions * half).map(|i| angle(i).sin() as f32).collect();
        let position: Vec<i32> = (0..tokens).map(|t| ((t * 5 + 2) % positions) as i32).collect();
        let before: Vec<T> = cast(&normal(1, tokens * width));
        let (wide, direction) = (widen(&before), if inverse { -1.0 } else { 1.0 });
        let want =
            oracles::rope::apply(&wide, &position, &widen(&cos), &widen(&sin), direction, heads, kv_heads, head_dim);

        let qkv = device.upload(&before).unwrap();
        let position = device.upload(&position).unwrap();
        let (cos, sin) = (device.upload(&cos).unwrap(), device.upload(&sin).unwrap());
        rope::apply(device, &qkv, &position, &cos, &sin, inverse, tokens, heads, kv_heads, head_dim).unwrap();

        let got = device.download(&qkv).unwrap();
        let shape = format!("{tokens}x({heads}+2*{kv_heads})x{head_dim}");
        let what = format!("rope {} {shape} inverse {inverse} on {on}", type_name::<T>());
        // Three roundings in f32 on values up to 5 * sqrt(2).
        let allowance = 3.0 * 8.0 * roundoff::<f32>();
        assert_within_rule(&what, &widen(&got), &want, &round_to::<T>(&want), allowance);
        for t in 0..tokens {
            let values = t * width + (heads + kv_heads) * head_dim..(t + 1) * width;
            assert_same_bits(&format!("{what}: values of token {t}"), &got[values.clone()], &before[values]);
        }
    }
}
