//! Token masks that are trained beside a policy: their optimizer, their gradients from the loss, and their file.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    device::{Device, Float},
    files::safetensors::{self, Dtype, Reader, Spec},
    loss::{Loss, Step},
    model::{AnyBuffer, Batch, Masked, Model, ModelConfig, TokenMasks},
    ops::loss_rows::RowInputs,
    optim::{Optimizer, RuleKind, Settings},
};

/// SparsePO's own: the masks' parameters decay apart from the model's.
const WEIGHT_DECAY: f64 = 0.01;
/// In a checkpoint.
pub const FILE: &str = "token_mask.safetensors";
const UPDATES: &str = "optimizer.updates";

/// The masks of a run, and what trains them if they learn.
pub struct TrainedMasks {
    /// Their weights and passes.
    pub masks: TokenMasks,
    optimizer: Option<Optimizer<f32>>,
}

impl TrainedMasks {
    /// Masks that have learned nothing, where the loss has masks.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(
        device: &Device,
        loss: &Loss,
        config: &ModelConfig,
        seed: u64,
        settings: Settings,
    ) -> Result<Option<Self>> {
        let Some(kind) = loss.masks() else { return Ok(None) };
        let masks = TokenMasks::new(device, kind, config, seed)?;
        // They are a few numbers a model has beside its own: nothing to be saved on.
        let rule = match settings.rule {
            RuleKind::AdamW { beta1, beta2, eps, .. } => RuleKind::adamw(beta1, beta2, eps),
            other => other,
        };
        let settings = Settings { rule, weight_decay: WEIGHT_DECAY, ..settings };
        let optimizer = masks.learns().then(|| Optimizer::new(masks.params(), &settings)).transpose()?;
        Ok(Some(Self { masks, optimizer }))
    }

    /// Adds to the gradients what a micro-batch of the step says; the reference runs over it once more.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn backward<T: Float>(
        &self,
        (step, micro): (&Step, usize),
        masked: &Masked,
        rows: &RowInputs,
        reference: &Model<T>,
        batch: &Batch,
    ) -> Result<()> {
        if !self.masks.learns() {
            return Ok(());
        }
        let device = reference.device();
        let slopes = [device.alloc(batch.rows)?, device.alloc(batch.rows)?];
        step.by_weights(micro, slopes.each_ref(), rows, &batch.sequence_rows)?;
        self.masks.backward(masked, &slopes, reference, batch)
    }

    /// Updates the learned masks.
    ///
    /// # Errors
    /// A launch fails.
    pub fn update(&self, lr: f64) -> Result<()> {
        self.optimizer.as_ref().map_or(Ok(()), |optimizer| optimizer.apply(lr))
    }

    /// Writes the masks' tensors and their optimizer's state into a checkpoint.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let Some(optimizer) = &self.optimizer else { return Ok(()) };
        let (device, tensors) = (self.masks.params().device(), self.tensors(optimizer));
        let mut specs = vec![Spec { name: UPDATES.into(), dtype: Dtype::U64, shape: vec![1] }];
        let spec = |(name, shape, buffer): &(String, Vec<usize>, AnyBuffer)| Spec {
            name: name.clone(),
            dtype: buffer.dtype(),
            shape: shape.clone(),
        };
        specs.extend(tensors.iter().map(spec));
        let updates = optimizer.updates()?.to_le_bytes();
        safetensors::write(&folder.join(FILE), None, &specs, |file| {
            file.write(0, 0, &updates)?;
            tensors.iter().zip(1..).try_for_each(|((_, _, buffer), number)| buffer.save(device, file, number))
        })
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// The file is missing, damaged or belongs to another model.
    pub fn load(&self, folder: &Path) -> Result<()> {
        let Some(optimizer) = &self.optimizer else { return Ok(()) };
        let device = self.masks.params().device();
        let path = folder.join(FILE);
        let file = Reader::open(path.clone()).with_context(|| format!("{}: cannot be read", path.display()))?;
        for (name, shape, buffer) in self.tensors(optimizer) {
            buffer.load(device, &file, &name, &shape)?;
        }
        let mut updates = [0; 8];
        file.read(UPDATES, 0, &mut updates)?;
        optimizer.resume(u64::from_le_bytes(updates))
    }

    /// Name, shape and place of all that the file has of each weight, by name.
    fn tensors(&self, optimizer: &Optimizer<f32>) -> Vec<(String, Vec<usize>, AnyBuffer)> {
        let params = self.masks.params();
        let remembered = optimizer.tensors().into_iter().map(|(name, all)| (format!("optimizer.{name}."), all));
        let mut tensors = Vec::new();
        for (prefix, all) in [(String::new(), AnyBuffer::from(&params.values()))].into_iter().chain(remembered) {
            for spec in &params.layout().tensors {
                tensors.push((format!("{prefix}{}", spec.name), spec.shape.clone(), all.slice(spec.range())));
            }
        }
        tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        tensors
    }
}
