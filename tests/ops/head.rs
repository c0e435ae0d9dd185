use half::bf16;
use warpo::{
    device::{Device, Float, HostOptions},
    forest::{Forest, Segment, Tree},
    ops::head::{self, HeadRows, HeadShape, HeadValues, Scratch},
};

use crate::{
    oracles::{self, head::Dims},
    support::{
        assert_within_rule, cast, fast_device, for_each_device, normal, round_to, roundoff, strict_devices, type_name,
        widen,
    },
};

/// (rows, vocab): one row, less than a warp's lanes, no multiple of 8, more than one group of eight a lane.
const LOGITS: &[(usize, usize)] = &[(1, 8), (5, 13), (3, 40), (6, 300), (2, 701)];

/// As in Gemma 2: bends logits of 60.
const SOFTCAP: Option<f32> = Some(30.0);

#[test]
fn values() {
    for_each_device(|device, on| {
        for &(rows, vocab) in LOGITS {
            for (scale, softcap) in [(1.0, None), (60.0, None), (3000.0, None), (60.0, SOFTCAP)] {
                check_row_values(device, on, rows, vocab, scale, softcap);
            }
        }
    });
}

#[test]
fn dlogits_f32() {
    for_each_device(every_dlogits::<f32>);
}

#[test]
fn dlogits_bf16() {
    for_each_device(every_dlogits::<bf16>);
}

#[test]
fn whole_f32() {
    for_each_device(whole::<f32>);
}

#[test]
fn whole_bf16() {
    for_each_device(whole::<bf16>);
}

#[test]
fn native_whole() {
    let device = native();
    whole::<f32>(&device, "native");
    whole::<bf16>(&device, "native");
}

/// A row's result does not depend on the rows beside it: chunks change no bit of logps and dhidden, in dweight only the
/// order of additions. True for the kernels; the native backend takes another path for a single row.
#[test]
fn chunks_change_no_row() {
    for device in [strict_devices().swap_remove(0).0, fast_device(2)] {
        let case = Case::<f32>::new(37, 24, None);
        let all = case.run(&device, case.rows.len(), true);
        for chunk_rows in [1, 4, case.rows.len() - 1, case.rows.len() + 5] {
            let some = case.run(&device, chunk_rows, true);
            assert_eq!((&some.logps, &some.lse, &some.dhidden), (&all.logps, &all.lse, &all.dhidden), "{chunk_rows}");
            let again = case.run(&device, chunk_rows, false);
            assert_eq!((&again.dhidden, &again.dweight), (&some.dhidden, &some.dweight), "{chunk_rows}: recomputed");
        }
    }
}

/// The oracle's gradients against central differences of its own loss, sum of c * logp.
#[test]
fn oracle_agrees_with_central_differences() {
    for softcap in [None, Some(0.7)] {
        central_differences(softcap);
    }
}

fn central_differences(softcap: Option<f32>) {
    let case = Case::<f32>::new(11, 6, softcap);
    let dims = case.dims;
    let (x, w, c) = (widen(&case.x), widen(&case.weight), widen(&case.coefficients));
    let loss = |x: &[f64], w: &[f64]| -> f64 {
        let z = oracles::head::logits(x, w, &case.rows.source, dims);
        let (logps, _) = oracles::head::logps(&z, &case.rows.target, softcap, dims.vocab);
        logps.iter().zip(&c).map(|(logp, c)| logp * c).sum()
    };
    let (dx, dw) = oracles::head::bwd(&x, &w, &c, &case.rows.source, &case.rows.target, dims);
    // Truncation h²/6 times a third derivative of order 100, and rounding 1e-16 * 50 / h.
    let h = 1e-5;
    let check = |what: &str, gradient: &[f64], at: &[f64], loss: &dyn Fn(&[f64]) -> f64| {
        for i in 0..at.len() {
            let moved = |by: f64| {
                let mut at = at.to_vec();
                at[i] += by;
                loss(&at)
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * h);
            assert!((slope - gradient[i]).abs() < 1e-8, "{what} {i}: {} and difference {slope}", gradient[i]);
        }
    };
    check("dhidden", &dx, &x, &|x| loss(x, &w));
    check("dweight", &dw, &w, &|w| loss(&x, w));
}

#[test]
fn flops_count_recomputed_chunks() {
    let head = |chunk_rows| HeadShape { vocab: 10, hidden: 4, chunk_rows, softcap: None };
    let product = 2.0 * 10.0 * 4.0;
    assert_eq!(head(7).flops(7), 3.0 * 7.0 * product);
    // Chunks of 1, 3 and 3 rows, of which the last is kept.
    assert_eq!(head(3).flops(7), (4.0 * 7.0 - 3.0) * product);
    assert_eq!(head(3).flops(0), 0.0);
}

fn native() -> Device {
    Device::host(HostOptions { threads: 2, ..HostOptions::default() }).unwrap()
}

/// HeadRows of logits `ld` apart; NaN in the padding must never be read.
fn padded(logits: &[f32], vocab: usize, ld: usize) -> Vec<f32> {
    let row = |z: &[f32]| z.iter().copied().chain(std::iter::repeat_n(f32::NAN, ld - vocab)).collect::<Vec<_>>();
    logits.chunks(vocab).flat_map(row).collect()
}

fn targets(rows: usize, vocab: usize) -> Vec<i32> {
    // The first row asks for the last column.
    (0..rows).map(|r| ((r * 7 + 1) * (vocab - 1) % vocab) as i32).collect()
}

fn check_row_values(device: &Device, on: &str, rows: usize, vocab: usize, scale: f32, softcap: Option<f32>) {
    let ld = vocab.next_multiple_of(8);
    let logits: Vec<f32> = normal(1, rows * vocab).iter().map(|z| z * scale).collect();
    let targets = targets(rows, vocab);
    let (want_logps, want_lse) = oracles::head::logps(&widen(&logits), &targets, softcap, vocab);
    let want_entropies = oracles::head::entropies(&widen(&logits), softcap, vocab);
    let out = HeadValues::alloc(device, rows).unwrap();
    let z = device.upload(&padded(&logits, vocab, ld)).unwrap();
    head::head_values(device, &out, &z, &device.upload(&targets).unwrap(), softcap, rows, vocab, ld).unwrap();

    let [got_logps, got_lse, got_entropies, got_top1] =
        [&out.logps, &out.lse, &out.entropies, &out.top1].map(|buffer| widen(&device.download(buffer).unwrap()));
    // Logits of f32 that the cap does not make equal.
    assert_eq!(got_top1, oracles::head::top1(&widen(&logits), &targets, vocab), "top1 {rows}x{vocab} on {on}");
    for r in 0..rows {
        let largest = logits[r * vocab..][..vocab].iter().fold(0.0f64, |m, z| m.max(f64::from(z.abs())));
        // z - maximum is rounded once, which exp turns into a relative error; its terms with weight in the sum lie
        // within 20 of the maximum. exp and log to 2 ulp, at most vocab / 256 + 8 additions. Subtracting from the
        // maximum rounds to a unit of the result.
        let in_sum = (20.0 + 4.0 + (vocab / 256 + 8) as f64) * roundoff::<f32>();
        let what = format!("{rows}x{vocab} times {scale} cap {softcap:?} on {on}, row {r}");
        let limit = in_sum + 4.0 * roundoff::<f32>() * (want_logps[r].abs() + 1.0);
        let error = (got_logps[r] - want_logps[r]).abs();
        assert!(error <= limit, "logps {what}: {} instead of {}, limit {limit:.3e}", got_logps[r], want_logps[r]);
        let limit = in_sum + 4.0 * roundoff::<f32>() * largest.max(1.0);
        let error = (got_lse[r] - want_lse[r]).abs();
        assert!(error <= limit, "lse {what}: {} instead of {}, limit {limit:.3e}", got_lse[r], want_lse[r]);
        // log(sum) - weighted / sum: the sum of t exp(t), each t rounded once and at most 20 where it counts, is off by as much
        // as the sum of exponentials, times its largest t.
        let limit = 21.0 * in_sum;
        let error = (got_entropies[r] - want_entropies[r]).abs();
        assert!(error <= limit, "entropy {what}: {} for {}, limit {limit:.3e}", got_entropies[r], want_entropies[r]);
    }
}

fn every_dlogits<T: Float>(device: &Device, on: &str) {
    for &(rows, vocab) in LOGITS {
        for (scale, softcap) in [(1.0, None), (60.0, None), (60.0, SOFTCAP)] {
            check_dlogits::<T>(device, on, rows, vocab, scale, softcap);
        }
    }
}

fn check_dlogits<T: Float>(device: &Device, on: &str, rows: usize, vocab: usize, scale: f32, softcap: Option<f32>) {
    let ld = vocab.next_multiple_of(8);
    let logits: Vec<f32> = normal(1, rows * vocab).iter().map(|z| z * scale).collect();
    let coefficients = normal(2, rows);
    let targets = targets(rows, vocab);
    let wide = widen(&logits);
    let (_, lse) = oracles::head::logps(&wide, &targets, softcap, vocab);
    let lse: Vec<f32> = lse.iter().map(|&l| l as f32).collect();
    let want = oracles::head::dlogits(&wide, &widen(&lse), &widen(&coefficients), &targets, softcap, vocab);

    let z = device.upload(&padded(&logits, vocab, ld)).unwrap();
    // f32 in place, bf16 beside.
    let dz = if size_of::<T>() == 4 { z.cast() } else { device.alloc::<T>(rows * ld).unwrap() };
    let [lse, c] = [&lse, &coefficients].map(|x| device.upload(x).unwrap());
    head::dlogits(device, &dz, &z, &lse, &c, &device.upload(&targets).unwrap(), softcap, rows, vocab, ld).unwrap();

    let got = widen(&device.download(&dz).unwrap());
    let inside = |row: &[f64]| row[..vocab].to_vec();
    let outside: Vec<f64> = got.chunks(ld).flat_map(|row| row[vocab..].to_vec()).collect();
    assert!(outside.iter().all(|&x| x == 0.0), "dlogits padding on {on}");
    let got: Vec<f64> = got.chunks(ld).flat_map(inside).collect();
    // z - lse is rounded to a unit of itself, at most 20 where exp counts; exp, difference and product: 5 units more;
    // coefficients up to 4.
    let allowance = 4.0 * 25.0 * roundoff::<f32>();
    let what = format!("dlogits {} {rows}x{vocab} times {scale} cap {softcap:?} on {on}", type_name::<T>());
    assert_within_rule(&what, &got, &want, &round_to::<T>(&want), allowance);
}

/// A forest with a shared prompt, tokens that no row reads and a token that two rows read.
fn forest(vocab: usize) -> Forest {
    let mut next = 0;
    let mut tokens = |len: usize| -> Vec<u32> {
        (0..len)
            .map(|_| {
                next = (next * 5 + 3) % vocab as u32;
                next
            })
            .collect()
    };
    let pair = Tree::pair("pair", tokens(4), tokens(3), tokens(5));
    let plain = Tree {
        segments: vec![Segment { parent: None, tokens: tokens(4), scored: true, ..Segment::default() }],
        ..Tree::default()
    };
    Forest::pack([&pair, &plain]).unwrap()
}

/// The rows of a [`Forest`] in host memory.
struct HostRows {
    source: Vec<i32>,
    target: Vec<i32>,
    forest: Forest,
}

impl HostRows {
    fn len(&self) -> usize {
        self.source.len()
    }
}

pub(super) struct Case<T> {
    dims: Dims,
    x: Vec<T>,
    weight: Vec<T>,
    coefficients: Vec<f32>,
    rows: HostRows,
}

struct Outcome {
    logps: Vec<f64>,
    lse: Vec<f64>,
    entropies: Vec<f64>,
    top1: Vec<f64>,
    dhidden: Vec<f64>,
    /// The same added to itself.
    twice: Vec<f64>,
    dweight: Vec<f64>,
}

impl<T: Float> Case<T> {
    pub(super) fn new(vocab: usize, hidden: usize, softcap: Option<f32>) -> Self {
        let forest = forest(vocab);
        let scaled = |seed, len| cast(&normal(seed, len).iter().map(|x| 0.5 * x).collect::<Vec<_>>());
        Self {
            dims: Dims { vocab, hidden, softcap },
            x: scaled(1, forest.len() * hidden),
            weight: scaled(2, vocab * hidden),
            coefficients: normal(3, forest.rows()),
            rows: HostRows { source: forest.row_source.clone(), target: forest.row_target.clone(), forest },
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    fn run(&self, device: &Device, chunk_rows: usize, kept: bool) -> Outcome {
        let Dims { vocab, hidden, softcap } = self.dims;
        let head = HeadShape { vocab, hidden, chunk_rows, softcap };
        let (count, tokens) = (self.rows.len(), self.rows.forest.len());
        let up = |data: &[i32]| device.upload(data).unwrap();
        let rows = HeadRows {
            source: up(&self.rows.source),
            target: up(&self.rows.target),
            token_row_offsets: up(&self.rows.forest.token_row_offsets),
            token_rows: up(&self.rows.forest.token_rows),
            rows: count,
            tokens,
        };
        let logits = device.alloc::<f32>(chunk_rows * head.ld()).unwrap();
        let dlogits = if size_of::<T>() == 4 { logits.cast() } else { device.alloc(logits.len()).unwrap() };
        let scratch = Scratch::<T> {
            x_rows: device.alloc(chunk_rows * hidden).unwrap(),
            logits,
            dlogits,
            dx_rows: device.alloc(count * hidden).unwrap(),
        };
        let (x, w) = (device.upload(&self.x).unwrap(), device.upload(&self.weight).unwrap());
        let c = device.upload(&self.coefficients).unwrap();
        let out = HeadValues::alloc(device, count).unwrap();
        head::fwd(device, &out, &scratch, &x, &w, &rows, &head).unwrap();
        let HeadValues { logps, lse, entropies, top1 } = out;
        let (dx, dw) = (device.alloc::<T>(x.len()).unwrap(), device.zeros::<f32>(w.len()).unwrap());
        head::bwd(device, &dx, &dw, &scratch, &x, &w, &lse, &c, &rows, &head, kept, false).unwrap();
        let sum = device.upload(&device.download(&dx).unwrap()).unwrap();
        let rest = device.zeros::<f32>(w.len()).unwrap();
        head::bwd(device, &sum, &rest, &scratch, &x, &w, &lse, &c, &rows, &head, false, true).unwrap();
        let [logps, lse, entropies, top1, dweight] =
            [logps, lse, entropies, top1, dw].map(|b| widen(&device.download(&b).unwrap()));
        Outcome {
            logps,
            lse,
            entropies,
            top1,
            dhidden: widen(&device.download(&dx).unwrap()),
            twice: widen(&device.download(&sum).unwrap()),
            dweight,
        }
    }

    /// The oracle's results, and those of a computation that rounds to `T` where the kernels do.
    fn oracle(&self) -> [Outcome; 2] {
        let Dims { vocab, hidden, softcap } = self.dims;
        let (x, w, c) = (widen(&self.x), widen(&self.weight), widen(&self.coefficients));
        let z = oracles::head::logits(&x, &w, &self.rows.source, self.dims);
        let (logps, lse) = oracles::head::logps(&z, &self.rows.target, softcap, vocab);
        let entropies = oracles::head::entropies(&z, softcap, vocab);
        let top1 = oracles::head::top1(&z, &self.rows.target, vocab);
        let (dhidden, dweight) = oracles::head::bwd(&x, &w, &c, &self.rows.source, &self.rows.target, self.dims);
        let dz = round_to::<T>(&oracles::head::dlogits(&z, &lse, &c, &self.rows.target, softcap, vocab));
        let mut naive_dhidden = vec![0.0; x.len()];
        let mut naive_dweight = vec![0.0; w.len()];
        for (r, dz) in dz.chunks(vocab).enumerate() {
            let token = self.rows.source[r] as usize * hidden;
            let dot = |h: usize| (0..vocab).map(|v| dz[v] * w[v * hidden + h]).sum::<f64>();
            let dx = round_to::<T>(&(0..hidden).map(dot).collect::<Vec<_>>());
            naive_dhidden[token..][..hidden].iter_mut().zip(&dx).for_each(|(sum, dx)| *sum += dx);
            for (i, sum) in naive_dweight.iter_mut().enumerate() {
                *sum += dz[i / hidden] * x[token + i % hidden];
            }
        }
        let naive_dhidden = round_to::<T>(&naive_dhidden);
        let twice = |dhidden: &[f64]| dhidden.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
        let naive_twice = round_to::<T>(&twice(&naive_dhidden));
        let naive = Outcome {
            logps: logps.clone(),
            lse: lse.clone(),
            entropies: entropies.clone(),
            top1: top1.clone(),
            dhidden: naive_dhidden,
            twice: naive_twice,
            dweight: naive_dweight,
        };
        [Outcome { logps, lse, entropies, top1, twice: twice(&dhidden), dhidden, dweight }, naive]
    }
}

/// (vocab, hidden): ragged, and exact; and under a cap that bends logits of about 1.
fn whole<T: Float>(device: &Device, on: &str) {
    for (vocab, hidden, softcap) in [(37, 24, None), (64, 32, None), (37, 24, Some(0.7))] {
        let case = Case::<T>::new(vocab, hidden, softcap);
        for chunk_rows in [case.rows.len(), 5] {
            judge(&case, device, on, chunk_rows);
        }
    }
}

/// Both passes by chunks of so many rows against the oracle.
pub(super) fn judge<T: Float>(case: &Case<T>, device: &Device, on: &str, chunk_rows: usize) {
    let Dims { vocab, hidden, softcap } = case.dims;
    let [want, naive] = case.oracle();
    let got = case.run(device, chunk_rows, true);
    let check = |of: &str, got: &[f64], want: &[f64], naive: &[f64]| {
        let what = format!("head {} {vocab}x{hidden} cap {softcap:?} by {chunk_rows} on {on}: {of}", type_name::<T>());
        // A sum over the vocabulary of values that hold a sum over the hidden size, each term truncated in f32; the
        // terms' magnitudes add to a few times the largest result.
        let terms = 2.0 * (vocab + hidden) as f64;
        let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert_within_rule(&what, got, want, naive, terms * roundoff::<f32>() * largest);
    };
    check("logps", &got.logps, &want.logps, &naive.logps);
    check("lse", &got.lse, &want.lse, &naive.lse);
    check("entropies", &got.entropies, &want.entropies, &naive.entropies);
    assert_eq!(got.top1, want.top1, "head {} {vocab}x{hidden} by {chunk_rows} on {on}: top1", type_name::<T>());
    check("dhidden", &got.dhidden, &want.dhidden, &naive.dhidden);
    check("dhidden, added to the same", &got.twice, &want.twice, &naive.twice);
    check("dweight", &got.dweight, &want.dweight, &naive.dweight);
}
