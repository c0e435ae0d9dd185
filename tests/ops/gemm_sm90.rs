//! Products on Hopper's own units, under every schedule and both completion modes.

use half::bf16;
use warpo::{
    device::{Device, Fault, Float},
    ops::{
        gemm::sm90::{Plan, Tile},
        gemm::{self, Epilogue, Gemm},
    },
};

use super::gemm::{Case, ORDERS};
use crate::{
    oracles,
    support::{self, cast, fast_device, fast_hopper, for_each_hopper, normal, roundoff, strict_hoppers, widen},
};

/// Rows on multiples of 16 bytes, further apart than packed ones; NaN between them.
fn padded<O: Float>(gemm: Gemm) -> Gemm {
    let [lda, ldb] = [gemm.lda, gemm.ldb].map(|ld| ld.next_multiple_of(8) + 8);
    Gemm { lda, ldb, ldd: gemm.n.next_multiple_of(8) + 16 / size_of::<O>(), ..gemm }
}

fn check<O: Float>(device: &Device, on: &str, gemm: Gemm, plan: &Plan) {
    let case = Case::<bf16, O>::new(padded::<O>(gemm));
    let d = case.by(device, |d, a, b| gemm::run_planned(device, plan, &case.gemm, d, a, b, &Epilogue::NONE));
    let d = d.unwrap_or_else(|why| panic!("{:?} {plan:?} on {on}: {why:#}", case.gemm));
    case.compare(&widen(&d), &format!("{on} {plan:?}"));
}

/// (m, n, k) for a tile: ragged on all sides, less than a tile, more tiles than the grid of 2 clusters walks at once.
fn shapes(tile: Tile) -> [(usize, usize, usize); 3] {
    let [rows, columns] = tile.sides();
    [(9, 24, 40), (2 * rows + 3, columns + 10, 64), (4 * rows + 70, 2 * columns + 66, 72)]
}

#[test]
fn every_tile_in_every_order() {
    for_each_hopper(|device, on| {
        for (i, tile) in Tile::ALL.into_iter().enumerate() {
            for (j, order) in ORDERS.iter().enumerate() {
                let (m, n, k) = shapes(tile)[(i + j) % 3];
                let plain = order(m, n, k);
                let added = plain.accumulating();
                // Each of the four kinds of result with half of the orders of a tile, to keep strict runs short.
                let (narrow, wide) = if (i + j) % 2 == 1 { (added, plain) } else { (plain, added) };
                check::<bf16>(device, on, narrow, &Plan::with_tile(&narrow, tile, 4));
                check::<f32>(device, on, wide, &Plan::with_tile(&wide, tile, 4));
            }
        }
    });
}

fn split(gemm: &Gemm, tile: Tile, whole: usize, splits: usize) -> Plan {
    Plan { clusters: 2, whole, splits, ..Plan::with_tile(gemm, tile, 4) }
}

#[test]
fn sums_of_gradients_are_split_along_k() {
    for_each_hopper(|device, on| {
        for (i, tile) in Tile::ALL.into_iter().enumerate() {
            // Three pairs of tiles by two, ragged on all sides; parts of different lengths; none, some and all but one split.
            let [rows, columns] = tile.sides();
            let (m, n) = (4 * rows + 70, columns + 34);
            for (whole, splits, k) in
                [(0, 2, 130), (2, 5, 64 * 7 - 8), (5, 3, 64 * 3)].into_iter().skip(i % 2).step_by(2)
            {
                let gemm = Gemm::tn(m, n, k);
                let gemm = if whole == 2 { gemm } else { gemm.accumulating() };
                let case = Case::<bf16, f32>::new(padded::<f32>(gemm));
                let plan = split(&case.gemm, tile, whole, splits);
                // NaN wherever nothing was written.
                let workspace = device.upload(&vec![f32::NAN; plan.workspace(&case.gemm)]).unwrap();
                let d =
                    case.by(device, |d, a, b| gemm::run_split_planned(device, &plan, &case.gemm, d, a, b, &workspace));
                let d = d.unwrap_or_else(|why| panic!("{:?} {plan:?} on {on}: {why:#}", case.gemm));
                case.compare(&widen(&d), &format!("{on} {plan:?}"));
            }
        }
    });
}

#[test]
fn parts_run_through_rings_of_every_depth() {
    for_each_hopper(|device, on| {
        for stages in [1, 2, 4] {
            // A whole sum and six parts of three more pairs of tiles for two clusters: rings run on from one to the next.
            for blocks in [1, stages - 1, stages, stages + 1, 3 * stages + 1].into_iter().filter(|&blocks| blocks > 0) {
                let gemm = Gemm::tn(264, 136, 64 * 2 * blocks - 24).accumulating();
                let case = Case::<bf16, f32>::new(padded::<f32>(gemm));
                let plan = Plan { stages, ..split(&case.gemm, Tile::M128N128, 1, 2) };
                let workspace = device.upload(&vec![f32::NAN; plan.workspace(&case.gemm)]).unwrap();
                let d = case
                    .by(device, |d, a, b| gemm::run_split_planned(device, &plan, &case.gemm, d, a, b, &workspace))
                    .unwrap_or_else(|why| panic!("{:?} {plan:?} on {on}: {why:#}", case.gemm));
                case.compare(&widen(&d), &format!("{on} {plan:?}"));
            }
        }
    });
}

#[test]
fn every_fault_of_a_split_is_caught() {
    let gemm = Gemm::tn(264, 136, 5 * 64);
    let case = Case::<bf16, f32>::new(gemm);
    let plan = Plan { stages: 2, ..split(&gemm, Tile::M128N128, 1, 2) };
    let run = |device: &Device| {
        let workspace = device.upload(&vec![f32::NAN; plan.workspace(&gemm)]).unwrap();
        case.by(device, |d, a, b| gemm::run_split_planned(device, &plan, &gemm, d, a, b, &workspace))
    };
    let want = run(&strict_hoppers()[0].0).unwrap();
    support::every_fault_is_caught(&Fault::ALL, |device| Ok(run(device)? == want));
}

#[test]
fn only_what_leaves_multiprocessors_idle_is_split() {
    let by = |m, n, workspace| {
        let plan = Plan::choose_split(&Gemm::tn(m, n, 16384), 132, workspace);
        (plan.tile, plan.whole, plan.splits)
    };
    // 80 pairs of tiles by 66 clusters: the second wave is 14 of them, each in four parts.
    assert_eq!(by(2560, 2048, usize::MAX), (Tile::M128N256, 66, 4));
    // 12 pairs: no whole wave.
    assert_eq!(by(768, 768, usize::MAX), (Tile::M128N192, 0, 5));
    // Nothing is split that fills its waves, nor what does not fit.
    for (m, n) in [(2048, 2048), (2048, 8192), (16384, 2048), (6144, 4096), (2304, 768)] {
        let gemm = Gemm::tn(m, n, 16384);
        assert_eq!(Plan::choose_split(&gemm, 132, usize::MAX), Plan::choose(&gemm, 132));
    }
    let gemm = Gemm::tn(768, 768, 16384);
    assert_eq!(Plan::choose_split(&gemm, 132, 0), Plan::choose(&gemm, 132));
    let needs = Plan::choose_split(&gemm, 132, usize::MAX).workspace(&gemm);
    let less = Plan::choose_split(&gemm, 132, needs - 1);
    assert!(less.splits > 1 && less.workspace(&gemm) < needs, "{less:?}");
}

#[test]
fn splits_that_cannot_be_made_are_refused() {
    let device = fast_hopper(1);
    let gemm = Gemm::tn(304, 136, 320);
    let case = Case::<bf16, f32>::new(gemm);
    let workspace = device.zeros(8 * 256 * 128).unwrap();
    let refused = |plan: Plan| {
        case.by(&device, |d, a, b| gemm::run_split_planned(&device, &plan, &gemm, d, a, b, &workspace))
            .unwrap_err()
            .to_string()
    };
    let plan = |whole, splits| split(&gemm, Tile::M128N128, whole, splits);
    assert!(refused(plan(4, 2)).ends_with("of 4 pairs of tiles and 5 blocks of k"));
    assert!(refused(plan(0, 6)).ends_with("of 4 pairs of tiles and 5 blocks of k"));
    assert!(refused(plan(2, 1)).ends_with("4 pairs of tiles and no split"));
    assert!(refused(plan(1, 3)).ends_with("a workspace of 294912 elements, found 262144"));
    let narrow = Case::<bf16, bf16>::new(gemm);
    let why = narrow.by(&device, |d, a, b| gemm::run_planned(&device, &plan(2, 2), &gemm, d, a, b, &Epilogue::NONE));
    assert!(why.unwrap_err().to_string().ends_with("only gradients of weights are split"));
}

#[test]
fn rings_of_every_depth() {
    for_each_hopper(|device, on| {
        for stages in [1, 2, 4] {
            for blocks in [1, stages - 1, stages, stages + 1, 3 * stages + 1].into_iter().filter(|&blocks| blocks > 0) {
                // Three pairs of tiles for two clusters: one walks two, and its ring runs on from one to the next.
                let gemm = Gemm::nt(260, 136, 64 * blocks - 24);
                let plan = Plan { stages, ..Plan::with_tile(&gemm, Tile::M128N128, 4) };
                check::<bf16>(device, on, gemm, &plan);
            }
        }
    });
}

#[test]
fn a_bias_and_an_addend_are_rounded_once() {
    let (m, n, k) = (150, 138, 70);
    let pitch = 152;
    let gemm = Gemm { lda: 72, ldb: 72, ldd: pitch, ..Gemm::nt(m, n, k) };
    let [a, b, bias, addend] = [m * 72, n * 72, n, m * pitch].map(|len| cast::<bf16>(&normal(len as u64, len)));
    let (sums, magnitudes) = oracles::gemm::run(&gemm, &widen(&a), &widen(&b));
    for_each_hopper(|device, on| {
        let [a, b, bias_buffer, addend_buffer] = [&a, &b, &bias, &addend].map(|x| device.upload(x).unwrap());
        let d = device.upload(&vec![bf16::from_f32(7.0); m * pitch]).unwrap();
        for (bias_on, addend_on) in [(true, false), (false, true), (true, true)] {
            let extras =
                Epilogue { bias: bias_on.then_some(&bias_buffer), addend: addend_on.then_some(&addend_buffer) };
            gemm::run_adding(device, &gemm, &d, &a, &b, &extras).unwrap_or_else(|why| panic!("on {on}: {why:#}"));
            for (at, &got) in widen(&device.download(&d).unwrap()).iter().enumerate() {
                let (row, column) = (at / pitch, at % pitch);
                if column >= n {
                    // Bulk stores end with whole 16 bytes.
                    assert!(column < 144 || got == 7.0, "on {on}: padding was overwritten at ({row}, {column})");
                    continue;
                }
                let added = [(bias_on, bias[column]), (addend_on, addend[at])];
                let terms = added.map(|(on, x)| if on { f64::from(x.to_f32()) } else { 0.0 });
                let want = sums[row * n + column] + terms[0] + terms[1];
                // k products and k + 2 additions in f32, then one rounding to bf16.
                let magnitude = magnitudes[row * n + column] + terms[0].abs() + terms[1].abs();
                let sum_error = (k + 2) as f64 * 2.0 * roundoff::<f32>() * magnitude;
                let limit = sum_error + roundoff::<bf16>() * (want.abs() + sum_error);
                assert!((got - want).abs() <= limit, "on {on}: ({row}, {column}): {got} instead of {want}");
            }
        }
    });
}

#[test]
fn every_fault_is_caught() {
    let gemm = Gemm::nt(260, 136, 5 * 64);
    let case = Case::<bf16, bf16>::new(gemm);
    let plan = Plan { stages: 2, ..Plan::with_tile(&gemm, Tile::M128N128, 4) };
    let run =
        |device: &Device| case.by(device, |d, a, b| gemm::run_planned(device, &plan, &gemm, d, a, b, &Epilogue::NONE));
    let want = run(&strict_hoppers()[0].0).unwrap();
    support::every_fault_is_caught(&Fault::ALL, |device| Ok(run(device)? == want));
}

#[test]
fn both_paths_give_the_same_sums() {
    // Whole numbers: every order of addition is exact.
    let numbers = |seed: usize, len: usize| -> Vec<bf16> {
        (0..len).map(|i| bf16::from_f32(((i * 31 + i / 7 + seed * 5) % 15) as f32 - 7.0)).collect()
    };
    for gemm in ORDERS.map(|order| order(200, 264, 136)) {
        let [a, b] = [numbers(1, 200 * 136), numbers(2, 264 * 136)];
        let by = |device: &Device| {
            let d = device.zeros::<f32>(200 * 264).unwrap();
            gemm::run(device, &gemm, &d, &device.upload(&a).unwrap(), &device.upload(&b).unwrap()).unwrap();
            device.download(&d).unwrap()
        };
        assert!(by(&fast_hopper(2)) == by(&fast_device(2)), "{gemm:?}");
    }
}

#[test]
fn a_split_gradient_is_the_same_sum() {
    // Whole numbers up to 7: 49 * 2049 is exact in f32, in any order.
    let (m, n, k) = (520, 136, 2048);
    let numbers = |seed: usize, len: usize| -> Vec<bf16> {
        (0..len).map(|i| bf16::from_f32(((i * 31 + i / 7 + seed * 5) % 15) as f32 - 7.0)).collect()
    };
    let [a, b] = [numbers(1, k * m), numbers(2, k * n)];
    let gemm = Gemm::tn(m, n, k).accumulating();
    let by = |device: &Device, workspace: usize| {
        let d = device.upload(&vec![3f32; m * n]).unwrap();
        let [a, b] = [&a, &b].map(|x| device.upload(x).unwrap());
        gemm::run_split(device, &gemm, &d, &a, &b, &device.zeros(workspace).unwrap()).unwrap();
        device.download(&d).unwrap()
    };
    let hopper = fast_hopper(2);
    let needs = gemm::split_workspace::<bf16>(&hopper, &gemm);
    assert!(needs > 0, "the third pair of tiles is split");
    let whole = by(&hopper, 0);
    assert!(by(&hopper, needs) == whole);
    assert!(by(&fast_device(2), needs) == whole);
    assert_eq!(gemm::split_workspace::<bf16>(&fast_device(2), &gemm), 0);
}

#[test]
fn what_bulk_stores_cannot_write_goes_the_portable_way() {
    let device = fast_hopper(1);
    // Rows of D at odd addresses; and an odd row to which is added.
    for gemm in [Gemm { ldd: 29, ..Gemm::nt(20, 24, 16) }, Gemm { ldd: 32, ..Gemm::nt(20, 23, 16) }.accumulating()] {
        let case = Case::<bf16, bf16>::new(gemm);
        let d = case.by(&device, |d, a, b| gemm::run(&device, &gemm, d, a, b)).unwrap();
        case.compare(&widen(&d), "host");
        let plan = Plan::choose(&gemm, 4);
        let why = case.by(&device, |d, a, b| gemm::run_planned(&device, &plan, &gemm, d, a, b, &Epilogue::NONE));
        assert!(why.unwrap_err().to_string().ends_with("D cannot be written in bulk"));
    }
}

#[test]
fn the_tile_follows_the_waves() {
    let tile = |gemm: Gemm| Plan::choose(&gemm, 132).tile;
    // Many tiles: the one that moves the fewest bytes.
    assert_eq!(tile(Gemm::nt(16384, 16384, 2048)), Tile::M128N256);
    // 192 tiles of 128 x 256 on 132 SMs are two waves, the second half empty; 256 of 128 x 192 are two full ones.
    assert_eq!(tile(Gemm::tn(3072, 2048, 16384)), Tile::M128N192);
    assert_eq!(tile(Gemm::tn(2048, 1536, 16384)), Tile::M128N192);
    // 576 columns are three tiles of 192.
    assert_eq!(tile(Gemm::nt(16384, 576, 576)), Tile::M128N192);
    // Never more clusters than pairs of tiles.
    assert_eq!(Plan::choose(&Gemm::nt(100, 100, 64), 132).clusters, 1);
    let slots = Tile::ALL.map(|tile| Plan::with_tile(&Gemm::nt(512, 512, 512), tile, 132).stages);
    assert_eq!(slots, [4, 4, 4, 6]);
}

#[test]
fn a_plan_that_does_not_fit_is_refused() {
    let device = fast_hopper(1);
    let gemm = Gemm::nt(16, 16, 16);
    let case = Case::<bf16, f32>::new(gemm);
    for stages in [0, 5] {
        let plan = Plan { stages, ..Plan::with_tile(&gemm, Tile::M128N256, 4) };
        let why = case.by(&device, |d, a, b| gemm::run_planned(&device, &plan, &gemm, d, a, b, &Epilogue::NONE));
        assert!(why.unwrap_err().to_string().ends_with("1 to 4 slots fit shared memory"));
    }
}
