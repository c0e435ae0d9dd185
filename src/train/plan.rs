//! What a run takes: memory of the device, by role, and room on the disk.

use anyhow::Result;

use super::{Options, binding::REFERENCE, inputs::Inputs, space::Writes, start::Start};
use crate::{
    config::Config,
    data::{Dataset, batches},
    device::Device,
    loss::Loss,
    model::{Capacity, Layout, MemoryPlan, ModelConfig},
    ops::head,
    optim::ema,
    roles::RunPlan,
};

/// The role of the starting weights that run beside the policy.
pub const REFERENCE_MODEL: &str = "reference model";

/// Whether the reference follows the policy.
pub fn follows(config: &Config, loss: &Loss) -> bool {
    config.train.ref_model_sync_steps > 0 && loss.needs_reference()
}

/// Bytes of the run, by role, refused if the device does not have them.
///
/// # Errors
/// The run does not fit.
pub fn memory(inputs: &Inputs, config: &Config, device: &Device) -> Result<RunPlan> {
    let files: Vec<&Dataset> = [&inputs.train].into_iter().chain(&inputs.eval).collect();
    let capacity = capacity(&files, &inputs.model, &inputs.loss, config, device);
    let precision = config.train.precision.on(device);
    let layout = Layout::new(&inputs.model);
    let mean = if config.train.ema > 0.0 { ema::BYTES * layout.elements } else { 0 };
    let state = config.optimizer().rule.bytes(&layout.groups()) + mean;
    let levels = config.train.recompute.levels(inputs.model.layers)?;
    let policy = MemoryPlan::new(&inputs.model, precision, capacity)?.remembering(state);
    let mut policy = policy.recomputing(&inputs.model, levels)?;
    if !inputs.loss.needs_distributions() {
        policy = policy.on(device, &inputs.model);
    }
    let mut plan = RunPlan::from(policy);
    if inputs.loss.needs_divergence() || follows(config, &inputs.loss) {
        let reference = MemoryPlan::forward_only(&inputs.model, precision, capacity)?;
        let whole = inputs.loss.needs_distributions();
        plan.others.push((REFERENCE_MODEL, if whole { reference } else { reference.on(device, &inputs.model) }));
    }
    plan.check(device)?;
    Ok(plan)
}

/// The largest micro-batch of these sets.
pub(super) fn capacity(
    files: &[&Dataset],
    shape: &ModelConfig,
    loss: &Loss,
    config: &Config,
    device: &Device,
) -> Capacity {
    let [tokens, rows] = batches::largest(files, config.batch.tokens);
    let chunk = head::default_chunk_rows(device, config.train.precision.on(device), shape.vocab, shape.hidden);
    // Whole distributions are f32 logits, of both models.
    let head_chunk_rows = if loss.needs_distributions() { chunk.min(head::F32_CHUNK_ROWS) } else { chunk };
    Capacity { tokens, rows, head_chunk_rows }
}

/// Refuses a run that the disk has no room for; a line where it has only just enough.
///
/// # Errors
/// Names need, room and remedy.
pub fn check_disk(inputs: &Inputs, options: &Options, plan: &MemoryPlan, start: &Start) -> Result<Option<String>> {
    let follows = follows(&options.config, &inputs.loss);
    let computed = !follows && !options.out.join(REFERENCE).is_file();
    let rows = || inputs.train.trees.all_rows() + inputs.eval.as_ref().map_or(0, |eval| eval.trees.all_rows());
    let reference_rows = if computed { rows() } else { 0 };
    let writes = Writes { plan, reference_rows, follows, steps: [start.step(), inputs.total_steps] };
    writes.check(&options.out, &options.config)
}
