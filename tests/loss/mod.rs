//! Losses against golden vectors, their invariances, their metrics and what they refuse.

mod bench;
mod chain;
mod hopper;
mod invariance;
mod masks;
mod metrics;
mod page;
mod refusals;
mod trl;
mod vectors;

use crate::{
    oracles::losses::{self, Sequence},
    support::{for_each_device, normal},
};
use warpo::{
    device::{Buffer, Device},
    forest::{Forest, Tree},
    loss::{Groups, Loss, MetricSums, Outputs, Step},
    ops::{loss_batch, loss_rows::RowInputs},
};

/// RowInputs of every sequence, back to back, and how sequences stand together.
#[derive(Clone, Default)]
pub struct Case {
    pub groups: Groups,
    pub logps: Vec<f32>,
    pub ref_logps: Vec<f32>,
    pub collisions: Vec<f32>,
    /// Entropies and hits, if there are any.
    pub described: [Vec<f32>; 2],
}

/// What a case gives.
pub struct Got {
    /// (rows)
    pub coefficients: Vec<f32>,
    /// (groups), weighted as in the step's loss.
    pub losses: Vec<f64>,
    pub metrics: Vec<(String, f64)>,
}

impl Case {
    /// Adds a sequence of these rows; gives its number.
    pub fn sequence(&mut self, logps: &[f32], ref_logps: &[f32]) -> usize {
        assert_eq!(logps.len(), ref_logps.len());
        self.groups.rows.push(logps.len());
        self.logps.extend(logps);
        self.ref_logps.extend(ref_logps);
        self.groups.rows.len() - 1
    }

    /// Adds a group of these sequences with their two values.
    pub fn group(&mut self, members: &[(usize, [f64; 2])]) {
        for (sequence, values) in members {
            self.groups.slots.push(*sequence);
            self.groups.values.extend(values);
        }
        self.groups.starts.push(self.groups.slots.len());
    }

    pub fn sequence_rows(&self) -> Vec<i32> {
        let mut ends = vec![0];
        self.groups.rows.iter().for_each(|&rows| ends.push(ends[ends.len() - 1] + rows as i32));
        ends
    }

    fn rows(&self, device: &Device) -> (RowInputs, Buffer<i32>) {
        let upload = |values: &[f32]| (!values.is_empty()).then(|| device.upload(values).unwrap());
        let rows = RowInputs {
            logps: upload(&self.logps),
            ref_logps: upload(&self.ref_logps),
            collisions: upload(&self.collisions),
            described: upload(&self.described[0]).zip(upload(&self.described[1])).map(<[_; 2]>::from),
            ..RowInputs::default()
        };
        (rows, device.upload(&self.sequence_rows()).unwrap())
    }

    /// The whole case as one step of one micro-batch.
    pub fn run(&self, device: &Device, loss: &Loss) -> Got {
        let [got] = &mut run_step(device, loss, std::slice::from_ref(self), !loss.couples_the_step())[..] else {
            unreachable!()
        };
        std::mem::replace(got, Got { coefficients: Vec::new(), losses: Vec::new(), metrics: Vec::new() })
    }
}

/// One step of several micro-batches: coefficients of each, and losses and metrics of the step with each. The heads run
/// as micro-batches come, or at the end on all.
pub fn run_step(device: &Device, loss: &Loss, cases: &[Case], one_by_one: bool) -> Vec<Got> {
    let state = device.zeros(loss_batch::STATE).unwrap();
    let groups: Vec<Groups> = cases.iter().map(|case| case.groups.clone()).collect();
    let step = Step::new(device, loss, &state, &groups).unwrap();
    let rows: Vec<_> = cases.iter().map(|case| case.rows(device)).collect();
    for (micro, (rows, sequence_rows)) in rows.iter().enumerate() {
        step.sum(micro, rows, sequence_rows).unwrap();
        if one_by_one {
            step.run(Some(micro)).unwrap();
        }
    }
    if !one_by_one {
        step.run(None).unwrap();
    }
    let coefficients = rows.iter().zip(cases).enumerate().map(|(micro, ((rows, sequence_rows), case))| {
        let coefficients = device.alloc(case.logps.len()).unwrap();
        let outputs = Outputs { coefficients: &coefficients, divergence_coefficients: None };
        step.spread(micro, outputs, rows, sequence_rows).unwrap();
        device.download(&coefficients).unwrap()
    });
    let coefficients: Vec<_> = coefficients.collect();
    let measured = step.measured().unwrap();
    let metrics: Vec<(String, f64)> = measured.metrics().iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let parts = loss.parts();
    let losses: Vec<f64> = (0..measured.groups.len())
        .map(|group| parts.iter().zip(&measured.losses).map(|((_, part), losses)| part.weight * losses[group]).sum())
        .collect();
    let got = |coefficients| Got { coefficients, losses: losses.clone(), metrics: metrics.clone() };
    coefficients.into_iter().map(got).collect()
}

/// `x` as two f32 whose sum is x to 2^-48.
pub fn split(x: f64) -> [f32; 2] {
    [x as f32, (x - f64::from(x as f32)) as f32]
}

/// Sequences of a forest of these trees, two each pair: the chosen and the rejected one.
pub fn pair_table(trees: &[Tree]) -> Vec<i32> {
    let mut first = 0;
    let mut table = Vec::new();
    for tree in trees {
        table.extend(tree.pairs.iter().flatten().map(|&sequence| (first + sequence) as i32));
        first += tree.sequences().count();
    }
    table
}

/// The pairs of a forest of these trees, whatever else is in it.
pub fn pairs_of(forest: &Forest, trees: &[Tree]) -> Groups {
    let rows = |ends: &[i32]| (ends[1] - ends[0]) as usize;
    let pairs = pair_table(trees);
    Groups {
        rows: forest.sequence_rows.windows(2).map(rows).collect(),
        slots: pairs.iter().map(|&sequence| sequence as usize).collect(),
        starts: (0..=pairs.len()).step_by(2).collect(),
        values: vec![0.0; 2 * pairs.len()],
        weights: Vec::new(),
    }
}

/// A loss on rows that are on the device: the coefficients, and the step's metrics.
pub fn on_rows(
    device: &Device,
    loss: &Loss,
    groups: &Groups,
    logps: &Buffer<f32>,
    ref_logps: &Buffer<f32>,
    sequence_rows: &Buffer<i32>,
) -> (Buffer<f32>, MetricSums) {
    let state = device.zeros(loss_batch::STATE).unwrap();
    let step = Step::new(device, loss, &state, std::slice::from_ref(groups)).unwrap();
    let rows = RowInputs { logps: Some(logps.clone()), ref_logps: Some(ref_logps.clone()), ..RowInputs::default() };
    step.sum(0, &rows, sequence_rows).unwrap();
    step.run(None).unwrap();
    let coefficients = device.alloc(logps.len()).unwrap();
    let outputs = Outputs { coefficients: &coefficients, divergence_coefficients: None };
    step.spread(0, outputs, &rows, sequence_rows).unwrap();
    (coefficients, step.measured().unwrap().metrics())
}

/// Many groups at once, on every device: each group's loss is the oracle's, and its coefficients have the bits it has alone.
///
/// The oracle adds up the same f64 numbers in another order: a few hundred roundings of sums of some ten nats.
pub fn check_groups(name: &str, counts: &[usize], sizes: impl Fn(usize) -> usize) {
    let loss = Loss::named(name).unwrap();
    let parameters = &loss.terms()[0].parameters;
    let group = |case: &mut Case, g: usize| {
        let member = |place: usize| {
            let seed = (1000 * g + place) as u64;
            let rows = 1 + (5 * g + 3 * place) % 70;
            let logps: Vec<f32> = normal(seed, rows).iter().map(|x| -x.abs() - 0.01).collect();
            let noise = normal(seed + 500, rows);
            let ref_logps: Vec<f32> = logps.iter().zip(noise).map(|(logp, x)| logp + 0.4 * x).collect();
            (logps, ref_logps, [f64::from(normal(seed + 900, 1)[0]).abs() + 0.1, 0.0])
        };
        let members: Vec<_> = (0..sizes(g)).map(member).collect();
        let sequences: Vec<_> = members.iter().map(|(p, q, values)| (case.sequence(p, q), *values)).collect();
        case.group(&sequences);
        let widen = |rows: &[f32]| rows.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let sequence = |(p, q, values): &(Vec<f32>, Vec<f32>, [f64; 2])| Sequence {
            lp: widen(p),
            lq: widen(q),
            values: *values,
            ..Sequence::default()
        };
        members.iter().map(sequence).collect::<Vec<Sequence>>()
    };
    for_each_device(|device, on| {
        for &count in counts {
            let mut all = Case::default();
            let groups: Vec<_> = (0..count).map(|g| group(&mut all, g)).collect();
            let got = all.run(device, &loss);
            let ends = all.sequence_rows();
            for (g, own) in groups.iter().enumerate() {
                let want = losses::step(name, &|key| parameters.get(key), &vec![own.clone()], &vec![own.clone()]);
                let error = (got.losses[g] - want).abs();
                assert!(
                    error <= 1e-11 * want.abs().max(1.0),
                    "{name} on {on}: group {g} of {count}: {} for {want}",
                    got.losses[g]
                );
            }
            // The first, the last, and those around a CTA's border.
            for g in [0, 126, 127, 128, count - 1].into_iter().filter(|&g| g < count) {
                let mut alone = Case::default();
                group(&mut alone, g);
                let slots = all.groups.of(g);
                let first = ends[all.groups.slots[slots.start]] as usize;
                let mut weighted = loss.terms().to_vec();
                // Alone, a group's slopes are not divided by the number of groups.
                weighted[0].weight = 1.0 / count as f64;
                let one = alone.run(device, &Loss::new(weighted).unwrap()).coefficients;
                for (i, one) in one.iter().enumerate() {
                    let (many, one) = (f64::from(got.coefficients[first + i]), f64::from(*one));
                    // Dividing by the count before or after: two roundings of f64, one of f32.
                    assert!(
                        (many - one).abs() <= 1.3e-7 * one.abs(),
                        "{name} on {on}: group {g}, row {i}: {many} for {one}"
                    );
                }
            }
        }
    });
}
