//! Attention on Hopper's own units, under every schedule and both completion modes.

use half::bf16;
use warpo::{
    device::{Device, Fault},
    ops::{
        attention,
        attention_sm90::{Plan, Tile},
    },
};

use super::attention::{Case, DEEP, Inputs, LIST, LONG, PAIR, PLAIN, ROOT, Shape, allowance, naive};
use crate::{
    oracles::attention::{self as oracle, EXACT},
    support::{self, assert_within_rule, fast_device, fast_hopper, for_each_hopper, strict_hoppers, widen},
};

const SMALL: Case = Case { heads: 2, head_dim: 64, ..PLAIN };
const LARGE: Case = Case { heads: 2, head_dim: 128, ..PLAIN };

/// Ragged and exact tiles; tiles that are skipped, seen in part and in whole; groups of heads; window and soft cap.
const CASES: &[Case] = &[
    Case { name: "one token", trees: &[&[(ROOT, 1)]], ..SMALL },
    Case { name: "65 tokens, one key head for two", trees: &[&[(ROOT, 17)], DEEP, &[(ROOT, 20)]], ..SMALL },
    Case { name: "heads of 128", trees: &[PAIR, LIST, PAIR], ..LARGE },
    // The first tile of keys is skipped by the last queries, whole tiles lie between.
    Case {
        name: "skipped and whole",
        trees: &[DEEP, &[(ROOT, 200), (Some(0), 190), (Some(0), 75)]],
        heads: 1,
        ..SMALL
    },
    Case { name: "skipped, heads of 128", trees: &[&[(ROOT, 140)], &[(ROOT, 150)]], heads: 1, ..LARGE },
    Case { name: "a window", trees: LONG, heads: 2, window: Some(35), ..SMALL },
    Case { name: "a soft cap", trees: LONG, heads: 1, softcap: Some(1.5), ..LARGE },
];

/// `out` and `lse`, which start as NaN, so that what is not written shows.
fn run(device: &Device, inputs: &Inputs<bf16>, plan: &Plan) -> anyhow::Result<(Vec<bf16>, Vec<f32>)> {
    let Inputs { forest, dims, scale, .. } = inputs;
    let out = device.upload(&vec![bf16::NAN; dims.tokens * dims.heads * dims.head_dim])?;
    let lse = device.upload(&vec![f32::NAN; dims.heads * dims.tokens])?;
    let [ends, bounds, position] =
        [&forest.subtree_end, &forest.tile_bounds, &forest.position].map(|x| device.upload(x).unwrap());
    let qkv = device.upload(&inputs.qkv)?;
    attention::fwd_planned(device, plan, &out, &lse, &qkv, &ends, &bounds, &position, *scale, dims)?;
    Ok((device.download(&out)?, device.download(&lse)?))
}

fn check(device: &Device, on: &str, case: &Case, inputs: &Inputs<bf16>, plan: &Plan) {
    let (qkv, scale) = (widen(&inputs.qkv), f64::from(inputs.scale));
    let (want, want_lse) = oracle::fwd(&qkv, &inputs.forest, scale, &inputs.dims, &EXACT);
    let (rounded, rounded_lse) = oracle::fwd(&qkv, &inputs.forest, scale, &inputs.dims, &naive::<bf16>());
    let what = format!("{} {plan:?} on {on}", case.name);
    let (out, lse) = run(device, inputs, plan).unwrap_or_else(|why| panic!("{what}: {why:#}"));
    assert_within_rule(&format!("{what}: out"), &widen(&out), &want, &rounded, allowance(&want));
    assert_within_rule(&format!("{what}: lse"), &widen(&lse), &want_lse, &rounded_lse, allowance(&want_lse));
}

#[test]
fn every_tile_and_head_size() {
    for_each_hopper(|device, on| {
        for case in CASES {
            let inputs = Inputs::new(case);
            for tile in Tile::ALL {
                check(device, on, case, &inputs, &Plan::with_tile(&inputs.dims, tile));
            }
        }
    });
}

#[test]
fn rings_of_every_depth() {
    for_each_hopper(|device, on| {
        for stages in [1, 2, 3] {
            for tiles in [1, stages - 1, stages, stages + 1, 3 * stages + 1].into_iter().filter(|&tiles| tiles > 0) {
                // Whole and partial tiles of one document, which the last queries see all of.
                let shape: Shape = Vec::leak(vec![(ROOT, 64 * tiles - 7)]);
                let trees: &'static [Shape] = Vec::leak(vec![shape]);
                let case = Case { name: "a document", trees, heads: 1, ..SMALL };
                let inputs = Inputs::new(&case);
                let plan = Plan { stages, ..Plan::with_tile(&inputs.dims, Tile::Q64K64) };
                check(device, on, &case, &inputs, &plan);
            }
        }
    });
}

#[test]
fn depths_and_schedules_change_no_bit() {
    let inputs = Inputs::new(&CASES[3]);
    for tile in Tile::ALL {
        let plan = Plan::with_tile(&inputs.dims, tile);
        let want = run(&fast_hopper(1), &inputs, &plan).unwrap();
        for stages in [1, 2] {
            for (device, on) in strict_hoppers() {
                assert!(run(&device, &inputs, &Plan { stages, ..plan }).unwrap() == want, "{stages} slots on {on}");
            }
        }
    }
}

#[test]
fn every_fault_is_caught() {
    let inputs = Inputs::new(&CASES[3]);
    let plan = Plan { stages: 2, ..Plan::with_tile(&inputs.dims, Tile::Q64K64) };
    let want = run(&strict_hoppers()[0].0, &inputs, &plan).unwrap();
    // A panel of the outbox is written once: there is no store that it would have to wait for.
    let faults = Fault::ALL.into_iter().filter(|&fault| fault != Fault::NoStoreWait).collect::<Vec<_>>();
    support::every_fault_is_caught(&faults, |device| Ok(run(device, &inputs, &plan)? == want));
}

#[test]
fn the_tile_follows_the_grid() {
    let dims = Inputs::<bf16>::new(&Case { trees: &[&[(ROOT, 300)]], ..SMALL }).dims;
    assert_eq!(Plan::choose(&dims, 4).tile, Tile::Q128K128);
    assert_eq!(Plan::choose(&dims, 132).tile, Tile::Q64K64);
    let slots = |head_dim| Tile::ALL.map(|tile| Plan::with_tile(&attention::Dims { head_dim, ..dims }, tile).stages);
    assert_eq!((slots(64), slots(128)), ([5, 5], [2, 2]));
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let inputs = Inputs::new(&CASES[2]);
    for stages in [0, 3] {
        let plan = Plan { stages, ..Plan::with_tile(&inputs.dims, Tile::Q128K128) };
        let why = run(&fast_hopper(1), &inputs, &plan).unwrap_err().to_string();
        assert!(why.ends_with("1 to 2 slots fit shared memory"), "{why}");
    }
}

#[test]
fn other_head_sizes_go_the_portable_way() {
    let inputs = Inputs::<bf16>::new(&Case { trees: LONG, heads: 2, ..PLAIN });
    assert!(inputs.run(&fast_hopper(1)) == inputs.run(&fast_device(1)));
}
