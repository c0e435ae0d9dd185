//! The whole chain of every loss, model included, against central differences of plain f64 formulas over a plain f64 model.

use std::collections::BTreeMap;

use warpo::{
    data::{reshape::Reshape, trees::Trees},
    device::Device,
    feed::Work,
    forest::{Forest, Role, Segment, Tree, Value},
    loss::{Definition, Loss, Shape, all},
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    optim::{Optimizer, RuleKind, Settings},
    roles::{Policy, Reference, Roles, TrainedMasks, reference::compute},
    train::step::{StepOptions, Trainer},
};

use super::masks;
use crate::{
    model::{list, named, pair, random_params, steps, tiny_config, tokens},
    oracles::{
        self,
        losses::{Groups, Sequence},
        model::{Input, Params},
    },
    support::{fast_device, normal},
};

const BUDGET: usize = 96;

/// What one pass of the oracle says about every row of every tree.
pub struct Rows {
    pub logps: Vec<f64>,
    kl: Vec<f64>,
    collision: Vec<f64>,
}

pub struct Chain {
    pub config: ModelConfig,
    pub params: Vec<f32>,
    pub ref_params: Vec<f32>,
}

impl Chain {
    pub fn new() -> Self {
        let config = tiny_config(false, 2);
        let params = random_params::<f32>(&config);
        let noise = normal(4242, params.len());
        let ref_params = params.iter().zip(noise).map(|(w, noise)| w + 0.02 * noise).collect();
        Self { config, params, ref_params }
    }

    /// Rows of all trees, each tree alone.
    pub fn rows(&self, params: &Params, trees: &[Tree], reference: &[Vec<f64>]) -> Rows {
        let logits = self.logits(params, trees);
        let targets: Vec<usize> = trees.iter().flat_map(|tree| input(tree).rows).map(|(_, target)| target).collect();
        let mut rows = Rows { logps: Vec::new(), kl: Vec::new(), collision: Vec::new() };
        for ((z, zq), target) in logits.iter().zip(reference).zip(targets) {
            let (p, q) = (log_softmax(z), log_softmax(zq));
            rows.logps.push(p[target]);
            rows.kl.push(p.iter().zip(&q).map(|(p, q)| q.exp() * (q - p)).sum());
            rows.collision.push(p.iter().map(|p| (2.0 * p).exp()).sum::<f64>().ln());
        }
        rows
    }

    pub fn logits(&self, params: &Params, trees: &[Tree]) -> Vec<Vec<f64>> {
        let model = oracles::model::Model { config: &self.config, params, round: |x| x };
        trees.iter().flat_map(|tree| model.logits(&input(tree))).collect()
    }

    /// A model on the device with these weights.
    fn model(
        &self,
        device: &Device,
        params: &[f32],
        trees: &[Tree],
        plan: fn(&ModelConfig, Capacity) -> MemoryPlan,
    ) -> Model<f32> {
        let tokens = trees.iter().map(Tree::tokens).max().unwrap().max(BUDGET);
        let capacity = Capacity { tokens, rows: tokens, head_chunk_rows: 17 };
        let model = Model::new(device, &self.config, plan(&self.config, capacity)).unwrap();
        device.copy_in(&model.params().values(), params).unwrap();
        model
    }
}

fn training(config: &ModelConfig, capacity: Capacity) -> MemoryPlan {
    MemoryPlan::new(config, warpo::device::DType::F32, capacity).unwrap()
}

fn forward_only(config: &ModelConfig, capacity: Capacity) -> MemoryPlan {
    MemoryPlan::forward_only(config, warpo::device::DType::F32, capacity).unwrap()
}

pub fn input(tree: &Tree) -> Input {
    Input::forest(&Forest::pack([tree]).unwrap())
}

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log = z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    z.iter().map(|z| z - top - log).collect()
}

/// Rows of the kind a loss learns from, with every number and text any loss could ask for.
pub fn trees(loss: &Loss) -> Vec<Tree> {
    let pairs = || {
        let lengths = [[9, 5, 8], [4, 7, 3], [12, 6, 6], [3, 2, 9], [7, 10, 4]];
        lengths.into_iter().enumerate().map(|(i, lengths)| with_values(pair(i as u64 + 1, lengths), i)).collect()
    };
    match loss.shape() {
        Shape::Pair => pairs(),
        Shape::Single => {
            let single = |mut tree: Tree| {
                tree.segments.truncate(2);
                tree.pairs.clear();
                tree.values.clear();
                tree.scores.truncate(1);
                tree
            };
            let pairs: Vec<Tree> = pairs();
            pairs.into_iter().map(single).collect()
        }
        Shape::Labelled => {
            let mut trees: Vec<Tree> = pairs();
            trees.iter_mut().for_each(|tree| {
                tree.segments.truncate(3);
                tree.values.clear();
                tree.scores.clear();
            });
            if loss.reshape() == Reshape::Mismatch {
                let tokenizer = crate::data::quickstart::tokenizer();
                let mut rows: Trees = trees.into_iter().collect();
                warpo::data::reshape::apply(Reshape::Mismatch, &mut rows, &tokenizer, BUDGET).unwrap();
                trees = rows.iter().collect::<Result<_, _>>().unwrap();
            }
            trees
        }
        Shape::List => {
            let scored = |mut tree: Tree, seed: u64| {
                let count = tree.sequences().count();
                tree.scores = normal(seed, count).into_iter().map(f64::from).collect();
                tree.pairs.clear();
                tree
            };
            vec![scored(list(3, 6, 4), 1), scored(steps(2), 2), scored(list(5, 4, 3), 3)]
        }
    }
}

/// A rationale behind a prompt of its own, and numbers of every kind.
fn with_values(mut tree: Tree, i: usize) -> Tree {
    let root = tree.segments.len();
    tree.segments.push(Segment { tokens: tokens(900 + i as u64, 4), ..Segment::default() });
    tree.segments.push(Segment {
        parent: Some(root),
        tokens: tokens(950 + i as u64, 3 + i),
        scored: true,
        role: Role::Rationale,
        ..Segment::default()
    });
    let x = i as f64;
    tree.scores = vec![1.5 - 0.3 * x, -0.4 + 0.2 * x];
    tree.values = vec![
        (Value::Preference, vec![0.9 - 0.1 * x; 2]),
        (Value::WinRate, vec![0.8 - 0.05 * x, 0.3 + 0.02 * x]),
        (Value::Visits, vec![3.0 + x, 5.0 - x]),
        (Value::Margin, vec![0.3 * x - 0.5; 2]),
        (Value::Uncertainty, vec![0.1 + 0.05 * x; 2]),
        (Value::JudgeLogit, vec![x - 1.7; 2]),
        (Value::Group, vec![(i % 2) as f64; 2]),
    ];
    tree
}

/// The oracle's step from rows.
pub fn step_of(loss: &Loss, trees: &[Tree], rows: &Rows, ref_logps: &[f64], masks: &[Vec<f64>; 2]) -> Groups {
    let groups = loss.groups(trees).unwrap();
    let mut start = 0;
    let sequences: Vec<std::ops::Range<usize>> = groups
        .rows
        .iter()
        .map(|rows| {
            start += rows;
            start - rows..start
        })
        .collect();
    let sequence = |slot: usize| {
        let rows_of = sequences[groups.slots[slot]].clone();
        Sequence {
            lp: rows.logps[rows_of.clone()].to_vec(),
            lq: ref_logps[rows_of.clone()].to_vec(),
            kl: rows.kl[rows_of.clone()].to_vec(),
            collision: rows.collision[rows_of.clone()].to_vec(),
            mu: masks[0][rows_of.clone()].to_vec(),
            md: masks[1][rows_of.clone()].to_vec(),
            values: [groups.values[2 * slot], groups.values[2 * slot + 1]],
        }
    };
    (0..groups.len()).map(|group| groups.of(group).map(sequence).collect()).collect()
}

/// Rows of the oracle at the weights and at four points along a direction in each tensor.
struct Walk {
    trees: Vec<Tree>,
    here: Rows,
    along: BTreeMap<String, (Vec<f64>, [Rows; 4])>,
    ref_logps: Vec<f64>,
}

/// Steps of the differences.
const H: f64 = 1e-5;
const STEPS: [f64; 4] = [H, -H, 2.0 * H, -2.0 * H];

impl Walk {
    fn new(chain: &Chain, trees: Vec<Tree>) -> Self {
        let params = named(&chain.config, &chain.params);
        let ref_params = named(&chain.config, &chain.ref_params);
        let reference = chain.logits(&ref_params, &trees);
        let here = chain.rows(&params, &trees, &reference);
        let ref_logps = chain.rows(&ref_params, &trees, &reference).logps;
        let mut along = BTreeMap::new();
        for (seed, (name, tensor)) in params.iter().enumerate() {
            let direction: Vec<f64> = normal(900 + seed as u64, tensor.len()).into_iter().map(f64::from).collect();
            let at = |step: f64| {
                let mut params = params.clone();
                params.get_mut(name).unwrap().iter_mut().zip(&direction).for_each(|(w, d)| *w += step * d);
                chain.rows(&params, &trees, &reference)
            };
            along.insert(name.clone(), (direction.clone(), STEPS.map(at)));
        }
        Self { trees, here, along, ref_logps }
    }
}

/// The engine after one step that moves nothing, and the step's loss.
pub fn engine(chain: &Chain, device: &Device, loss: &Loss, trees: &[Tree]) -> (Trainer<f32>, f64) {
    let beside = chain.model(device, &chain.ref_params, trees, forward_only);
    let rows: Trees = trees.iter().cloned().collect();
    let values = compute(&beside, &rows, BUDGET).unwrap();
    let model = chain.model(device, &chain.params, trees, training);
    let settings = Settings { rule: RuleKind::adamw(0.9, 0.999, 1e-8), weight_decay: 0.0, max_grad_norm: 0.0 };
    let optimizer = Optimizer::new(model.params(), &settings).unwrap();
    let masks = TrainedMasks::new(device, loss, &chain.config, 5, settings).unwrap();
    if let Some(masks) = &masks {
        masks::scatter(device, &masks.masks.params().values());
    }
    let policy = Policy { model, optimizer, masks, ema: None };
    let reference = if loss.needs_divergence() { Reference::Beside(Box::new(beside)) } else { Reference::Values };
    let trainer = Trainer::new(Roles { policy, reference }, loss.clone(), StepOptions::default()).unwrap();
    let longest = trees.iter().map(Tree::tokens).max().unwrap();
    let work = Work::of(&rows, &(0..trees.len() as u32).collect::<Vec<_>>(), longest, &values).unwrap();
    assert!(work.packs.len() > 1, "{} packs", work.packs.len());
    let done = trainer.step(&work, 0.0, false).unwrap();
    let loss = done.metrics.get("loss").unwrap();
    (trainer, loss)
}

/// With steps `h` and `2 h`, D(h) - D(2h) = -3 c h² + O(h⁴), where c h² is the truncation of D(h): the difference bounds it.
/// The oracle's loss is a sum of some hundred terms after about a thousand operations each: 1000 roundings of its size, and
/// D(h) divides them by h. The engine computes in f32: a gradient is off by at most 1e-5 of its norm
/// (tests/model/gradients.rs), and the slope along a direction of normal numbers by that times a normal number: five times
/// it is allowed, one in a million.
#[test]
fn every_gradient_agrees_with_central_differences() {
    let (chain, device) = (Chain::new(), fast_device(2));
    let mut walks: BTreeMap<String, Walk> = BTreeMap::new();
    let mut worst = (0.0f64, String::new());
    let vectors = super::vectors::vectors();
    for definition in all() {
        let loss = loss_of(definition);
        let rows = trees(&loss);
        let walk = walks.entry(format!("{rows:?}")).or_insert_with(|| Walk::new(&chain, rows));
        let (trainer, got_loss) = engine(&chain, &device, &loss, &walk.trees);
        let grads = named(&chain.config, &device.download(trainer.model().params().grads()).unwrap());
        let masks = masks::values(&chain, &trainer, &walk.trees, &device);
        let parameters = &loss.terms()[0].parameters;
        let here = step_of(&loss, &walk.trees, &walk.here, &walk.ref_logps, &masks);
        let value = |rows: &Rows| {
            let step = step_of(&loss, &walk.trees, rows, &walk.ref_logps, &masks);
            oracles::losses::step(definition.name, &|name| parameters.get(name), &step, &here)
        };
        let want_loss = value(&walk.here);
        if want_loss.is_nan() {
            // Its head is held to its vector, and the chain behind a head is every loss's.
            assert!(
                vectors.keys().any(|key| definition.is_called(key)),
                "{}: neither an oracle nor a vector",
                definition.name
            );
            continue;
        }
        let error = (got_loss - want_loss).abs() / want_loss.abs().max(1e-3);
        assert!(error < 1e-5, "{}: loss {got_loss} instead of {want_loss}", definition.name);
        for (name, (direction, [plus, minus, plus2, minus2])) in &walk.along {
            let slope = (value(plus) - value(minus)) / (2.0 * H);
            let coarse = (value(plus2) - value(minus2)) / (4.0 * H);
            let grad = &grads[name];
            let got: f64 = grad.iter().zip(direction).map(|(g, d)| g * d).sum();
            let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
            let limit = (slope - coarse).abs() + 1000.0 * f64::EPSILON * want_loss.abs() / H + 5.0 * 1e-5 * norm;
            let error = (got - slope).abs();
            assert!(
                error <= limit,
                "{}: {name}: {got} instead of {slope}: {error:.1e} over {limit:.1e}",
                definition.name
            );
            let relative = error / norm;
            worst = if relative > worst.0 { (relative, format!("{} {name}", definition.name)) } else { worst };
        }
        let total: f64 = grads.values().flatten().map(|g| g * g).sum();
        assert!(total > 0.0, "{}: no gradient", definition.name);
    }
    println!("largest error of a slope, in norms of the gradient: {:.1e} ({})", worst.0, worst.1);
}

fn loss_of(definition: &Definition) -> Loss {
    let penalised = definition.all_parameters().any(|parameter| parameter.name == "l1_reward");
    let penalties: &[(&str, f64)] = if penalised { &[("l1_reward", 0.03), ("l1_divergence", 0.02)] } else { &[] };
    Loss::with(definition.name, penalties).unwrap()
}
