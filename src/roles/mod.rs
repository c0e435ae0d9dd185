//! The models of a run by the part they play: the policy that is trained, and what it is measured against.

mod decision;
mod demand;
mod masks;
mod plan;
mod planner;
pub mod reference;

pub use demand::{Demand, REFERENCE_MODEL};
pub use masks::TrainedMasks;
pub use plan::RunPlan;
pub use planner::{Decision, Planner, Rates, Remedy};

use crate::{
    model::Model,
    optim::{Ema, Optimizer},
};

/// All models of a run.
pub struct Roles<T> {
    /// What is trained.
    pub policy: Policy<T>,
    /// What it is compared with.
    pub reference: Reference<T>,
}

/// The model that is trained, with all that is trained beside it.
pub struct Policy<T> {
    /// Weights and passes.
    pub model: Model<T>,
    /// What moves the weights.
    pub optimizer: Optimizer<T>,
    /// Weights of tokens, where the loss has them.
    pub masks: Option<TrainedMasks>,
    /// The running mean of its weights, where one is asked for.
    pub ema: Option<Ema>,
}

/// What the policy's log-probabilities are compared with.
pub enum Reference<T> {
    /// The loss compares them with nothing.
    None,
    /// Values that come with the rows: see [`RowValues`](reference::RowValues).
    Values,
    /// A model that runs over every micro-batch beside the policy: the starting weights, where the loss looks at their whole
    /// distributions, or weights that follow the policy.
    Beside(Box<Model<T>>),
}

impl<T> Reference<T> {
    /// The model that runs beside the policy, if one does.
    pub fn beside(&self) -> Option<&Model<T>> {
        match self {
            Self::Beside(model) => Some(model),
            Self::None | Self::Values => None,
        }
    }
}
