//! The head's product on Hopper's own units, under every schedule and both completion modes.

use half::bf16;
use warpo::{
    device::{Device, Fault},
    ops::{
        gemm::Gemm,
        gemm::sm90::{Plan, Tile},
        head::sm90::{self, Logits},
        head::{self, HeadShape, HeadValues},
    },
};

use super::head::{Case, judge};
use crate::{
    oracles::head as oracle,
    support::{
        assert_within_rule, cast, every_fault_is_caught, fast_hopper, for_each_hopper, normal, round_to, roundoff,
        strict_hoppers, widen,
    },
};

/// (vocab, hidden, soft cap): less than a tile of the vocabulary, exact, ragged in the second tile.
const WHOLE: &[(usize, usize, Option<f32>)] = &[(37, 24, None), (256, 64, None), (300, 72, None), (300, 72, Some(0.7))];

#[test]
fn whole() {
    for_each_hopper(|device, on| {
        assert!(head::keeps_exponentials::<bf16>(
            device,
            &HeadShape { vocab: 37, hidden: 24, chunk_rows: 1, softcap: None }
        ));
        for &(vocab, hidden, softcap) in WHOLE {
            let case = Case::<bf16>::new(vocab, hidden, softcap);
            for chunk_rows in [case.rows(), 5] {
                judge(&case, device, on, chunk_rows);
            }
        }
    });
}

/// One chunk of rows.
struct Chunk {
    head: HeadShape,
    rows: usize,
    x: Vec<bf16>,
    weight: Vec<bf16>,
    targets: Vec<i32>,
    coefficients: Vec<f32>,
}

#[derive(PartialEq, Clone)]
struct Results {
    logps: Vec<f32>,
    lse: Vec<f32>,
    entropies: Vec<f32>,
    top1: Vec<f32>,
    /// Empty if it was not asked for.
    dlogits: Vec<bf16>,
}

impl Chunk {
    /// Logits of about `scale`.
    fn new(rows: usize, vocab: usize, hidden: usize, scale: f32, softcap: Option<f32>) -> Self {
        let factor = scale / (hidden as f32).sqrt();
        Self {
            head: HeadShape { vocab, hidden, chunk_rows: rows, softcap },
            rows,
            x: cast(&normal(1, rows * hidden)),
            weight: cast(&normal(2, vocab * hidden).iter().map(|x| x * factor).collect::<Vec<_>>()),
            // The first row asks for the last column.
            targets: (0..rows).map(|r| ((r * 7 + 1) * (vocab - 1) % vocab) as i32).collect(),
            coefficients: normal(3, rows),
        }
    }

    fn plan(&self, stages: usize) -> Plan {
        // Two clusters.
        Plan { stages, ..Plan::with_tile(&Gemm::nt(self.rows, self.head.vocab, self.head.hidden), Tile::M128N256, 4) }
    }

    fn run(&self, device: &Device, stages: usize, stored: bool) -> anyhow::Result<Results> {
        let (head, rows) = (&self.head, self.rows);
        // What is not written shows.
        let exponentials = vec![bf16::NAN; if stored { rows * head.ld() } else { 0 }];
        let logits = Logits {
            exponentials: device.upload(&exponentials)?,
            statistics: device.upload(&vec![f32::NAN; 3 * rows * head.vocab.div_ceil(256)])?,
            target_logits: device.upload(&vec![f32::NAN; rows])?,
        };
        let out = HeadValues::alloc(device, rows)?;
        let (x, w, targets) = (device.upload(&self.x)?, device.upload(&self.weight)?, device.upload(&self.targets)?);
        sm90::project(device, &self.plan(stages), &logits, &x, &w, &targets, head)?;
        sm90::finish(device, &out, &logits, head)?;
        if stored {
            let coefficients = device.upload(&self.coefficients)?;
            sm90::dlogits(device, &logits, &out.lse, &coefficients, &targets, head)?;
        }
        let dlogits = device.download(&logits.exponentials)?;
        let [logps, lse, entropies, top1] =
            [&out.logps, &out.lse, &out.entropies, &out.top1].map(|buffer| device.download(buffer));
        Ok(Results { logps: logps?, lse: lse?, entropies: entropies?, top1: top1?, dlogits })
    }

    fn check(&self, device: &Device, what: &str) {
        let (HeadShape { vocab, hidden, softcap, .. }, ld) = (self.head, self.head.ld());
        let source: Vec<i32> = (0..self.rows as i32).collect();
        let dims = oracle::Dims { vocab, hidden, softcap };
        let z = oracle::logits(&widen(&self.x), &widen(&self.weight), &source, dims);
        let (want_logps, want_lse) = oracle::logps(&z, &self.targets, softcap, vocab);
        let want_entropies = oracle::entropies(&z, softcap, vocab);
        let want = oracle::dlogits(&z, &want_lse, &widen(&self.coefficients), &self.targets, softcap, vocab);
        let got = self.run(device, 2, true).unwrap_or_else(|why| panic!("{what}: {why:#}"));
        // A logit is a sum of `hidden` terms, each addition off by a roundoff of what has been summed, up to the sum of the
        // terms' sizes; exponentials, their sums and logarithms add 40 roundoffs.
        let sizes = |data: &[bf16]| widen(data).iter().map(|x| x.abs()).collect::<Vec<_>>();
        let terms = oracle::logits(&sizes(&self.x), &sizes(&self.weight), &source, dims);
        let largest = terms.iter().fold(0.0f64, |top, x| top.max(*x));
        let allowance = (hidden as f64 * largest + 40.0) * roundoff::<f32>();
        let exact = |x: &[f64]| x.to_vec();
        assert_within_rule(&format!("{what}: logps"), &widen(&got.logps), &want_logps, &exact(&want_logps), allowance);
        assert_within_rule(&format!("{what}: lse"), &widen(&got.lse), &want_lse, &exact(&want_lse), allowance);
        // A logit's error moves an entropy by the probability times its distance from the mean, 20 where it counts.
        let (entropies, limit) = (widen(&got.entropies), 20.0 * allowance);
        assert_within_rule(&format!("{what}: entropies"), &entropies, &want_entropies, &want_entropies, limit);
        assert_eq!(widen(&got.top1), oracle::top1(&z, &self.targets, vocab), "{what}: top1");
        let dlogits = widen(&got.dlogits);
        assert!(dlogits.chunks(ld).all(|row| row[vocab..].iter().all(|&x| x == 0.0)), "{what}: padding");
        let inside: Vec<f64> = dlogits.chunks(ld).flat_map(|row| row[..vocab].to_vec()).collect();
        // Coefficients up to 4.
        assert_within_rule(&format!("{what}: dlogits"), &inside, &want, &round_to::<bf16>(&want), 4.0 * allowance);
    }
}

/// Ragged and exact rows and columns, more tiles than the grid walks at once; sure rows, whose gradients are small
/// differences of large probabilities; a soft cap that bends.
#[test]
fn chunks_of_every_shape() {
    for_each_hopper(|device, on| {
        let cap = Some(30.0);
        for (rows, vocab, hidden, scale, softcap) in [
            (1, 8, 8, 1.0, None),
            (128, 512, 64, 2.0, None),
            (300, 601, 72, 2.0, None),
            (65, 301, 40, 12.0, None),
            (65, 301, 40, 20.0, cap),
        ] {
            let what = format!("head {rows}x{vocab}x{hidden} times {scale} cap {softcap:?} on {on}");
            Chunk::new(rows, vocab, hidden, scale, softcap).check(device, &what);
        }
    });
}

#[test]
fn depths_schedules_and_what_is_stored_change_no_bit() {
    let chunk = Chunk::new(150, 601, 5 * 64 + 8, 2.0, None);
    let want = chunk.run(&fast_hopper(1), 4, true).unwrap();
    for stages in [1, 2, 3] {
        for (device, on) in strict_hoppers() {
            assert!(chunk.run(&device, stages, true).unwrap() == want, "{stages} slots on {on}");
        }
    }
    let unstored = chunk.run(&strict_hoppers()[0].0, 2, false).unwrap();
    assert!(unstored == Results { dlogits: vec![], ..want });
}

#[test]
fn every_fault_of_the_product_is_caught() {
    let chunk = Chunk::new(260, 601, 5 * 64, 2.0, None);
    let want = chunk.run(&strict_hoppers()[0].0, 2, true).unwrap();
    every_fault_is_caught(&Fault::ALL, |device| Ok(chunk.run(device, 2, true)? == want));
}

#[test]
fn other_tiles_are_refused() {
    let chunk = Chunk::new(1, 8, 8, 1.0, None);
    let device = fast_hopper(1);
    let plan = Plan { tile: Tile::M128N128, ..chunk.plan(1) };
    let zeros = |len| device.zeros::<bf16>(len).unwrap();
    let (statistics, target_logits) = (device.zeros(3).unwrap(), device.zeros(1).unwrap());
    let logits = Logits { exponentials: zeros(8), statistics, target_logits };
    let targets = device.upload(&[0]).unwrap();
    let why = sm90::project(&device, &plan, &logits, &zeros(8), &zeros(64), &targets, &chunk.head).unwrap_err();
    assert!(why.to_string().ends_with("the kernel has tiles of 128 x 256"), "{why}");
}
