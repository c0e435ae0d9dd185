use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::{
        head::HeadShape,
        head::distributions::{self, Divergence, RowSlopes},
    },
};

use crate::{
    oracles::head::capped,
    support::{assert_within_rule, for_each_device, max_abs, normal, round_to, roundoff, widen},
};

/// (rows, vocab): one row, less than a warp's lanes, no multiple of 8, more than a few a lane.
const SHAPES: &[(usize, usize)] = &[(1, 8), (5, 13), (3, 40), (6, 701)];

struct Case {
    head: HeadShape,
    z: Vec<f32>,
    zq: Vec<f32>,
    targets: Vec<i32>,
}

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log = z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
    z.iter().map(|z| z - top - log).collect()
}

impl Case {
    fn new(rows: usize, vocab: usize, scale: f32, softcap: Option<f32>) -> Self {
        let head = HeadShape { vocab, hidden: 8, chunk_rows: rows, softcap };
        let logits = |seed: u64| -> Vec<f32> {
            // Columns beyond the vocabulary hold what must not be read.
            let row = |r: usize| {
                let mut row: Vec<f32> = normal(seed + r as u64, vocab).iter().map(|x| scale * x).collect();
                row.resize(head.ld(), f32::NAN);
                row
            };
            (0..rows).flat_map(row).collect()
        };
        let targets = (0..rows).map(|r| (7 * r % vocab) as i32).collect();
        Self { head, z: logits(10), zq: logits(500), targets }
    }

    /// Log-probabilities of a row under both, and what the soft cap's slope is there.
    fn row(&self, r: usize) -> [Vec<f64>; 3] {
        let own = |z: &[f32]| capped(&widen(&z[r * self.head.ld()..][..self.head.vocab]), self.head.softcap);
        let (z, zq) = (own(&self.z), own(&self.zq));
        let slope = |z: &f64| self.head.softcap.map_or(1.0, |cap| 1.0 - (z / f64::from(cap)).powi(2));
        [log_softmax(&z), log_softmax(&zq), z.iter().map(slope).collect()]
    }
}

fn each(test: impl Fn(&Device, &str, &Case, f64)) {
    for_each_device(|device, on| {
        for &(rows, vocab) in SHAPES {
            for (scale, softcap) in [(1.0, None), (30.0, None), (30.0, Some(30.0))] {
                let case = Case::new(rows, vocab, scale, softcap);
                // A log-probability is a difference of logits of up to four times the scale, each a few roundings off.
                test(device, on, &case, 16.0 * f64::from(scale) * roundoff::<f32>());
            }
        }
    });
}

#[test]
fn divergence_rows_and_dlogits() {
    each(|device, on, case, allowance| {
        let rows = case.targets.len();
        let out = Divergence::alloc(device, rows).unwrap();
        let (z, zq) = (device.upload(&case.z).unwrap(), device.upload(&case.zq).unwrap());
        let targets = device.upload(&case.targets).unwrap();
        distributions::divergence_rows(device, &out, &z, &zq, &targets, &case.head).unwrap();
        let got = [&out.logps, &out.ref_logps, &out.divergences, &out.entropies];
        let got = got.map(|buffer| device.download(buffer).unwrap());
        let top1 = device.download(&out.top1).unwrap();
        for r in 0..rows {
            let [p, q, _] = case.row(r);
            let y = case.targets[r] as usize;
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| q.exp() * (q - p)).sum();
            let entropy: f64 = -p.iter().map(|p| p.exp() * p).sum::<f64>();
            assert_eq!(top1[r] > 0.0, p.iter().all(|other| p[y] >= *other), "{on}: row {r}: top1");
            for (got, want) in got.iter().zip([p[y], q[y], divergence, entropy]) {
                let error = (f64::from(got[r]) - want).abs();
                // A divergence is a mean of differences of log-probabilities, an entropy one of log-probabilities.
                assert!(
                    error <= 2.0 * allowance + 8.0 * roundoff::<f32>() * want.abs(),
                    "{on}: row {r}: {} for {want}",
                    got[r]
                );
            }
        }
        dlogits::<f32>(device, on, case, &out, [&z, &zq], allowance);
        dlogits::<bf16>(device, on, case, &out, [&z, &zq], allowance);
    });
}

fn dlogits<T: Float>(
    device: &Device,
    on: &str,
    case: &Case,
    kept: &Divergence,
    logits: [&warpo::device::Buffer<f32>; 2],
    allowance: f64,
) {
    let (rows, ld) = (case.targets.len(), case.head.ld());
    let (c, k) = (normal(3, rows), normal(4, rows));
    let out = device.alloc::<T>(rows * ld).unwrap();
    let slopes = RowSlopes { logps: &device.upload(&c).unwrap(), divergences: &device.upload(&k).unwrap() };
    let targets = device.upload(&case.targets).unwrap();
    distributions::dlogits(device, &out, logits, [&kept.lse, &kept.ref_lse], &slopes, &targets, &case.head).unwrap();
    let mut want = Vec::new();
    for r in 0..rows {
        let [p, q, slope] = case.row(r);
        let (c, k) = (f64::from(c[r]), f64::from(k[r]));
        let onehot = |v: usize| f64::from(u8::from(v == case.targets[r] as usize));
        want.extend(
            (0..case.head.vocab).map(|v| (c * (onehot(v) - p[v].exp()) + k * (p[v].exp() - q[v].exp())) * slope[v]),
        );
        want.extend(vec![0.0; ld - case.head.vocab]);
    }
    let got = widen(&device.download(&out).unwrap());
    // Probabilities are off by their logarithms' errors.
    let allowance = 8.0 * allowance * max_abs(&want).max(1.0);
    assert_within_rule(&format!("dlogits on {on}"), &got, &want, &round_to::<T>(&want), allowance);
}

#[test]
fn collisions() {
    each(|device, on, case, allowance| {
        let out = device.alloc::<f32>(case.targets.len()).unwrap();
        distributions::collision_rows(device, &out, &device.upload(&case.z).unwrap(), &case.head).unwrap();
        for (r, &got) in device.download(&out).unwrap().iter().enumerate() {
            let [p, ..] = case.row(r);
            let want = p.iter().map(|p| (2.0 * p).exp()).sum::<f64>().ln();
            assert!((f64::from(got) - want).abs() <= 4.0 * allowance, "{on}: row {r}: {got} for {want}");
        }
    });
}
