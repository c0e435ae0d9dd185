//! What a run learns from and with: the model's shape, the loss, the tokenized rows, the number of steps.

use anyhow::{Context, Result};

use super::binding::Bound;
use crate::{
    config::Config,
    data::{Dataset, batches, loader::Loader, sets::Sets, tokenize::Tokenizer},
    loss::Loss,
    model::ModelConfig,
    report::terminal,
};

/// Model shape and tokenized data.
pub struct Inputs {
    /// What the model folder's config.json says.
    pub model: ModelConfig,
    /// What is minimised.
    pub loss: Loss,
    /// Rows to learn from.
    pub train: Dataset,
    /// Rows that are held out.
    pub eval: Option<Dataset>,
    /// Where rows are held out: to show them.
    pub tokenizer: Option<Tokenizer>,
    /// The order of the training rows, at its start.
    pub loader: Loader,
    /// Of the whole run.
    pub total_steps: u64,
    /// Where the tokens came from.
    pub origins: Vec<String>,
    /// What the run learns from.
    pub bound: Bound,
}

/// What a run learns from, without a look at weights.
pub struct Rows {
    /// What the model folder's config.json says.
    pub model: ModelConfig,
    /// What is minimised.
    pub loss: Loss,
    /// Rows as the loss takes them.
    pub sets: Sets,
}

impl Rows {
    /// Reads the model's config, the tokenizer and the data files.
    ///
    /// # Errors
    /// A file is missing or malformed, or a row is bad.
    pub fn read(config: &Config) -> Result<Self> {
        let model = ModelConfig::load(&config.model.path)?;
        let loss = config.loss.read()?;
        let mut sets =
            Sets::read(config.encoder(model.vocab, model.positions)?, &config.sets()?, terminal::counting_rows)?;
        sets.reshape(loss.reshape(), config.batch.tokens)?;
        Ok(Self { model, loss, sets })
    }
}

impl Inputs {
    /// Reads the model's config, the tokenizer and both data files.
    ///
    /// # Errors
    /// A file is missing or malformed, or a row is bad.
    pub fn read(config: &Config) -> Result<Self> {
        let Rows { model, loss, sets } = Rows::read(config)?;
        let survey = sets.survey(model.positions, |tree| loss.groups([tree]).map(drop))?;
        let bound = Bound::new(config, &sets.encoder, survey.hashes.clone())?;
        let Sets { train, eval, mut origins, encoder } = sets;
        let tokenizer = eval.is_some().then(|| encoder.into_tokenizer());
        origins.extend(survey.overlap());
        let loader =
            batches::loader(&train, config.data.order, config.train.seed, config.step_size(), config.batch.tokens)?;
        let total_steps = config.train.steps.or_else(|| loader.steps_in(config.train.epochs)).with_context(|| {
            format!("`train.epochs` = {}: too many steps to count: give a smaller number", config.train.epochs)
        })?;
        Ok(Self { model, loss, train, eval, tokenizer, loader, total_steps, origins, bound })
    }
}
