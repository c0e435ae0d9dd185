//! The reference values of a run: those in its folder, or those of the starting weights, computed once and kept there.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Options,
    binding::{self, REFERENCE},
    inputs::Inputs,
    patience::Patience,
};
use crate::{
    cache::{Hashes, Key},
    config::{Config, Init},
    data::trees::Trees,
    device::Float,
    loss::Loss,
    model::Model,
    report::terminal::{Terminal, say},
    roles::reference::{self, ReferencePass, RowValues, ValueFile},
    stop::Stop,
    units::duration,
};

/// Fills a model with the starting weights of a run.
///
/// # Errors
/// Their files cannot be used.
pub fn start<T: Float>(model: &Model<T>, config: &Config) -> Result<()> {
    match config.model.init {
        Init::Random => model.randomize(config.train.seed),
        Init::Pretrained => model.load(&config.model.path),
    }
}

/// What values are made of: the rows and the model that holds the starting weights.
pub struct Making<'a, T> {
    pub config: &'a Config,
    pub loss: &'a Loss,
    /// To learn from, and held out.
    pub sets: [&'a Trees; 2],
    pub model: &'a Model<T>,
    pub stop: &'a Stop,
}

/// What the values of a run follow from.
pub struct References<'a, T> {
    pub options: &'a Options,
    pub inputs: &'a Inputs,
    /// Holds the starting weights, unless the run is resumed from a checkpoint.
    pub model: &'a Model<T>,
    pub resumed: bool,
    pub stop: &'a Stop,
    /// What is held out where nothing is.
    pub none: Trees,
}

impl<T: Float> References<'_, T> {
    /// Reads or makes the values of the training and of the held-out rows. `None` if the stop came first.
    ///
    /// # Errors
    /// The file in the run folder is damaged, of other rows, or missing where the run needs it; or the pass fails.
    pub fn values(&self) -> Result<Option<[RowValues; 2]>> {
        let path = self.options.out.join(REFERENCE);
        if let Some((values, made_from)) = reference::load(&path, self.sets())? {
            self.check_made_from(&path, &made_from)?;
            return Ok(Some(values));
        }
        ensure!(
            !self.resumed,
            "{}: missing: without it the run cannot go on: restore it, or start another run with --out",
            path.display()
        );
        let bound = self.inputs.bound.hashes();
        let file = self.written(|| ValueFile::of_run(&path, &bound, self.sets()))?;
        let Some(data) = self.making().make(&file)? else { return Ok(None) };
        self.written(|| file.save(&data))?;
        file.values().map(Some)
    }

    /// A full disk is waited for.
    fn written<R>(&self, attempt: impl FnMut() -> Result<R>) -> Result<R> {
        Patience::default().run(self.stop, say, attempt).context("make room, then go on with --resume")
    }

    fn sets(&self) -> [&Trees; 2] {
        [&self.inputs.train.trees, self.inputs.eval.as_ref().map_or(&self.none, |eval| &eval.trees)]
    }

    /// A run that saved nothing begins again: with the values in its folder only if they are those of its weights. What a
    /// checkpoint is bound to was checked before.
    fn check_made_from(&self, path: &Path, made_from: &Hashes) -> Result<()> {
        let changed = self.inputs.bound.changed(made_from);
        match changed.first() {
            Some(name) if !self.resumed => bail!(
                "{}: {} changed since it was made: restore what was there, or remove this file, which is then made anew",
                path.display(),
                binding::describe(name)
            ),
            _ => Ok(()),
        }
    }

    fn making(&self) -> Making<'_, T> {
        let (config, loss) = (&self.options.config, &self.inputs.loss);
        Making { config, loss, sets: self.sets(), model: self.model, stop: self.stop }
    }
}

impl<T: Float> Making<'_, T> {
    /// Writes the values of the starting weights, carried on from those of an older model where the loss asks for that. Gives
    /// the key of the rows; `None` if the stop came first.
    ///
    /// # Errors
    /// A launch fails, or the older model cannot be read.
    pub fn make(&self, file: &ValueFile) -> Result<Option<Key>> {
        let Some(data) = self.pass("reference", file)? else { return Ok(None) };
        let older = &self.config.model.older_reference;
        if let (Some(alpha), Some(older)) = (self.loss.acceleration(), older) {
            // The older model takes the place of the starting weights for one pass.
            self.model.load(older).context("`model.older_reference`")?;
            let before = ValueFile::nameless(self.sets)?;
            let found = self.pass("older reference", &before);
            // The run has not begun: the weights are those of its start.
            let config = self.config;
            start(self.model, config)?;
            if found?.is_none() {
                return Ok(None);
            }
            file.accelerate(&before, alpha)?;
        }
        Ok(Some(data))
    }

    /// Writes the log-probabilities of both sets under the weights the model has now; `None` if the stop came first.
    fn pass(&self, name: &str, file: &ValueFile) -> Result<Option<Key>> {
        let config = self.config;
        let started = Instant::now();
        let mut pass = ReferencePass::new(self.model, config.batch.tokens, config.cache.folder(), self.sets, file)?;
        pass.warnings.drain(..).for_each(|warning| say(&format!("cache: {warning}")));
        say(&format!("{name}: {}", pass.describe()?));
        let missing = pass.missing();
        let bar = Terminal::new(0, pass.missing_tokens(), u64::MAX);
        let done = pass.run(|done| {
            bar.show(done.tokens, "reference log-probabilities");
            !self.stop.requested()
        });
        bar.finish();
        pass.warnings.drain(..).for_each(|warning| say(&format!("cache: {warning}")));
        let done = done?;
        if missing > 0 && done.is_some() {
            say(&format!("{name} log-probabilities computed in {}", duration(started.elapsed())));
        }
        Ok(done.map(|()| pass.data()))
    }
}
