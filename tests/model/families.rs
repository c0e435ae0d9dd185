//! Every family that runs, against what transformers and TRL computed: `tests/parity/make_goldens.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use half::bf16;
use safetensors::SafeTensors;
use serde::Deserialize;
use tempfile::TempDir;
use warpo::{
    device::{Buffer, DType, Device, Float},
    forest::{Forest, Tree},
    loss::Loss,
    model::{Batch, Capacity, Companions, MemoryPlan, Model, ModelConfig, Slopes},
    optim::{Optimizer, RuleKind, Settings},
};

use super::{fast_devices, named};
use crate::loss::{on_rows, pairs_of};
use crate::support::{assert_same_bits, fast_device};

/// Folders of `tests/fixtures/parity` that run.
pub const FAMILIES: &[&str] = &[
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "llama-linear",
    "llama-llama3",
    "llama-tied",
    "llama-yarn",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
];

/// The family that also runs with the emulated matrix products, which take most of the time.
const EMULATED: &str = "llama";

/// What is no weight: the causal mask, which old GPT-2 folders carry.
const BUFFERS: [&str; 2] = [".attn.bias", ".attn.masked_bias"];

/// Either is enough for a summed log-probability in f32. transformers' own f32 is up to 4.6e-5 away from its f64.
const LOGP_ABSOLUTE: f64 = 1e-4;
const LOGP_RELATIVE: f64 = 1e-6;
const LOSS_ABSOLUTE: f64 = 1e-4;
const NORM_RELATIVE: f64 = 1e-3;
/// A tensor's norm is compared relative to itself or to this part of the norm of all gradients, whichever is more: what
/// is smaller is a difference of large terms and holds their rounding.
const NORM_FLOOR: f64 = 1e-3;

/// How far root mean squares of rounding errors that come from the same distribution may be apart: the root of F's 0.999
/// quantile, for the 12 sequences of one family and for all 168 together.
const BF16_FAMILY: f64 = 2.65;
const BF16_ALL: f64 = 1.27;

#[derive(Deserialize)]
struct Golden {
    pairs: Vec<Pair>,
    logps: Sides,
    logps_bf16: Sides,
    token_logps: TokenLogps,
    beta: f64,
    optim: Optim,
    steps: Vec<Step>,
    loss_after: f64,
    logps_after: Sides,
}

impl Golden {
    fn trees(&self, name: &str) -> Vec<Tree> {
        let tree = |pair: &Pair| Tree::pair(name, pair.prompt.clone(), pair.chosen.clone(), pair.rejected.clone());
        self.pairs.iter().map(tree).collect()
    }
}

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

#[derive(Deserialize)]
struct Sides {
    chosen: Vec<f64>,
    rejected: Vec<f64>,
}

impl Sides {
    /// In the order of a forest's sequences.
    fn interleaved(&self) -> Vec<f64> {
        self.chosen.iter().zip(&self.rejected).flat_map(|(&chosen, &rejected)| [chosen, rejected]).collect()
    }
}

#[derive(Deserialize)]
struct TokenLogps {
    pair: usize,
    side: String,
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct Optim {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
}

#[derive(Deserialize)]
struct Step {
    lr: f64,
    loss: f64,
    grad_norm: f64,
    grad_norms: BTreeMap<String, f64>,
}

fn fixtures() -> PathBuf {
    crate::support::root().join("tests/fixtures/parity")
}

fn golden(family: &str) -> Golden {
    serde_json::from_slice(&fs::read(fixtures().join(family).join("golden.json")).unwrap()).unwrap()
}

/// The devices of one family.
fn devices(family: &str) -> Vec<(Device, &'static str)> {
    fast_devices().into_iter().filter(|&(_, on)| family == EMULATED || on != "host").collect()
}

/// A family's stored weights with its pairs in one pack.
struct Loaded<T> {
    model: Model<T>,
    forest: Forest,
    batch: Batch,
}

impl<T: Float> Loaded<T> {
    fn new(device: &Device, family: &str, golden: &Golden) -> Self {
        Self::planned(device, family, golden, MemoryPlan::new)
    }

    fn planned(
        device: &Device,
        family: &str,
        golden: &Golden,
        plan: fn(&ModelConfig, DType, Capacity) -> Result<MemoryPlan>,
    ) -> Self {
        let folder = fixtures().join(family);
        let config = ModelConfig::load(&folder).unwrap();
        let trees = golden.trees(family);
        let forest = Forest::pack(&trees).unwrap();
        let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 100 };
        let plan = plan(&config, T::DTYPE, capacity).unwrap();
        let model = Model::new(device, &config, plan).unwrap();
        model.load(&folder).unwrap();
        let batch = model.upload(&forest).unwrap();
        Self { model, forest, batch }
    }

    fn rows(&self) -> Buffer<f32> {
        self.model.forward(&self.batch).unwrap();
        self.model.logps(&self.batch).unwrap()
    }

    /// Sums over the sequences of row log-probabilities.
    fn sums(&self, rows: &[f32]) -> Vec<f64> {
        let range = |i: usize| self.forest.sequence_rows[i] as usize..self.forest.sequence_rows[i + 1] as usize;
        let sum = |i| rows[range(i)].iter().map(|&x| f64::from(x)).sum();
        (0..self.forest.sequences()).map(sum).collect()
    }
}

/// The part of its tolerance that a log-probability takes.
fn logp_excess(got: f64, want: f64) -> f64 {
    let excess = (got - want).abs() / LOGP_ABSOLUTE.max(LOGP_RELATIVE * want.abs());
    if excess.is_nan() { f64::INFINITY } else { excess }
}

fn assert_logps(what: &str, got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut worst = 0.0f64;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let excess = logp_excess(got, want);
        assert!(excess <= 1.0, "{what}, {i}: {got} instead of {want}: off by {:.1e}", (got - want).abs());
        worst = worst.max((got - want).abs());
    }
    worst
}

#[test]
fn every_golden_is_a_family_that_runs() {
    let folders = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<String> = folders
        .filter(|folder| folder.join("golden.json").exists())
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    assert_eq!(found, FAMILIES);
}

#[test]
fn forward_alone_has_the_same_bits_in_less_memory() {
    let device = fast_device(2);
    for family in FAMILIES {
        let golden = golden(family);
        let training = Loaded::<f32>::new(&device, family, &golden);
        let scoring = Loaded::<f32>::planned(&device, family, &golden, MemoryPlan::forward_only);
        let bits = |loaded: &Loaded<f32>| device.download(&loaded.rows()).unwrap();
        assert!(bits(&training) == bits(&scoring), "{family}");
        let (plan, less) = (training.model.plan(), scoring.model.plan());
        assert!(less.total() < plan.total() && less.saved < plan.saved, "{family}");
        let coefficients = device.zeros(scoring.forest.rows()).unwrap();
        let why = scoring.model.backward(&scoring.batch, &Slopes::by_logps(&coefficients)).unwrap_err().to_string();
        assert_eq!(why, "the memory plan is for forward passes only");
    }
}

#[test]
fn log_probabilities_in_f32() {
    for family in FAMILIES {
        let golden = golden(family);
        for (device, on) in devices(family) {
            let loaded = Loaded::<f32>::new(&device, family, &golden);
            let rows = device.download(&loaded.rows()).unwrap();
            let what = format!("{family} on {on}");
            let worst = assert_logps(&what, &loaded.sums(&rows), &golden.logps.interleaved());

            let TokenLogps { pair, side, values } = &golden.token_logps;
            let sequence = 2 * pair + usize::from(side == "rejected");
            let first = loaded.forest.sequence_rows[sequence] as usize;
            let rows: Vec<f64> = rows[first..first + values.len()].iter().map(|&x| f64::from(x)).collect();
            let by_token = assert_logps(&format!("{what}, token by token"), &rows, values);
            println!("{what}: sequences {worst:.1e}, tokens {by_token:.1e}");
        }
    }
}

/// Sum of squared distances over the sequences.
fn squares(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum()
}

/// Rounding to bf16 is as good as transformers' own: errors of sequences are compared as draws from one distribution,
/// since the largest of twelve says more about luck than about arithmetic.
#[test]
fn log_probabilities_in_bf16_are_as_close_as_those_of_transformers() {
    let (mut all_ours, mut all_theirs) = (0.0, 0.0);
    for family in FAMILIES {
        let golden = golden(family);
        let exact = golden.logps.interleaved();
        let theirs = squares(&golden.logps_bf16.interleaved(), &exact);
        for (device, on) in devices(family) {
            let loaded = Loaded::<bf16>::new(&device, family, &golden);
            let rows = device.download(&loaded.rows()).unwrap();
            let ours = squares(&loaded.sums(&rows), &exact);
            let ratio = (ours / theirs).sqrt();
            println!("{family} on {on}: {ratio:.2} of transformers' error");
            assert!(ratio <= BF16_FAMILY, "{family} on {on}: {ratio:.2} times transformers' error in bf16");
            if on != "host" {
                all_ours += ours;
                all_theirs += theirs;
            }
        }
    }
    let ratio = f64::sqrt(all_ours / all_theirs);
    println!("all families: {ratio:.2} of transformers' error");
    assert!(ratio <= BF16_ALL, "all families: {ratio:.2} times transformers' error in bf16");
}

#[test]
fn five_steps_of_training() {
    for family in FAMILIES {
        let golden = golden(family);
        for (device, on) in devices(family) {
            train(&device, &format!("{family} on {on}"), family, &golden);
        }
    }
}

fn train(device: &Device, what: &str, family: &str, golden: &Golden) {
    let loaded = Loaded::<f32>::new(device, family, golden);
    let Loaded { model, batch, .. } = &loaded;
    let Optim { beta1, beta2, eps, weight_decay, max_grad_norm } = golden.optim;
    let settings = Settings { rule: RuleKind::adamw(beta1, beta2, eps), weight_decay, max_grad_norm };
    let optimizer = Optimizer::new(model.params(), &settings).unwrap();
    let reference = device.upload(&device.download(&loaded.rows()).unwrap()).unwrap();
    let loss_of = |what: &str, want: f64| {
        let logps = loaded.rows();
        let (loss, coefficients) = mean_loss(device, golden, &loaded.forest, batch, &logps, &reference);
        let off = (loss - want).abs();
        assert!(off <= LOSS_ABSOLUTE, "{what}: loss {loss} instead of {want}: off by {off:.1e}");
        (off, coefficients)
    };
    let (mut losses, mut norms) = (0.0f64, 0.0f64);
    for (i, step) in golden.steps.iter().enumerate() {
        let what = format!("{what}, step {i}");
        let (off, coefficients) = loss_of(&what, step.loss);
        losses = losses.max(off);
        model.zero_grads().unwrap();
        model.backward(batch, &Slopes::by_logps(&coefficients)).unwrap();
        norms = norms.max(assert_norms(&what, model, step));
        let update = optimizer.step(step.lr).unwrap();
        let off = (f64::from(update.grad_norm) / step.grad_norm - 1.0).abs();
        assert!(update.applied && off <= NORM_RELATIVE, "{what}: norm {} of {}", update.grad_norm, step.grad_norm);
    }
    losses = losses.max(loss_of(&format!("{what}, afterwards"), golden.loss_after).0);
    let rows = device.download(&loaded.rows()).unwrap();
    // Adam divides rounding by rounding where a gradient is next to nothing; an update of 1e-3 relative, the tolerance
    // of the gradients, moves these sums by at most that part of what five steps moved them by.
    let (before, after) = (golden.logps.interleaved(), golden.logps_after.interleaved());
    for ((got, want), before) in loaded.sums(&rows).iter().zip(&after).zip(&before) {
        let limit = LOGP_ABSOLUTE + NORM_RELATIVE * (want - before).abs();
        assert!((got - want).abs() <= limit, "{what}: afterwards {got} instead of {want}");
    }
    println!("{what}: losses {losses:.1e}, gradient norms {norms:.1e} relative");
}

/// The mean DPO loss over all pairs, and its slopes.
fn mean_loss(
    device: &Device,
    golden: &Golden,
    forest: &Forest,
    batch: &Batch,
    logps: &Buffer<f32>,
    reference: &Buffer<f32>,
) -> (f64, Buffer<f32>) {
    let loss = Loss::with("dpo", &[("beta", golden.beta)]).unwrap();
    let groups = pairs_of(forest, &golden.trees(""));
    let (coefficients, metrics) = on_rows(device, &loss, &groups, logps, reference, &batch.sequence_rows);
    (metrics.get("loss").unwrap(), coefficients)
}

/// Every parameter's gradient norm; the largest relative error.
fn assert_norms(what: &str, model: &Model<f32>, step: &Step) -> f64 {
    let grads = named(model.config(), &model.device().download(model.params().grads()).unwrap());
    assert_eq!(grads.len(), step.grad_norms.len(), "{what}: tensors");
    let mut worst = 0.0f64;
    for (name, &want) in &step.grad_norms {
        // Released GPT-2 folders leave this prefix out.
        let ours = grads.get(name).or_else(|| grads.get(name.strip_prefix("transformer.")?));
        let values = ours.unwrap_or_else(|| panic!("{what}: no tensor {name}"));
        let got = values.iter().map(|g| g * g).sum::<f64>().sqrt();
        let error = (got - want).abs() / want.max(NORM_FLOOR * step.grad_norm);
        assert!(error <= NORM_RELATIVE, "{what}: gradient norm of {name}: {got} instead of {want}");
        worst = worst.max(error);
    }
    worst
}

/// Name, element type, shape and bytes of every tensor in a folder.
fn stored(folder: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(name, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    all
}

#[test]
fn a_saved_folder_holds_the_tensors_that_were_read() {
    for family in FAMILIES {
        let golden = golden(family);
        let (device, _) = devices(family).remove(0);
        let loaded = Loaded::<bf16>::new(&device, family, &golden);
        let scratch = TempDir::new().unwrap();
        // `tests/parity/families_in_transformers.py` reads what is kept.
        let kept = std::env::var_os("SAVE_FAMILIES").map(|folder| Path::new(&folder).join(family));
        let folder = kept.as_deref().unwrap_or(scratch.path());
        loaded.model.save(folder, &Companions::new(&fixtures().join(family), None).unwrap()).unwrap();
        let mut source = stored(&fixtures().join(family));
        source.retain(|name, _| !BUFFERS.iter().any(|buffer| name.ends_with(buffer)));
        if family == &"gpt2" {
            // Released files leave out the prefix that transformers writes.
            source = source.into_iter().map(|(name, tensor)| (format!("transformer.{name}"), tensor)).collect();
        }
        let saved = stored(folder);
        assert!(saved.keys().eq(source.keys()), "{family}: {:?} and {:?}", saved.keys(), source.keys());
        for (name, tensor) in &source {
            assert!(saved[name] == *tensor, "{family}: {name} is not as it was read");
        }
    }
}

#[test]
fn save_and_load_keep_the_bits() {
    for family in FAMILIES {
        let golden = golden(family);
        let (device, _) = devices(family).remove(0);
        let loaded = Loaded::<f32>::new(&device, family, &golden);
        // Numbers that only f32 holds.
        loaded.model.randomize(7).unwrap();
        let want = device.download(&loaded.model.params().values()).unwrap();
        let folder = TempDir::new().unwrap();
        loaded.model.save(folder.path(), &Companions::none()).unwrap();
        loaded.model.load(&fixtures().join(family)).unwrap();
        loaded.model.load(folder.path()).unwrap();
        assert_same_bits(family, &device.download(&loaded.model.params().values()).unwrap(), &want);
        let config = ModelConfig::load(folder.path()).unwrap();
        assert_eq!(config.to_map(DType::F32), loaded.model.config().to_map(DType::F32), "{family}");
    }
}
