//! A folder with everything a short run needs, to be damaged one thing at a time.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use tempfile::TempDir;

const VOCAB: usize = 1024;
const HIDDEN: usize = 32;

const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"],
  "eos_token_id": 0,
  "head_dim": 32,
  "hidden_act": "silu",
  "hidden_size": 32,
  "intermediate_size": 32,
  "max_position_embeddings": 256,
  "model_type": "llama",
  "num_attention_heads": 1,
  "num_hidden_layers": 1,
  "num_key_value_heads": 1,
  "rms_norm_eps": 1e-05,
  "tie_word_embeddings": true,
  "vocab_size": 1024
}
"#;

const RUN: &str = r#"[model]
path = "model"

[data]
train = "train.jsonl"
eval = "eval.jsonl"

[batch]
pairs = 2
tokens = 256

[optim]
lr = 1e-4

[train]
steps = 1
precision = "f32"

[cache]
dir = "off"
"#;

/// `model/`, `train.jsonl`, `eval.jsonl` and `run.toml` in a temporary folder; runs go to `out/`.
pub struct Scratch {
    folder: TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        let scratch = Self { folder: tempfile::tempdir().unwrap() };
        let examples = crate::support::root().join("examples");
        fs::create_dir(scratch.path("model")).unwrap();
        fs::copy(examples.join("quickstart-model/tokenizer.json"), scratch.path("model/tokenizer.json")).unwrap();
        scratch.write("model/config.json", CONFIG);
        scratch.write_weights(HIDDEN);
        for (name, rows) in [("train", 4), ("eval", 2)] {
            let source = examples.join(format!("data/persona_agreeableness/{name}.jsonl"));
            let text = fs::read_to_string(source).unwrap();
            let rows: String = text.split_inclusive('\n').take(rows).collect();
            scratch.write(&format!("{name}.jsonl"), &rows);
        }
        scratch.write("run.toml", RUN);
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Replaces the first `from` in a file.
    pub fn replace(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} holds no {from}");
        self.write(name, text.replacen(from, to, 1));
    }

    /// Replaces the second row of `train.jsonl`.
    pub fn second_row(&self, row: impl AsRef<[u8]>) {
        let bytes = fs::read(self.path("train.jsonl")).unwrap();
        let mut lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
        lines[1] = row.as_ref();
        self.write("train.jsonl", lines.join(&b'\n'));
    }

    /// Weights for `CONFIG`, the last norm of the given width.
    pub fn write_weights(&self, norm: usize) {
        let square = vec![HIDDEN, HIDDEN];
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
        for matrix in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"] {
            shapes.push((format!("model.layers.0.{matrix}_proj.weight"), square.clone()));
        }
        for vector in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("model.layers.0.{vector}.weight"), vec![HIDDEN]));
        }
        shapes.push(("model.norm.weight".to_owned(), vec![norm]));
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let values: Vec<f32> = (0..shape.iter().product()).map(|i| value(&shape, i)).collect();
                (name, shape, bytemuck::cast_slice(&values).to_vec())
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        serialize_to_file(views, None, &self.path("model/model.safetensors")).unwrap();
    }

    /// `warpo train run.toml --out out ARGS` in the folder; a later `--out` in `args` cannot be given.
    pub fn train(&self, out: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
        self.run(command.args(["train", "run.toml", "--out", out]).args(args))
    }

    /// `warpo data run.toml ARGS` in the folder.
    pub fn data(&self, args: &[&str]) -> Output {
        self.run(Command::new(env!("CARGO_BIN_EXE_warpo")).args(["data", "run.toml"]).args(args))
    }

    /// `warpo score` of `train.jsonl` into `scores.jsonl`, without a cache.
    pub fn score(&self, args: &[&str]) -> Output {
        self.score_to("scores.jsonl", args)
    }

    /// The same into another file.
    pub fn score_to(&self, out: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
        command.args(["score", "--model", "model", "--data", "train.jsonl", "--out", out]);
        self.run(command.args(["--device", "host", "--set", "cache.dir=off"]).args(args))
    }

    /// `warpo train` in a process whose files cannot grow past 32 KiB: a disk that is full.
    #[cfg(unix)]
    pub fn train_on_a_full_disk(&self, args: &[&str]) -> Output {
        let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_warpo"), "train", "run.toml", "--out", "out"]);
        self.run(command.args(args))
    }

    fn run(&self, command: &mut Command) -> Output {
        command.current_dir(self.folder.path()).output().unwrap()
    }

    /// Every file below the folder and its bytes; an empty folder counts as a file without bytes.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            files.insert(folder.clone(), Vec::new());
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        files
    }
}

/// Ones for vectors; for matrices numbers between -0.1 and 0.1 without a pattern.
fn value(shape: &[usize], index: usize) -> f32 {
    if shape.len() == 1 {
        return 1.0;
    }
    let hash = (index as u32 ^ 0x9e37).wrapping_mul(0x9e37_79b1);
    ((hash ^ (hash >> 15)) % 2001) as f32 / 1e4 - 0.1
}
