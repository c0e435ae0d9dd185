//! Sums of sequences and the way back to rows.

use warpo::{
    device::Device,
    ops::loss_rows::{self, RowInputs, SLOPES, SUMS, SequenceSlots},
};

use crate::support::{for_each_device, normal};

/// RowInputs around a warp's lanes, a sequence without rows, more sequences than a CTA has warps.
const LENGTHS: [usize; 9] = [1, 31, 32, 33, 0, 100, 2, 64, 5];

struct Case {
    columns: [Vec<f32>; 8],
    ends: Vec<i32>,
}

fn case() -> Case {
    let mut ends = vec![0];
    LENGTHS.iter().for_each(|&length| ends.push(ends[ends.len() - 1] + length as i32));
    let rows = ends[ends.len() - 1] as usize;
    let column = |seed: u64, mean: f32| normal(seed, rows).iter().map(|x| mean - x.abs()).collect::<Vec<f32>>();
    let hits = (0..rows).map(|row| (row % 3 % 2) as f32).collect();
    // Log-probabilities, reference, weights, divergences, their weights, collisions, entropies, hits.
    let [a, b, c, d] = [column(1, -0.01), column(2, -0.5), column(3, 2.0), column(4, 3.0)];
    Case { columns: [a, b, c, d, column(5, 2.0), column(6, 0.0), column(7, 4.0), hits], ends }
}

impl Case {
    fn rows(&self, device: &Device) -> RowInputs {
        let [logps, ref_logps, weights, divergences, divergence_weights, collisions, entropies, hits] =
            self.columns.each_ref().map(|column| Some(device.upload(column).unwrap()));
        let (described, complements) = (entropies.zip(hits).map(<[_; 2]>::from), true);
        RowInputs { logps, ref_logps, weights, divergences, divergence_weights, collisions, described, complements }
    }

    fn at(&self, column: usize, row: usize) -> f64 {
        f64::from(self.columns[column][row])
    }

    /// What `f` of each row adds up to, by sequence.
    fn sums(&self, f: impl Fn(usize) -> f64) -> Vec<f64> {
        self.ends.windows(2).map(|ends| (ends[0]..ends[1]).map(|row| f(row as usize)).sum()).collect()
    }
}

#[test]
fn sums() {
    let case = case();
    let at = |column, row| case.at(column, row);
    let wanted = [
        case.sums(|row| at(2, row) * at(0, row)),
        case.sums(|row| at(2, row) * (at(0, row) - at(1, row))),
        case.sums(|_| 1.0),
        case.sums(|row| at(4, row) * at(3, row)),
        case.sums(|row| (1.0 - at(0, row).exp()).ln()),
        case.sums(|row| at(0, row) - at(5, row)),
        case.sums(|row| at(2, row)),
        case.sums(|row| at(4, row)),
        case.sums(|row| at(6, row)),
        case.sums(|row| at(7, row)),
    ];
    for_each_device(|device, on| {
        let sums = device.alloc::<f64>(LENGTHS.len() * SUMS).unwrap();
        loss_rows::sum(device, &sums, &case.rows(device), &device.upload(&case.ends).unwrap()).unwrap();
        for (sequence, got) in device.download(&sums).unwrap().chunks(SUMS).enumerate() {
            for (column, (got, want)) in got.iter().zip(wanted.iter().map(|column| column[sequence])).enumerate() {
                // At most a hundred terms of a few nats in f64, in another order; log(1 - p) loses digits where p is near 1.
                assert!((got - want).abs() <= 1e-11, "{on}: sequence {sequence}, column {column}: {got} for {want}");
            }
        }
        // Without the rest there are log-probabilities alone: a log-ratio is one, and weights are 1.
        let plain = RowInputs { logps: case.rows(device).logps, ..RowInputs::default() };
        loss_rows::sum(device, &sums, &plain, &device.upload(&case.ends).unwrap()).unwrap();
        let logps = case.sums(|row| at(0, row));
        for (sequence, got) in device.download(&sums).unwrap().chunks(SUMS).enumerate() {
            let (want, rows) = (logps[sequence], LENGTHS[sequence] as f64);
            for (got, want) in got.iter().zip([want, want, rows, 0.0, 0.0, 0.0, rows, rows, 0.0, 0.0]) {
                assert!((got - want).abs() <= 1e-11, "{on}: sequence {sequence}: {got} for {want}");
            }
        }
    });
}

#[test]
fn slopes_back_to_rows() {
    let case = case();
    // Sequence 1 stands in three slots, 0 and 4 in none, 5 in forty.
    let slots_of: Vec<usize> = [vec![1, 2, 1, 3, 6, 7, 8, 1], vec![5; 40]].concat();
    let mut order: Vec<usize> = (0..slots_of.len()).collect();
    order.sort_by_key(|&slot| slots_of[slot]);
    let ends: Vec<i32> = (0..=LENGTHS.len()).map(|s| slots_of.iter().filter(|&&of| of < s).count() as i32).collect();
    let slopes: Vec<f64> = normal(9, slots_of.len() * SLOPES).into_iter().map(f64::from).collect();
    let total = |sequence: usize, column: usize| -> f64 {
        (0..slots_of.len()).filter(|&slot| slots_of[slot] == sequence).map(|slot| slopes[slot * SLOPES + column]).sum()
    };
    for_each_device(|device, on| {
        let rows = case.rows(device);
        let count = case.columns[0].len();
        let (c, k) = (device.alloc::<f32>(count).unwrap(), device.alloc::<f32>(count).unwrap());
        let of = SequenceSlots {
            ends: device.upload(&ends).unwrap(),
            slots: device.upload(&order.iter().map(|&slot| slot as i32).collect::<Vec<_>>()).unwrap(),
        };
        let sequence_rows = device.upload(&case.ends).unwrap();
        let on_device = device.upload(&slopes).unwrap();
        loss_rows::spread(device, &c, Some(&k), &on_device, &rows, &sequence_rows, &of).unwrap();
        let (c, k) = (device.download(&c).unwrap(), device.download(&k).unwrap());
        let by = [device.alloc::<f32>(count).unwrap(), device.alloc::<f32>(count).unwrap()];
        loss_rows::by_weights(device, [&by[0], &by[1]], &on_device, &rows, &sequence_rows, &of, [0.25, 0.5]).unwrap();
        let by = by.map(|by| device.download(&by).unwrap());
        for sequence in 0..LENGTHS.len() {
            let uses = slots_of.iter().filter(|&&of| of == sequence).count() as f64;
            for row in case.ends[sequence] as usize..case.ends[sequence + 1] as usize {
                let at = |column| case.at(column, row);
                let own = [0, 1, 2].map(|column| total(sequence, column));
                let complement = -at(0).exp() / (1.0 - at(0).exp());
                for (what, got, want) in [
                    ("coefficient", c[row], own[0] * at(2) + own[2] * complement),
                    ("divergence", k[row], own[1] * at(4)),
                    ("by weight", by[0][row], own[0] * (at(0) - at(1)) + 0.25 * uses),
                    ("by divergence weight", by[1][row], own[1] * at(3) + 0.5 * uses),
                ] {
                    // One rounding to f32; sums of forty f64 numbers that may cancel.
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= 6.1e-8 * want.abs() + 1e-12, "{on}: row {row}: {what} {got} for {want}");
                }
            }
        }
    });
}
