//! From inputs to a run that can begin: models made and filled, the run's state found, reference values at hand.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{
    Options, Outcome,
    binding::{Machine, REFERENCE},
    checkpoint::{self, State},
    inputs::Inputs,
    plan::follows,
    references::{self, References},
    settings,
    start::Start,
    step::{StepOptions, Trainer},
};
use crate::{
    config::Config,
    data::trees::Trees,
    device::{Device, Float},
    feed::{Feed, FileFeed, HeldOut},
    forest::Tree,
    model::{Companions, MemoryPlan, Model},
    optim::{Ema, Optimizer},
    report::terminal::conclude,
    roles::{Policy, REFERENCE_MODEL, Reference, Roles, RunPlan, TrainedMasks, reference::RowValues},
    stop::Stop,
};

/// A run whose models hold the weights it goes on from.
pub struct Session<'a, T> {
    pub options: &'a Options,
    pub inputs: Inputs,
    pub trainer: Trainer<T>,
    pub companions: Companions,
    /// After the last step that was done.
    pub state: State,
    /// Records of `metrics.jsonl` up to this step stay; `None` if none does.
    pub resumed: Option<u64>,
}

/// What the steps of a run take in.
pub struct Supplies<T> {
    pub feed: Box<dyn Feed<T>>,
    pub held_out: Option<HeldOut>,
    /// What the model is asked about before the first and after the last step.
    pub first_row: Tree,
}

impl<'a, T: Float> Session<'a, T> {
    /// Makes the models of the plan, with the weights of the checkpoint in `start` or the starting weights.
    ///
    /// # Errors
    /// The device is out of memory, or files of the model folder or of the checkpoint cannot be used.
    pub fn open(options: &'a Options, inputs: Inputs, device: &Device, plan: &RunPlan, start: &Start) -> Result<Self> {
        let config = &options.config;
        let seed = config.train.seed;
        let mut state = State::new(inputs.total_steps, seed, settings::text(config)?, Machine::here(device));
        state.bound = inputs.bound.hashes();
        let policy = policy(config, &inputs, device, plan.policy.clone(), start)?;
        if let Start::From(folder, saved) = start {
            check_steps(folder, saved, inputs.total_steps)?;
            checkpoint::load(folder, &policy, saved)?;
            state = state.after(saved);
        }
        let roles = Roles { policy, reference: reference(config, &inputs, device, plan, start)? };
        let graphed = config.train.cuda_graph;
        let trainer = Trainer::new(roles, inputs.loss.clone(), StepOptions { graphed })?;
        device.copy_in(&trainer.loss_state, &state.loss_state)?;
        let companions = Companions::new(&config.model.path, config.data.template.as_deref())?;
        let resumed = matches!(start, Start::From(..)).then_some(state.step);
        Ok(Self { options, inputs, trainer, companions, state, resumed })
    }

    /// Reads or makes the reference values. `None` if the stop came first.
    ///
    /// # Errors
    /// As [`References::values`].
    pub fn references(&mut self, stop: &Stop) -> Result<Option<[RowValues; 2]>> {
        let (options, inputs, model) = (self.options, &self.inputs, self.trainer.model());
        let (resumed, none) = (self.resumed.is_some(), Trees::default());
        let references = References { options, inputs, model, resumed, stop, none };
        let values = match self.trainer.roles.reference {
            Reference::Values => references.values()?,
            // A reference that runs beside the policy gives its values as they are needed.
            Reference::None | Reference::Beside(_) => Some([RowValues::none(), RowValues::none()]),
        };
        let before = std::mem::take(&mut self.state.bound);
        let own = self.options.out.join(REFERENCE);
        self.state.bound = self.inputs.bound.clone().with_reference(&own)?.hashes();
        self.state.bound.extend(before);
        Ok(values)
    }

    /// What a stop before the first step of this process leaves behind, said.
    pub fn interrupted_early(&self) -> Outcome {
        match self.resumed {
            None => conclude("interrupted before the first step: there is nothing to save yet"),
            Some(step) => {
                conclude(&format!("interrupted before another step: the checkpoint of step {step} is as it was"))
            }
        }
        Outcome::Interrupted
    }

    /// Hands over the rows, with their reference values: to learn from, from where the run stands, and to look at.
    ///
    /// # Errors
    /// The place where the run stands is not one of these rows, or rows cannot be read.
    pub fn supplies(&mut self, [train, eval]: [RowValues; 2]) -> Result<Supplies<T>> {
        let Inputs { train: data, eval: held_out, loader, .. } = &mut self.inputs;
        let mut loader = loader.clone();
        if self.resumed.is_some() {
            loader.seek(self.state.data)?;
        }
        let first_row = data.trees.tree(0)?;
        let budget = self.options.config.batch.tokens;
        let held_out = held_out.take().map(|rows| HeldOut::new(rows, budget, eval)).transpose()?;
        Ok(Supplies { feed: Box::new(FileFeed::new(std::mem::take(data), loader, train)), held_out, first_row })
    }
}

/// The model that is trained, its optimizer, and the masks of a loss that learns them.
fn policy<T: Float>(
    config: &Config,
    inputs: &Inputs,
    device: &Device,
    plan: MemoryPlan,
    start: &Start,
) -> Result<Policy<T>> {
    let model = Model::<T>::new(device, &inputs.model, plan)?;
    let optimizer = Optimizer::allocate(model.params(), &config.optimizer())?;
    match start {
        // The checkpoint's follow.
        Start::From(..) => {}
        _ => references::start(&model, config)?,
    }
    let masks = TrainedMasks::new(device, &inputs.loss, &inputs.model, config.train.seed, config.optimizer())?;
    let decay = config.train.ema;
    let mean = || Ema::allocate(device, model.layout().elements, decay);
    let ema = (decay > 0.0).then(mean).transpose()?;
    model.params().resume(config.train.seed, start.step());
    if !matches!(start, Start::From(..)) {
        ema.iter().try_for_each(|ema| ema.start(model.params()))?;
    }
    Ok(Policy { model, optimizer, masks, ema })
}

/// What the policy is compared with, the starting weights, or those that follow it, loaded where they run beside it.
fn reference<T: Float>(
    config: &Config,
    inputs: &Inputs,
    device: &Device,
    plan: &RunPlan,
    start: &Start,
) -> Result<Reference<T>> {
    let loss = &inputs.loss;
    let Some(plan) = plan.other(REFERENCE_MODEL) else {
        let has_values = loss.needs_reference() || config.train.track_reference;
        return Ok(if has_values { Reference::Values } else { Reference::None });
    };
    let beside = Model::<T>::new(device, &inputs.model, plan.clone())?;
    match start {
        Start::From(folder, _) if follows(config, loss) => beside.load(&folder.join(checkpoint::REFERENCE))?,
        _ => references::start(&beside, config)?,
    }
    Ok(Reference::Beside(Box::new(beside)))
}

fn check_steps(folder: &Path, saved: &State, total_steps: u64) -> Result<()> {
    ensure!(
        saved.step <= total_steps,
        "{}: {} steps are done, `train.steps`, `train.epochs` and the rows there are give {total_steps}: raise them, or \
         start another run with --out",
        folder.display(),
        saved.step
    );
    Ok(())
}
