use warpo::{
    device::Device,
    ops::preference_loss::{self, Params, STATS},
};

use crate::{
    oracles::preference_loss as oracle,
    support::{assert_same_bits, assert_within_rule, fast_device, for_each_device, max_abs, normal, roundoff, widen},
};

/// Rows of each sequence and the pairs: one row each; ragged around a warp with a sequence in no pair; one sequence in
/// several pairs; more pairs than one CTA holds; one sequence in pairs that one lane adds up; no pair at all.
const SHAPES: &[(&[i32], &[[i32; 2]])] = &[
    (&[1, 1], &[[0, 1]]),
    (&[31, 32, 5, 33, 100], &[[0, 1], [4, 3]]),
    (&[3, 64, 7, 2], &[[0, 1], [0, 2], [3, 0], [2, 3]]),
    (&[2, 9, 4, 1, 8, 3, 6, 5, 7, 2, 1, 40], &[[0, 1], [3, 2], [4, 5], [7, 6], [8, 9], [11, 10]]),
    (&[3, 2, 5], &[[0, 1]; 70]),
    (&[4, 40], &[]),
];
const PARAMS: [Params; 3] = [
    Params { beta: 0.1, label_smoothing: 0.0, dpo_scale: 0.25, sft_scale: 0.0 },
    Params { beta: 0.5, label_smoothing: 0.2, dpo_scale: 0.1, sft_scale: 0.03 },
    Params { beta: 1.0, label_smoothing: 0.0, dpo_scale: 0.0, sft_scale: 0.5 },
];

struct Case {
    logps: Vec<f32>,
    ref_logps: Vec<f32>,
    sequence_rows: Vec<i32>,
    pair_table: Vec<i32>,
}

impl Case {
    fn new(lengths: &[i32], pairs: &[[i32; 2]]) -> Self {
        let mut sequence_rows = vec![0];
        lengths.iter().for_each(|length| sequence_rows.push(sequence_rows.last().unwrap() + length));
        let rows = *sequence_rows.last().unwrap() as usize;
        let logps: Vec<f32> = normal(1, rows).iter().map(|x| -x.abs()).collect();
        let ref_logps = logps.iter().zip(normal(2, rows)).map(|(logp, x)| logp + 0.3 * x).collect();
        Self { logps, ref_logps, sequence_rows, pair_table: pairs.concat() }
    }

    /// `(coefficients, stats)`.
    fn run(&self, device: &Device, params: Params) -> (Vec<f32>, Vec<f32>) {
        let pairs = self.pair_table.len() / 2;
        // Not zeroed: every row is written.
        let coefficients = device.alloc(self.logps.len()).unwrap();
        let stats = device.alloc(pairs * STATS).unwrap();
        let (logps, ref_logps) = (device.upload(&self.logps).unwrap(), device.upload(&self.ref_logps).unwrap());
        let (rows, table) = (device.upload(&self.sequence_rows).unwrap(), device.upload(&self.pair_table).unwrap());
        preference_loss::pairs(device, &coefficients, &stats, &logps, &ref_logps, &rows, &table, params, pairs)
            .unwrap();
        (device.download(&coefficients).unwrap(), device.download(&stats).unwrap())
    }

    /// `(coefficients, stats, loss)`.
    fn oracle(&self, logps: &[f64], params: Params) -> (Vec<f64>, Vec<f64>, f64) {
        let (rows, table) = (&self.sequence_rows, &self.pair_table);
        let (stats, loss) = oracle::pairs(logps, &widen(&self.ref_logps), rows, table, wide(params));
        (oracle::coefficients(&stats, rows, table), stats, loss)
    }
}

fn wide(params: Params) -> oracle::Params {
    oracle::Params {
        beta: params.beta.into(),
        label_smoothing: params.label_smoothing.into(),
        dpo_scale: params.dpo_scale.into(),
        sft_scale: params.sft_scale.into(),
    }
}

#[test]
fn pairs() {
    for_each_device(|device, on| {
        for (shape, &(lengths, table)) in SHAPES.iter().enumerate() {
            for params in PARAMS {
                let case = Case::new(lengths, table);
                let (want, want_stats, _) = case.oracle(&widen(&case.logps), params);
                let (got, stats) = case.run(device, params);
                let what = format!("preference_loss shape {shape} {params:?} on {on}");
                // The arithmetic is in f64; each result is rounded to f32 once.
                let allowance = 1.001 * roundoff::<f32>() * max_abs(&want_stats);
                assert_within_rule(&format!("{what}: stats"), &widen(&stats), &want_stats, &want_stats, allowance);
                // Slopes are rounded, and the largest result is a sum of at most 70 of them that do not cancel: three
                // additions in a lane, five across lanes.
                let allowance = 9.0 * roundoff::<f32>() * max_abs(&want);
                assert_within_rule(&format!("{what}: rows"), &widen(&got), &want, &want, allowance);
            }
        }
    });
}

#[test]
fn coefficients_are_the_slopes_of_the_loss() {
    for &(lengths, table) in SHAPES {
        for params in PARAMS {
            let case = Case::new(lengths, table);
            let (got, _) = case.run(&fast_device(1), params);
            let logps = widen(&case.logps);
            let step = 1e-4;
            let loss_with = |row: usize, change: f64| {
                let mut logps = logps.clone();
                logps[row] += change;
                case.oracle(&logps, params).2
            };
            for (row, &got) in got.iter().enumerate() {
                let slope = (loss_with(row, step) - loss_with(row, -step)) / (2.0 * step);
                // Central differences: step² / 6 times a third derivative of at most scale * beta³ / 8 a pair, below 1 in
                // all; the loss's f64 roundings (a total of at most 100) over the step; f32 roundings of the slope.
                let allowance = step * step / 6.0 + 100.0 * f64::EPSILON / step + 9.0 * roundoff::<f32>() * slope.abs();
                assert!((f64::from(got) - slope).abs() <= allowance, "row {row}, {params:?}: {got} instead of {slope}");
            }
        }
    }
}

#[test]
fn same_bits_for_any_number_of_worker_threads() {
    let (lengths, table) = SHAPES[3];
    let case = Case::new(lengths, table);
    let (want, want_stats) = case.run(&fast_device(1), PARAMS[1]);
    for threads in [2, 3] {
        let (got, stats) = case.run(&fast_device(threads), PARAMS[1]);
        assert_same_bits(&format!("rows, {threads} threads"), &got, &want);
        assert_same_bits(&format!("stats, {threads} threads"), &stats, &want_stats);
    }
}
