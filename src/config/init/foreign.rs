//! The settings of another tool's YAML as settings here: each is carried over, or listed with the reason why not.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use super::{
    draft::Draft,
    tool::Tool,
    values::{self, number, whole},
};
use crate::config::{
    BestMetric,
    names::{self, Name},
};

/// A YAML file on its way to a configuration.
pub(super) struct Foreign<'a> {
    pub tool: Tool,
    keys: &'a Map<String, Value>,
    /// Names that were carried over or listed.
    done: BTreeSet<String>,
    pub draft: Draft,
}

/// Keys that are a number there and the same number here, and the least that is taken here.
const NUMBERS: &[(&str, f64)] = &[
    ("optim.lr", f64::MIN_POSITIVE),
    ("optim.weight_decay", 0.0),
    ("optim.beta1", 0.0),
    ("optim.beta2", 0.0),
    ("optim.eps", f64::MIN_POSITIVE),
    ("optim.max_grad_norm", 0.0),
];
/// The same of whole numbers.
const WHOLES: &[(&str, u64)] =
    &[("train.seed", 0), ("train.save_every", 0), ("train.keep_checkpoints", 0), ("train.log_every", 1)];

impl<'a> Foreign<'a> {
    pub(super) fn new(keys: &'a Map<String, Value>, tool: Tool) -> Self {
        Self { tool, keys, done: BTreeSet::new(), draft: Draft::default() }
    }

    /// Carries over all but model, rows, lengths and loss, which come before; lists the rest.
    pub(super) fn convert(&mut self) -> Result<()> {
        self.steps()?;
        self.schedule()?;
        self.pace()?;
        self.reports();
        self.precision();
        self.plain_numbers()?;
        self.defaults();
        self.rest();
        Ok(())
    }

    /// A value that is there and not null, without more.
    pub(super) fn look(&self, name: &str) -> Option<&'a Value> {
        self.keys.get(name).filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    /// The same, and from then on it counts as carried over.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a Value> {
        let value = self.look(name)?;
        self.done.insert(name.to_owned());
        Some(value)
    }

    /// A number of this name, as TRL and the others take one: also as a text.
    pub(super) fn take_number(&mut self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = number(value).with_context(|| format!("`{name}` = {value}: is no number: correct it"))?;
        Ok(Some(found))
    }

    pub(super) fn take_whole(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let found = whole(value).with_context(|| format!("`{name}` = {value}: is no whole number: correct it"))?;
        Ok(Some(found))
    }

    /// Lists a setting with the reason, and counts it as done.
    pub(super) fn leave(&mut self, name: &str, why: impl Into<String>) {
        if let Some(value) = self.keys.get(name)
            && self.done.insert(name.to_owned())
        {
            self.draft.leave_out(name, &values::shortened(value), why);
        }
    }

    /// Rows a step.
    fn steps(&mut self) -> Result<()> {
        let tool = self.tool;
        let rows = match tool {
            Tool::Axolotl => self.take_whole("micro_batch_size")?,
            _ => self.take_whole("per_device_train_batch_size")?,
        };
        let accumulated = self.take_whole("gradient_accumulation_steps")?;
        let from = match tool {
            Tool::Axolotl => "micro_batch_size",
            _ => "per_device_train_batch_size",
        };
        let (rows, accumulated) = (rows.unwrap_or(tool.batch()), accumulated.unwrap_or(1));
        let pairs = rows.checked_mul(accumulated).filter(|pairs| *pairs > 0 && *pairs < 1 << 31);
        let pairs = pairs.with_context(|| format!("`{from}` = {rows} and `gradient_accumulation_steps` = {accumulated}: rows a step are their product, 1 or more"))?;
        let words = format!(
            "`{from}` {rows} x `gradient_accumulation_steps` {accumulated} x 1 device: multiply by the devices that it was written for"
        );
        self.draft.set("batch.pairs", pairs as i64, words);
        if let Some(global) = self.look("batch_size") {
            let words = format!("`batch_size` there is {global}");
            self.take("batch_size");
            self.draft.remark("batch.pairs", words);
        }
        self.epochs()
    }

    fn epochs(&mut self) -> Result<()> {
        let name = if self.tool == Tool::Axolotl { "num_epochs" } else { "num_train_epochs" };
        if let Some(epochs) = self.take_number(name)? {
            ensure!(epochs > 0.0 && epochs < 1e9, "`{name}` = {epochs}: passes over the rows must be above 0");
            let words = match epochs.fract() == 0.0 {
                true => format!("`{name}` there"),
                false => format!("`{name}` is {epochs} there and whole here: train.steps ends a run within an epoch"),
            };
            self.draft.set("train.epochs", epochs.ceil() as i64, words);
        }
        match self.look("max_steps").and_then(number) {
            Some(steps) if steps >= 1.0 => {
                let steps = self.take_whole("max_steps")?.unwrap_or(1);
                self.draft.set("train.steps", steps as i64, "`max_steps` there");
            }
            Some(_) => self.leave("max_steps", "it sets no end: train.epochs does"),
            None => {}
        }
        Ok(())
    }

    /// Optimizer, learning rate and warm-up.
    fn schedule(&mut self) -> Result<()> {
        self.optimizer();
        let name = self.tool.schedule_key();
        let lr = match self.take_number("learning_rate")? {
            Some(lr) => {
                ensure!(lr > 0.0, "`learning_rate` = {lr}: must be above 0");
                self.draft.set("optim.lr", lr, "`learning_rate` there");
                lr
            }
            None => self.tool.learning_rate(self.draft.losses().next().map_or("", |loss| loss.name)),
        };
        if let Some(there) = self.look(name).and_then(Value::as_str) {
            match values::schedule(there) {
                Some(here) => {
                    self.take(name);
                    let words = format!("`{name}` \"{there}\" there");
                    self.draft.set("optim.schedule", here, words);
                }
                None => self
                    .leave(name, "optim.schedule is linear, cosine, constant or warmup_stable_decay: linear stands in"),
            }
        }
        self.floor("lr_scheduler_kwargs", lr)?;
        self.warmup()
    }

    fn optimizer(&mut self) {
        let name = if self.tool == Tool::Axolotl { "optimizer" } else { "optim" };
        let Some(there) = self.look(name).and_then(Value::as_str) else { return };
        match values::optimizer(there) {
            Some((here, words)) => {
                self.take(name);
                self.draft.set("optim.name", here, format!("`{name}` \"{there}\" there{words}"));
                if here == "adamw" && there.contains("8bit") {
                    self.draft.set("optim.moments", "8bit", "of another format than bitsandbytes'");
                }
            }
            None => self.leave(name, "the optimizers are adamw and rmsprop: adamw stands in"),
        }
    }

    /// What the learning rate falls to.
    fn floor(&mut self, kwargs: &str, lr: f64) -> Result<()> {
        let falls = self.draft.get("optim.schedule").and_then(toml::Value::as_str) != Some("constant");
        if let Some(Value::Object(given)) = self.look(kwargs) {
            let min = given
                .get("min_lr")
                .and_then(number)
                .or(given.get("min_lr_rate").and_then(number).map(|rate| rate * lr));
            let known = given.keys().all(|key| matches!(key.as_str(), "min_lr" | "min_lr_rate"));
            match min.filter(|min| known && falls && (0.0..=lr).contains(min)) {
                Some(min) => {
                    let words = format!("`{kwargs}` {} there", Value::Object(given.clone()));
                    self.take(kwargs);
                    self.draft.set("optim.min_lr", min, words);
                }
                None => self.leave(
                    kwargs,
                    "optim.min_lr is what the rate falls to, optim.decay_ratio the share of steps in which it does",
                ),
            }
        }
        if let Some(share) = self.look("cosine_min_lr_ratio").and_then(number)
            && falls
            && (0.0..=1.0).contains(&share)
        {
            self.take("cosine_min_lr_ratio");
            self.draft.set(
                "optim.min_lr",
                share * lr,
                format!("`cosine_min_lr_ratio` {share} of the learning rate there"),
            );
        }
        Ok(())
    }

    fn warmup(&mut self) -> Result<()> {
        if self.look(self.tool.schedule_key()).is_some_and(|schedule| schedule == "constant") {
            for name in ["warmup_ratio", "warmup_steps"] {
                self.leave(name, "the schedule \"constant\" has no warm-up there");
            }
            return Ok(());
        }
        let steps = self.look("warmup_steps").and_then(number).unwrap_or(0.0);
        if steps >= 1.0 {
            let steps = self.take_whole("warmup_steps")?.unwrap_or(0);
            self.draft.set("optim.warmup_steps", steps as i64, "`warmup_steps` there");
            self.leave("warmup_ratio", "`warmup_steps` comes first there, and both at once are refused here");
            return Ok(());
        }
        let name = if steps > 0.0 { "warmup_steps" } else { "warmup_ratio" };
        if steps == 0.0 && self.look("warmup_steps").is_some() {
            self.leave("warmup_steps", "0 is the default here as well");
        }
        if let Some(ratio) = self.take_number(name)? {
            ensure!((0.0..=1.0).contains(&ratio), "`{name}` = {ratio}: a share of the steps is 0 to 1");
            self.draft.set("optim.warmup_ratio", ratio, format!("`{name}` there"));
        }
        Ok(())
    }

    /// Evaluations and checkpoints. Without held-out rows, what watches them is written as a comment.
    fn pace(&mut self) -> Result<()> {
        let held_out = self.draft.get("data.eval_fraction").is_some();
        self.leave(
            "evals_per_epoch",
            "train.eval_every is a number of steps: rows of the file / batch.pairs / evaluations an epoch",
        );
        let steps = self.look("eval_steps").and_then(whole);
        match steps {
            Some(steps) => {
                self.take("eval_steps");
                self.watch("train.eval_every", steps as i64, "`eval_steps` there", held_out);
            }
            None => self.leave("eval_steps", "train.eval_every is a number of steps"),
        }
        let watched = held_out && steps.is_some_and(|steps| steps > 0);
        let metric = self.look("metric_for_best_model").and_then(Value::as_str);
        if let Some(metric) = metric.and_then(|metric| metric.parse::<BestMetric>().ok()) {
            self.take("metric_for_best_model");
            self.watch("train.save_best", metric.name(), "`metric_for_best_model` there", watched);
        }
        for name in ["early_stopping_patience", "early_stopping_steps"] {
            if let Some(patience) = self.take_whole(name)? {
                self.watch("train.early_stop", patience as i64, &format!("`{name}` there"), watched);
            }
        }
        self.checkpoints();
        Ok(())
    }

    /// Event files, if TensorBoard is among those that are told.
    fn reports(&mut self) {
        let Some(value) = self.look("report_to") else { return };
        let is_board = |name: &Value| name == "tensorboard";
        if is_board(value) || value.as_array().is_some_and(|names| names.iter().any(is_board)) {
            self.take("report_to");
            let words = format!("`report_to` {value} there; scripts/forward-metrics.py sends records elsewhere");
            self.draft.set("train.tensorboard", true, words);
        }
    }

    /// Sets what counts where held-out rows are looked at now and then, and suggests it elsewhere.
    fn watch(&mut self, key: &str, value: impl Into<toml::Value>, words: &str, counts: bool) {
        match counts {
            true => self.draft.set(key, value, words),
            false => self.draft.suggest(key, value, format!("{words}: counts with held-out rows and train.eval_every")),
        }
    }

    fn checkpoints(&mut self) {
        self.leave(
            "saves_per_epoch",
            "train.save_every is a number of steps: rows of the file / batch.pairs / checkpoints an epoch",
        );
        if self.look("save_strategy").is_some_and(|strategy| strategy == "no" || strategy == false) {
            self.take("save_strategy");
            let words = "`save_strategy` \"no\" there; one comes after 30 minutes without a checkpoint all the same";
            self.draft.set("train.save_every", 0, words);
            self.leave("save_steps", "`save_strategy` is \"no\"");
        }
    }

    /// The first of several settings that says something.
    fn precision(&mut self) {
        for name in ["bf16", "pure_bf16", "fp16", "dtype", "torch_dtype"] {
            let Some(value) = self.look(name) else { continue };
            let Some((here, words)) = values::precision(name, value) else {
                self.leave(name, "train.precision is auto, f32 or bf16");
                continue;
            };
            match (self.draft.get("train.precision"), here) {
                (Some(set), here) if set.as_str() != Some(here) => {
                    let why =
                        format!("train.precision is one for weights, activations and gradients: {set} by another key");
                    self.leave(name, why);
                }
                _ => {
                    self.take(name);
                    self.draft.set("train.precision", here, format!("`{name}` {value} there{words}"));
                }
            }
        }
    }

    /// Settings that are a number there and the same one here.
    fn plain_numbers(&mut self) -> Result<()> {
        for (name, value) in self.keys {
            let Some(Ok(Name { key: Some(key), tools, .. })) = names::known(name) else { continue };
            if self.done.contains(name) || !tools.contains(self.tool.letter()) || value.is_null() {
                continue;
            }
            let words = format!("`{name}` there");
            if let Some((_, least)) = NUMBERS.iter().find(|(known, _)| known == key) {
                match number(value).filter(|found| found >= least) {
                    Some(found) => self.draft.set(key, found, words),
                    None => {
                        self.leave(name, format!("{key} is a number of {least} or more"));
                        continue;
                    }
                }
                self.take(name);
            } else if let Some((_, least)) = WHOLES.iter().find(|(known, _)| known == key) {
                match whole(value).filter(|found| found >= least) {
                    Some(found) => self.draft.set(key, found as i64, words),
                    None => {
                        self.leave(name, format!("{key} is a whole number of {least} or more"));
                        continue;
                    }
                }
                self.take(name);
            }
        }
        Ok(())
    }

    /// What the tool does where its file is silent, and this program would do otherwise.
    fn defaults(&mut self) {
        let tool = self.tool;
        let loss = self.draft.losses().next().map_or("", |loss| loss.name);
        let words = format!("not in the file: {}'s default", tool.name());
        if self.draft.get("optim.lr").is_none() {
            self.draft.set("optim.lr", tool.learning_rate(loss), words.clone());
        }
        if self.draft.get("optim.schedule").is_none() {
            self.draft.set("optim.schedule", tool.schedule(), words.clone());
        }
        if self.draft.get("train.epochs").is_none() && self.draft.get("train.steps").is_none() {
            self.draft.set("train.epochs", tool.epochs() as i64, words);
        }
    }

    /// Lists what is left.
    fn rest(&mut self) {
        for (name, value) in self.keys {
            if self.done.contains(name) {
                continue;
            }
            let why = match names::known(name) {
                _ if value.is_null() || value.as_str() == Some("") => "it has no value there".to_owned(),
                Some(Ok(Name { key: Some(key), words: "", .. })) => format!("near to `{key}`"),
                Some(Ok(Name { key: Some(key), words, .. })) => format!("near to `{key}`: {words}"),
                Some(Ok(Name { words, .. })) => (*words).to_owned(),
                Some(Err(words)) => words.to_owned(),
                None => format!("not a setting of {} that is known here", self.tool.name()),
            };
            self.leave(name, why);
        }
    }
}
