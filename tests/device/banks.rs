//! Bank conflicts: known patterns, and what the kernels do.

use std::collections::BTreeMap;

use half::bf16;
use warpo::{
    device::{
        DType, Device, HostOptions, Launch, ThreadOrder,
        host::{BankConflicts, Completion},
    },
    forest::{Forest, Tree},
    model::{Capacity, MemoryPlan, Model, ModelConfig, Slopes},
};

use super::kernels::banks as kernel;
use crate::model::{pair, random_params, tiny_json};

fn counting(hopper: bool) -> Device {
    let strict = HostOptions::strict(ThreadOrder::InOrder, Completion::Early);
    Device::host(HostOptions { banks: true, hopper, ..strict }).unwrap()
}

/// Instructions of the kernel in the order of its lines: fill, write, read and the wide read.
fn strided(write: i32, read: i32, wide: i32) -> Vec<BankConflicts> {
    let device = counting(false);
    let y = device.alloc::<f32>(32).unwrap();
    // SAFETY: the kernel writes 32 numbers and uses 4096 bytes of shared memory.
    unsafe {
        kernel::Strided { y: &y, write_stride: write, read_stride: read, stride16: wide }
            .launch(&device, Launch::linear(1, 32).with_smem(4096))
            .unwrap()
    };
    let mut found = device.bank_conflicts();
    let line = |conflicts: &BankConflicts| conflicts.place.rsplit(':').next().unwrap().parse::<usize>().unwrap();
    found.sort_by_key(line);
    found
}

#[test]
fn known_patterns() {
    for (stride, degree) in [(1, 1), (2, 2), (3, 1), (8, 8), (32, 32), (33, 1), (0, 1)] {
        let found = strided(1, stride, 1);
        let [fill, write, read, wide] = &found[..] else { panic!("{found:?}") };
        assert_eq!((fill.degree, fill.instructions, fill.passes), (1, 32, 32));
        assert_eq!((write.degree, write.write, read.write), (1, true, false));
        assert_eq!((read.degree, read.passes, read.least), (degree, degree as u64, 1), "stride {stride}");
        // Four quarters of the warp, each of which fills the banks.
        assert_eq!((wide.degree, wide.passes, wide.least), (1, 4, 4));
    }
    for (stride, degree) in [(1, 1), (2, 2), (4, 4), (8, 8)] {
        let found = strided(stride, 1, stride);
        assert_eq!((found[1].degree, found[3].degree), (degree, degree), "stride {stride}");
    }
}

#[test]
fn nothing_is_counted_unasked() {
    let device = crate::support::strict_devices().remove(0).0;
    let y = device.alloc::<f32>(32).unwrap();
    // SAFETY: as above.
    unsafe {
        kernel::Strided { y: &y, write_stride: 1, read_stride: 1, stride16: 1 }
            .launch(&device, Launch::linear(1, 32).with_smem(4096))
            .unwrap()
    };
    assert!(device.bank_conflicts().is_empty());
}

/// Worst degree of each kernel that a step of a model runs, on either path.
fn survey(hopper: bool) -> BTreeMap<&'static str, (usize, f64)> {
    let config = ModelConfig::parse(&tiny_json(true, 2).replace(r#""head_dim": 32"#, r#""head_dim": 64"#)).unwrap();
    let trees: Vec<Tree> = (1..4).map(|seed| pair(seed, [40, 30, 25])).collect();
    let forest = Forest::pack(&trees).unwrap();
    let device = counting(hopper);
    let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 128 };
    let plan = MemoryPlan::new(&config, DType::Bf16, capacity).unwrap().on(&device, &config);
    let model = Model::<bf16>::new(&device, &config, plan).unwrap();
    device.copy_in(&model.params().values(), &random_params::<bf16>(&config)).unwrap();
    let batch = model.upload(&forest).unwrap();
    model.forward(&batch).unwrap();
    model.logps(&batch).unwrap();
    model.backward(&batch, &Slopes::by_logps(&device.upload(&vec![0.1f32; batch.rows]).unwrap())).unwrap();
    let mut worst: BTreeMap<&'static str, (usize, u64, u64)> = BTreeMap::new();
    for found in device.bank_conflicts() {
        let BankConflicts { kernel, ref place, write, instructions, passes, least, degree } = found;
        if degree > 1 {
            let what = if write { "write" } else { "read" };
            println!(
                "{kernel}: {what} at {place}: {degree}-way, {passes} passes for {least} in {instructions} instructions"
            );
        }
        let entry = worst.entry(kernel).or_default();
        *entry = (entry.0.max(degree), entry.1 + passes, entry.2 + least);
    }
    worst
        .into_iter()
        .map(|(kernel, (degree, passes, least))| (kernel, (degree, passes as f64 / least as f64)))
        .collect()
}

/// No kernel of a step meets its own banks, on either path, but for two. The f32 epilogue of a product writes eight bytes a lane
/// of rows whose panels lie 128 bytes apart: two rows of a half warp share their banks; turning the columns of every other
/// row away would cost as many selects as it saves passes. `head_finish` copies pairs of floats, which are seen here in halves;
/// the GPU moves eight bytes at once.
#[test]
fn conflicts_of_a_step() {
    let known = ["gemm_tn_128x128_wide_bf16", "head_finish"];
    let mut seen = 0;
    for hopper in [false, true] {
        for (kernel, (degree, share)) in survey(hopper) {
            println!("{kernel}: worst {degree}-way, {share:.2} passes for each");
            let allowed = if known.contains(&kernel) { 2 } else { 1 };
            assert!(degree <= allowed, "{kernel}: {degree}-way bank conflicts");
            seen += 1;
        }
    }
    assert!(seen >= 15, "{seen} kernels touch shared memory");
}
