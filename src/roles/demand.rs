//! What a run asks of a device: the plans of its models, for a micro-batch of any size.

use anyhow::Result;

use super::RunPlan;
use crate::{
    device::{DType, Device},
    model::{Capacity, MemoryPlan, ModelConfig, Rung},
};

/// The role of the starting weights that run beside the policy.
pub const REFERENCE_MODEL: &str = "reference model";

/// All that decides about memory but for the micro-batch.
#[derive(Clone, Copy)]
pub struct Demand<'a> {
    /// What is trained.
    pub shape: &'a ModelConfig,
    /// In which precision.
    pub precision: DType,
    /// Where; the head and sums of gradients take what its kernels need.
    pub device: &'a Device,
    /// What gradients of matrices and tables are added up in.
    pub gradients: DType,
    /// Bytes of the optimizer beside weights, masters and gradients.
    pub remembered: usize,
    /// Bytes of it in the host's memory, which every update copies to the device and back.
    pub on_host: usize,
    /// Whether the loss looks at whole distributions, which are f32 logits of both models.
    pub distributions: bool,
    /// Whether a reference runs beside the policy.
    pub beside: bool,
}

impl Demand<'_> {
    /// The plan of a run whose largest micro-batch is this, with so much of each layer computed again.
    ///
    /// # Errors
    /// The kernels cannot index the micro-batch, or there is not one rung a layer.
    pub fn plan(&self, capacity: Capacity, levels: &[Rung]) -> Result<RunPlan> {
        let policy = MemoryPlan::new(self.shape, self.precision, capacity)?.remembering(self.remembered);
        let policy = policy.adding_up_in(self.shape, self.gradients);
        let policy = self.on_device(policy).recomputing(self.shape, levels.to_vec())?;
        let mut plan = RunPlan { on_host: self.on_host, ..RunPlan::from(policy) };
        if self.beside {
            let reference = MemoryPlan::forward_only(self.shape, self.precision, capacity)?;
            plan.others.push((REFERENCE_MODEL, self.on_device(reference)));
        }
        Ok(plan)
    }

    fn on_device(&self, plan: MemoryPlan) -> MemoryPlan {
        if self.distributions { plan } else { plan.on(self.device, self.shape) }
    }
}
