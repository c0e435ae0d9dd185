//! A run small enough for tests: a two-layer model on the quickstart's tokenizer and some of its pairs.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use warpo::{
    config::Config,
    device::{Choice, Float},
    loss::Loss,
    model::Model,
    optim::Optimizer,
    roles::{Policy, Reference, Roles},
    train::{
        Options, Outcome,
        step::{StepOptions, Trainer},
    },
};

const TRAIN_ROWS: usize = 22;
const EVAL_ROWS: usize = 5;

/// A folder with model, data and `run.toml`; removed when dropped.
pub struct Fixture(TempDir);

impl Fixture {
    pub fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        let examples = crate::support::root().join("examples");
        let model = fixture.path("model");
        fs::create_dir(&model).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(examples.join("quickstart-model").join(name), model.join(name)).unwrap();
        }
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 1024,
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": true, "initializer_range": 0.05, "eos_token_id": 0
        });
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        for (name, rows) in [("train", TRAIN_ROWS), ("eval", EVAL_ROWS)] {
            let source = examples.join(format!("data/persona_agreeableness/{name}.jsonl"));
            let text = fs::read_to_string(source).unwrap();
            let head: Vec<&str> = text.lines().take(rows).collect();
            fs::write(fixture.path(&format!("{name}.jsonl")), head.join("\n")).unwrap();
        }
        fs::write(
            fixture.path("run.toml"),
            r#"
            model = { path = "model", init = "random" }
            data = { train = "train.jsonl", eval = "eval.jsonl" }
            loss = { sft_weight = 0.5 }
            batch = { pairs = 4, tokens = 160 }
            optim = { lr = 1e-3, schedule = "cosine", warmup_steps = 2, weight_decay = 0.01 }
            train = { steps = 8, seed = 3, eval_every = 3, save_every = 2, keep_checkpoints = 0, log_every = 1, precision = "f32" }
            cache = { dir = "cache" }
            "#,
        )
        .unwrap();
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The run's configuration with these overrides.
    pub fn config(&self, set: &[&str]) -> Config {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Config::load(&self.path("run.toml"), &set).unwrap()
    }

    /// Runs in this process, on the host device.
    pub fn run(&self, out: &str, set: &[&str]) -> anyhow::Result<Outcome> {
        let options = Options {
            config: self.config(set),
            device: Choice::Host,
            out: self.path(out),
            resume: false,
            overwrite: false,
        };
        Ok(warpo::train::run(&options, &false.into())?)
    }

    /// The program itself, on the host device.
    pub fn command(&self, out: &str, args: &[&str]) -> Command {
        // In a bundle it lies beside the tests.
        let beside = crate::support::root().join("warpo");
        let program = if beside.is_file() { beside } else { env!("CARGO_BIN_EXE_warpo").into() };
        let mut command = Command::new(program);
        command.arg("train").arg(self.path("run.toml")).args(["--device", "host"]);
        command.arg("--out").arg(self.path(out)).args(args).env_remove("RUST_BACKTRACE");
        command
    }

    /// Runs the program to its end.
    pub fn execute(&self, out: &str, args: &[&str]) -> Output {
        self.command(out, args).output().unwrap()
    }

    /// Records of `metrics.jsonl`.
    pub fn metrics(&self, out: &str) -> Vec<Map<String, Value>> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The same without what a clock says, or the memory of the process and its plan.
    pub fn timeless_metrics(&self, out: &str) -> Vec<Map<String, Value>> {
        let mut records = self.metrics(out);
        for record in &mut records {
            for name in ["tokens_per_second", "speed_of_light", "step_ms", "memory_bytes", "recompute_flops_share"] {
                record.remove(name);
            }
        }
        records
    }

    /// Every file of a run folder by relative path, but for the metrics, the configuration and the model's card, which name the
    /// files of rows.
    pub fn files(&self, out: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(out);
        let mut found = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                match path.is_dir() {
                    true => folders.push(path),
                    false if ["metrics.jsonl", "config.toml", "final/README.md"].contains(&name.as_str()) => {}
                    false => drop(found.insert(name, fs::read(&path).unwrap())),
                }
            }
        }
        found
    }

    /// Asserts that `other` left the same bytes and the same metrics as `out`. Checkpoints only `other` has, such as
    /// the one an interruption makes, are passed over.
    pub fn assert_same_run(&self, out: &str, other: &str) {
        let (want, got) = (self.files(out), self.files(other));
        assert!(want.keys().any(|name| name.starts_with("final/")), "{out} is not complete");
        for (name, bytes) in &want {
            let found = got.get(name).unwrap_or_else(|| panic!("{other}: {name} is missing"));
            let [bytes, found] = [bytes, found].map(|bytes| without_machine(name, bytes));
            let at = bytes.iter().zip(&found).position(|(a, b)| a != b);
            assert!(at.is_none() && bytes.len() == found.len(), "{other}: {name} differs at byte {at:?}");
        }
        let (want, got) = (self.timeless_metrics(out), self.timeless_metrics(other));
        for (want, got) in want.iter().zip(&got) {
            assert_eq!(want, got, "{other}: metrics differ");
        }
        assert_eq!(want.len(), got.len(), "{other}: lines of metrics");
    }
}

/// A checkpoint's state without the device that computed it and the checksum over both; other files as they are.
fn without_machine(name: &str, bytes: &[u8]) -> Vec<u8> {
    if !name.ends_with("trainer_state.json") {
        return bytes.to_vec();
    }
    let mut state: Map<String, Value> = serde_json::from_slice(bytes).unwrap();
    for key in ["machine", "check"] {
        assert!(state.remove(key).is_some(), "{name} has no {key}");
    }
    serde_json::to_vec(&state).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A trainer of one model whose reference comes as values.
pub fn trainer<T: Float>(model: Model<T>, optimizer: Optimizer<T>, loss: Loss) -> Trainer<T> {
    let roles = Roles { policy: Policy { model, optimizer, masks: None, ema: None }, reference: Reference::Values };
    Trainer::new(roles, loss, StepOptions::default()).unwrap()
}
