//! Token masks of SparsePO: fixed ones from a model's activations, learned ones from tensors of their own.
//!
//! A learned mask is `relu(sum over layers of gamma * relu(w . LN(stream) + b))` at the token that predicts. It starts near
//! 1, where the loss is TDPO's: `b` is 1, `gamma` one over the number of layers, `w` small. Knows neither losses nor who
//! trains the tensors.

use anyhow::Result;

use super::{Batch, Layout, Model, ModelConfig, ParamSet, Visit};
use crate::{
    device::{Buffer, Device, Float},
    ops::{
        residual,
        token_mask::{self, Activations, Weights},
    },
    rng::{Philox, Purpose},
};

const DEVIATION: f64 = 0.02;

/// Where the weights of rows and of their divergences come from, other than from the rows themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    /// One fixed mask from the reference's activations.
    Activations,
    /// One learned mask for both.
    Common,
    /// A learned mask for each.
    Independent,
}

impl MaskKind {
    /// Names of the learned masks.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Activations => &[],
            Self::Common => &["common"],
            Self::Independent => &["reward", "divergence"],
        }
    }
}

/// Tensors of a learned mask, in their order.
#[derive(Clone, Copy)]
enum Tensor {
    NormWeight,
    NormBias,
    Layers,
    LayersBias,
    Mixer,
}

/// How many there are.
const TENSORS: usize = 5;

/// Name and shape of each tensor of a mask.
fn tensors(layers: usize, width: usize) -> [(&'static str, Vec<usize>); TENSORS] {
    [
        ("layer_norm.weight", vec![width]),
        ("layer_norm.bias", vec![width]),
        ("layers.weight", vec![layers, width]),
        ("layers.bias", vec![layers]),
        ("mixer.weight", vec![layers]),
    ]
}

/// The masks of a run.
pub struct TokenMasks {
    kind: MaskKind,
    layers: usize,
    width: usize,
    /// Of all masks, one after the other; empty for fixed ones.
    params: ParamSet<f32>,
}

/// One micro-batch's masks, and what their backward pass needs.
pub struct Masked {
    /// (rows) each; the same buffer twice for a common mask.
    pub weights: [Buffer<f32>; 2],
    /// Of each learned mask: (layers, rows) and (layers, rows, 2).
    kept: Vec<[Buffer<f32>; 2]>,
}

impl TokenMasks {
    /// Masks that have learned nothing, for a model of this shape.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(device: &Device, kind: MaskKind, config: &ModelConfig, seed: u64) -> Result<Self> {
        let (layers, width) = (config.layers, config.hidden);
        let named = |mask: &&'static str| {
            let mask = *mask;
            tensors(layers, width).map(|(name, shape)| (format!("{mask}.{name}"), shape, true))
        };
        let params = ParamSet::trained(device, Layout::of(kind.names().iter().flat_map(named)))?;
        let masks = Self { kind, layers, width, params };
        for mask in 0..kind.names().len() {
            masks.fill(mask, seed)?;
        }
        Ok(masks)
    }

    /// Starting values of one mask.
    fn fill(&self, mask: usize, seed: u64) -> Result<()> {
        let mut weights = vec![0.0; self.layers * self.width];
        Philox::new(seed, Purpose::Masks, mask as u32).fill_normal(&mut weights, DEVIATION);
        let values = [
            vec![1.0; self.width],
            vec![0.0; self.width],
            weights,
            vec![1.0; self.layers],
            vec![1.0 / self.layers as f32; self.layers],
        ];
        let specs = &self.params.layout().tensors[mask * TENSORS..];
        specs
            .iter()
            .zip(values)
            .try_for_each(|(spec, values)| self.params.device().copy_in(&self.params.weight(&spec.range()), &values))
    }

    /// What the masks learn.
    pub fn params(&self) -> &ParamSet<f32> {
        &self.params
    }

    /// Whether there is anything to learn.
    pub fn learns(&self) -> bool {
        self.kind != MaskKind::Activations
    }

    /// Elements of a mask's tensor in `all`, which is the weights or their gradients.
    fn part(&self, all: &Buffer<f32>, mask: usize, tensor: Tensor, from: usize, len: usize) -> Buffer<f32> {
        let spec = &self.params.layout().tensors[mask * TENSORS + tensor as usize];
        all.slice(spec.part(from..from + len))
    }

    /// One layer of a mask.
    fn layer(&self, all: &Buffer<f32>, mask: usize, layer: usize) -> Weights {
        let width = self.width;
        Weights {
            norm_weight: self.part(all, mask, Tensor::NormWeight, 0, width),
            norm_bias: self.part(all, mask, Tensor::NormBias, 0, width),
            w: self.part(all, mask, Tensor::Layers, layer * width, width),
            b: self.part(all, mask, Tensor::LayersBias, layer, 1),
        }
    }

    fn gamma(&self, all: &Buffer<f32>, mask: usize) -> Buffer<f32> {
        self.part(all, mask, Tensor::Mixer, 0, self.layers)
    }

    /// Runs the reference over a batch and makes the masks on the way.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn forward<T: Float>(&self, reference: &Model<T>, batch: &Batch) -> Result<Masked> {
        if self.learns() { self.learned(reference, batch) } else { self.fixed(reference, batch) }
    }

    fn fixed<T: Float>(&self, reference: &Model<T>, batch: &Batch) -> Result<Masked> {
        let device = reference.device();
        let (mask, means) = (device.zeros(batch.rows)?, device.alloc(batch.rows)?);
        let share = 1.0 / self.layers as f32;
        reference.forward_visiting(batch, &mut |visit| {
            let width = visit.inner.len() / batch.tokens;
            let from = Activations { x: &visit.inner, row_source: &batch.row_source, width };
            token_mask::means(device, &means, from)?;
            token_mask::stretch(device, &mask, &means, &batch.sequence_rows, share)
        })?;
        Ok(Masked { weights: [mask.clone(), mask], kept: Vec::new() })
    }

    fn learned<T: Float>(&self, reference: &Model<T>, batch: &Batch) -> Result<Masked> {
        let (device, rows, values) = (reference.device(), batch.rows, self.params.values());
        let alloc = |_: &&str| Ok([device.alloc(self.layers * rows)?, device.alloc(self.layers * rows * 2)?]);
        let kept: Vec<[Buffer<f32>; 2]> = self.kind.names().iter().map(alloc).collect::<Result<_>>()?;
        reference.forward_visiting(batch, &mut |visit| {
            kept.iter().enumerate().try_for_each(|(mask, kept)| {
                let [pre, stats] = part(kept, visit.layer, rows);
                let weights = self.layer(&values, mask, visit.layer);
                token_mask::layer(device, &pre, &stats, self.activations(visit, batch), &weights)
            })
        })?;
        let mixed = |(mask, [pre, _]): (usize, &[Buffer<f32>; 2])| {
            let out = device.alloc(rows)?;
            token_mask::mix(device, &out, pre, &self.gamma(&values, mask))?;
            Ok(out)
        };
        let masks: Vec<Buffer<f32>> = kept.iter().enumerate().map(mixed).collect::<Result<_>>()?;
        let weights = [masks[0].clone(), masks[masks.len() - 1].clone()];
        Ok(Masked { weights, kept })
    }

    fn activations<'a, T>(&self, visit: &'a Visit<T>, batch: &'a Batch) -> Activations<'a, T> {
        Activations { x: &visit.stream, row_source: &batch.row_source, width: self.width }
    }

    /// Adds to the gradients of learned masks what `slopes` say, those of the loss by each of `masked.weights`; the first of
    /// them is overwritten. The reference runs over the batch once more.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn backward<T: Float>(
        &self,
        masked: &Masked,
        slopes: &[Buffer<f32>; 2],
        reference: &Model<T>,
        batch: &Batch,
    ) -> Result<()> {
        let (device, values, grads) = (reference.device(), self.params.values(), self.params.grads());
        if self.kind == MaskKind::Common {
            residual::add(device, &slopes[0], &slopes[0], &slopes[1], batch.rows)?;
        }
        let mut by_layer = Vec::new();
        for (mask, [pre, _]) in masked.kept.iter().enumerate() {
            let dpre = device.alloc::<f32>(pre.len())?;
            let (gamma, dgamma) = (self.gamma(&values, mask), self.gamma(grads, mask));
            token_mask::mix_bwd(device, &dpre, &dgamma, &slopes[mask], &masked.weights[mask], pre, &gamma)?;
            by_layer.push(dpre);
        }
        reference.forward_visiting(batch, &mut |visit| {
            masked.kept.iter().enumerate().try_for_each(|(mask, kept)| {
                let [_, stats] = part(kept, visit.layer, batch.rows);
                let dpre = by_layer[mask].slice(visit.layer * batch.rows..(visit.layer + 1) * batch.rows);
                let (weights, grads) = (self.layer(&values, mask, visit.layer), self.layer(grads, mask, visit.layer));
                token_mask::layer_bwd(device, &grads, &dpre, &stats, self.activations(visit, batch), &weights)
            })
        })
    }
}

/// One layer's rows of what a mask keeps.
fn part([pre, stats]: &[Buffer<f32>; 2], layer: usize, rows: usize) -> [Buffer<f32>; 2] {
    [pre.slice(layer * rows..(layer + 1) * rows), stats.slice(2 * layer * rows..2 * (layer + 1) * rows)]
}
