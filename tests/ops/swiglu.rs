use half::bf16;
use warpo::{
    device::{Device, Fault, Float},
    ops::{
        gemm::sm90::{Plan, Tile},
        gemm::{self, Gemm},
        swiglu,
    },
};

use crate::{
    oracles,
    support::{
        assert_within_rule, cast, every_fault_is_caught, for_each_device, for_each_hopper, max_abs, normal, round_to,
        roundoff, strict_hoppers, type_name, widen,
    },
};

/// (rows, ffn): one row, ragged, exact chunks, more than one CTA.
const SHAPES: &[(usize, usize)] = &[(1, 8), (1, 3), (3, 40), (5, 33), (8, 128), (67, 24)];

/// exp to 2 ulp (4 roundoffs), sum, quotient and two products, relative to the result.
const FWD_ROUNDOFFS: f64 = 8.0;
/// Six in the sigmoid, six operations more, on values of at most dy * up or dy * gate; where s is near 1 the relative
/// error of 1 - s grows, but as an absolute one it is that of s, and the factor g it meets is at most 5.
const BWD_ROUNDOFFS: f64 = 12.0 + 5.0 * 6.0;

#[test]
fn fwd_f32() {
    for_each_device(fwd::<f32>);
}

#[test]
fn fwd_bf16() {
    for_each_device(fwd::<bf16>);
}

#[test]
fn bwd_f32() {
    for_each_device(bwd::<f32>);
}

#[test]
fn bwd_bf16() {
    for_each_device(bwd::<bf16>);
}

fn fwd<T: Float>(device: &Device, on: &str) {
    for &(rows, ffn) in SHAPES {
        let gate_up: Vec<T> = cast(&normal(1, rows * 2 * ffn));
        let want = oracles::swiglu::fwd(&widen(&gate_up), ffn);
        let y = device.alloc::<T>(rows * ffn).unwrap();
        swiglu::fwd(device, &y, &device.upload(&gate_up).unwrap(), rows, ffn).unwrap();

        let what = format!("swiglu fwd {} {rows}x{ffn} on {on}", type_name::<T>());
        let allowance = FWD_ROUNDOFFS * roundoff::<f32>() * max_abs(&want);
        assert_within_rule(&what, &widen(&device.download(&y).unwrap()), &want, &round_to::<T>(&want), allowance);
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &(rows, ffn) in SHAPES {
        let gate_up: Vec<T> = cast(&normal(1, rows * 2 * ffn));
        let dy: Vec<T> = cast(&normal(2, rows * ffn));
        let want = oracles::swiglu::bwd(&widen(&dy), &widen(&gate_up), ffn);
        // In place: each thread has read what it overwrites.
        let (dgate_up, y) = (device.upload(&gate_up).unwrap(), device.upload(&dy).unwrap());
        swiglu::bwd(device, &dgate_up, &y, &y, &dgate_up, rows, ffn).unwrap();

        let what = format!("swiglu bwd {} {rows}x{ffn} on {on}", type_name::<T>());
        let allowance = BWD_ROUNDOFFS * roundoff::<f32>() * max_abs(&widen(&dy)) * max_abs(&widen(&gate_up));
        let got = widen(&device.download(&dgate_up).unwrap());
        assert_within_rule(&what, &got, &want, &round_to::<T>(&want), allowance);
        let forward = device.alloc::<T>(rows * ffn).unwrap();
        swiglu::fwd(device, &forward, &device.upload(&gate_up).unwrap(), rows, ffn).unwrap();
        let [again, forward] = [y, forward].map(|y| device.download(&y).unwrap());
        assert!(again == forward, "{what}: y is not that of the forward pass");
    }
}

/// Far in both tails exp overflows or vanishes, and the results are the limits.
#[test]
fn gates_far_in_the_tails() {
    for_each_device(|device, on| {
        let gate_up: Vec<f32> = vec![-200.0, -100.0, 100.0, 200.0, 3.0, 3.0, 3.0, 3.0];
        let y = device.alloc::<f32>(4).unwrap();
        let gate_up = device.upload(&gate_up).unwrap();
        swiglu::fwd(device, &y, &gate_up, 1, 4).unwrap();
        assert_eq!(device.download(&y).unwrap(), [0.0, 0.0, 300.0, 600.0], "y on {on}");
        swiglu::bwd(device, &gate_up, &y, &device.upload(&[2.0f32; 4]).unwrap(), &gate_up, 1, 4).unwrap();
        let dgate_up = device.download(&gate_up).unwrap();
        assert_eq!(dgate_up, [0.0, 0.0, 6.0, 6.0, 0.0, 0.0, 200.0, 400.0], "dgate_up on {on}");
    });
}

/// (rows, ffn, hidden): ragged; tiles exact in the gate's columns; more tiles than the grid walks at once.
const PROJECT_SHAPES: &[(usize, usize, usize)] = &[(9, 40, 24), (130, 128, 64), (520, 264, 72)];

/// The product and the activation in one kernel have the bits of one after the other: the product is gemm_sm90's, whose
/// sums the same tile forms in the same order, and y is computed from its rounded values.
#[test]
fn the_product_and_the_activation_in_one_kernel() {
    for_each_hopper(|device, on| {
        for &(rows, ffn, hidden) in PROJECT_SHAPES {
            let x: Vec<bf16> = cast(&normal(1, rows * hidden));
            let w: Vec<bf16> = cast(&normal(2, 2 * ffn * hidden));
            let [x, w] = [&x, &w].map(|x| device.upload(x).unwrap());
            let alloc = |len: usize| device.alloc::<bf16>(len).unwrap();
            let (gate_up, y) = (alloc(rows * 2 * ffn), alloc(rows * ffn));
            gemm::run(device, &Gemm::nt(rows, 2 * ffn, hidden), &gate_up, &x, &w).unwrap();
            swiglu::fwd(device, &y, &gate_up, rows, ffn).unwrap();
            let want = [device.download(&gate_up).unwrap(), device.download(&y).unwrap()].concat();
            for stages in [1, 4] {
                let (gate_up, y) = (alloc(rows * 2 * ffn), alloc(rows * ffn));
                let plan = Plan::with_tile(&Gemm::nt(rows, 2 * ffn, hidden), Tile::M128N256, 4);
                let plan = Plan { stages, ..plan };
                swiglu::project_planned(device, &plan, &y, &gate_up, &x, &w, [rows, ffn, hidden])
                    .unwrap_or_else(|why| panic!("{rows}x{ffn}x{hidden} on {on}: {why:#}"));
                let got = [device.download(&gate_up).unwrap(), device.download(&y).unwrap()].concat();
                assert!(got == want, "{rows}x{ffn}x{hidden}, {stages} slots on {on}");
            }
        }
    });
}

#[test]
fn every_fault_of_the_product_is_caught() {
    let [rows, ffn, hidden] = [260, 136, 5 * 64];
    let [x, w]: [Vec<bf16>; 2] = [rows * hidden, 2 * ffn * hidden].map(|len| cast(&normal(len as u64, len)));
    let plan = Plan { stages: 2, ..Plan::with_tile(&Gemm::nt(rows, 2 * ffn, hidden), Tile::M128N256, 4) };
    let run = |device: &Device| -> anyhow::Result<[Vec<bf16>; 2]> {
        let (gate_up, y) = (device.zeros(rows * 2 * ffn)?, device.zeros(rows * ffn)?);
        let [x, w] = [device.upload(&x)?, device.upload(&w)?];
        swiglu::project_planned(device, &plan, &y, &gate_up, &x, &w, [rows, ffn, hidden])?;
        Ok([device.download(&gate_up)?, device.download(&y)?])
    };
    let want = run(&strict_hoppers()[0].0).unwrap();
    every_fault_is_caught(&Fault::ALL, |device| Ok(run(device)? == want));
}
