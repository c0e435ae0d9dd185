//! Gradients that are added up in bf16: which random bits an addition takes, and how far the sums are from those in f32.

use half::bf16;
use warpo::{
    device::{Buffer, DType, Device, Float, GemmBackend, HostOptions},
    forest::Forest,
    model::{Capacity, MemoryPlan, Model, ModelConfig, Slopes},
    ops::{
        embedding,
        gemm::{
            self, Gemm,
            sm90::{Plan, Tile},
        },
        grad_norm,
        gradient::{Gradient, Narrow},
    },
    rng::{Draw, Philox, Purpose, bf16_by_chance},
};

use super::{floats, integers, vector};
use crate::{
    model::{list, pair, steps, tiny_config},
    support::{
        assert_same_bits, fast_hopper, for_each_device, for_each_hopper, for_each_host, normal, relative_error, widen,
    },
};

const DRAW: Draw = Draw { seed: 1 << 40 | 7, number: 11 };

fn native() -> Device {
    Device::host(HostOptions { threads: 2, gemm: GemmBackend::Native, ..HostOptions::default() }).unwrap()
}

fn narrow(buffer: &Buffer<bf16>, draw: Draw, part: u32, fresh: bool) -> Gradient {
    Gradient::Bf16(Narrow { buffer: buffer.clone(), first: 0, draw, part, fresh })
}

/// Products of one term, whose sums are the vector's parts.
#[test]
fn micro_batches_are_the_vector() {
    let all = vector("gradients_bf16");
    let draw = Draw { seed: all["seed"].as_u64().unwrap(), number: all["step"].as_u64().unwrap() as u32 };
    let check = |device: &Device, on: &str| {
        let parts = all["parts_bits"].as_array().unwrap();
        let elements = floats(&parts[0]).len();
        // What was there before is overwritten.
        let sum = device.upload(&vec![bf16::NAN; elements]).unwrap();
        let one = device.upload(&[1.0f32]).unwrap();
        for (micro, (part, want)) in parts.iter().zip(all["after"].as_array().unwrap()).enumerate() {
            let part = device.upload(&floats(part)).unwrap();
            let gradient = narrow(&sum, draw, 2 * micro as u32, micro == 0);
            gemm::run_gradient(device, &Gemm::tn(1, elements, 1), &gradient, &one, &part, None).unwrap();
            let got: Vec<u16> = device.download(&sum).unwrap().iter().map(|g| g.to_bits()).collect();
            assert_eq!(got, integers::<u16>(want), "micro-batch {micro} on {on}");
        }
    };
    for_each_device(&check);
    check(&native(), "host, native products");
}

/// Whole numbers from -8 to 8: every order of additions has the same sum.
fn whole<T: Float>(seed: u64, len: usize) -> Vec<T> {
    normal(seed, len).into_iter().map(|x| T::from_f32((4.0 * x).round().clamp(-8.0, 8.0))).collect()
}

/// The definition: `old` plus the product in f32, rounded by the element's own bits, or the product rounded to nearest.
fn expected<T: Float>(gemm: &Gemm, [a, b]: [&[T]; 2], old: &[bf16], at: &Narrow) -> Vec<bf16> {
    let stream = Philox::part(at.draw.seed, Purpose::Gradients, at.draw.number, at.part);
    let mut d = old.to_vec();
    for (i, j) in (0..gemm.m).flat_map(|i| (0..gemm.n).map(move |j| (i, j))) {
        let terms = (0..gemm.k).map(|k| a[k * gemm.lda + i].to_f32() * b[k * gemm.ldb + j].to_f32());
        let (sum, place) = (terms.sum::<f32>(), i * gemm.ldd + j);
        let element = at.first + place;
        let half = stream.halves(element as u64 / 8)[element % 8];
        d[place] = if at.fresh { bf16::from_f32(sum) } else { bf16_by_chance(old[place].to_f32() + sum, half) };
    }
    d
}

/// A product that is added to a gradient somewhere in the arena.
struct Case<T> {
    gemm: Gemm,
    a: Vec<T>,
    b: Vec<T>,
    old: Vec<bf16>,
    fresh: bool,
}

impl<T: Float> Case<T> {
    fn new(gemm: Gemm, fresh: bool) -> Self {
        let room = gemm.m * gemm.ldd + 8;
        // Numbers that the whole ones do not leave exact in bf16.
        let old = normal(3, room).into_iter().map(|x| bf16::from_f32(300.0 * x)).collect();
        Self { a: whole(1, gemm.k * gemm.lda), b: whole(2, gemm.k * gemm.ldb), old, fresh, gemm }
    }

    fn check(&self, device: &Device, what: &str, run: impl FnOnce(&Narrow, [&Buffer<T>; 2]) -> anyhow::Result<()>) {
        let [a, b] = [&self.a, &self.b].map(|values| device.upload(values).unwrap());
        let buffer = device.upload(&self.old).unwrap();
        let at = Narrow { buffer, first: (1 << 35) + 8 * 77, draw: DRAW, part: 6, fresh: self.fresh };
        run(&at, [&a, &b]).unwrap_or_else(|why| panic!("{what}: {why:#}"));
        let got = device.download(&at.buffer).unwrap();
        let want = expected(&self.gemm, [&self.a, &self.b], &self.old, &at);
        // Between rows a bulk store may leave what it likes.
        let columns = |all: &[bf16]| -> Vec<bf16> {
            (0..self.gemm.m).flat_map(|i| all[i * self.gemm.ldd..][..self.gemm.n].to_vec()).collect()
        };
        assert_same_bits(&format!("{:?} {what}", self.gemm), &columns(&got), &columns(&want));
    }
}

#[test]
fn products_take_the_bits_of_their_place() {
    fn all<T: Float>(device: &Device, on: &str) {
        // Ragged, with rows that share no chunk; packed whole tiles; one element.
        let bf16s = T::DTYPE == DType::Bf16;
        for (m, n, k, fresh) in [(70, 45, 19, false), (130, 136, 40, false), (9, 24, 8, true), (1, 1, 1, false)] {
            let ld = |width: usize| if bf16s { width.next_multiple_of(8) } else { width };
            let gemm = Gemm { lda: ld(m), ldb: ld(n), ..Gemm::tn(m, n, k) };
            let case = Case::<T>::new(gemm, fresh);
            case.check(device, on, |at, [a, b]| {
                gemm::run_gradient(device, &gemm, &Gradient::Bf16(at.clone()), a, b, None)
            });
        }
    }
    let both = |device: &Device, on: &str| {
        all::<f32>(device, on);
        all::<bf16>(device, on);
    };
    for_each_host(both);
    both(&native(), "host, native products");
    both(&fast_hopper(2), "host as a Hopper");
}

/// Hopper's kernels: every tile, sums whole and in parts, overwriting and adding.
#[test]
fn products_of_hopper_take_the_bits_of_their_place() {
    for_each_hopper(|device, on| {
        for (i, tile) in Tile::ALL.into_iter().enumerate() {
            let [rows, columns] = tile.sides();
            let (m, n) = (2 * rows + 70, columns + 34);
            for (j, (whole, splits, k)) in [(4, 1, 72), (0, 2, 130), (3, 3, 64 * 3)].into_iter().enumerate() {
                if on != "host" && (i + j) % 3 != 0 {
                    continue;
                }
                let gemm = Gemm { lda: m.next_multiple_of(8), ldb: n.next_multiple_of(8), ..Gemm::tn(m, n, k) };
                let gemm = Gemm { ldd: n.next_multiple_of(8) + 8, ..gemm };
                let plan = Plan { clusters: 2, whole, splits, ..Plan::with_tile(&gemm, tile, 4) };
                // NaN wherever nothing was written.
                let workspace = device.upload(&vec![f32::NAN; plan.workspace(&gemm).max(1)]).unwrap();
                let case = Case::<bf16>::new(gemm, (i + j) % 2 == 1);
                case.check(device, &format!("{plan:?} on {on}"), |at, operands| {
                    gemm::run_narrow_planned(device, &plan, &gemm, at, operands, &workspace)
                });
            }
        }
    });
}

/// The embedding's additions have bits of their own.
#[test]
fn tables_take_the_bits_of_their_place() {
    for_each_host(|device, on| {
        for (hidden, first) in [(24, 1 << 36), (21, 8)] {
            let (vocab, tokens, ids) = (7, 5, [0, 3, 6]);
            let (offsets, order) = ([0, 2, 3, 5], [0, 4, 1, 2, 3]);
            let dy = whole::<f32>(4, tokens * hidden);
            let old: Vec<bf16> = normal(5, vocab * hidden).into_iter().map(|x| bf16::from_f32(300.0 * x)).collect();
            let buffer = device.upload(&old).unwrap();
            let at = Narrow { buffer, first, draw: DRAW, part: 4, fresh: true };
            let [ids_on, offsets_on, order_on] = [&ids[..], &offsets, &order].map(|x| device.upload(x).unwrap());
            let gradient = Gradient::Bf16(at.clone());
            let on_device = device.upload(&dy).unwrap();
            embedding::bwd(device, gradient, &on_device, &ids_on, &offsets_on, &order_on, 0.5, tokens, hidden, vocab)
                .unwrap();
            let stream = Philox::part(DRAW.seed, Purpose::Gradients, DRAW.number, 5);
            let mut want = old.clone();
            for (i, &id) in ids.iter().enumerate() {
                for c in 0..hidden {
                    let tokens = &order[offsets[i] as usize..offsets[i + 1] as usize];
                    let sum: f32 = tokens.iter().map(|&t| dy[t as usize * hidden + c]).sum();
                    let place = id as usize * hidden + c;
                    let half = stream.halves((first + place) as u64 / 8)[(first + place) % 8];
                    want[place] = bf16_by_chance(old[place].to_f32() + 0.5 * sum, half);
                }
            }
            assert_same_bits(&format!("rows of {hidden} on {on}"), &device.download(&at.buffer).unwrap(), &want);
        }
    });
}

#[test]
fn the_norm_is_of_what_is_stored() {
    for_each_device(|device, on| {
        for (narrow, wide) in [(40_003, 700), (16_384, 0), (0, 5), (9, 16_385)] {
            let grads: Vec<bf16> = normal(1, narrow).into_iter().map(bf16::from_f32).collect();
            let vectors = normal(2, wide);
            let squares = widen(&grads).iter().chain(&widen(&vectors)).map(|g| g * g).sum::<f64>();
            let (stats, room) = (device.zeros(3).unwrap(), grad_norm::partials(narrow) + grad_norm::partials(wide));
            let partials = device.alloc(room).unwrap();
            // From an odd place nothing is aligned.
            for skip in [0, usize::from(narrow > 0)] {
                let padded = [&vec![bf16::from_f32(9.0); skip][..], &grads].concat();
                let grads = device.upload(&padded).unwrap().slice(skip..skip + narrow);
                let vectors = device.upload(&vectors).unwrap();
                grad_norm::run_both(device, &stats, &partials, (&grads, &vectors), 1.0).unwrap();
                let got = device.download(&stats).unwrap();
                let norm = squares.sqrt();
                // Sums in f64, rounded once to f32.
                assert!(
                    (f64::from(got[0]) / norm - 1.0).abs() < 1e-7,
                    "{narrow}, {wide} on {on}: {} of {norm}",
                    got[0]
                );
                assert!(got[1] <= 1.0 && got[2] == 1.0, "{got:?}");
            }
        }
        let bad = device.upload(&[bf16::ONE, bf16::INFINITY]).unwrap();
        let (stats, partials) = (device.zeros(3).unwrap(), device.alloc(1).unwrap());
        grad_norm::run(device, &stats, &partials, &bad, 2, 1.0).unwrap();
        assert_eq!(device.download(&stats).unwrap()[2], 0.0, "{on}");
    });
}

/// What 64 products leave in bf16 and in f32, of which all but the first are made smaller; with the first in f32, and what additions
/// that round to nearest would leave.
fn sixty_four(smaller: f32) -> [Vec<f64>; 4] {
    let device = native();
    let (m, n, k) = (512, 640, 4);
    let gemm = Gemm::tn(m, n, k);
    let (sum, alone) = (device.zeros::<bf16>(m * n).unwrap(), device.zeros::<f32>(m * n).unwrap());
    let (mut exact, mut nearest, mut first) = (vec![0.0; m * n], vec![bf16::ZERO; m * n], Vec::new());
    for micro in 0..64 {
        let scale = if micro == 0 { 1.0 } else { smaller };
        let part = |seed, len, scale: f32| -> Vec<f32> { normal(seed, len).iter().map(|x| scale * x.abs()).collect() };
        let a = device.upload(&part(100 + micro, k * m, scale)).unwrap();
        let b = device.upload(&part(200 + micro, k * n, 1.0)).unwrap();
        let gradient = narrow(&sum, DRAW, 2 * micro as u32, micro == 0);
        gemm::run_gradient(&device, &gemm, &gradient, &a, &b, None).unwrap();
        gemm::run(&device, &gemm, &alone, &a, &b).unwrap();
        let alone = device.download(&alone).unwrap();
        exact.iter_mut().zip(&alone).for_each(|(sum, &part)| *sum += f64::from(part));
        nearest.iter_mut().zip(&alone).for_each(|(sum, part)| *sum = bf16::from_f32(sum.to_f32() + part));
        if micro == 0 {
            first = widen(&alone.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        }
    }
    [widen(&device.download(&sum).unwrap()), exact, first, widen(&nearest)]
}

/// The share of `want` by which `got` is too large.
fn bias(got: impl Iterator<Item = f64>, want: &[f64]) -> f64 {
    let square: f64 = want.iter().map(|x| x * x).sum();
    got.zip(want).map(|(got, want)| (got - want) * want).sum::<f64>() / square
}

#[test]
fn sixty_four_additions_are_unbiased() {
    let [sum, exact, ..] = sixty_four(1.0);
    let bias = bias(sum.into_iter(), &exact);
    println!("64 additions: bias {bias:.1e}");
    // The noise of an element is about 1 % (64 roundings of up to 2^-8 of sums that grow), that of the mean of 327,680 of them
    // 2e-5.
    assert!(bias.abs() < 1e-4, "{bias:e}");
}

/// Additions that are mostly below half a unit of the sum: to nearest they are lost, by chance they arrive.
#[test]
fn small_additions_arrive() {
    let [sum, exact, first, nearest] = sixty_four(1.0 / 1024.0);
    let change: Vec<f64> = exact.iter().zip(&first).map(|(exact, first)| exact - first).collect();
    let of = |all: Vec<f64>| bias(all.into_iter().zip(&first).map(|(all, first)| all - first), &change);
    let (by_chance, to_nearest) = (of(sum), of(nearest));
    println!("small additions: bias {by_chance:.1e} by chance, {to_nearest:.1e} to nearest");
    // An element's change is about 0.06 of it, its noise 63 roundings of up to 2^-8: a quarter of the change at most, of which
    // the mean over 327,680 has 4e-4. The first rounding is in the change as well, with no direction.
    assert!(by_chance.abs() < 3e-3 && to_nearest < -0.1, "{by_chance:e}, {to_nearest:e}");
}

/// Gradients of a model, of one micro-batch for each forest.
fn gradients<T: Float>(device: &Device, config: &ModelConfig, gradients: DType, forests: &[Forest]) -> Vec<f64> {
    let most = |count: fn(&Forest) -> usize| forests.iter().map(count).max().unwrap();
    let capacity = Capacity { tokens: most(Forest::len), rows: most(Forest::rows), head_chunk_rows: 64 };
    let plan = MemoryPlan::new(config, T::DTYPE, capacity).unwrap().adding_up_in(config, gradients).on(device, config);
    let model = Model::<T>::new(device, config, plan).unwrap();
    model.randomize(5).unwrap();
    // Whatever a step before left there is gone.
    for _ in 0..2 {
        model.zero_grads().unwrap();
        for (seed, forest) in forests.iter().enumerate() {
            let batch = model.upload(forest).unwrap();
            model.forward(&batch).unwrap();
            model.logps(&batch).unwrap();
            let slopes = device.upload(&normal(seed as u64, batch.rows)).unwrap();
            model.backward(&batch, &Slopes::by_logps(&slopes)).unwrap();
        }
    }
    let layout = model.layout();
    let matrices = layout.matrices();
    [0..matrices, matrices..layout.elements]
        .into_iter()
        .flat_map(|range| widen(&model.params().download_gradient(&range).unwrap()))
        .collect()
}

/// Against f32 gradients of the same passes: nearest once, by chance once a further micro-batch. The relative error of one
/// rounding to nearest is 2^-9 at most and 1.6e-3 on average, of one by chance twice that at most and 2.3e-3 on average.
#[test]
fn gradients_in_bf16_are_those_in_f32_but_for_their_roundings() {
    fn check<T: Float>(device: &Device, on: &str) {
        for tied in [true, false] {
            let config = tiny_config(tied, 2);
            let forests: Vec<Forest> = (0..6u64)
                .map(|seed| Forest::pack(&[pair(seed, [20, 9, 14]), steps(seed + 9), list(seed, 4, 6)]).unwrap())
                .collect();
            for (micros, most) in [(1, 3e-3), (2, 4e-3), (6, 7e-3)] {
                let [narrow, wide] =
                    [DType::Bf16, DType::F32].map(|dtype| gradients::<T>(device, &config, dtype, &forests[..micros]));
                let error = relative_error(&narrow, &wide);
                println!("{micros} micro-batches, tied {tied}, {} on {on}: {error:.1e}", std::any::type_name::<T>());
                assert!(error > 1e-4 && error < most, "{micros} micro-batches on {on}: {error:.2e}");
                // A row of the table that no token has is 0, tied to a head or not touched.
                let still = |all: &[f64]| all.iter().filter(|&&g| g == 0.0).count();
                assert!(still(&narrow) >= still(&wide), "{} zeros, {} in f32", still(&narrow), still(&wide));
                let stale = narrow.iter().zip(&wide).filter(|&(&n, &w)| w == 0.0 && n != 0.0).count();
                assert_eq!(stale, 0, "gradients of an earlier step on {on}");
            }
        }
    }
    check::<f32>(&native(), "host, native products");
    check::<bf16>(&native(), "host, native products");
    check::<bf16>(&fast_hopper(2), "host as a Hopper");
}
