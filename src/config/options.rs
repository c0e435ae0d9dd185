//! What each room takes of a configuration: the rooms below do not know it.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Config, OptimName, Precision};
use crate::{
    data::{
        Limits,
        encode::{EncodeOptions, Encoder},
        loader::StepSize,
        sets,
        template::Templates,
        tokenize::Tokenizer,
    },
    device::{Choice, DType, Device, HostOptions, host::workers},
    error::Error,
    optim::{LearningRate, RuleKind, Settings},
};

impl Precision {
    /// Element type of weights and activations on this device.
    pub fn on(self, device: &Device) -> DType {
        match self.settled(device) {
            Self::Bf16 => DType::Bf16,
            Self::Auto | Self::F32 => DType::F32,
        }
    }

    /// What `auto` stands for on this device.
    pub fn settled(self, device: &Device) -> Self {
        match self {
            Self::Auto if device.is_cuda() => Self::Bf16,
            Self::Auto => Self::F32,
            chosen => chosen,
        }
    }

    /// The line that says it before a run.
    pub fn describe(self, device: &Device) -> String {
        let name = |precision| if precision == Self::Bf16 { "bf16" } else { "f32" };
        let settled = name(self.settled(device));
        match self {
            Self::Auto => format!("precision: {settled} (auto: bf16 on a GPU, f32 on the host device)"),
            Self::Bf16 if !device.is_cuda() => {
                format!("precision: {settled}, which the host device emulates: f32 or auto is many times as fast here")
            }
            _ => format!("precision: {settled}"),
        }
    }
}

impl Config {
    /// The chat templates: those of `data.template`, else the model folder's. `None` if there are none.
    ///
    /// # Errors
    /// As [`Templates::load`].
    pub fn templates(&self) -> Result<Option<Templates>> {
        let templates = Templates::load(&self.model.path, self.data.template.as_deref())?;
        Ok(templates.map(|templates| match self.data.date {
            Some(date) => templates.on(date),
            None => templates,
        }))
    }

    /// Tokenizer, templates and limits for a model whose embedding table has `vocab` rows and that reads `positions` tokens.
    ///
    /// # Errors
    /// A missing or broken file.
    pub fn encoder(&self, vocab: usize, positions: usize) -> Result<Encoder> {
        let Self { model, data, batch, .. } = self;
        let limits = Limits { prompt: data.max_prompt_tokens, response: data.max_response_tokens, tree: batch.tokens };
        let Value::Object(template_kwargs) = serde_json::to_value(&data.template_kwargs)? else {
            bail!("`data.template_kwargs` is not a table");
        };
        let (long_prompt, long_response, long_text) = (data.long_prompt, data.long_response, data.long_text);
        let templates = self.templates()?;
        let options = EncodeOptions { limits, long_prompt, long_response, long_text, template_kwargs, positions };
        Ok(Encoder::new(Tokenizer::load(&model.path, vocab)?, templates, options))
    }

    /// The options of the host device.
    pub fn host(&self) -> HostOptions {
        HostOptions { threads: self.train.threads, ..HostOptions::default() }
    }

    /// Opens the device that was asked for.
    ///
    /// # Errors
    /// There is no such device, or more threads are asked for than it can have.
    pub fn open_device(&self, choice: Choice, host: HostOptions) -> Result<Device> {
        let opened = Device::open(choice, host);
        let too_many = host.threads > workers::most();
        let key = if too_many { format!("`train.threads` = {}: ", host.threads) } else { String::new() };
        opened.map_err(|why| Error::Device { line: format!("{key}{why:#}") }.into())
    }

    /// The data files, and how they are read.
    ///
    /// # Errors
    /// The section cannot be written as TOML.
    pub fn sets(&self) -> Result<sets::SetOptions<'_>> {
        let data = &self.data;
        Ok(sets::SetOptions {
            train: &data.train,
            eval: data.eval.as_ref(),
            columns: &data.columns,
            on_error: data.on_error,
            max_row_bytes: data.max_row_bytes,
            budget: self.batch.tokens,
            model: &self.model.path,
            cache: self.cache.folder(),
            eval_fraction: data.eval_fraction,
            seed: self.train.seed,
            key: self.encoding()?,
        })
    }

    /// The settings under which rows become trees: all of `[data]` but the names of its files and which rows are taken when.
    fn encoding(&self) -> Result<String> {
        let mut table = toml::Table::try_from(&self.data)?;
        table.retain(|key, _| !matches!(key, "train" | "eval" | "eval_fraction" | "order"));
        Ok(table.to_string())
    }

    /// How much a step takes.
    pub fn step_size(&self) -> StepSize {
        self.batch.packs.map_or(StepSize::Rows(self.batch.pairs()), StepSize::Packs)
    }

    /// The optimizer's settings.
    pub fn optimizer(&self) -> Settings {
        let optim = &self.optim;
        Settings {
            rule: match optim.name {
                OptimName::AdamW => {
                    let super::OptimSection { beta1, beta2, eps, moments, moments_on, .. } = *optim;
                    RuleKind::AdamW { beta1, beta2, eps, moments, windows: moments_on.windows() }
                }
                OptimName::RmsProp => RuleKind::RmsProp { alpha: optim.alpha, eps: optim.eps },
            },
            weight_decay: optim.weight_decay,
            max_grad_norm: optim.max_grad_norm,
        }
    }

    /// The learning rates of a run of `total_steps`.
    pub fn learning_rate(&self, total_steps: u64) -> LearningRate {
        LearningRate {
            peak: self.optim.lr,
            floor: self.optim.min_lr,
            schedule: self.optim.schedule,
            warmup_steps: self.optim.warmup(total_steps),
            decay_steps: self.optim.decay(total_steps),
            total_steps,
        }
    }
}
