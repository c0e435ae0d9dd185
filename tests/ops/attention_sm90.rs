//! Attention on Hopper's own units, under every schedule and both completion modes.

use half::bf16;
use warpo::{
    device::{Device, Fault},
    ops::{
        attention::sm90::{Plan, Tile},
        attention::{self, Pass},
        rope::Rotary,
    },
};

use super::attention::{Case, DEEP, Inputs, LIST, LONG, PAIR, PLAIN, ROOT, Shape, allowance, judge_parts, naive};
use super::rope;
use crate::{
    oracles::{
        self,
        attention::{self as oracle, EXACT},
    },
    support::{self, assert_within_rule, fast_device, fast_hopper, for_each_hopper, round_to, strict_hoppers, widen},
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
    let Inputs { dims, scale, .. } = inputs;
    let out = device.upload(&vec![bf16::NAN; dims.tokens * dims.heads * dims.head_dim])?;
    let lse = device.upload(&vec![f32::NAN; dims.heads * dims.tokens])?;
    let (mask, qkv) = (inputs.mask(device), device.upload(&inputs.qkv)?);
    attention::fwd_planned(device, plan, &out, &lse, &qkv, &mask, *scale, dims)?;
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

/// `dqkv` from the plans of [`Pass::Dkdv`] and [`Pass::Dq`]; it starts as NaN.
fn run_bwd(device: &Device, inputs: &Inputs<bf16>, plans: &[Plan; 2]) -> anyhow::Result<Vec<bf16>> {
    run_turned(device, inputs, plans, None)
}

/// The same with gradients that turn back by `tables` of cosines and sines.
fn run_turned(
    device: &Device,
    inputs: &Inputs<bf16>,
    plans: &[Plan; 2],
    tables: Option<&[Vec<f32>; 2]>,
) -> anyhow::Result<Vec<bf16>> {
    let rotary = tables.map(|tables| tables.each_ref().map(|table| device.upload(table).unwrap()));
    let rotary = rotary.map(|[cos, sin]| Rotary { cos, sin });
    let Inputs { dims, scale, .. } = inputs;
    let out = device.upload(&vec![bf16::NAN; inputs.dout.len()])?;
    let lse = device.upload(&vec![f32::NAN; dims.heads * dims.tokens])?;
    let delta = device.upload(&vec![f32::NAN; dims.heads * dims.tokens])?;
    let dqkv = device.upload(&vec![bf16::NAN; inputs.qkv.len()])?;
    let (mask, qkv, dout) = (inputs.mask(device), device.upload(&inputs.qkv)?, device.upload(&inputs.dout)?);
    let fwd = Plan::with_tile(Pass::Fwd, dims, Tile::Rows64);
    attention::fwd_planned(device, &fwd, &out, &lse, &qkv, &mask, *scale, dims)?;
    attention::bwd_planned(
        device,
        plans,
        &dqkv,
        &delta,
        &dout,
        &out,
        &lse,
        &qkv,
        &mask,
        rotary.as_ref(),
        *scale,
        dims,
    )?;
    device.download(&dqkv)
}

/// Plans of the backward pass for each choice of tiles.
fn backward_plans(inputs: &Inputs<bf16>) -> Vec<[Plan; 2]> {
    let dims = &inputs.dims;
    let by_query = Tile::all(Pass::Dq, dims.head_dim);
    let by_key = Tile::all(Pass::Dkdv, dims.head_dim).iter().cycle();
    by_key
        .zip(by_query)
        .map(|(k, q)| [Plan::with_tile(Pass::Dkdv, dims, *k), Plan::with_tile(Pass::Dq, dims, *q)])
        .collect()
}

fn check_bwd(device: &Device, on: &str, case: &Case, inputs: &Inputs<bf16>, plans: &[Plan; 2]) {
    let (qkv, dout, scale) = (widen(&inputs.qkv), widen(&inputs.dout), f64::from(inputs.scale));
    let want = oracle::bwd(&dout, &qkv, &inputs.forest, scale, &inputs.dims, &EXACT);
    let rounded = oracle::bwd(&dout, &qkv, &inputs.forest, scale, &inputs.dims, &naive::<bf16>());
    let what = format!("{} {plans:?} on {on}", case.name);
    let dqkv = run_bwd(device, inputs, plans).unwrap_or_else(|why| panic!("{what}: {why:#}"));
    judge_parts(&what, inputs, &widen(&dqkv), &want, &rounded);
}

/// Queries and keys had been turned by their positions: their gradients turn back, in f32 before they are rounded.
#[test]
fn gradients_turn_back() {
    for_each_hopper(|device, on| {
        for case in [&CASES[1], &CASES[2]] {
            let inputs = Inputs::<bf16>::new(case);
            let attention::Dims { heads, kv_heads, head_dim, tokens, .. } = inputs.dims;
            let tables = rope::tables(tokens, head_dim);
            let [cos, sin] = tables.each_ref().map(|table| widen(table));
            let turn = |d: &[f64]| {
                oracles::rope::apply(d, &inputs.forest.position, &cos, &sin, -1.0, heads, kv_heads, head_dim)
            };
            let (qkv, dout, scale) = (widen(&inputs.qkv), widen(&inputs.dout), f64::from(inputs.scale));
            let bwd = |rounding| oracle::bwd(&dout, &qkv, &inputs.forest, scale, &inputs.dims, rounding);
            let (want, rounded) = (turn(&bwd(&EXACT)), round_to::<bf16>(&turn(&bwd(&naive::<bf16>()))));
            for plans in backward_plans(&inputs) {
                let got = run_turned(device, &inputs, &plans, Some(&tables)).unwrap();
                judge_parts(
                    &format!("{} turned, {plans:?} on {on}", case.name),
                    &inputs,
                    &widen(&got),
                    &want,
                    &rounded,
                );
            }
        }
    });
}

#[test]
fn every_tile_and_head_size() {
    for_each_hopper(|device, on| {
        for case in CASES {
            let inputs = Inputs::new(case);
            for &tile in Tile::all(Pass::Fwd, case.head_dim) {
                check(device, on, case, &inputs, &Plan::with_tile(Pass::Fwd, &inputs.dims, tile));
            }
        }
    });
}

#[test]
fn every_tile_and_head_size_bwd() {
    for_each_hopper(|device, on| {
        for case in CASES {
            let inputs = Inputs::new(case);
            for plans in backward_plans(&inputs) {
                check_bwd(device, on, case, &inputs, &plans);
            }
        }
    });
}

/// A document of so many tiles of 64, the last one ragged, which the last queries see all of.
fn document(tiles: usize) -> Case {
    let shape: Shape = Vec::leak(vec![(ROOT, 64 * tiles - 7)]);
    Case { name: "a document", trees: Vec::leak(vec![shape]), heads: 1, ..SMALL }
}

/// Slots, and tiles to pass through them.
fn depths() -> impl Iterator<Item = (usize, usize)> {
    [1, 2, 3].into_iter().flat_map(|stages: usize| {
        [1, stages - 1, stages, stages + 1, 3 * stages + 1]
            .into_iter()
            .filter(|&tiles| tiles > 0)
            .map(move |t| (stages, t))
    })
}

#[test]
fn rings_of_every_depth() {
    for_each_hopper(|device, on| {
        for (stages, tiles) in depths() {
            let case = document(tiles);
            let inputs = Inputs::new(&case);
            let plan = Plan { stages, ..Plan::with_tile(Pass::Fwd, &inputs.dims, Tile::Rows64) };
            check(device, on, &case, &inputs, &plan);
        }
    });
}

#[test]
fn rings_of_every_depth_bwd() {
    for_each_hopper(|device, on| {
        for (stages, tiles) in depths() {
            let case = document(tiles);
            let inputs = Inputs::new(&case);
            let plan = |pass| Plan { stages, ..Plan::with_tile(pass, &inputs.dims, Tile::Rows64) };
            check_bwd(device, on, &case, &inputs, &[plan(Pass::Dkdv), plan(Pass::Dq)]);
        }
    });
}

#[test]
fn depths_and_schedules_change_no_bit() {
    let inputs = Inputs::new(&CASES[3]);
    for &tile in Tile::all(Pass::Fwd, 64) {
        let plan = Plan::with_tile(Pass::Fwd, &inputs.dims, tile);
        let want = run(&fast_hopper(1), &inputs, &plan).unwrap();
        for stages in [1, 2] {
            for (device, on) in strict_hoppers() {
                assert!(run(&device, &inputs, &Plan { stages, ..plan }).unwrap() == want, "{stages} slots on {on}");
            }
        }
    }
}

#[test]
fn depths_and_schedules_change_no_bit_bwd() {
    let inputs = Inputs::new(&CASES[3]);
    for plans in backward_plans(&inputs) {
        let want = run_bwd(&fast_hopper(1), &inputs, &plans).unwrap();
        for stages in [1, 2] {
            let plans = plans.map(|plan| Plan { stages, ..plan });
            for (device, on) in strict_hoppers() {
                assert!(run_bwd(&device, &inputs, &plans).unwrap() == want, "{stages} slots on {on}");
            }
        }
    }
}

#[test]
fn every_fault_is_caught() {
    let inputs = Inputs::new(&CASES[3]);
    let plan = Plan { stages: 2, ..Plan::with_tile(Pass::Fwd, &inputs.dims, Tile::Rows64) };
    let want = run(&strict_hoppers()[0].0, &inputs, &plan).unwrap();
    // A panel of the outbox is written once: there is no store that it would have to wait for.
    let faults = Fault::ALL.into_iter().filter(|&fault| fault != Fault::NoStoreWait).collect::<Vec<_>>();
    support::every_fault_is_caught(&faults, |device| Ok(run(device, &inputs, &plan)? == want));
}

/// Heads of 128: the gradients of the values leave through the panels that those of the keys left through.
#[test]
fn every_fault_is_caught_bwd() {
    let inputs = Inputs::new(&CASES[4]);
    let plans = backward_plans(&inputs)[1].map(|plan| Plan { stages: 1, ..plan });
    let want = run_bwd(&strict_hoppers()[0].0, &inputs, &plans).unwrap();
    support::every_fault_is_caught(&Fault::ALL, |device| Ok(run_bwd(device, &inputs, &plans)? == want));
}

#[test]
fn the_tile_follows_keys_and_grid() {
    let dims = Inputs::<bf16>::new(&Case { trees: &[&[(ROOT, 300)]], ..SMALL }).dims;
    let with = |dims: attention::Dims, pass, keys, sms| Plan::choose(pass, &dims, keys, sms).tile;
    let tile = |pass, head_dim, keys, sms| with(attention::Dims { head_dim, ..dims }, pass, keys, sms);
    // Two heads, three tiles of queries.
    assert_eq!([6, 7].map(|sms| tile(Pass::Fwd, 64, 1025, sms)), [Tile::Rows128, Tile::Rows64]);
    assert_eq!([641, 640].map(|keys| tile(Pass::Dq, 128, keys, 4)), [Tile::Rows128, Tile::Rows64]);
    let windowed = attention::Dims { window: Some(512), ..dims };
    assert_eq!(with(windowed, Pass::Fwd, 1025, 4), Tile::Rows64);
    assert_eq!([64, 128].map(|head_dim| tile(Pass::Dkdv, head_dim, 1025, 1)), [Tile::Rows64, Tile::Rows128]);
    let slots = |pass, head_dim| {
        let dims = attention::Dims { head_dim, ..dims };
        Tile::all(pass, head_dim).iter().map(|&tile| Plan::with_tile(pass, &dims, tile).stages).collect::<Vec<_>>()
    };
    assert_eq!((slots(Pass::Fwd, 64), slots(Pass::Fwd, 128)), (vec![5, 5], vec![2, 2]));
    assert_eq!((slots(Pass::Dkdv, 64), slots(Pass::Dkdv, 128)), (vec![8, 4], vec![4]));
    assert_eq!((slots(Pass::Dq, 64), slots(Pass::Dq, 128)), (vec![4, 4], vec![2, 2]));
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let inputs = Inputs::new(&CASES[2]);
    let device = fast_hopper(1);
    for stages in [0, 3] {
        let plan = Plan { stages, ..Plan::with_tile(Pass::Fwd, &inputs.dims, Tile::Rows128) };
        let why = run(&device, &inputs, &plan).unwrap_err().to_string();
        assert!(why.ends_with("1 to 2 slots fit shared memory"), "{why}");
    }
    let [by_key, by_query] = backward_plans(&inputs)[0];
    let refusal = |plans| run_bwd(&device, &inputs, &plans).unwrap_err().to_string();
    assert!(refusal([by_query, by_query]).ends_with("expected a plan of Dkdv"));
    assert!(refusal([Plan { tile: Tile::Rows64, ..by_key }, by_query]).ends_with("heads of 128 have [Rows128]"));
}

#[test]
fn other_head_sizes_go_the_portable_way() {
    let inputs = Inputs::<bf16>::new(&Case { trees: LONG, heads: 2, ..PLAIN });
    assert!(inputs.run(&fast_hopper(1)) == inputs.run(&fast_device(1)));
}
