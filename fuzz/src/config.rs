//! What is written about a run and a model: the TOML with its overrides, `config.json`, the files of a tokenizer.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use warpo::{
    config::Config as Run,
    data::{template::Templates, tokenize::Tokenizer},
    device::DType,
    model::{Capacity, MemoryPlan, ModelConfig},
};

use super::{TOKENIZER_CONFIG, Target, VOCAB, check_refusal, input, small_tokenizer, split, write};

/// By the first byte: what the text is.
const RUN: u8 = 0;
const MODEL: u8 = 1;
const TOKENIZER: u8 = 2;
/// Files of a tokenizer's folder in the order of the input.
const FILES: [&str; 4] = ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "config.json"];

const LOSSES: &str = "[model]\npath = 'm'\nolder_reference = 'o'\n[data]\ntrain = ['a-*.jsonl', {path = 'b', weight = 2.5}]\n\
    eval = 'e'\nlong_prompt = 'keep_end'\nlong_response = 'drop'\non_error = 'skip'\ntemplate = 't'\n\
    columns = {prompt = 'question'}\ntemplate_kwargs = {enable_thinking = false, n = [1, 2.5]}\n\
    [[loss]]\nname = 'apo_accelerated'\n[[loss]]\nname = 'sft'\nweight = 0.5\n[batch]\npacks = 2\ntokens = 512\n\
    [optim]\nlr = 1e-6\nwarmup_steps = 3\n[train]\nsteps = 9\nprecision = 'f32'\nthreads = 1\n[cache]\ndir = 'off'\n";

/// Configurations.
pub struct Config {
    folder: PathBuf,
}

impl Target for Config {
    fn seeds() -> Vec<Vec<u8>> {
        let runs = [
            concat!(include_str!("../../examples/quickstart.toml"), "\0optim.lr=1e-7\0data.eval=other.jsonl"),
            concat!(include_str!("../../examples/lists.toml"), "\0loss.beta=3\0train.steps=5"),
            LOSSES,
        ];
        let models = [
            include_str!("../../tests/fixtures/parity/gemma2/config.json"),
            include_str!("../../tests/fixtures/parity/gemma3/config.json"),
            include_str!("../../tests/fixtures/parity/gpt2/config.json"),
            include_str!("../../tests/fixtures/parity/llama-llama3/config.json"),
            include_str!("../../tests/fixtures/parity/llama-yarn/config.json"),
            include_str!("../../tests/fixtures/parity/mistral/config.json"),
            include_str!("../../tests/fixtures/parity/olmo2/config.json"),
            include_str!("../../tests/fixtures/parity/phi3/config.json"),
            include_str!("../../tests/fixtures/parity/qwen2/config.json"),
            include_str!("../../tests/fixtures/parity/qwen3/config.json"),
            include_str!("../../tests/fixtures/parity/smollm3/config.json"),
        ];
        let tokens = json!({"bos_token": {"content": "<s>"}, "eos_token": "<|endoftext|>", "chat_template": "{{ bos_token }}",
            "add_bos_token": true, "split_special_tokens": false, "additional_special_tokens": ["<a>"],
            "added_tokens_decoder": {"1": {"content": "<s>", "special": true}, "320": {"content": "<a>"}}});
        let others = json!({"eos_token_id": [0, 1], "bos_token_id": 1});
        let folder = format!("{tokens}\0{others}\0{}\0{others}", json!({"pad_token": "<s>"}));
        let mut seeds: Vec<_> = runs.iter().map(|text| input(RUN, text.as_bytes())).collect();
        seeds.extend(models.iter().map(|text| input(MODEL, text.as_bytes())));
        seeds.extend([TOKENIZER_CONFIG, &folder].map(|text| input(TOKENIZER, text.as_bytes())));
        seeds
    }

    fn new(folder: &Path) -> Self {
        small_tokenizer(folder);
        Self { folder: folder.to_owned() }
    }

    fn run(&self, bytes: &[u8]) {
        let [choice, bytes @ ..] = bytes else { return };
        match choice % 3 {
            RUN => self.run_configuration(bytes),
            MODEL => model(&String::from_utf8_lossy(bytes)),
            _ => self.tokenizer(bytes),
        }
    }
}

impl Config {
    /// The file, then its overrides.
    fn run_configuration(&self, bytes: &[u8]) {
        let parts = split(bytes, b"\0");
        let overrides: Vec<String> = parts[1..].iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        let (file, resolved) = (self.folder.join("run.toml"), self.folder.join("resolved.toml"));
        write(&file, parts[0]);
        match Run::load(&file, &overrides) {
            Ok(run) => {
                let text = run.to_toml().expect("a configuration can be written");
                write(&resolved, &text);
                let again = Run::load(&resolved, &[]).expect("a resolved configuration is read back");
                assert_eq!(again.to_toml().expect("it can be written again"), text);
            }
            Err(why) => check_refusal(&why.into()),
        }
    }

    fn tokenizer(&self, bytes: &[u8]) {
        let parts = split(bytes, b"\0");
        for (i, name) in FILES.into_iter().enumerate() {
            write(&self.folder.join(name), parts.get(i).copied().unwrap_or(b"{}"));
        }
        match Tokenizer::load(&self.folder, VOCAB) {
            Ok(tokenizer) => {
                let text = "Hello <s> world<|endoftext|><a>";
                let mut ids = tokenizer.encode(text).expect("a text is encoded");
                tokenizer.end(&mut ids);
                tokenizer.decode(&ids).expect("ids are decoded");
                tokenizer.encode_with_offsets(text).expect("tokens have places");
            }
            Err(why) => check_refusal(&why),
        }
        if let Err(why) = Templates::load(&self.folder, None) {
            check_refusal(&why);
        }
    }
}

/// What runs is planned without overflow and written as it was read.
fn model(text: &str) {
    let config = match ModelConfig::parse(text) {
        Ok(config) => config,
        Err(why) => return check_refusal(&why),
    };
    let capacity = Capacity { tokens: 4096, rows: 4096, head_chunk_rows: 256 };
    for precision in [DType::F32, DType::Bf16] {
        match MemoryPlan::new(&config, precision, capacity) {
            Ok(plan) => assert!(plan.total() > 0, "a model without memory"),
            Err(why) => check_refusal(&why),
        }
    }
    for rope in &config.ropes {
        assert_eq!(rope.frequencies(config.head_dim).len(), config.head_dim / 2);
    }
    let again = ModelConfig::parse(&Value::Object(config.to_map(DType::F32)).to_string())
        .expect("a saved config.json is read back");
    assert_eq!(again.parameters(), config.parameters());
}
