//! What a run takes: memory of the device, by role, and room on the disk.

use anyhow::Result;

use super::{Options, binding::REFERENCE, inputs::Inputs, space::Writes, start::Start};
use crate::{
    config::Config,
    data::{Dataset, batches},
    device::{DType, Device},
    loss::Loss,
    model::{Capacity, MemoryPlan, ModelConfig},
    ops::head,
};

/// Whether the reference follows the policy.
pub fn follows(config: &Config, loss: &Loss) -> bool {
    config.train.ref_model_sync_steps > 0 && loss.needs_reference()
}

/// The largest micro-batch of these sets in a forward pass of a model of that shape.
pub(super) fn capacity(
    files: &[&Dataset],
    shape: &ModelConfig,
    loss: &Loss,
    config: &Config,
    device: &Device,
) -> Capacity {
    let [tokens, rows] = batches::largest(files, config.batch.tokens);
    let usual = || usual_chunk_rows(device, config.train.precision.on(device), shape, loss);
    Capacity { tokens, rows, head_chunk_rows: config.train.head_chunk_rows.unwrap_or_else(usual) }
}

/// Rows of the head's chunk if memory is no concern.
pub(super) fn usual_chunk_rows(device: &Device, precision: DType, shape: &ModelConfig, loss: &Loss) -> usize {
    let chunk = head::default_chunk_rows(device, precision, shape.vocab, shape.hidden);
    // Whole distributions are f32 logits, of both models.
    if loss.needs_distributions() { chunk.min(head::F32_CHUNK_ROWS) } else { chunk }
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
