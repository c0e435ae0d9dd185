//! A master in two halves: every bit of it stays, and the weight is its rounding.

use half::bf16;
use warpo::{
    device::{Buffer, DType, Device, Float},
    forest::Forest,
    model::{Capacity, Layout, MemoryPlan, Model, ParamSet, Slopes},
    ops::{
        lerp,
        rmsprop::{self, Hyper, Tensors},
    },
    optim::{Optimizer, RuleKind, Settings},
};

use super::{floats, integers, vector};
use crate::{
    model::{pair, steps, tiny_config},
    support::{assert_same_bits, fast_device, for_each_device, normal},
};

fn high(weights: &[bf16]) -> Vec<u16> {
    weights.iter().map(|weight| weight.to_bits()).collect()
}

fn halves(masters: &[f32]) -> (Vec<bf16>, Vec<u16>) {
    masters.iter().map(|&master| bf16::split(master)).unzip()
}

fn joined(weights: &[bf16], low: &[u16]) -> Vec<f32> {
    weights.iter().zip(low).map(|(weight, &low)| weight.join(low)).collect()
}

#[test]
fn vectors_hold() {
    let all = vector("split_master");
    let masters = floats(&all["f32_bits"]);
    let (weights, low) = halves(&masters);
    assert_eq!(high(&weights), integers::<u16>(&all["high"]));
    assert_eq!(low, integers::<u16>(&all["low"]));
    assert_same_bits("joined", &joined(&weights, &low), &masters);
    // Elsewhere nearest goes to even on ties.
    let even: Vec<bool> = masters.iter().zip(&weights).map(|(&m, w)| bf16::from_f32(m) != *w).collect();
    assert_eq!(even, serde_json::from_value::<Vec<bool>>(all["differs_from_nearest_even"].clone()).unwrap());
}

/// What is not finite stays what it is, whatever its low bits were.
#[test]
fn infinities_and_nans_stay() {
    for bits in [0x7f80_0000, 0xff80_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0x7fc0_0000] {
        let value = f32::from_bits(bits);
        let (weight, low) = bf16::split(value);
        let back = weight.join(low);
        assert_eq!((weight.is_nan(), back.is_nan()), (value.is_nan(), value.is_nan()), "{bits:#x}");
        assert!(value.is_nan() || back == value && weight.to_f32() == value, "{bits:#x}");
    }
}

/// The kernels split and join as the host does: every low half, both signs, both parities of the high one. A step of rate 0
/// takes apart what it has put together, a mean that goes all the way is the master.
#[test]
fn every_low_half_on_every_device() {
    for_each_device(|device, on| {
        let tops: &[u32] = if on == "host" || on == "cuda" { &[0x3ca3, 0x3ca4, 0xbca3, 0xbca4] } else { &[0xbca3] };
        let masters: Vec<f32> =
            tops.iter().flat_map(|top| (0..=0xffff).map(move |low| f32::from_bits(top << 16 | low))).collect();
        let (weights, low) = halves(&masters);
        // From 1 on nothing is aligned to 16 bytes.
        for skip in [0, 1] {
            let (weights, low, masters) = (&weights[skip..], &low[skip..], &masters[skip..]);
            let (on_weights, on_low) = (device.upload(weights).unwrap(), device.upload(low).unwrap());
            kept(device, &on_weights, &on_low);
            let what = format!("from {skip} on {on}");
            assert_same_bits(&format!("weights {what}"), &device.download(&on_weights).unwrap(), weights);
            assert_same_bits(&format!("low bits {what}"), &device.download(&on_low).unwrap(), low);
            let mean = device.zeros::<f32>(masters.len()).unwrap();
            lerp::master(device, &mean, &on_weights, &on_low, 1.0, masters.len()).unwrap();
            assert_same_bits(&format!("masters {what}"), &device.download(&mean).unwrap(), masters);
        }
    });
}

/// A step that changes nothing.
fn kept(device: &Device, weights: &Buffer<bf16>, low: &Buffer<u16>) {
    minus(device, weights, low, &vec![0.0; weights.len()]);
}

/// Takes `change` off the masters: RMSprop whose mean of squares stays 0, at a rate of 1 and a root's addend of 1.
fn minus(device: &Device, weights: &Buffer<bf16>, low: &Buffer<u16>, change: &[f32]) {
    let tensors = Tensors {
        params: weights,
        low,
        square_avg: &device.zeros(change.len()).unwrap(),
        grads: &device.upload(change).unwrap(),
        stats: &device.upload(&[1.0f32, 1.0, 1.0]).unwrap(),
        updates: &device.zeros(1).unwrap(),
    };
    rmsprop::step(device, &tensors, Hyper { lr: 1.0, alpha: 1.0, eps: 1.0, weight_decay: 0.0 }, 0).unwrap();
}

/// Changes that bf16 alone would never see.
#[test]
fn a_chain_of_small_changes_arrives() {
    let all = vector("split_master_chain");
    for_each_device(|device, on| {
        let start: Vec<bf16> = integers(&all["start_bf16_bits"]).into_iter().map(bf16::from_bits).collect();
        let (weights, low) = (device.upload(&start).unwrap(), device.zeros::<u16>(start.len()).unwrap());
        for step in all["steps"].as_array().unwrap() {
            minus(device, &weights, &low, &floats(&step["change_bits"]));
            let (got, rest) = (device.download(&weights).unwrap(), device.download(&low).unwrap());
            assert_eq!(high(&got), integers::<u16>(&step["high"]), "{on}");
            assert_eq!(rest, integers::<u16>(&step["low"]), "{on}");
            assert_same_bits(&format!("masters on {on}"), &joined(&got, &rest), &floats(&step["master_bits"]));
        }
    });
}

const RULES: [RuleKind; 2] = [RuleKind::adamw(0.9, 0.999, 1e-8), RuleKind::RmsProp { alpha: 0.99, eps: 1e-8 }];
const STEPS: u64 = 50;

/// Fifty steps of a bf16 model: the masters are those of the same weights in f32, trained by the f32 kernel on the gradients
/// of a model whose weights are rounded from them on the host.
#[test]
fn a_run_has_the_masters_of_a_plain_one() {
    let device = fast_device(2);
    for rule in RULES {
        let settings = Settings { rule, weight_decay: 0.1, max_grad_norm: 1.0 };
        let (own, other) = (tiny(&device), tiny(&device));
        let optimizer = Optimizer::new(own.params(), &settings).unwrap();
        let all = 0..own.layout().elements;
        let plain = ParamSet::<f32>::trained(&device, Layout::new(own.config())).unwrap();
        plain.fill(&all, &other.params().masters(&all).unwrap()).unwrap();
        let by_f32 = Optimizer::new(&plain, &settings).unwrap();
        let mut moved = 0;
        for step in 0..STEPS {
            for model in [&own, &other] {
                gradients(model, step);
            }
            device.copy(plain.grads(), other.params().grads()).unwrap();
            let before = device.download(&own.params().values()).unwrap();
            assert!(optimizer.step(2e-4).unwrap().applied && by_f32.step(2e-4).unwrap().applied);
            let masters = device.download(&plain.values()).unwrap();
            other.params().fill(&all, &masters).unwrap();
            assert_same_bits(&format!("masters after step {step}"), &own.params().masters(&all).unwrap(), &masters);
            let after = device.download(&own.params().values()).unwrap();
            assert_same_bits("weights", &after, &halves(&masters).0);
            moved += before.iter().zip(&after).filter(|(before, after)| before != after).count();
        }
        // Of all roundings, as many as show that weights lag behind their masters and follow them.
        assert!((all.end..all.end * STEPS as usize).contains(&moved), "{moved} weights moved");
    }
}

fn tiny(device: &Device) -> Model<bf16> {
    let config = tiny_config(true, 2);
    let capacity = Capacity { tokens: 256, rows: 256, head_chunk_rows: 64 };
    let model = Model::new(device, &config, MemoryPlan::new(&config, DType::Bf16, capacity).unwrap()).unwrap();
    model.randomize(5).unwrap();
    model
}

/// Of some slopes of the rows of a few trees.
fn gradients(model: &Model<bf16>, step: u64) {
    let forest = Forest::pack(&[pair(step, [20, 9, 14]), steps(step)]).unwrap();
    let batch = model.upload(&forest).unwrap();
    model.zero_grads().unwrap();
    model.forward(&batch).unwrap();
    model.logps(&batch).unwrap();
    let slopes = model.device().upload(&normal(1000 + step, batch.rows)).unwrap();
    model.backward(&batch, &Slopes::by_logps(&slopes)).unwrap();
}
