//! Token masks of SparsePO: fixed ones from the reference's activations, learned ones with an optimizer of their own.
//!
//! A learned mask is `relu(sum over layers of gamma * relu(w . LN(stream) + b))` at the token that predicts. Its tensors are
//! trained, saved and resumed like the model's. It starts near 1, where the loss is TDPO's: `b` is 1, `gamma` one over the
//! number of layers, `w` small.

use std::{io::Write, ops::Range, path::Path};

use anyhow::{Context, Result, ensure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{
    device::{Buffer, Device, Float},
    files,
    loss::{Loss, Masks, Step},
    model::{Batch, Layout, Model, ModelConfig, Visit},
    ops::{
        loss_rows::Rows,
        residual,
        token_mask::{self, Activations, Weights},
    },
    optim::{AdamW, Settings},
    rng::{Philox, Purpose},
};

/// SparsePO's own: the masks' parameters decay apart from the model's.
const WEIGHT_DECAY: f64 = 0.01;
const DEVIATION: f64 = 0.02;
pub const FILE: &str = "token_mask.safetensors";

/// The masks of a run.
pub struct TokenMasks {
    kind: Masks,
    layers: usize,
    width: usize,
    /// Of all masks, one after the other; empty for fixed ones.
    params: Buffer<f32>,
    grads: Buffer<f32>,
    optimizer: AdamW<f32>,
}

/// One micro-batch's masks, and what their backward pass needs.
pub struct Masked {
    /// (rows) each; the same buffer twice for a common mask.
    pub weights: [Buffer<f32>; 2],
    /// Of each learned mask: (layers, rows) and (layers, rows, 2).
    kept: Vec<[Buffer<f32>; 2]>,
}

/// Tensors of one learned mask: name, shape and place.
fn tensors(layers: usize, width: usize) -> Vec<(&'static str, Vec<usize>, Range<usize>)> {
    let mut end = 0;
    let shapes = [
        ("layer_norm.weight", vec![width]),
        ("layer_norm.bias", vec![width]),
        ("layers.weight", vec![layers, width]),
        ("layers.bias", vec![layers]),
        ("mixer.weight", vec![layers]),
    ];
    let place = |(name, shape): (&'static str, Vec<usize>)| {
        let start = end;
        end += shape.iter().product::<usize>();
        (name, shape, start..end)
    };
    shapes.into_iter().map(place).collect()
}

fn elements(layers: usize, width: usize) -> usize {
    tensors(layers, width).last().map_or(0, |(_, _, range)| range.end)
}

impl TokenMasks {
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
        let (layers, width) = (config.layers, config.hidden);
        let count = match kind {
            Masks::Activations => 0,
            Masks::Common => 1,
            Masks::Independent => 2,
        };
        let values: Vec<f32> = (0..count).flat_map(|mask| start(layers, width, seed, mask)).collect();
        let params = device.upload(&values)?;
        let layout = Layout { elements: values.len(), decay_elements: values.len(), ..Layout::default() };
        let settings = Settings { weight_decay: WEIGHT_DECAY, ..settings };
        let optimizer = AdamW::new(device, &params, &layout, settings)?;
        let grads = device.zeros(values.len())?;
        Ok(Some(Self { kind, layers, width, params, grads, optimizer }))
    }

    /// Parameters of all masks.
    pub fn params(&self) -> &Buffer<f32> {
        &self.params
    }

    /// Their gradients.
    pub fn grads(&self) -> &Buffer<f32> {
        &self.grads
    }

    fn count(&self) -> usize {
        self.params.len() / elements(self.layers, self.width).max(1)
    }

    fn names(&self) -> &'static [&'static str] {
        if self.kind == Masks::Independent { &["reward", "divergence"] } else { &["common"] }
    }

    /// One layer of a mask in `all`, which is the parameters or their gradients.
    fn weights(&self, all: &Buffer<f32>, mask: usize, layer: usize) -> Weights {
        let base = mask * elements(self.layers, self.width);
        let places = tensors(self.layers, self.width);
        let part = |tensor: usize, from: usize, len: usize| {
            let start = base + places[tensor].2.start + from;
            all.slice(start..start + len)
        };
        Weights {
            norm_weight: part(0, 0, self.width),
            norm_bias: part(1, 0, self.width),
            w: part(2, layer * self.width, self.width),
            b: part(3, layer, 1),
        }
    }

    fn gamma(&self, all: &Buffer<f32>, mask: usize) -> Buffer<f32> {
        let place = &tensors(self.layers, self.width)[4].2;
        let base = mask * elements(self.layers, self.width);
        all.slice(base + place.start..base + place.end)
    }

    /// Runs the reference over a batch and makes the masks on the way.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn forward<T: Float>(&self, reference: &Model<T>, batch: &Batch) -> Result<Masked> {
        let device = reference.device();
        let rows = batch.rows;
        if self.kind == Masks::Activations {
            let (mask, means) = (device.zeros(rows)?, device.alloc(rows)?);
            let share = 1.0 / self.layers as f32;
            reference.forward_visiting(batch, &mut |visit| {
                let width = visit.inner.len() / batch.tokens;
                let from = Activations { x: &visit.inner, row_source: &batch.row_source, width };
                token_mask::means(device, &means, from)?;
                token_mask::stretch(device, &mask, &means, &batch.sequence_rows, share)
            })?;
            return Ok(Masked { weights: [mask.clone(), mask], kept: Vec::new() });
        }
        let alloc = |_| Ok([device.alloc(self.layers * rows)?, device.alloc(self.layers * rows * 2)?]);
        let kept: Vec<[Buffer<f32>; 2]> = (0..self.count()).map(alloc).collect::<Result<_>>()?;
        reference.forward_visiting(batch, &mut |visit| {
            kept.iter().enumerate().try_for_each(|(mask, kept)| {
                let [pre, stats] = part(kept, visit.layer, rows);
                let weights = self.weights(&self.params, mask, visit.layer);
                token_mask::layer(device, &pre, &stats, self.activations(visit, batch), &weights)
            })
        })?;
        let mixed = |(mask, [pre, _]): (usize, &[Buffer<f32>; 2])| {
            let out = device.alloc(rows)?;
            token_mask::mix(device, &out, pre, &self.gamma(&self.params, mask))?;
            Ok(out)
        };
        let masks: Vec<Buffer<f32>> = kept.iter().enumerate().map(mixed).collect::<Result<_>>()?;
        let weights = [masks[0].clone(), masks[masks.len() - 1].clone()];
        Ok(Masked { weights, kept })
    }

    fn activations<'a, T>(&self, visit: &'a Visit<T>, batch: &'a Batch) -> Activations<'a, T> {
        Activations { x: &visit.stream, row_source: &batch.row_source, width: self.width }
    }

    /// Adds to the gradients what a micro-batch of the step says; the reference runs over it once more.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn backward<T: Float>(
        &self,
        step: &Step,
        micro: usize,
        masked: &Masked,
        rows: &Rows,
        reference: &Model<T>,
        batch: &Batch,
    ) -> Result<()> {
        if self.kind == Masks::Activations {
            return Ok(());
        }
        let device = reference.device();
        let slopes: [Buffer<f32>; 2] = [device.alloc(batch.rows)?, device.alloc(batch.rows)?];
        step.by_weights(micro, [&slopes[0], &slopes[1]], rows, &batch.sequence_rows)?;
        if self.kind == Masks::Common {
            residual::add(device, &slopes[0], &slopes[0], &slopes[1], batch.rows)?;
        }
        let mut by_layer = Vec::new();
        for (mask, [pre, _]) in masked.kept.iter().enumerate() {
            let dpre = device.alloc::<f32>(pre.len())?;
            let (gamma, dgamma) = (self.gamma(&self.params, mask), self.gamma(&self.grads, mask));
            token_mask::mix_bwd(device, &dpre, &dgamma, &slopes[mask], &masked.weights[mask], pre, &gamma)?;
            by_layer.push(dpre);
        }
        reference.forward_visiting(batch, &mut |visit| {
            masked.kept.iter().enumerate().try_for_each(|(mask, kept)| {
                let [_, stats] = part(kept, visit.layer, batch.rows);
                let dpre = by_layer[mask].slice(visit.layer * batch.rows..(visit.layer + 1) * batch.rows);
                let weights = self.weights(&self.params, mask, visit.layer);
                let grads = self.weights(&self.grads, mask, visit.layer);
                token_mask::layer_bwd(device, &grads, &dpre, &stats, self.activations(visit, batch), &weights)
            })
        })
    }

    /// Starts a step.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn zero_grads(&self, device: &Device) -> Result<()> {
        device.fill_zero(&self.grads)
    }

    /// Updates the learned masks.
    ///
    /// # Errors
    /// A launch fails.
    pub fn update(&self, device: &Device, lr: f64) -> Result<()> {
        if !self.params.is_empty() {
            self.optimizer.apply(device, &self.grads, lr)?;
        }
        Ok(())
    }

    /// Writes the masks' tensors and their optimizer's state into a checkpoint.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, device: &Device, folder: &Path) -> Result<()> {
        if self.params.is_empty() {
            return Ok(());
        }
        let arenas = [("", &self.params), ("optimizer.m.", &self.optimizer.m), ("optimizer.v.", &self.optimizer.v)];
        let mut owned = Vec::new();
        for (prefix, arena) in arenas {
            let values = device.download(arena)?;
            for (mask, name) in self.names().iter().enumerate() {
                let base = mask * elements(self.layers, self.width);
                for (tensor, shape, range) in tensors(self.layers, self.width) {
                    let bytes = bytemuck::cast_slice(&values[base + range.start..base + range.end]).to_vec();
                    owned.push((format!("{prefix}{name}.{tensor}"), shape, bytes));
                }
            }
        }
        let updates = self.optimizer.updates(device)?.to_le_bytes();
        let mut views = vec![("optimizer.updates".to_owned(), TensorView::new(Dtype::U64, vec![1], &updates)?)];
        for (name, shape, bytes) in &owned {
            views.push((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
        }
        let bytes = safetensors::serialize(views, None)?;
        files::write_whole(&folder.join(FILE), |file| Ok(file.write_all(&bytes)?))
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// The file is missing, damaged or belongs to another model.
    pub fn load(&self, device: &Device, folder: &Path) -> Result<()> {
        if self.params.is_empty() {
            return Ok(());
        }
        let path = folder.join(FILE);
        let bytes = std::fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let damaged = || format!("{}: damaged", path.display());
        let file = SafeTensors::deserialize(&bytes).with_context(damaged)?;
        let arenas = [("", &self.params), ("optimizer.m.", &self.optimizer.m), ("optimizer.v.", &self.optimizer.v)];
        for (prefix, arena) in arenas {
            let mut values: Vec<f32> = Vec::with_capacity(arena.len());
            for name in self.names() {
                for (tensor, shape, _) in tensors(self.layers, self.width) {
                    let name = format!("{prefix}{name}.{tensor}");
                    let found = file.tensor(&name).with_context(|| format!("{}: tensor `{name}`", path.display()))?;
                    ensure!(found.shape() == shape, "{}: tensor `{name}`: expected {shape:?}", path.display());
                    values.extend(bytemuck::allocation::pod_collect_to_vec::<u8, f32>(found.data()));
                }
            }
            device.copy_in(arena, &values)?;
        }
        let updates = file.tensor("optimizer.updates").with_context(damaged)?;
        self.optimizer.resume(device, u64::from_le_bytes(updates.data().try_into().with_context(damaged)?))
    }
}

/// One layer's rows of what a mask keeps.
fn part([pre, stats]: &[Buffer<f32>; 2], layer: usize, rows: usize) -> [Buffer<f32>; 2] {
    [pre.slice(layer * rows..(layer + 1) * rows), stats.slice(2 * layer * rows..2 * (layer + 1) * rows)]
}

/// Starting values of one mask.
fn start(layers: usize, width: usize, seed: u64, mask: usize) -> Vec<f32> {
    let mut values = vec![0.0; elements(layers, width)];
    let places = tensors(layers, width);
    let mut fill = |tensor: usize, value: f32| values[places[tensor].2.clone()].fill(value);
    fill(0, 1.0);
    fill(3, 1.0);
    fill(4, 1.0 / layers as f32);
    Philox::new(seed, Purpose::Masks, mask as u32).fill_normal(&mut values[places[2].2.clone()], DEVIATION);
    values
}
