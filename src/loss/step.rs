//! One step's loss on its device: sums of sequences, heads, and the way back to rows.

use std::{cell::Cell, ops::Range};

use anyhow::Result;

use super::{Groups, Loss, LossHead, Measured, Reading, metrics::log_ratio};
use crate::{
    device::{Buffer, Device},
    ops::{
        loss_batch,
        loss_difference::{self, parameter},
        loss_likelihood, loss_list,
        loss_rows::{self, PARAMETERS, RowInputs, SLOPES, SUMS, SequenceSlots},
        loss_separate,
    },
};

/// The loss of a step over micro-batches. [`sum`](Self::sum) each of them; [`run`](Self::run) the heads, on each
/// micro-batch as it comes or on all at once; then [`spread`](Self::spread) the slopes.
pub struct Step<'a> {
    loss: &'a Loss,
    device: &'a Device,
    host: Groups,
    groups: loss_rows::GroupTables,
    parts: Vec<Prepared>,
    micro: Vec<Micro>,
    /// See [`loss_batch::STATE`].
    state: &'a Buffer<f64>,
    /// Whether the rows had a reference.
    referenced: Cell<bool>,
    /// Whether all rows came with the policy's entropy and hits.
    described: Cell<bool>,
}

struct Prepared {
    head: LossHead,
    part: loss_rows::HeadTerm,
    /// (groups)
    losses: Buffer<f64>,
}

/// One micro-batch's places in the step.
struct Micro {
    sequences: Range<usize>,
    groups: Range<usize>,
    slots: SequenceSlots,
    weights: Option<Buffer<f32>>,
}

/// What [`Step::spread`] fills, each (rows).
pub struct Outputs<'b> {
    /// d loss / d logp.
    pub coefficients: &'b Buffer<f32>,
    /// d loss / d KL(reference || policy), where the rows have divergences.
    pub divergence_coefficients: Option<&'b Buffer<f32>>,
}

impl<'a> Step<'a> {
    /// Copies the groups of a step to the device; one entry of `micro_batches` each. `state` is what the loss carries
    /// from step to step; [`Step::run`] on all groups moves it on.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(device: &'a Device, loss: &'a Loss, state: &'a Buffer<f64>, micro_batches: &[Groups]) -> Result<Self> {
        let mut host = Groups::default();
        let mut places = Vec::new();
        for groups in micro_batches {
            let (sequences, first, rows) = (host.rows.len(), host.len(), host.weights.len());
            host.append(groups);
            places.push((sequences..host.rows.len(), first..host.len(), rows..host.weights.len()));
        }
        let narrow = |values: &[usize]| values.iter().map(|&v| v as i32).collect::<Vec<i32>>();
        let [ends, by_sequence] = sequence_slots(&host);
        let (ends, by_sequence) = (device.upload(&narrow(&ends))?, device.upload(&narrow(&by_sequence))?);
        let weights = device.upload(&host.weights)?;
        let micro = places.into_iter().map(|(sequences, groups, rows)| Micro {
            slots: SequenceSlots { ends: ends.slice(sequences.start..sequences.end + 1), slots: by_sequence.clone() },
            weights: (!rows.is_empty()).then(|| weights.slice(rows)),
            sequences,
            groups,
        });
        let micro = micro.collect();
        let groups = loss_rows::GroupTables {
            sums: device.zeros(host.rows.len() * SUMS)?,
            slopes: device.zeros(host.slots.len() * SLOPES)?,
            slot_sequence: device.upload(&narrow(&host.slots))?,
            group_slots: device.upload(&narrow(&host.starts))?,
            values: device.upload(&host.values)?,
        };
        let parts = prepare(device, loss, &host)?;
        Ok(Self {
            loss,
            device,
            host,
            groups,
            parts,
            micro,
            state,
            referenced: Cell::new(false),
            described: Cell::new(true),
        })
    }

    /// Adds up the rows of a micro-batch. `sequence_rows` is its forest's table; weights of rows are the step's own.
    ///
    /// # Errors
    /// A buffer does not have its shape, or a launch fails.
    pub fn sum(&self, micro: usize, rows: &RowInputs, sequence_rows: &Buffer<i32>) -> Result<()> {
        let Range { start, end } = self.micro[micro].sequences;
        let sums = self.groups.sums.slice(start * SUMS..end * SUMS);
        self.referenced.set(rows.ref_logps.is_some());
        self.described.set(self.described.get() && rows.described.is_some());
        loss_rows::sum(self.device, &sums, &self.weighted(micro, rows), sequence_rows)
    }

    /// Runs the heads on the groups of one micro-batch, or with `None` on all.
    ///
    /// # Errors
    /// A launch fails.
    pub fn run(&self, micro: Option<usize>) -> Result<()> {
        let range = micro.map_or(0..self.host.len(), |micro| self.micro[micro].groups.clone());
        for Prepared { head, part, losses } in &self.parts {
            let part = loss_rows::HeadTerm { groups: range.clone(), ..part.clone() };
            let (device, groups) = (self.device, &self.groups);
            match *head {
                LossHead::Difference { map, flags, .. } => {
                    loss_difference::run(device, losses, groups, &part, map, flags)?
                }
                LossHead::Separate { .. } => loss_separate::run(device, losses, groups, &part)?,
                LossHead::Likelihood { place, .. } => loss_likelihood::run(device, losses, groups, &part, place)?,
                LossHead::List { .. } => loss_list::run(device, losses, groups, &part)?,
                LossHead::Batch { .. } => {
                    let sorted = device.alloc(2 * range.len())?;
                    loss_batch::run(device, losses, self.state, &sorted, groups, &part)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the coefficients of a micro-batch's rows, from the same `rows` as [`sum`](Self::sum).
    ///
    /// # Errors
    /// A buffer does not have its shape, or a launch fails.
    pub fn spread(&self, micro: usize, outputs: Outputs, rows: &RowInputs, sequence_rows: &Buffer<i32>) -> Result<()> {
        loss_rows::spread(
            self.device,
            outputs.coefficients,
            outputs.divergence_coefficients,
            &self.groups.slopes,
            &self.weighted(micro, rows),
            sequence_rows,
            &self.micro[micro].slots,
        )
    }

    /// Writes the slopes of the loss by the weights of a micro-batch's rows and of their divergences.
    ///
    /// # Errors
    /// A buffer does not have its shape, or a launch fails.
    pub fn by_weights(
        &self,
        micro: usize,
        outputs: [&Buffer<f32>; 2],
        rows: &RowInputs,
        sequence_rows: &Buffer<i32>,
    ) -> Result<()> {
        let parts = self.loss.parts();
        let penalty = |place: i32| -> f64 {
            let masked = parts.iter().filter(|(_, part)| part.needs_divergence());
            masked.map(|(_, part)| part.parameters[place as usize] * self.host.scale(part.weight, part.mean)).sum()
        };
        let penalties = [penalty(parameter::WEIGHT_PENALTY), penalty(parameter::DIVERGENCE_WEIGHT_PENALTY)];
        let slots = &self.micro[micro].slots;
        loss_rows::by_weights(self.device, outputs, &self.groups.slopes, rows, sequence_rows, slots, penalties)
    }

    /// Waits for the mean absolute log-ratio of a sequence, 0 while the policy is the reference; and the rows of a sequence on
    /// average.
    ///
    /// # Errors
    /// A launch failed.
    pub fn log_ratio(&self) -> Result<(f64, f64)> {
        Ok(log_ratio(&self.device.download(&self.groups.sums)?))
    }

    /// Starts to read what the step's metrics are made of.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn read(self) -> Result<Reading> {
        let device = self.device;
        Ok(Reading {
            referenced: self.referenced.get(),
            described: self.described.get(),
            groups: self.host,
            sums: device.read(&self.groups.sums)?,
            slopes: device.read(&self.groups.slopes)?,
            losses: self.parts.iter().map(|part| device.read(&part.losses)).collect::<Result<_>>()?,
            state: device.read(self.state)?,
        })
    }

    /// The same, and waits for it.
    ///
    /// # Errors
    /// A launch failed.
    pub fn measured(self) -> Result<Measured<'a>> {
        let loss = self.loss;
        self.read()?.wait(loss)
    }

    fn weighted(&self, micro: usize, rows: &RowInputs) -> RowInputs {
        let weights = rows.weights.clone().or_else(|| self.micro[micro].weights.clone());
        RowInputs { weights, complements: self.loss.needs_complements(), ..rows.clone() }
    }
}

/// Where the slots of each sequence are: ends of its run, and the slots by sequence.
fn sequence_slots(groups: &Groups) -> [Vec<usize>; 2] {
    let mut ends = vec![0; groups.rows.len() + 1];
    groups.slots.iter().for_each(|&sequence| ends[sequence + 1] += 1);
    for sequence in 0..groups.rows.len() {
        ends[sequence + 1] += ends[sequence];
    }
    let mut order: Vec<usize> = (0..groups.slots.len()).collect();
    order.sort_by_key(|&slot| groups.slots[slot]);
    [ends, order]
}

fn prepare(device: &Device, loss: &Loss, groups: &Groups) -> Result<Vec<Prepared>> {
    let parts = loss.parts();
    let numbers: Vec<f64> = parts.iter().flat_map(|(_, part)| part.parameters).collect();
    let numbers = device.upload(&numbers)?;
    let prepared = |(i, (_, part)): (usize, &(usize, super::HeadPart))| {
        let function = match part.head {
            LossHead::Difference { phi, .. } => phi,
            LossHead::Separate { function }
            | LossHead::Likelihood { function, .. }
            | LossHead::List { function }
            | LossHead::Batch { function } => function,
        };
        let parameters = numbers.slice(i * PARAMETERS..(i + 1) * PARAMETERS);
        let scale = groups.scale(part.weight, part.mean);
        let part_of_all = loss_rows::HeadTerm { function, parameters, scale, groups: 0..groups.len() };
        Ok(Prepared { head: part.head, part: part_of_all, losses: device.zeros(groups.len())? })
    };
    parts.iter().enumerate().map(prepared).collect()
}
