//! TRL's own trainers, five steps each: `tests/parity/make_loss_goldens.py`.

use std::collections::BTreeMap;

use serde::Deserialize;
use warpo::{
    data::trees::Trees,
    device::{DType, Device},
    feed::Work,
    forest::{Role, Segment, Tree},
    loss::{Loss, Shape, Term},
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    optim::{Optimizer, RuleKind, Settings},
    roles::{Policy, Reference, Roles, reference::compute},
    train::step::{StepOptions, Trainer},
};

use crate::support::{fast_device, root};

#[derive(Deserialize)]
struct Golden {
    optim: BTreeMap<String, f64>,
    losses: BTreeMap<String, Steps>,
}

#[derive(Deserialize)]
struct Steps {
    parameters: BTreeMap<String, f64>,
    trl: Options,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    /// Before each update; TRL's trainers of some losses do not say it.
    #[serde(default)]
    entropy: Vec<f64>,
    #[serde(default)]
    mean_token_accuracy: Vec<f64>,
}

/// TRL's own, as far as they are not the loss's.
#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    ref_model_sync_steps: usize,
    #[serde(default)]
    ref_model_mixup_alpha: f64,
}

impl Steps {
    /// What TRL says of a step's rows beside its loss.
    fn said(&self, step: usize) -> impl Iterator<Item = (&'static str, f64)> {
        let of = |name, values: &[f64]| values.get(step).map(|&value| (name, value));
        [of("entropy", &self.entropy), of("mean_token_accuracy", &self.mean_token_accuracy)].into_iter().flatten()
    }
}

#[derive(Deserialize)]
struct Pairs {
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

/// What the issue of matching TRL asks for, of losses and of gradient norms before clipping.
const LIMIT: f64 = 1e-4;

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = root().join("tests/fixtures/parity").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The golden's name: a loss, and perhaps its divergence.
fn loss(name: &str, steps: &Steps) -> Loss {
    let (name, divergence) = name.split_once(' ').map_or((name, None), |(name, word)| (name, Some(word)));
    // TR-DPO is DPO beside a reference that follows.
    let mut term = Term::named(name.trim_start_matches("tr_")).unwrap();
    for (key, value) in &steps.parameters {
        term.parameters.set(term.definition, key, &toml::Value::Float(*value)).unwrap();
    }
    if let Some(word) = divergence {
        let value = toml::Value::String(word.into());
        term.parameters.set(term.definition, "f_divergence_type", &value).unwrap();
    }
    Loss::new(vec![term]).unwrap()
}

fn trees(pairs: &[Pair], shape: Shape) -> Vec<Tree> {
    if shape != Shape::Labelled {
        let tree = |pair: &Pair| Tree::pair("golden", pair.prompt.clone(), pair.chosen.clone(), pair.rejected.clone());
        return pairs.iter().map(tree).collect();
    }
    // One row a response; the prompt also gets the completion of the row before, as TRL makes it for one batch.
    let rows: Vec<(&Vec<u32>, &Vec<u32>, bool)> = pairs
        .iter()
        .flat_map(|pair| [(&pair.prompt, &pair.chosen, true), (&pair.prompt, &pair.rejected, false)])
        .collect();
    let row = |(i, &(prompt, completion, label)): (usize, &(&Vec<u32>, &Vec<u32>, bool))| {
        let before = rows[(i + rows.len() - 1) % rows.len()].1;
        let scored = |tokens: &Vec<u32>, role| Segment {
            parent: Some(0),
            tokens: tokens.clone(),
            scored: true,
            role,
            ..Segment::default()
        };
        let prompt = Segment { tokens: prompt.clone(), ..Segment::default() };
        let segments = vec![prompt, scored(completion, Role::Response), scored(before, Role::Mismatched)];
        Tree { name: format!("golden {i}"), segments, labels: vec![label], ..Tree::default() }
    };
    rows.iter().enumerate().map(row).collect()
}

fn run(device: &Device, name: &str, golden: &Golden, pairs: &[Pair], budget: usize) -> f64 {
    let steps = &golden.losses[name];
    let loss = loss(name, steps);
    let trees = trees(pairs, loss.shape());
    let folder = root().join("tests/fixtures/parity/llama");
    let config = ModelConfig::load(&folder).unwrap();
    let capacity = Capacity { tokens: budget, rows: budget, head_chunk_rows: 100 };
    let made = || {
        let plan = MemoryPlan::new(&config, DType::F32, capacity).unwrap();
        let model = Model::<f32>::new(device, &config, plan).unwrap();
        model.load(&folder).unwrap();
        model
    };
    let model = made();
    let trees: Trees = trees.into_iter().collect();
    let reference = compute(&model, &trees, budget).unwrap();
    let of = |key: &str| golden.optim[key];
    let settings = Settings {
        rule: RuleKind::adamw(of("beta1"), of("beta2"), of("eps")),
        weight_decay: of("weight_decay"),
        max_grad_norm: of("max_grad_norm"),
    };
    let optimizer = Optimizer::new(model.params(), &settings).unwrap();
    let follows = steps.trl.ref_model_sync_steps;
    let reference_model = if follows > 0 { Reference::Beside(Box::new(made())) } else { Reference::Values };
    let policy = Policy { model, optimizer, masks: None, ema: None };
    let trainer = Trainer::new(Roles { policy, reference: reference_model }, loss, StepOptions::default()).unwrap();
    let work = Work::of(&trees, &(0..trees.len() as u32).collect::<Vec<_>>(), budget, &reference).unwrap();
    let mut worst = 0.0f64;
    for (step, (&want_loss, &want_norm)) in steps.losses.iter().zip(&steps.grad_norms).enumerate() {
        let lr = of("lr") * (1.0 - step as f64 / steps.losses.len() as f64);
        let done = trainer.step(&work, lr, step == 0).unwrap();
        let (loss, norm) = (done.metrics.get("loss").unwrap(), f64::from(done.update.grad_norm));
        if follows > 0 && (step + 1).is_multiple_of(follows) {
            trainer.follow(steps.trl.ref_model_mixup_alpha).unwrap();
        }
        // A loss that has all but vanished is compared on the scale of a nat.
        let off = (loss - want_loss).abs() / want_loss.abs().max(1.0);
        assert!(off <= LIMIT, "{name}, step {step}: loss {loss} instead of {want_loss}");
        let relative = (norm / want_norm - 1.0).abs();
        assert!(relative <= LIMIT, "{name}, step {step}: gradient norm {norm} instead of {want_norm}");
        worst = worst.max(off).max(relative);
        // TRL's trainer of pairs counts the rejected sides too where the loss is the chosen ones' likelihood.
        for (metric, want) in steps.said(step).filter(|(metric, _)| (name, *metric) != ("sft", "entropy")) {
            let got = done.metrics.get(metric).unwrap_or_else(|| panic!("{name}: no {metric}"));
            assert!(
                (got - want).abs() <= LIMIT * want.max(1.0),
                "{name}, step {step}: {metric} {got} instead of {want}"
            );
        }
    }
    worst
}

#[test]
fn five_steps_of_every_loss_trl_has() {
    let (golden, Pairs { pairs }): (Golden, Pairs) = (read("losses.json"), read("llama/golden.json"));
    let device = fast_device(2);
    let mut all = Vec::new();
    for name in golden.losses.keys() {
        // All in one micro-batch, and in several.
        for budget in [1024, 160] {
            all.push((run(&device, name, &golden, &pairs, budget), name));
        }
    }
    let trl = "dpo hinge ipo exo_pair nca_pair rdpo bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft ln_dpo \
               kto cpo simpo";
    assert!(trl.split(' ').all(|name| golden.losses.contains_key(name)));
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("TRL: {} losses, largest differences {:?}", golden.losses.len(), &all[..4]);
}
