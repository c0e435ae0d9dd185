//! The weights of one model as a set: where they lie, which are learnt and by which groups, and their gradients.
//!
//! A set is trained or frozen as a whole. A trained one has an arena of gradients beside its arena of weights and groups
//! for the optimizer, and trained bf16 weights have the low bits of their f32 masters; a frozen set is bytes that several
//! models may read. Knows neither activations nor optimizers.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Result, ensure};
use half::bf16;

use super::Layout;
use crate::{
    device::{Buffer, DType, Device, Float},
    ops::gradient::{Gradient, Narrow},
    rng::Draw,
};

/// Where the values of a range of the layout are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// Elements of the trained arena and of the gradients.
    Trained(Range<usize>),
    /// Bytes of the frozen parts.
    Frozen(Range<usize>),
}

/// Weights that lie side by side and that an optimizer treats alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// For people.
    pub name: String,
    /// Elements of the trained arena.
    pub range: Range<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Its learning rate is that of the step times this.
    pub lr_scale: f64,
}

/// Weights by [`Layout`], on their device. Clones share the memory.
#[derive(Clone)]
pub struct ParamSet<T> {
    device: Device,
    layout: Arc<Layout>,
    trained: Buffer<T>,
    /// What the f32 masters of trained bf16 weights have beside them; f32 weights are their own.
    low: Buffer<u16>,
    /// Gradients of the matrices and tables, where these are added up in bf16.
    narrow: Buffer<bf16>,
    /// All others.
    grads: Buffer<f32>,
    frozen: Buffer<u8>,
    groups: Vec<Group>,
    clock: Arc<Clock>,
}

/// Where training stands: what roundings by chance are drawn by.
#[derive(Default)]
struct Clock {
    seed: AtomicU64,
    /// Begun, those included whose update was not applied.
    steps: AtomicU64,
    /// Micro-batches of the step whose gradients are there.
    micros: AtomicU32,
}

impl<T: Float> ParamSet<T> {
    /// Weights to be learnt, undefined until they are filled; gradients are f32 and zero. Groups are those of the layout.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn trained(device: &Device, layout: Layout) -> Result<Self> {
        Self::trained_with(device, layout, DType::F32)
    }

    /// The same with gradients of matrices and tables in f32 or bf16.
    ///
    /// # Errors
    /// As [`trained`](Self::trained).
    pub fn trained_with(device: &Device, layout: Layout, gradients: DType) -> Result<Self> {
        let narrow = if gradients == DType::Bf16 { layout.matrices() } else { 0 };
        Ok(Self {
            device: device.clone(),
            trained: device.alloc(layout.elements)?,
            low: device.alloc(if T::DTYPE == DType::F32 { 0 } else { layout.elements })?,
            narrow: device.zeros(narrow)?,
            grads: device.zeros(layout.elements - narrow)?,
            frozen: device.alloc(0)?,
            groups: layout.groups(),
            clock: Arc::default(),
            layout: Arc::new(layout),
        })
    }

    /// Weights that stay as they are filled: no gradients, no groups.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn frozen(device: &Device, layout: Layout) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            trained: device.alloc(0)?,
            low: device.alloc(0)?,
            narrow: device.alloc(0)?,
            grads: device.alloc(0)?,
            frozen: device.alloc(layout.elements * size_of::<T>())?,
            groups: Vec::new(),
            clock: Arc::default(),
            layout: Arc::new(layout),
        })
    }

    /// The same weights in other groups.
    ///
    /// # Errors
    /// The groups do not follow each other through the whole trained arena.
    pub fn grouped(self, groups: Vec<Group>) -> Result<Self> {
        let mut end = 0;
        for Group { name, range, .. } in &groups {
            ensure!(range.start == end, "group `{name}`: begins at element {}, not at {end}", range.start);
            end = range.end;
        }
        ensure!(end == self.trained.len(), "groups of {end} elements for {} that are trained", self.trained.len());
        Ok(Self { groups, ..self })
    }

    /// The device the weights are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Names, shapes and places.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the optimizer treats alike, in the order of the trained arena; none of a frozen set.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// All weights in the order of the layout.
    pub fn values(&self) -> Buffer<T> {
        if self.frozen.is_empty() { self.trained.clone() } else { self.frozen.cast() }
    }

    /// Gradients of the trained weights in the same order, if all of them are f32; otherwise those of the vectors.
    pub fn grads(&self) -> &Buffer<f32> {
        &self.grads
    }

    /// Gradients of the matrices and tables, if they are bf16.
    pub fn narrow_grads(&self) -> &Buffer<bf16> {
        &self.narrow
    }

    /// Elements of the trained arena.
    pub fn elements(&self) -> usize {
        self.trained.len()
    }

    /// Where a range of the layout is.
    pub fn home(&self, range: &Range<usize>) -> Home {
        let width = size_of::<T>();
        if self.frozen.is_empty() {
            Home::Trained(range.clone())
        } else {
            Home::Frozen(range.start * width..range.end * width)
        }
    }

    /// The weights of a range of the layout.
    pub fn weight(&self, range: &Range<usize>) -> Buffer<T> {
        match self.home(range) {
            Home::Trained(range) => self.trained.slice(range),
            Home::Frozen(bytes) => self.frozen.slice(bytes).cast(),
        }
    }

    /// The low bits of the masters of a range of the layout; nothing where the weights are their own masters or are frozen.
    pub fn low(&self, range: &Range<usize>) -> Buffer<u16> {
        if self.low.is_empty() { self.low.clone() } else { self.low.slice(range.clone()) }
    }

    /// Fills a range of the layout by masters.
    ///
    /// # Errors
    /// The copy fails.
    pub fn fill(&self, range: &Range<usize>, masters: &[f32]) -> Result<()> {
        let (weights, low): (Vec<T>, Vec<u16>) = masters.iter().map(|&master| T::split(master)).unzip();
        self.device.copy_in(&self.weight(range), &weights)?;
        if self.low.is_empty() { Ok(()) } else { self.device.copy_in(&self.low(range), &low) }
    }

    /// The masters of a range of the layout.
    ///
    /// # Errors
    /// An earlier launch failed.
    pub fn masters(&self, range: &Range<usize>) -> Result<Vec<f32>> {
        let weights = self.device.download(&self.weight(range))?;
        if self.low.is_empty() {
            return Ok(weights.into_iter().map(T::to_f32).collect());
        }
        let low = self.device.download(&self.low(range))?;
        Ok(weights.into_iter().zip(low).map(|(weight, low)| weight.join(low)).collect())
    }

    /// Makes the weights, as they are, their masters.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn start(&self) -> Result<()> {
        self.device.fill_zero(&self.low)
    }

    /// The f32 gradients of a range of the layout.
    ///
    /// # Panics
    /// The set is frozen, or these are bf16.
    pub fn grad(&self, range: &Range<usize>) -> Buffer<f32> {
        let before = self.narrow.len();
        self.grads.slice(range.start - before..range.end - before)
    }

    /// The gradients of a range of the layout, whatever they are, for what the micro-batch under way adds.
    ///
    /// # Panics
    /// The set is frozen, or the range has gradients of both types.
    pub fn gradient(&self, range: &Range<usize>) -> Gradient {
        if range.start >= self.narrow.len() {
            return Gradient::F32(self.grad(range));
        }
        let micro = self.clock.micros.load(Relaxed);
        let buffer = self.narrow.slice(range.clone());
        Gradient::Bf16(Narrow { buffer, first: range.start, draw: self.draw(), part: 2 * micro, fresh: micro == 0 })
    }

    /// The gradients of a range of the layout in f32.
    ///
    /// # Errors
    /// An earlier launch failed.
    pub fn download_gradient(&self, range: &Range<usize>) -> Result<Vec<f32>> {
        match self.gradient(range) {
            Gradient::F32(buffer) => self.device.download(&buffer),
            Gradient::Bf16(narrow) => Ok(self.device.download(&narrow.buffer)?.into_iter().map(bf16::to_f32).collect()),
        }
    }

    /// A micro-batch has added all of its gradients.
    pub(super) fn added(&self) {
        self.clock.micros.fetch_add(1, Relaxed);
    }

    /// Whether the micro-batch under way finds bf16 gradients that it has to overwrite.
    pub(super) fn is_fresh(&self) -> bool {
        !self.narrow.is_empty() && self.clock.micros.load(Relaxed) == 0
    }

    /// Goes on as after so many steps of a run with this seed.
    pub fn resume(&self, seed: u64, steps: u64) {
        self.clock.seed.store(seed, Relaxed);
        self.clock.steps.store(steps, Relaxed);
    }

    /// Whose random bits the step takes that was started last; the first step has number 1.
    pub fn draw(&self) -> Draw {
        Draw { seed: self.clock.seed.load(Relaxed), number: self.clock.steps.load(Relaxed) as u32 }
    }

    /// Starts a step. Gradients in bf16 stay as they are: the first micro-batch overwrites them.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn zero_grads(&self) -> Result<()> {
        self.clock.steps.fetch_add(1, Relaxed);
        self.clock.micros.store(0, Relaxed);
        self.device.fill_zero(&self.grads)
    }
}
