//! The held-out metrics of a run for any model folder, without training: what `warpo eval run` says.

use std::{cell::Cell, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use half::bf16;

use super::{
    checkpoint,
    passes::Passes,
    plan,
    references::{self, Making},
};
use crate::{
    config::Config,
    data::{Dataset, sets::Sets, trees::Trees},
    device::{Choice, DType, Device, Float},
    error::Error,
    feed::HeldOut,
    loss::{Loss, Margin, MetricSums},
    model::{MemoryPlan, Model, ModelConfig, check_kernels},
    ops::loss_batch,
    report::terminal::{self, Terminal, say},
    roles::{
        REFERENCE_MODEL, Reference, RunPlan, TrainedMasks,
        reference::{RowValues, ValueFile},
    },
    stop::Stop,
};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct EvaluationOptions {
    /// Of the run: its held-out rows, its loss, its reference, its arithmetic.
    pub config: Config,
    /// Whose metrics are wanted: a Hugging Face folder.
    pub model: PathBuf,
    /// Where it runs.
    pub device: Choice,
}

/// What is evaluated.
struct Evaluation<'a> {
    options: &'a EvaluationOptions,
    device: &'a Device,
    loss: Loss,
    /// Of the model whose metrics are wanted.
    shape: ModelConfig,
    /// Of the starting weights.
    start: ModelConfig,
    rows: Dataset,
    stop: &'a Stop,
}

/// The metrics of the run's held-out rows, by the names they have in training; `None` if the stop came first.
///
/// # Errors
/// The run has no held-out rows, a row or a model folder cannot be used, or it does not fit on the device.
pub fn run(options: &EvaluationOptions, stop: &Stop) -> Result<Option<MetricSums>, Error> {
    Ok(begin(options, stop)?)
}

fn begin(options: &EvaluationOptions, stop: &Stop) -> Result<Option<MetricSums>> {
    let config = &options.config;
    let device = config.open_device(options.device, config.host())?;
    let precision = config.train.precision.on(&device);
    let (shape, start) = (ModelConfig::load(&options.model)?, ModelConfig::load(&config.model.path)?);
    check_kernels(&device, &shape, precision, false)?;
    check_vocabulary(options, &shape, &start)?;
    let loss = config.loss.read()?;
    let rows = held_out(config, &loss, &start, shape.positions)?;
    let evaluation = Evaluation { options, device: &device, loss, shape, start, rows, stop };
    match precision {
        DType::Bf16 => evaluation.metrics::<bf16>(),
        _ => evaluation.metrics::<f32>(),
    }
}

/// The metrics of held-out rows and the margins of pairs, with a bar meanwhile; `None` if the stop came first.
///
/// # Errors
/// As [`Passes::evaluate`].
pub fn watched<T: Float>(
    passes: &Passes<T>,
    rows: &HeldOut,
    carried: &[f64],
    at_start: bool,
    stop: &Stop,
) -> Result<Option<(MetricSums, Vec<Margin>)>> {
    let (bar, packs) = (Terminal::new(0, rows.packs() as u64, u64::MAX), Cell::new(0));
    let found = passes.evaluate(rows, carried, at_start, || {
        bar.show(packs.replace(packs.get() + 1), "evaluating");
        !stop.requested()
    });
    bar.finish();
    found
}

/// Token numbers must mean the same in both folders: the rows are tokenised once.
fn check_vocabulary(options: &EvaluationOptions, shape: &ModelConfig, start: &ModelConfig) -> Result<()> {
    let (own, run) = (options.model.display(), options.config.model.path.display());
    ensure!(
        shape.vocab == start.vocab,
        "{own}: {} tokens, `model.path` = {run} has {}: name a model with the run's tokenizer by --model",
        shape.vocab,
        start.vocab
    );
    let tokenizer = |folder: &PathBuf| fs::read(folder.join("tokenizer.json")).ok();
    let (ours, theirs) = (tokenizer(&options.model), tokenizer(&options.config.model.path));
    if ours.is_some() && ours != theirs {
        say(&format!("note: tokenizer.json of {own} is not that of {run}, by which the rows are tokenised"));
    }
    Ok(())
}

/// The rows, as the loss takes them, none longer than either model reads.
fn held_out(config: &Config, loss: &Loss, start: &ModelConfig, positions: usize) -> Result<Dataset> {
    let mut config = config.clone();
    ensure!(config.data.holds_out(), "`data.eval` is not set: the run has no held-out rows");
    if let Some(eval) = config.data.eval.take() {
        // Rows to learn from are not read.
        config.data.train = eval;
    }
    let encoder = config.encoder(start.vocab, start.positions)?;
    let mut sets = Sets::read(encoder, &config.sets()?, terminal::counting_rows)?;
    sets.reshape(loss.reshape(), config.batch.tokens)?;
    sets.survey(positions.min(start.positions), |tree| loss.groups([tree]).map(drop))?;
    let rows = sets.eval.unwrap_or(sets.train);
    rows.skipped.iter().for_each(|skipped| say(&format!("left out: {skipped}")));
    sets.origins.iter().for_each(|origin| say(origin));
    Ok(rows)
}

impl Evaluation<'_> {
    fn metrics<T: Float>(mut self) -> Result<Option<MetricSums>> {
        let plan = self.plan()?;
        self.introduce(&plan);
        let Some(values) = self.values::<T>()? else { return Ok(None) };
        let (config, folder) = (&self.options.config, &self.options.model);
        let model = self.loaded::<T>(&self.shape, &plan.policy)?;
        model.load(folder)?;
        let masks = TrainedMasks::new(self.device, &self.loss, &self.start, config.train.seed, config.optimizer())?;
        let masks_of = || format!("{}: the loss has masks that learn: name a folder of this run", folder.display());
        masks.iter().try_for_each(|masks| masks.load(folder)).with_context(masks_of)?;
        let reference = match plan.other(REFERENCE_MODEL) {
            Some(plan) => Reference::Beside(Box::new(self.beside::<T>(plan)?)),
            None if self.has_values() => Reference::Values,
            None => Reference::None,
        };
        let rows = HeldOut::new(std::mem::take(&mut self.rows), config.batch.tokens, values)?;
        let passes = Passes { model: &model, masks: masks.as_ref(), reference: &reference, loss: &self.loss };
        Ok(watched(&passes, &rows, &self.carried()?, false, self.stop)?.map(|(means, _)| means))
    }

    /// The reference of a folder that has one of its own, as a checkpoint of a run whose reference follows the policy.
    fn own_reference(&self) -> Option<PathBuf> {
        let folder = self.options.model.join(checkpoint::REFERENCE);
        (plan::follows(&self.options.config, &self.loss) && folder.is_dir()).then_some(folder)
    }

    fn runs_beside(&self) -> bool {
        self.loss.needs_divergence() || self.own_reference().is_some()
    }

    fn beside<T: Float>(&self, plan: &MemoryPlan) -> Result<Model<T>> {
        let Some(folder) = self.own_reference() else { return self.starting(plan) };
        let model = self.loaded(&self.start, plan)?;
        model.load(&folder)?;
        Ok(model)
    }

    fn has_values(&self) -> bool {
        self.loss.needs_reference() || self.options.config.train.track_reference
    }

    /// Of forward passes only: of the model, and of the starting weights where they run beside it.
    fn plan(&self) -> Result<RunPlan> {
        let mut plan = RunPlan::from(self.plan_of(&self.shape)?);
        if self.runs_beside() {
            plan.others.push((REFERENCE_MODEL, self.plan_of(&self.start)?));
        } else if self.has_values() {
            // One after the other.
            RunPlan::from(self.plan_of(&self.start)?).check(self.device)?;
        }
        plan.check(self.device)?;
        Ok(plan)
    }

    fn plan_of(&self, shape: &ModelConfig) -> Result<MemoryPlan> {
        let (config, device) = (&self.options.config, self.device);
        let capacity = plan::capacity(&[&self.rows], shape, &self.loss, config, device);
        let plan = MemoryPlan::forward_only(shape, config.train.precision.on(device), capacity)?;
        Ok(if self.loss.needs_distributions() { plan } else { plan.on(device, shape) })
    }

    fn introduce(&self, plan: &RunPlan) {
        say(&format!("device: {}", self.device.describe()));
        say(&self.options.config.train.precision.describe(self.device));
        plan.to_string().lines().for_each(say);
        say(&format!("loss: {}", self.loss.names()));
        if plan::follows(&self.options.config, &self.loss) && self.own_reference().is_none() {
            say(
                "note: the run's reference follows the policy, and only a checkpoint has it: this is against the starting weights",
            );
        }
        say(&format!("data: {} rows held out", self.rows.trees.len()));
    }

    fn loaded<T: Float>(&self, shape: &ModelConfig, plan: &MemoryPlan) -> Result<Model<T>> {
        Model::new(self.device, shape, plan.clone())
    }

    /// The starting weights of the run.
    fn starting<T: Float>(&self, plan: &MemoryPlan) -> Result<Model<T>> {
        let model = self.loaded(&self.start, plan)?;
        references::start(&model, &self.options.config)?;
        Ok(model)
    }

    /// The reference values of the rows, where the loss takes such; `None` if the stop came first.
    fn values<T: Float>(&self) -> Result<Option<RowValues>> {
        if self.runs_beside() || !self.has_values() {
            return Ok(Some(RowValues::none()));
        }
        let (config, none) = (&self.options.config, Trees::default());
        let (model, sets) = (self.starting::<T>(&self.plan_of(&self.start)?)?, [&self.rows.trees, &none]);
        let file = ValueFile::nameless(sets)?;
        let making = Making { config, loss: &self.loss, sets, model: &model, stop: self.stop };
        let Some(_) = making.make(&file)? else { return Ok(None) };
        let [values, _] = file.values()?;
        Ok(Some(values))
    }

    /// What the loss had carried to the folder, which a checkpoint says and another folder does not.
    fn carried(&self) -> Result<Vec<f64>> {
        let found = checkpoint::carried(&self.options.model)?;
        if found.is_none() && self.loss.carries() {
            say(&format!(
                "note: the loss {} has a running reference point, which is 0 here: only a checkpoint has one",
                self.loss.names()
            ));
        }
        Ok(found.unwrap_or_else(|| vec![0.0; loss_batch::STATE]))
    }
}
