//! The run configuration: one TOML file, defaults, and the checks that refuse a bad value before anything starts.
//!
//! Owns names, units and ranges of every setting. Knows nothing about devices, models or data beyond their paths.

mod best_metric;
mod hub;
pub mod init;
mod names;
mod optim;
mod options;
mod recompute;
mod source;
mod suggest;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::data::{
    files::WeightedFile,
    records::Columns,
    source::MAX_ROW_BYTES,
    template::{Date, RESERVED},
};
use crate::error::Error;
pub use crate::{
    data::{
        OnError,
        files::Files,
        loader::Order,
        long::{LongPrompt, LongResponse, LongText},
    },
    optim::Schedule,
};
pub use best_metric::BestMetric;
pub use optim::{Gradients, MomentsOn, OptimName, OptimSection};
pub use recompute::Recompute;
use source::Origins;

/// Everything that determines a run. Unknown keys are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is trained.
    pub model: ModelSection,
    /// What it learns from.
    pub data: DataSection,
    /// What is minimised.
    pub loss: Losses,
    /// How much goes into one step.
    pub batch: BatchSection,
    /// How weights are moved.
    pub optim: OptimSection,
    /// Length, pace and arithmetic.
    pub train: TrainSection,
    /// What is kept from run to run.
    pub cache: CacheSection,
}

/// `[model]`: what is trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// Hugging Face folder: `config.json`, `tokenizer.json` and, for `init = "pretrained"`, the weights. Or a hub id such as
    /// `org/name` whose snapshot is in Hugging Face's cache: nothing is downloaded, and a folder of that name wins. Required.
    /// Example: `path = "../models/Qwen3-0.6B"`.
    pub path: PathBuf,
    /// Where the starting weights come from.
    /// Example: `init = "random"`.
    pub init: Init,
    /// The model of the iteration before the starting weights: for the loss `apo_accelerated` and no other.
    /// Example: `older_reference = "runs/round-1/final"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_reference: Option<PathBuf>,
}

/// Where the starting weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The safetensors files of `model.path`.
    #[default]
    Pretrained,
    /// Normal numbers from `train.seed`, scaled by the folder's `initializer_range`.
    Random,
}

/// `[data]`: preference pairs, one JSON object `{"prompt", "chosen", "rejected"}` a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Files to train on: a path, a pattern, or a list of them, also as tables `{ path = ..., weight = 2.0 }`. Required.
    /// Example: `train = ["pairs.jsonl", { path = "more/*.parquet", weight = 2.0 }]`.
    pub train: Files,
    /// Files to evaluate on, every row once; without any nothing is evaluated.
    /// Example: `eval = "held-out.jsonl"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Files>,
    /// Share of the training rows that are held out and not trained on, 0 up to but not including 1, drawn by `train.seed`; rows with
    /// the same prompt stay together. 0 holds none out. Not with `eval`.
    /// Example: `eval_fraction = 0.05`.
    pub eval_fraction: f64,
    /// The order in which an epoch takes the rows.
    /// Example: `order = "file"`.
    pub order: Order,
    /// Longest prompt, in tokens, a BOS counted in; at least 1.
    /// Example: `max_prompt_tokens = 1024`.
    pub max_prompt_tokens: usize,
    /// Longest response, in tokens, the EOS counted in; at least 1.
    /// Example: `max_response_tokens = 1024`.
    pub max_response_tokens: usize,
    /// What is done with a prompt that is longer.
    /// Example: `long_prompt = "keep_end"`.
    pub long_prompt: LongPrompt,
    /// What is done with a response that is longer.
    /// Example: `long_response = "keep_start"`.
    pub long_response: LongResponse,
    /// What is done with a plain document (`text`) of more than `max_response_tokens` or `batch.tokens`.
    /// Example: `long_text = "split"`.
    pub long_text: LongText,
    /// Jinja file with the chat template for conversational rows, instead of the model folder's.
    /// Example: `template = "chat.jinja"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
    /// The day that templates with `strftime_now` write, as "YYYY-MM-DD"; else the day on which the run began.
    /// Example: `date = "2025-01-31"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<Date>,
    /// What a bad row does.
    /// Example: `on_error = "skip"`.
    pub on_error: OnError,
    /// Longest row, in bytes of its line or values, unpacked, 1 KiB to 1 TiB: a longer one is a bad row and never kept in
    /// memory.
    /// Example: `max_row_bytes = 1048576`.
    pub max_row_bytes: usize,
    /// `[data.columns]`: the file's names of fields, as in `prompt = "question"`.
    /// Example: `columns = { prompt = "question" }`.
    #[serde(skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// Further variables for the chat template, such as `enable_thinking = false`; those of a row win.
    /// Example: `template_kwargs = { enable_thinking = false }`.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub template_kwargs: toml::Table,
}

/// `[loss]`: what is minimised, by name; several as `[[loss]]` are added up. `warpo losses` lists names, parameters with
/// their ranges, and the data each needs. Every loss also takes `weight`, its weight in the sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct Losses(pub Vec<toml::Table>);

/// A table, or several.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a table `[loss]`, or several `[[loss]]`")]
enum OneOrMany {
    One(toml::Table),
    Many(Vec<toml::Table>),
}

impl From<OneOrMany> for Losses {
    fn from(tables: OneOrMany) -> Self {
        match tables {
            OneOrMany::One(table) => Self(vec![table]),
            OneOrMany::Many(tables) => Self(tables),
        }
    }
}

impl From<Losses> for OneOrMany {
    fn from(Losses(mut tables): Losses) -> Self {
        match tables.len() {
            1 => Self::One(tables.remove(0)),
            _ => Self::Many(tables),
        }
    }
}

impl Losses {
    /// The loss they name.
    ///
    /// # Errors
    /// A name, a key or a value that there is not.
    pub fn read(&self) -> Result<crate::loss::Loss> {
        crate::loss::read(&self.0, &|_| "configuration".into())
    }
}

/// `[batch]`: how much goes into one step and into one launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchSection {
    /// Rows per optimizer step (pairs, lists, trees, completions), exactly; at least 1, 16 if neither this nor `packs` is given. The last step of an epoch
    /// takes what is left.
    /// Example: `pairs = 64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<usize>,
    /// Full packs of `tokens` per optimizer step, instead of `pairs`; at least 1. The loss is the mean over the pairs in
    /// them. The last step of an epoch takes what is left.
    /// Example: `packs = 4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packs: Option<usize>,
    /// Tokens of one micro-batch at most, shared prompts counted once. Bounds the memory; changes results by rounding
    /// only. Every single pair must fit; at least 1.
    /// Example: `tokens = 16384`.
    pub tokens: usize,
}

/// `[train]`: length, pace and arithmetic of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Passes over the training file; at least 1.
    /// Example: `epochs = 3`.
    pub epochs: u64,
    /// Optimizer steps. Where set, the run ends after exactly so many, whatever `epochs` says; at least 1.
    /// Example: `steps = 1000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Seed of the shuffles and of random starting weights, 0 to 2^63 - 1.
    /// Example: `seed = 7`.
    pub seed: u64,
    /// Steps between evaluations; 0 or more, and 0 evaluates before the first and after the last step only.
    /// Example: `eval_every = 100`.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 or more, and 0 saves after the last step only.
    /// Example: `save_every = 500`.
    pub save_every: u64,
    /// Minutes of wall time after which a checkpoint is due whatever `save_every` says; 0 or more, and 0 saves none by the
    /// clock.
    /// Example: `save_minutes = 10.0`.
    pub save_minutes: f64,
    /// How many of the newest checkpoints are kept; 0 or more, and 0 keeps all.
    /// Example: `keep_checkpoints = 0`.
    pub keep_checkpoints: usize,
    /// Held-out metric, such as `"eval_loss"` or `"eval_rewards/accuracies"`, whose best weights since the first step are kept
    /// in `best/` of the run folder. Example: `save_best = "eval_rewards/accuracies"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_best: Option<BestMetric>,
    /// Evaluations in a row without a better value of `save_best`'s metric (of `eval_loss` if that is not set) after which
    /// the run ends, 0 or more; 0 goes on to the last step. Example: `early_stop = 3`.
    pub early_stop: u64,
    /// Decay of a running mean of the weights (an exponential moving average, begun at the starting weights), 0 up to but not
    /// including 1; 0 keeps none. It is saved as `ema/` beside `final/`. Example: `ema = 0.999`.
    pub ema: f64,
    /// Steps after which the reference is moved towards the policy, as TR-DPO does; 0 or more, and 0 keeps it at the starting
    /// weights. The reference then runs beside the policy in every step. Example: `ref_model_sync_steps = 64`.
    pub ref_model_sync_steps: u64,
    /// How far the reference is moved each time, above 0 to 1; 1 puts the policy in its place.
    /// Example: `ref_model_mixup_alpha = 1.0`.
    pub ref_model_mixup_alpha: f64,
    /// Steps between lines on the terminal; at least 1. `metrics.jsonl` has every step.
    /// Example: `log_every = 1`.
    pub log_every: u64,
    /// Whether every record of `metrics.jsonl` is also written as an event that TensorBoard reads, into the run folder:
    /// `tensorboard --logdir runs` shows all runs below `runs`.
    /// Example: `tensorboard = true`.
    pub tensorboard: bool,
    /// Arithmetic of weights, activations and their gradients; "auto" is bf16 on a GPU and f32 on the host device. A run folder
    /// has what was chosen.
    /// Example: `precision = "f32"`.
    pub precision: Precision,
    /// What the backward pass computes again instead of keeping it, the same bits for less memory: "auto", as much as it takes to
    /// fit, which a run folder then has; "none"; "attention", what attention gives; "gate_up", the MLP's gate and value as well;
    /// "qkv", queries, keys and values too; "block", all but the stream between layers. A rung for all layers, or so many layers
    /// each from the first on.
    /// Example: `recompute = "gate_up:15,attention:17"`.
    pub recompute: Recompute,
    /// Rows whose logits the head has at a time; 1 or more, changes results by rounding only. Without it as many as there is memory
    /// for, which a run folder has where that is fewer than usual.
    /// Example: `head_chunk_rows = 2048`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_chunk_rows: Option<usize>,
    /// Worker threads of the host device; 0 or more, and 0 takes all cores. The results do not depend on it.
    /// Example: `threads = 8`.
    pub threads: usize,
    /// Whether a GPU gets each micro-batch as a CUDA graph, where the loss needs neither a model beside nor the whole step.
    /// The results do not depend on it.
    /// Example: `cuda_graph = true`.
    pub cuda_graph: bool,
    /// Whether the starting weights' log-probabilities are computed even where the loss has no reference: rewards and
    /// `logps/chosen_fell` are measured against them.
    /// Example: `track_reference = false`.
    pub track_reference: bool,
}

/// Arithmetic of weights, activations and their gradients; sums are f32 in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 on a GPU, f32 on the host device, which has no bf16 units and emulates them.
    #[default]
    Auto,
    /// 32 bits throughout.
    F32,
    /// 16 bits, with an f32 master of the weights.
    Bf16,
}

/// `[cache]`: what is computed once and found again by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSection {
    /// Folder; `runs/cache` in the current folder if not given. `""` or `"off"` keeps nothing.
    /// Example: `dir = "off"`.
    pub dir: PathBuf,
}

impl CacheSection {
    /// The folder, unless caching is turned off.
    pub fn folder(&self) -> Option<&Path> {
        let off = self.dir.as_os_str().is_empty() || self.dir == Path::new("off");
        (!off).then_some(&*self.dir)
    }
}

impl Default for CacheSection {
    fn default() -> Self {
        Self { dir: Path::new("runs").join("cache") }
    }
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            train: Files::default(),
            eval: None,
            eval_fraction: 0.0,
            order: Order::Random,
            max_prompt_tokens: 512,
            max_response_tokens: 512,
            long_prompt: LongPrompt::Error,
            long_response: LongResponse::Error,
            long_text: LongText::Error,
            template: None,
            date: None,
            on_error: OnError::Stop,
            max_row_bytes: MAX_ROW_BYTES,
            template_kwargs: toml::Table::new(),
            columns: Columns::new(),
        }
    }
}

impl Default for Losses {
    fn default() -> Self {
        Self(vec![toml::Table::new()])
    }
}

impl Default for BatchSection {
    fn default() -> Self {
        Self { pairs: None, packs: None, tokens: 4096 }
    }
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            epochs: 1,
            steps: None,
            seed: 42,
            eval_every: 0,
            save_every: 0,
            save_minutes: 30.0,
            keep_checkpoints: 2,
            save_best: None,
            early_stop: 0,
            ema: 0.0,
            ref_model_sync_steps: 0,
            ref_model_mixup_alpha: 0.6,
            log_every: 10,
            tensorboard: false,
            precision: Precision::Auto,
            recompute: Recompute::Auto,
            head_chunk_rows: None,
            threads: 0,
            cuda_graph: false,
            track_reference: true,
        }
    }
}

impl Config {
    /// Reads the file, applies `key=value` overrides in order and checks every value.
    ///
    /// Paths of the file are relative to its folder, paths of overrides to the current folder; both come out absolute.
    ///
    /// # Errors
    /// One line with file and line (or the override), key, value and remedy.
    pub fn load(file: &Path, overrides: &[String]) -> Result<Self, Error> {
        let read = source::read(file, overrides).and_then(|(config, origins)| config.resolve(&origins));
        read.map_err(|why| Error::Config { line: format!("{why:#}") })
    }

    /// A configuration made in code, with `key=value` overrides applied in order and every value checked. Paths are
    /// relative to the current folder and come out absolute.
    ///
    /// # Errors
    /// As [`load`](Self::load), without a file.
    pub fn with_overrides(self, overrides: &[String]) -> Result<Self, Error> {
        let read = source::apply(&self, overrides).and_then(|(config, origins)| config.resolve(&origins));
        read.map_err(|why| Error::Config { line: format!("{why:#}") })
    }

    fn resolve(mut self, origins: &Origins) -> Result<Self> {
        let config = &mut self;
        config.check(origins)?;
        config.loss = Losses(config.loss.read()?.to_tables());
        if config.batch.packs.is_none() {
            config.batch.pairs = Some(config.batch.pairs());
        }
        if let Some(folder) = config.cache.folder() {
            config.cache.dir = std::path::absolute(folder)?;
        }
        Ok(self)
    }

    /// The resolved configuration as TOML: reading it back gives the same run from any folder.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    fn check(&self, at: &Origins) -> Result<()> {
        at.path("model.path", &self.model.path, "name a Hugging Face model folder")?;
        self.data.check_files(at)?;
        self.data.check_held_out(at)?;
        ensure!(
            self.data.order != Order::Length || self.batch.packs.is_none(),
            "{}: `data.order` = \"length\": steps are counted in packs (`batch.packs`), which mix lengths: count them in pairs",
            at.of("data.order")
        );
        at.least_1("data.max_prompt_tokens", self.data.max_prompt_tokens as u64)?;
        at.least_1("data.max_response_tokens", self.data.max_response_tokens as u64)?;
        let bytes = self.data.max_row_bytes;
        ensure!(
            (1 << 10..=1 << 40).contains(&bytes),
            "{}: `data.max_row_bytes` = {bytes}: give 1024 to {} bytes",
            at.of("data.max_row_bytes"),
            1u64 << 40
        );
        ensure!(
            self.data.long_text == LongText::Error || self.data.max_response_tokens.min(self.batch.tokens) > 1,
            "{}: `data.long_text` = \"split\": a block has 2 tokens at least: raise data.max_response_tokens or batch.tokens",
            at.of("data.long_text")
        );
        if let Some(name) = RESERVED.into_iter().find(|&name| self.data.template_kwargs.contains_key(name)) {
            let key = format!("data.template_kwargs.{name}");
            bail!("{}: `{key}`: `{name}` comes from the rows: remove it", at.of(&key));
        }
        let loss = crate::loss::read(&self.loss.0, &|key| at.of(key).to_owned())?;
        let accelerated = loss.acceleration().is_some();
        ensure!(
            accelerated == self.model.older_reference.is_some(),
            "{}: `model.older_reference` {}: the loss `apo_accelerated` needs it and no other takes it",
            at.of("model.older_reference"),
            if accelerated { "is not set" } else { "is set" }
        );
        ensure!(
            !accelerated || self.train.ref_model_sync_steps == 0,
            "{}: `train.ref_model_sync_steps` = {}: the loss `apo_accelerated` has a reference of two models, which does not follow: \
             remove it",
            at.of("train.ref_model_sync_steps"),
            self.train.ref_model_sync_steps
        );
        self.batch.check(at)?;
        self.optim.check(at)?;
        self.train.check(at)?;
        self.check_watched(at)
    }

    /// A metric that is watched needs evaluations.
    fn check_watched(&self, at: &Origins) -> Result<()> {
        let TrainSection { save_best, early_stop, eval_every, .. } = &self.train;
        let key = match (save_best, early_stop) {
            (None, 0) => return Ok(()),
            (Some(_), _) => "train.save_best",
            (None, _) => "train.early_stop",
        };
        ensure!(self.data.holds_out(), "{}: `{key}` is set and `data.eval` is not: name held-out rows", at.of(key));
        ensure!(
            *eval_every > 0,
            "{}: `{key}` is set and `train.eval_every` = 0: say how often to evaluate",
            at.of(key)
        );
        Ok(())
    }
}

impl TrainSection {
    /// The held-out metric that decides which weights are the best, where that is asked.
    pub fn watched(&self) -> Option<BestMetric> {
        self.save_best.clone().or_else(|| (self.early_stop > 0).then(BestMetric::default))
    }

    fn check(&self, at: &Origins) -> Result<()> {
        at.least_1("train.epochs", self.epochs)?;
        if let Some(steps) = self.steps {
            at.least_1("train.steps", steps)?;
        }
        if let Some(rows) = self.head_chunk_rows {
            at.least_1("train.head_chunk_rows", rows as u64)?;
        }
        at.number("train.save_minutes", self.save_minutes, |v| v >= 0.0, "a finite number of 0 or more")?;
        at.number("train.ema", self.ema, |v| (0.0..1.0).contains(&v), "0 or more and below 1, such as 0.999")?;
        let alpha = self.ref_model_mixup_alpha;
        at.number("train.ref_model_mixup_alpha", alpha, |v| v > 0.0 && v <= 1.0, "above 0 and at most 1")?;
        at.least_1("train.log_every", self.log_every)
    }
}

impl DataSection {
    /// Whether there are rows that are looked at and not learnt from.
    pub fn holds_out(&self) -> bool {
        self.eval.is_some() || self.eval_fraction > 0.0
    }

    fn check_held_out(&self, at: &Origins) -> Result<()> {
        let key = "data.eval_fraction";
        at.number(key, self.eval_fraction, |v| (0.0..1.0).contains(&v), "0 or more and below 1, such as 0.05")?;
        ensure!(
            self.eval.is_none() || self.eval_fraction == 0.0,
            "{}: `{key}` = {:?}: `data.eval` names held-out rows as well: remove one of them",
            at.of(key),
            self.eval_fraction
        );
        Ok(())
    }

    fn check_files(&self, at: &Origins) -> Result<()> {
        ensure!(!self.train.0.is_empty(), "{}: `data.train` is not set: name a file of rows", at.of("data.train"));
        for (key, files) in [("data.train", Some(&self.train)), ("data.eval", self.eval.as_ref())] {
            let Some(files) = files else { continue };
            ensure!(!files.0.is_empty(), "{}: `{key}` = []: name a file or remove the key", at.of(key));
            for WeightedFile { path, weight, fraction, .. } in &files.0 {
                at.path(key, path, "name a file of rows")?;
                at.number(key, *fraction, |v| v > 0.0 && v <= 1.0, "a `fraction` above 0 and at most 1")?;
                at.number(key, f64::from(*weight), |v| v > 0.0 && v <= 1000.0, "a weight above 0 and at most 1000")?;
                ensure!(
                    key == "data.train" || *weight == 1.0,
                    "{}: `{key}`: a weight of {weight}: held-out rows count once each, remove it",
                    at.of(key)
                );
            }
        }
        Ok(())
    }
}

impl BatchSection {
    /// Pairs per step where steps are counted in pairs.
    pub fn pairs(&self) -> usize {
        self.pairs.unwrap_or(16)
    }

    fn check(&self, at: &Origins) -> Result<()> {
        at.least_1("batch.pairs", self.pairs() as u64)?;
        at.least_1("batch.packs", self.packs.unwrap_or(1) as u64)?;
        if let (Some(pairs), Some(packs)) = (self.pairs, self.packs) {
            bail!(
                "{}: `batch.packs` = {packs}: `batch.pairs` is set as well ({pairs}); a step is counted in pairs or in \
                 packs, remove one of them",
                at.of("batch.packs")
            );
        }
        at.least_1("batch.tokens", self.tokens as u64)
    }
}

#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;
