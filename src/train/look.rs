//! A look at a run's memory before it begins, or before there is a run: what `warpo plan` shows and `warpo train` goes by.

use anyhow::Result;

use super::{
    inputs::{Inputs, Rows},
    plan::{follows, usual_chunk_rows},
    start::Start,
};
use crate::{
    config::{Config, Gradients, MomentsOn, OptimName, Precision},
    data::{Dataset, batches},
    device::{DType, Device},
    forest::Forest,
    loss::Loss,
    model::{Capacity, Layout, ModelConfig, check_kernels},
    optim::{Moments, ema},
    roles::{Decision, Demand, Planner, Rates},
};

/// Rows that are looked at to see how many keys a token sees.
const SAMPLE: usize = 64;
/// Without rows: two thirds of a pack's tokens are predicted, and a token sees so many keys (512 + 2 x 512 shared).
const ROWS: [usize; 2] = [2, 3];
const KEYS: f64 = 600.0;

/// What is planned for.
pub struct Target {
    /// Whose kernels.
    pub device: Device,
    /// Bytes that may be used; 0 if nobody knows.
    pub free: usize,
    /// What `auto` stands for there, if not what it stands for on `device`.
    pub precision: Option<Precision>,
}

/// What decides about the memory of a run.
pub struct Look {
    shape: ModelConfig,
    loss: Loss,
    config: Config,
    target: Target,
    tokens: usize,
    rows: usize,
    longest_row: usize,
    mean_keys: f64,
    /// Whether a checkpoint is bound to the head's chunk.
    began: bool,
}

impl Look {
    /// A run, whose rows are read.
    ///
    /// # Errors
    /// A file is missing or malformed, or a row is bad.
    pub fn at_run(config: &Config, target: Target) -> Result<Self> {
        let rows = Rows::read(config)?;
        let files: Vec<&Dataset> = [&rows.sets.train].into_iter().chain(&rows.sets.eval).collect();
        Self::at_rows((&rows.model, &rows.loss), &files, config, target)
    }

    /// A run that is about to begin or to go on, with all the memory that is free.
    ///
    /// # Errors
    /// A row cannot be read.
    pub(super) fn at_start(inputs: &Inputs, config: &Config, device: &Device, start: &Start) -> Result<Self> {
        let files: Vec<&Dataset> = [&inputs.train].into_iter().chain(&inputs.eval).collect();
        let target = Target { device: device.clone(), free: device.memory().free, precision: None };
        let look = Self::at_rows((&inputs.model, &inputs.loss), &files, config, target)?;
        Ok(Self { began: matches!(start, Start::From(..)), ..look })
    }

    fn at_rows(
        (shape, loss): (&ModelConfig, &Loss),
        files: &[&Dataset],
        config: &Config,
        target: Target,
    ) -> Result<Self> {
        let [tokens, rows] = batches::largest(files, config.batch.tokens);
        let longest = files.iter().flat_map(|file| file.trees.tokens().iter()).max();
        Ok(Self {
            shape: shape.clone(),
            loss: loss.clone(),
            tokens,
            rows,
            longest_row: longest.map_or(1, |&tokens| tokens as usize),
            mean_keys: mean_keys(files[0])?,
            config: config.clone(),
            target,
            began: false,
        })
    }

    /// A model without rows: two thirds of the tokens are predicted, and the longest row is as long as the limits allow.
    ///
    /// # Errors
    /// There is no such loss.
    pub fn at_model(shape: ModelConfig, config: &Config, target: Target) -> Result<Self> {
        let (tokens, data) = (config.batch.tokens, &config.data);
        let longest = data.max_prompt_tokens.saturating_add(2 * data.max_response_tokens);
        Ok(Self {
            shape,
            loss: config.loss.read()?,
            rows: (ROWS[0] * tokens).div_ceil(ROWS[1]),
            tokens,
            longest_row: longest.min(tokens),
            mean_keys: KEYS.min(tokens as f64),
            config: config.clone(),
            target,
            began: false,
        })
    }

    /// The cheapest plan that fits.
    ///
    /// # Errors
    /// A kernel has no room on the device, or a setting is for another model.
    pub fn decide(&self) -> Result<Decision> {
        let (config, shape, device) = (&self.config, &self.shape, &self.target.device);
        let precision = self.precision();
        check_kernels(device, shape, precision, true)?;
        let chunk = config.train.head_chunk_rows;
        let head_chunk_rows = chunk.unwrap_or_else(|| usual_chunk_rows(device, precision, shape, &self.loss));
        let planner = Planner {
            demand: self.demand(config),
            capacity: Capacity { tokens: self.tokens, rows: self.rows, head_chunk_rows },
            longest_row: self.longest_row,
            mean_keys: self.mean_keys,
            free: self.target.free,
            levels: config.train.recompute.levels(shape.layers)?,
            chunk_is_fixed: chunk.is_some() || self.began,
            rates: Rates::default(),
            savings: self.savings(),
        };
        planner.decide()
    }

    /// Under other settings of the optimizer than the run's own.
    fn demand(&self, config: &Config) -> Demand<'_> {
        let layout = Layout::new(&self.shape);
        let (groups, rule) = (layout.groups(), config.optimizer().rule);
        let mean = if config.train.ema > 0.0 { ema::BYTES * layout.elements } else { 0 };
        Demand {
            shape: &self.shape,
            precision: self.precision(),
            device: &self.target.device,
            gradients: config.optim.gradients.dtype(),
            remembered: rule.bytes(&groups, config.optim.gradients.dtype()) + mean,
            on_host: rule.host_bytes(&groups),
            distributions: self.loss.needs_distributions(),
            beside: self.loss.needs_divergence() || follows(config, &self.loss),
        }
    }

    /// Settings of the optimizer that take less, each with those before it.
    fn savings(&self) -> Vec<(String, Demand<'_>)> {
        let mut config = self.config.clone();
        let (mut words, mut found) = (Vec::new(), Vec::new());
        if config.optim.name != OptimName::AdamW {
            return found;
        }
        if config.optim.gradients != Gradients::Bf16 {
            config.optim.gradients = Gradients::Bf16;
            words.push("optim.gradients = \"bf16\"");
            found.push((words.join(" and "), self.demand(&config)));
        }
        let change = |words: &[&str], word: &'static str| [words, &[word]].concat().join(" and ");
        if config.optim.moments_on == MomentsOn::Device {
            let mut config = config.clone();
            config.optim.moments_on = MomentsOn::Host;
            found.push((change(&words, "optim.moments_on = \"host\""), self.demand(&config)));
        }
        if config.optim.moments != Moments::Eight {
            config.optim.moments = Moments::Eight;
            found.push((change(&words, "optim.moments = \"8bit\""), self.demand(&config)));
        }
        found
    }

    fn precision(&self) -> DType {
        let asked = self.config.train.precision;
        let auto = self.target.precision.filter(|_| asked == Precision::Auto);
        auto.unwrap_or(asked).on(&self.target.device)
    }
}

/// Of some rows, evenly spread.
fn mean_keys(file: &Dataset) -> Result<f64> {
    let rows = file.trees.len();
    let step = rows.div_ceil(SAMPLE).max(1);
    let trees = (0..rows).step_by(step).map(|row| file.trees.tree(row)).collect::<Result<Vec<_>>>()?;
    Ok(Forest::pack(&trees)?.mean_keys() as f64)
}
