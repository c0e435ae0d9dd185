//! Decoders: what they are, where their weights lie, and their passes.
//!
//! Owns weights, gradients and activations of one model: a pass in an arena over a set of weights. Knows nothing about
//! losses, data or optimizers.

mod backward;
mod batch;
mod config;
mod flops;
pub mod folder;
mod forward;
mod heads;
mod kernels;
mod layout;
mod linear;
mod memory;
mod params;
mod recompute;
pub mod released;
mod rope;
mod stored;
pub mod token_mask;
pub mod weights;

use std::path::Path;

use anyhow::{Context, Result, ensure};

pub use backward::{DivergenceSlopes, Slopes};
pub use batch::Batch;
pub use config::{Activation, CONFIG_FILE, Family, LayerKind, ModelConfig, NormKind, QkNorm};
pub use flops::{LayerFlops, flops, recomputed_flops};
pub use folder::Companions;
pub use forward::Visit;
pub use heads::OutputHead;
pub use kernels::{check_kernels, shared_memory};
pub use layout::{LayerRanges, Layout, NormRanges, TensorSpec};
pub use linear::Linear;
pub use memory::{Capacity, MemoryPlan};
pub use params::{Group, Home, ParamSet};
pub use recompute::Rung;
pub use rope::{Rope, Scaling};
pub use stored::AnyBuffer;
pub(crate) use stored::pieces;
pub use token_mask::{MaskKind, Masked, TokenMasks};

use crate::{
    device::{Buffer, Device, Element, Float},
    forest::Forest,
    ops::{attention, head},
};
use memory::Span;

/// A decoder on a device: a set of weights, and an arena for the activations of one micro-batch.
///
/// A step runs [`forward`](Self::forward), [`logps`](Self::logps) and [`backward`](Self::backward) on each micro-batch
/// in this order; gradients add up until [`zero_grads`](Self::zero_grads). Under a plan that is
/// [`forward_only`](MemoryPlan::forward_only) the weights are frozen: there are no gradients and no backward pass.
pub struct Model<T> {
    device: Device,
    config: ModelConfig,
    plan: MemoryPlan,
    arena: Arena,
    params: ParamSet<T>,
}

/// Memory for one pass: activations, scratch, the head's, and the rotary tables. Clones share it.
#[derive(Clone)]
struct Arena(Buffer<u8>);

impl Arena {
    /// The first `len` elements of a part.
    fn part<E: Element>(&self, span: Span, len: usize) -> Buffer<E> {
        let bytes = len * size_of::<E>();
        assert!(bytes <= span.bytes, "{bytes} bytes of a part of {}", span.bytes);
        self.0.slice(span.start..span.start + bytes).cast()
    }
}

impl<T: Float> Model<T> {
    /// Allocates what the plan says; weights are undefined until loaded, gradients are zero.
    ///
    /// # Errors
    /// The plan is for another element type or another model, a kernel has no room on the device, or its memory does not
    /// suffice.
    pub fn new(device: &Device, config: &ModelConfig, plan: MemoryPlan) -> Result<Self> {
        check_kernels(device, config, plan.precision, plan.trains)?;
        let layout = Layout::new(config);
        ensure!(
            plan.precision == T::DTYPE && plan.parameters == layout.elements * size_of::<T>(),
            "the memory plan is for {:?} and {} bytes of parameters, the model has {:?} and {}",
            plan.precision,
            plan.parameters,
            T::DTYPE,
            layout.elements * size_of::<T>()
        );
        let planned = plan.clone().on(device, config).exponentials;
        ensure!(planned || !plan.exponentials, "the memory plan is for another device: this one's head stores logits");
        let params = match plan.trains {
            true => ParamSet::trained_with(device, layout, plan.gradient)?,
            false => ParamSet::frozen(device, layout)?,
        };
        let arena = Arena(device.alloc(plan.arena)?);
        let model = Self { device: device.clone(), config: config.clone(), plan, arena, params };
        model.fill_rotary_tables()?;
        Ok(model)
    }

    /// The same model with other weights, in this one's arena: a pass of either overwrites what the other's left there, so
    /// nothing of a pass may be asked for after the other has begun one. With frozen weights it runs forward only.
    ///
    /// # Errors
    /// The weights are those of another model.
    pub fn over(&self, params: ParamSet<T>) -> Result<Self> {
        ensure!(params.layout() == self.layout(), "weights of another model in a shared arena");
        let trains = self.plan.trains && params.elements() > 0;
        let plan = MemoryPlan { trains, ..self.plan.clone() };
        Ok(Self { device: self.device.clone(), config: self.config.clone(), plan, arena: self.arena.clone(), params })
    }

    /// The device it is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where its tensors lie.
    pub fn layout(&self) -> &Layout {
        self.params.layout()
    }

    /// What its memory was planned for.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Its weights, and their gradients where it trains.
    pub fn params(&self) -> &ParamSet<T> {
        &self.params
    }

    /// Starts a step.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn zero_grads(&self) -> Result<()> {
        self.params.zero_grads()
    }

    /// Reads the weights from a model folder: see [`weights::load`].
    ///
    /// # Errors
    /// As [`weights::load`].
    pub fn load(&self, folder: &Path) -> Result<()> {
        weights::load(&self.params, &self.config, folder)
    }

    /// Draws the weights from a seed: see [`weights::random`].
    ///
    /// # Errors
    /// As [`weights::random`].
    pub fn randomize(&self, seed: u64) -> Result<()> {
        weights::random(&self.params, &self.config, seed)
    }

    /// Writes a folder that `transformers` loads: weights as `T`, the config, and the companions. Every file appears whole.
    ///
    /// # Errors
    /// The folder cannot be made or written to, or a companion cannot be read.
    pub fn save(&self, folder: &Path, companions: &Companions) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
        weights::save(&self.params, folder)?;
        companions.save(&self.config, T::DTYPE, folder)
    }

    /// Checks a forest against model and plan and copies it to the device.
    ///
    /// # Errors
    /// The forest is empty, larger than the plan, or holds an id or a position the model does not have.
    pub fn upload(&self, forest: &Forest) -> Result<Batch> {
        batch::check(forest, &self.config, &self.plan)?;
        Batch::upload(&self.device, forest, self.config.learned_positions())
    }

    /// The first `len` elements of a part of the arena.
    fn part<E: Element>(&self, span: Span, len: usize) -> Buffer<E> {
        self.arena.part(span, len)
    }

    fn attention_dims(&self, layer: usize, tokens: usize) -> attention::Dims {
        let ModelConfig { heads, kv_heads, head_dim, attention_softcap: softcap, .. } = self.config;
        // A window that no path is longer than hides nothing.
        let window = self.config.layer_kinds[layer].window.filter(|&window| window < self.plan.positions);
        attention::Dims { tokens, heads, kv_heads, head_dim, window, softcap }
    }

    fn head(&self) -> head::HeadShape {
        let ModelConfig { vocab, hidden, .. } = self.config;
        head::HeadShape {
            vocab,
            hidden,
            chunk_rows: self.plan.capacity.head_chunk_rows,
            softcap: self.config.final_softcap,
        }
    }

    fn head_scratch(&self, rows: usize) -> head::Scratch<T> {
        let spans = &self.plan.spans;
        let sizes = self.head();
        // Nothing reads what is empty without a backward pass.
        let backward = |elements| if self.plan.trains { elements } else { 0 };
        head::Scratch {
            x_rows: self.part(spans.x_rows, sizes.chunk_rows * sizes.hidden),
            logits: self.part(spans.logits, spans.logits.bytes / size_of::<f32>()),
            dlogits: self.part(spans.dlogits, backward(sizes.chunk_rows * sizes.ld())),
            dx_rows: self.part(spans.dx, backward(rows * sizes.hidden)),
        }
    }

    /// Cosines and sines of one rotary table.
    fn rotary_table(&self, table: usize) -> [Buffer<f32>; 2] {
        let len = self.plan.positions * self.config.head_dim / 2;
        let spans = &self.plan.spans;
        [spans.cos, spans.sin]
            .map(|span| self.part::<f32>(span, (table + 1) * len).slice(table * len..(table + 1) * len))
    }

    /// Angles in f64: in f32, as transformers computes them, they are off by 1e-4 at position 2000.
    fn fill_rotary_tables(&self) -> Result<()> {
        for (i, rope) in self.config.ropes.iter().enumerate() {
            let frequencies = rope.frequencies(self.config.head_dim);
            let angles: Vec<f64> = (0..self.plan.positions)
                .flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency))
                .collect();
            let table = |f: fn(f64) -> f64| -> Vec<f32> {
                angles.iter().map(|&angle| (rope.amplitude() * f(angle)) as f32).collect()
            };
            let [cos, sin] = self.rotary_table(i);
            self.device.copy_in(&cos, &table(f64::cos))?;
            self.device.copy_in(&sin, &table(f64::sin))?;
        }
        Ok(())
    }
}
