//! One step: accumulation over micro-batches, the update that is skipped, and what a run reports.

use std::f64::consts::LN_2;

use half::bf16;
use warpo::{
    config::Config,
    data::{
        Dataset, Limits,
        encode::{EncodeOptions, Encoder},
        records::Columns,
        tokenize::Tokenizer,
        trees::Trees,
    },
    device::{DType, Device, Float, HostOptions},
    feed::Work,
    loss::Loss,
    model::{Capacity, Layout, MemoryPlan, Model, ModelConfig, ParamSet},
    optim::{Optimizer, RuleKind, Settings},
    roles::reference::{RowValues, compute},
};

use super::fixture::{Fixture, trainer};
use crate::model::{pair, tiny_config};
use crate::support::{fast_device, for_each_device, relative_error, widen};

const SETTINGS: Settings = Settings { rule: RuleKind::adamw(0.9, 0.999, 1e-8), weight_decay: 0.1, max_grad_norm: 1.0 };

fn all(values: &RowValues, examples: usize) -> Vec<f32> {
    (0..examples).flat_map(|example| values.row(example).unwrap()).collect()
}

/// Gradients and metrics of one step over ten pairs, in micro-batches of at most `budget` tokens.
fn one_step(config: &Config, budget: usize) -> (Vec<f64>, Vec<(String, f64)>, usize) {
    let device = fast_device(2);
    let shape = ModelConfig::load(&config.model.path).unwrap();
    let tokenizer = Tokenizer::load(&config.model.path, shape.vocab).unwrap();
    let limits = Limits { prompt: 128, response: 16, tree: 160 };
    let encoder = Encoder::new(tokenizer, None, EncodeOptions::new(limits));
    let data = Dataset::load(&config.data.train.0[0].path, &Columns::new(), &encoder, config.data.on_error).unwrap();
    let capacity = Capacity { tokens: budget, rows: budget, head_chunk_rows: 7 };
    let plan = MemoryPlan::new(&shape, DType::F32, capacity).unwrap();
    let model = Model::<f32>::new(&device, &shape, plan).unwrap();
    model.randomize(5).unwrap();
    let trees = data.trees.iter().take(10).collect::<Result<Trees, _>>().unwrap();
    let reference = compute(&model, &trees, budget).unwrap();
    let optimizer = Optimizer::new(model.params(), &SETTINGS).unwrap();
    let loss = Loss::with("dpo", &[("sft_weight", 0.5)]).unwrap();
    let trainer = trainer(model, optimizer, loss);
    let work = Work::of(&trees, &(0..10).collect::<Vec<_>>(), budget, &reference).unwrap();
    let done = trainer.step(&work, 1e-3, true).unwrap();
    let grads = widen(&device.download(trainer.model().params().grads()).unwrap());
    (grads, done.metrics.iter().map(|(name, value)| (name.to_owned(), value)).collect(), work.packs.len())
}

#[test]
fn accumulation_over_micro_batches_changes_rounding_only() {
    let fixture = Fixture::new();
    let config = fixture.config(&[]);
    let (want, want_metrics, packs) = one_step(&config, 2048);
    assert_eq!(packs, 1);
    let (got, got_metrics, packs) = one_step(&config, 96);
    assert!(packs > 4, "{packs} packs");
    // Sums of a few hundred f32 terms in another order: some tens of roundoffs of 6e-8.
    let error = relative_error(&got, &want);
    assert!(error < 5e-6, "gradients differ by {error:.2e}");
    for ((name, got), (_, want)) in got_metrics.iter().zip(&want_metrics) {
        // At the reference the rewards are differences of equal numbers: compared on the scale of the log-probabilities.
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{name}: {got} instead of {want}");
    }
}

#[test]
fn the_first_loss_is_ln_2() {
    let fixture = Fixture::new();
    let config = fixture.config(&[]);
    let (_, metrics, _) = one_step(&config, 256);
    let value = |wanted: &str| metrics.iter().find(|(name, _)| *name == wanted).unwrap().1;
    let preference = value("loss") - 0.5 * value("nll_loss");
    assert!((preference - LN_2).abs() < 1e-6, "{preference}");
    // Random weights know nothing: a token costs about ln 1024.
    assert!((value("nll_loss") - 1024f64.ln()).abs() < 0.5, "{}", value("nll_loss"));
}

/// In bf16 a row rounds differently in another pack. The first loss may show that and must still be told apart from a
/// reference that is another model's.
#[test]
fn rounding_to_bf16_is_no_wrong_reference() {
    let device = Device::host(HostOptions { threads: 2, ..HostOptions::default() }).unwrap();
    let shape = tiny_config(true, 2);
    let trees: Trees = (0..4).map(|seed| pair(seed, [11, 110, 97])).collect();
    let capacity = Capacity { tokens: 1024, rows: 1024, head_chunk_rows: 512 };
    let plan = MemoryPlan::new(&shape, DType::Bf16, capacity).unwrap();
    let model = Model::<bf16>::new(&device, &shape, plan).unwrap();
    model.randomize(4).unwrap();
    // One tree a pack, then all in one.
    let reference = compute(&model, &trees, 256).unwrap();
    let work = Work::of(&trees, &[0, 1, 2, 3], 1024, &reference).unwrap();
    assert_eq!(work.packs.len(), 1);
    let optimizer = Optimizer::new(model.params(), &SETTINGS).unwrap();
    let trainer = trainer(model, optimizer, Loss::with("dpo", &[("beta", 0.5)]).unwrap());
    let done = trainer.step(&work, 0.0, true).unwrap();
    let off = (done.metrics.get("loss").unwrap() - LN_2).abs();
    println!("first loss in bf16: off by {off:.1e}");
    trainer.model().randomize(5).unwrap();
    let why = trainer.step(&work, 0.0, true).err().expect("another model's reference").to_string();
    assert!(why.starts_with("the first log-ratios to the reference are "), "{why}");
}

/// Large logits and long responses: rounding alone moves a sequence by more than any fixed number of nats. What it does to
/// the very rows is the limit, and another model's values are still further off.
#[test]
fn rounding_of_large_logits_is_no_wrong_reference() {
    let device = Device::host(HostOptions { threads: 2, ..HostOptions::default() }).unwrap();
    let shape = tiny_config(false, 2);
    let trees: Trees = (0..4).map(|seed| pair(seed, [11, 110, 97])).collect();
    let capacity = Capacity { tokens: 1024, rows: 1024, head_chunk_rows: 512 };
    for scale in [1.0, 30.0, 300.0] {
        let plan = MemoryPlan::new(&shape, DType::Bf16, capacity).unwrap();
        let model = Model::<bf16>::new(&device, &shape, plan).unwrap();
        let start = |seed: u64| {
            model.randomize(seed).unwrap();
            let head = model.params().weight(&model.layout().head);
            let scaled =
                device.download(&head).unwrap().iter().map(|w| bf16::from_f32(w.to_f32() * scale)).collect::<Vec<_>>();
            device.copy_in(&head, &scaled).unwrap();
        };
        start(4);
        let reference = compute(&model, &trees, 256).unwrap();
        let work = Work::of(&trees, &[0, 1, 2, 3], 1024, &reference).unwrap();
        let optimizer = Optimizer::new(model.params(), &SETTINGS).unwrap();
        let trainer = trainer(model, optimizer, Loss::with("dpo", &[("beta", 1.0)]).unwrap());
        let done = trainer.step(&work, 0.0, true).unwrap();
        let rewards = ["rewards/chosen", "rewards/rejected"].map(|name| done.metrics.get(name).unwrap().abs());
        println!("logits times {scale}: rewards of {rewards:.2?} by rounding");
        // Far over what the limit without a look at the rows allows: 8 / 64 of the root of 100 rows.
        assert!(scale < 300.0 || rewards[0].max(rewards[1]) > 2.0, "{rewards:?} does not show anything");
        let other = compute(trainer.model(), &trees, 256).unwrap();
        assert_eq!(all(&other, 4), all(&reference, 4), "a first step with a rate of 0 changes nothing");
        trainer.model().randomize(5).unwrap();
        let head = trainer.model().params().weight(&trainer.model().layout().head);
        let scaled =
            device.download(&head).unwrap().iter().map(|w| bf16::from_f32(w.to_f32() * scale)).collect::<Vec<_>>();
        device.copy_in(&head, &scaled).unwrap();
        let why = trainer.step(&work, 0.0, true).err().expect("another model's reference").to_string();
        assert!(why.starts_with("the first log-ratios to the reference are "), "{why}");
    }
}

#[test]
fn an_update_that_is_not_finite_changes_nothing() {
    for_each_device(|device, on| {
        skips::<f32>(device, on);
        skips::<half::bf16>(device, on);
    });
}

fn skips<T: Float>(device: &Device, on: &str) {
    let start: Vec<T> = (0..40).map(|i| T::from_f32(0.25 + i as f32)).collect();
    let layout = Layout::of([("w".into(), vec![32], true), ("b".into(), vec![8], false)]);
    let params = ParamSet::trained(device, layout).unwrap();
    device.copy_in(&params.values(), &start).unwrap();
    let optimizer = Optimizer::new(&params, &SETTINGS).unwrap();
    let state = |name: &str| {
        let tensors = optimizer.tensors();
        let (_, tensor) = tensors.iter().find(|(known, _)| *known == name).unwrap();
        device.download(&tensor.typed::<f32>().unwrap()).unwrap()
    };
    let step = |grads: &[f32], lr| {
        device.copy_in(params.grads(), grads).unwrap();
        optimizer.step(lr).unwrap()
    };
    for poison in [f32::INFINITY, f32::NAN] {
        let mut grads = vec![0.5f32; 40];
        grads[33] = poison;
        let update = step(&grads, 0.1);
        assert!(!update.applied && !update.grad_norm.is_finite(), "{on}: {update:?}");
        assert_eq!(device.download(&params.values()).unwrap(), start, "{on}");
        assert_eq!(state("m"), vec![0.0; 40], "{on}");
        assert_eq!(state("v"), vec![0.0; 40], "{on}");
        assert_eq!(optimizer.updates().unwrap(), 0, "{on}");
    }
    // The next good gradient is the first update: all of equal size, AdamW moves each element by the rate.
    let update = step(&[0.5f32; 40], 0.125);
    assert!(update.applied, "{on}");
    assert_eq!(optimizer.updates().unwrap(), 1, "{on}");
    let master = widen(&params.masters(&(0..40)).unwrap());
    for (i, value) in master.iter().enumerate() {
        let before = 0.25 + i as f64;
        let decayed = if i < 32 { before * (1.0 - 0.125 * 0.1) } else { before };
        // eps against a clipped gradient of 1 / sqrt(40), and five roundings of numbers up to 40.
        assert!((value - (decayed - 0.125)).abs() < 2e-5, "{on}: element {i}: {value}");
    }
}

#[test]
fn a_run_reports_what_the_design_promises() {
    let fixture = Fixture::new();
    fixture.run("out", &[]).unwrap();
    let metrics = fixture.metrics("out");
    let names = |record: &serde_json::Map<_, _>| record.keys().cloned().collect::<Vec<_>>().join(" ");
    insta::assert_snapshot!(names(&metrics[1]), @"step epoch loss dpo_loss nll_loss rewards/chosen rewards/rejected rewards/margins rewards/accuracies logps/chosen logps/rejected logps/chosen_fell weights/effective_share entropy mean_token_accuracy grad_norm learning_rate num_tokens skipped_steps tokens_per_second speed_of_light step_ms memory_bytes");
    insta::assert_snapshot!(names(&metrics[0]), @"step epoch eval_loss eval_dpo_loss eval_nll_loss eval_rewards/chosen eval_rewards/rejected eval_rewards/margins eval_rewards/accuracies eval_logps/chosen eval_logps/rejected eval_logps/chosen_fell eval_weights/effective_share");
    let steps: Vec<_> = metrics.iter().map(|r| (r["step"].as_u64().unwrap(), r.contains_key("loss"))).collect();
    let (step, eval) = (true, false);
    assert_eq!(
        steps,
        [
            (0, eval),
            (1, step),
            (2, step),
            (3, step),
            (3, eval),
            (4, step),
            (5, step),
            (6, step),
            (6, eval),
            (7, step),
            (8, step),
            (8, eval)
        ]
    );
    // 22 pairs in steps of 4: the sixth step of an epoch has two.
    let epochs: Vec<f64> =
        metrics.iter().filter(|r| r.contains_key("loss")).map(|r| r["epoch"].as_f64().unwrap()).collect();
    let want: Vec<f64> = [4, 8, 12, 16, 20, 22, 26, 30].iter().map(|&pairs| f64::from(pairs) / 22.0).collect();
    for (got, want) in epochs.iter().zip(&want) {
        assert!((got - want).abs() < 1e-12, "{epochs:?}");
    }
    assert_eq!(metrics[1]["learning_rate"], 0.0);
    assert_eq!(metrics[2]["learning_rate"], 5e-4);
}
