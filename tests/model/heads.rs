//! A head beside the vocabulary's, made up here: the logit of one token at every row, its weight frozen.

use anyhow::Result;
use warpo::{
    device::{Buffer, Device},
    forest::Forest,
    model::{Batch, OutputHead, Slopes},
};

use super::{model_for, named, pair, random_params, steps, tiny_config};
use crate::{
    oracles::{
        self,
        model::{Input, Params},
    },
    support::{fast_device, normal},
};

/// The token whose logit it is.
const TOKEN: usize = 5;

struct Logit {
    device: Device,
    /// (hidden)
    weight: Vec<f32>,
    /// Where each row's hidden state is.
    sources: Vec<i32>,
}

impl OutputHead<f32> for Logit {
    fn backward(&self, dhidden: &Buffer<f32>, _hidden: &Buffer<f32>, _batch: &Batch) -> Result<()> {
        let mut gradient = self.device.download(dhidden)?;
        let width = self.weight.len();
        for &source in &self.sources {
            let row = &mut gradient[source as usize * width..][..width];
            row.iter_mut().zip(&self.weight).for_each(|(g, w)| *g += w);
        }
        self.device.copy_in(dhidden, &gradient)
    }
}

fn head_of(device: &Device, forest: &Forest, params: &[f32], head: std::ops::Range<usize>, hidden: usize) -> Logit {
    let weight = params[head][TOKEN * hidden..(TOKEN + 1) * hidden].to_vec();
    Logit { device: device.clone(), weight, sources: forest.row_source.clone() }
}

/// Along a random direction of all weights but the vocabulary's head, the gradient is the slope of the sum of logits that a
/// plain f64 model gives. D(h) - D(2h) bounds the truncation of D(h); a gradient of the engine is off by at most 1e-5 of its
/// norm (tests/model/gradients.rs), so along normal numbers by that times a normal number: five times it is allowed, one in a
/// million.
#[test]
fn a_head_alone_trains_the_body() {
    let (device, config) = (fast_device(2), tiny_config(false, 2));
    let forest = Forest::pack(&[pair(1, [12, 7, 5]), steps(2)]).unwrap();
    let model = model_for::<f32>(&device, &config, &forest);
    let values = random_params::<f32>(&config);
    let head = head_of(&device, &forest, &values, model.layout().head.clone(), config.hidden);
    let batch = model.upload(&forest).unwrap();
    model.forward(&batch).unwrap();
    model.backward(&batch, &Slopes { heads: &[&head], ..Slopes::default() }).unwrap();
    let grads = named(&config, &device.download(model.params().grads()).unwrap());

    let params = named(&config, &values);
    let input = Input::forest(&forest);
    let direction: Params = params
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| *name != "lm_head.weight")
        .map(|(i, (name, values))| {
            (name.clone(), normal(900 + i as u64, values.len()).into_iter().map(f64::from).collect())
        })
        .collect();
    let at = |h: f64| -> f64 {
        let mut moved = params.clone();
        for (name, direction) in &direction {
            moved.get_mut(name).unwrap().iter_mut().zip(direction).for_each(|(value, d)| *value += h * d);
        }
        let model = oracles::model::Model { config: &config, params: &moved, round: |x| x };
        model.logits(&input).iter().map(|logits| logits[TOKEN]).sum()
    };
    let slope = |h: f64| (at(h) - at(-h)) / (2.0 * h);
    let (want, coarse) = (slope(1e-5), slope(2e-5));
    let pairs = || direction.iter().flat_map(|(name, direction)| grads[name].iter().zip(direction));
    let got: f64 = pairs().map(|(g, d)| g * d).sum();
    let norm = pairs().map(|(g, _)| g * g).sum::<f64>().sqrt();
    let allowed = 5.0 * 1e-5 * norm + (want - coarse).abs();
    assert!(want.abs() > 1e2 * allowed, "the direction shows something: {want} against {allowed}");
    assert!((got - want).abs() <= allowed, "{got} instead of {want}, {allowed} allowed");
    assert!(grads["lm_head.weight"].iter().all(|&g| g == 0.0), "the vocabulary's head has no slopes");
}

/// Beside log-probabilities a head adds: gradients of hidden states in f32 are added once more each, so the sum of both passes
/// differs from one pass by roundings, 1e-5 of the norm as above for each of the three.
#[test]
fn a_head_adds_to_log_probabilities() {
    let (device, config) = (fast_device(2), tiny_config(true, 2));
    let forest = Forest::pack(&[pair(1, [12, 7, 5])]).unwrap();
    let model = model_for::<f32>(&device, &config, &forest);
    let head = head_of(&device, &forest, &random_params(&config), model.layout().head.clone(), config.hidden);
    let batch = model.upload(&forest).unwrap();
    let slopes = device.upload(&normal(3, batch.rows)).unwrap();
    let grads = |slopes: &Slopes<f32>| -> Vec<f64> {
        model.zero_grads().unwrap();
        model.forward(&batch).unwrap();
        model.logps(&batch).unwrap();
        model.backward(&batch, slopes).unwrap();
        device.download(model.params().grads()).unwrap().into_iter().map(f64::from).collect()
    };
    let heads: [&dyn OutputHead<f32>; 1] = [&head];
    let both = grads(&Slopes { heads: &heads, ..Slopes::by_logps(&slopes) });
    let [logps, alone] = [Slopes::by_logps(&slopes), Slopes { heads: &heads, ..Slopes::default() }].map(|s| grads(&s));
    let norm = |values: &dyn Fn(usize) -> f64| (0..both.len()).map(|i| values(i).powi(2)).sum::<f64>().sqrt();
    let off = norm(&|i| both[i] - logps[i] - alone[i]);
    assert!(off <= 3e-5 * norm(&|i| both[i]), "{off}");
    assert!(norm(&|i| alone[i]) > 0.01 * norm(&|i| both[i]), "the head counts");
}
