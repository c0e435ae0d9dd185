//! Token masks: their values and the gradients of the learned ones, against plain f64.

use warpo::{
    device::{Buffer, Device},
    forest::Tree,
    loss::Loss,
    model::MaskKind,
    train::step::Trainer,
};

use super::chain::{Chain, engine, input, step_of, trees};
use crate::{
    model::named,
    oracles,
    support::{fast_device, normal},
};

/// Values of learned parameters that leave no part without effect: some masks are 0, some are not.
pub fn scatter(device: &Device, params: &Buffer<f32>) {
    let start = device.download(params).unwrap();
    let noise = normal(31, start.len());
    let values: Vec<f32> = start.iter().zip(noise).map(|(value, noise)| value + 0.3 * noise).collect();
    device.copy_in(params, &values).unwrap();
}

/// Masks of log-ratios and of divergences, by row of all trees; 1 where the loss has none.
pub fn values(chain: &Chain, trainer: &Trainer<f32>, trees: &[Tree], device: &Device) -> [Vec<f64>; 2] {
    let rows: usize = trees.iter().map(Tree::rows).sum();
    match (trainer.loss.masks(), &trainer.roles.policy.masks) {
        (Some(MaskKind::Activations), _) => {
            let mask = fixed(chain, trees);
            [mask.clone(), mask]
        }
        (Some(_), Some(masks)) => {
            let params: Vec<f64> =
                device.download(&masks.masks.params().values()).unwrap().into_iter().map(f64::from).collect();
            learned(chain, trees, &params)
        }
        _ => [vec![1.0; rows], vec![1.0; rows]],
    }
}

/// Of a tree: activations of every layer, rows' source tokens and the rows of each sequence.
type Seen = (Vec<[Vec<f64>; 2]>, Vec<usize>, Vec<usize>);

fn activations(chain: &Chain, trees: &[Tree]) -> Vec<Seen> {
    let params = named(&chain.config, &chain.ref_params);
    let model = oracles::model::Model { config: &chain.config, params: &params, round: |x| x };
    let of = |tree: &Tree| {
        let input = input(tree);
        let sources = input.rows.iter().map(|&(source, _)| source).collect();
        (model.activations(&input), sources, tree.sequences().map(|(_, segment)| segment.rows()).collect())
    };
    trees.iter().map(of).collect()
}

/// Mean of the MLP's activations, from 0 to 1 over each sequence, averaged over layers.
fn fixed(chain: &Chain, trees: &[Tree]) -> Vec<f64> {
    let mut all = Vec::new();
    for (layers, sources, sequences) in activations(chain, trees) {
        let mut mask = vec![0.0; sources.len()];
        for [inner, _] in &layers {
            let width = chain.config.ffn;
            let mean = |&token: &usize| inner[token * width..(token + 1) * width].iter().sum::<f64>() / width as f64;
            let means: Vec<f64> = sources.iter().map(mean).collect();
            let mut start = 0;
            for &rows in &sequences {
                let own = &means[start..start + rows];
                let (low, high) = own.iter().fold((f64::MAX, f64::MIN), |(l, h), &x| (l.min(x), h.max(x)));
                for (i, x) in own.iter().enumerate() {
                    mask[start + i] += if high > low { (x - low) / (high - low) } else { 1.0 } / layers.len() as f64;
                }
                start += rows;
            }
        }
        all.extend(mask);
    }
    all
}

/// `relu(sum_l gamma_l relu(w_l . LN(H_l) + b_l))` of one or two masks.
fn learned(chain: &Chain, trees: &[Tree], params: &[f64]) -> [Vec<f64>; 2] {
    let (layers, width) = (chain.config.layers, chain.config.hidden);
    let size = 2 * width + layers * width + 2 * layers;
    let of = |params: &[f64]| -> Vec<f64> {
        let (norm_weight, rest) = params.split_at(width);
        let (norm_bias, rest) = rest.split_at(width);
        let (w, rest) = rest.split_at(layers * width);
        let (b, gamma) = rest.split_at(layers);
        let mut mask = Vec::new();
        for (states, sources, _) in activations(chain, trees) {
            for token in sources {
                let mut sum = 0.0;
                for (layer, [_, stream]) in states.iter().enumerate() {
                    let x = &stream[token * width..(token + 1) * width];
                    let mean = x.iter().sum::<f64>() / width as f64;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    let normed = |c: usize| (x[c] - mean) / (variance + 1e-5).sqrt() * norm_weight[c] + norm_bias[c];
                    let pre: f64 = (0..width).map(|c| w[layer * width + c] * normed(c)).sum::<f64>() + b[layer];
                    sum += gamma[layer] * pre.max(0.0);
                }
                mask.push(sum.max(0.0));
            }
        }
        mask
    };
    let masks: Vec<Vec<f64>> = params.chunks(size).map(of).collect();
    [masks[0].clone(), masks[masks.len() - 1].clone()]
}

/// The gradient of every tensor of the masks along a random direction, by central differences of plain f64. The allowances
/// are those of `chain`; a step of 1e-5 does not cross a kink of a mask, or the two differences would not agree.
#[test]
fn learned_masks_agree_with_central_differences() {
    let (chain, device) = (Chain::new(), fast_device(2));
    for name in ["sparse_po", "sparse_po_independent"] {
        let loss = Loss::with(name, &[("l1_reward", 0.03), ("l1_divergence", 0.02)]).unwrap();
        let trees = trees(&loss);
        let (trainer, _) = engine(&chain, &device, &loss, &trees);
        let masks = trainer.roles.policy.masks.as_ref().unwrap();
        let params: Vec<f64> =
            device.download(&masks.masks.params().values()).unwrap().into_iter().map(f64::from).collect();
        let grads = device.download(masks.masks.params().grads()).unwrap();
        let (own, reference) = (named(&chain.config, &chain.params), named(&chain.config, &chain.ref_params));
        let zq = chain.logits(&reference, &trees);
        let rows = chain.rows(&own, &trees, &zq);
        let ref_logps = chain.rows(&reference, &trees, &zq).logps;
        let value = |params: &[f64]| {
            let step = step_of(&loss, &trees, &rows, &ref_logps, &learned(&chain, &trees, params));
            let parameters = &loss.terms()[0].parameters;
            oracles::losses::step(name, &|key| parameters.get(key), &step, &step)
        };
        let here = learned(&chain, &trees, &params);
        let zeros = here[0].iter().filter(|&&x| x == 0.0).count();
        assert!(zeros < here[0].len(), "{name}: every mask is 0");
        let (layers, width) = (chain.config.layers, chain.config.hidden);
        let sizes = [width, width, layers * width, layers, layers];
        let mut start = 0;
        for (tensor, size) in
            sizes.iter().cycle().take(sizes.len() * params.len() / (2 * width + layers * (width + 2))).enumerate()
        {
            let place = start..start + size;
            start += size;
            let direction: Vec<f64> = normal(70 + tensor as u64, *size).into_iter().map(f64::from).collect();
            let along = |step: f64| {
                let mut moved = params.clone();
                moved[place.clone()].iter_mut().zip(&direction).for_each(|(p, d)| *p += step * d);
                value(&moved)
            };
            let h = 1e-5;
            let slope = (along(h) - along(-h)) / (2.0 * h);
            let coarse = (along(2.0 * h) - along(-2.0 * h)) / (4.0 * h);
            let own = &grads[place.clone()];
            let got: f64 = own.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d).sum();
            let norm = own.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let limit = (slope - coarse).abs() + 1000.0 * f64::EPSILON / h + 5.0 * 1e-5 * norm;
            assert!(
                (got - slope).abs() <= limit,
                "{name}, tensor {tensor}: {got} instead of {slope}, {limit:.1e} allowed"
            );
            assert!(slope.abs() > 10.0 * limit, "{name}, tensor {tensor}: {slope} drowns in {limit:.1e}");
        }
        assert_eq!(start, params.len());
        println!("{name}: {zeros} of {} masks are 0", here[0].len());
    }
}

/// Learned masks are part of a run: saved, resumed to the same bits, and moved by training.
#[test]
fn a_resumed_run_has_the_same_masks() {
    let fixture = crate::train::fixture::Fixture::new();
    let set = ["--set", "loss={ name = \"sparse_po_independent\", l1_reward = 0.001 }", "--set", "train.save_every=4"];
    let run = |out: &str, extra: &[&str]| {
        let output = fixture.execute(out, &[&set[..], extra].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("straight", &[]);
    run("again", &[]);
    std::fs::remove_dir_all(fixture.path("again/checkpoint-8")).unwrap();
    std::fs::remove_dir_all(fixture.path("again/final")).unwrap();
    run("again", &["--resume"]);
    let masks = |out: &str, step: u64| {
        std::fs::read(fixture.path(&format!("{out}/checkpoint-{step}/token_mask.safetensors"))).unwrap()
    };
    assert_eq!(masks("straight", 8), masks("again", 8));
    assert_ne!(masks("straight", 4), masks("straight", 8));
    let bytes = masks("straight", 8);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in [
        "reward.layer_norm.weight",
        "divergence.layers.weight",
        "reward.mixer.weight",
        "optimizer.m.reward.layers.bias",
    ] {
        assert!(file.tensor(name).is_ok(), "{name}: {:?}", file.names());
    }
    fixture.assert_same_run("straight", "again");
    let record = &fixture.metrics("straight")[1];
    for name in ["kl/chosen", "mask/reward_sparsity", "mask/divergence_sparsity"] {
        assert!(record.contains_key(name), "{name}: {record:?}");
    }
}
