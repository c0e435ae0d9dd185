//! Hopper's units, one at a time: exact results on the host device under every schedule and both completion modes, and on a
//! GPU that has them.

use half::bf16;
use warpo::device::{Arch, Buffer, Device, Launch, Swizzle, TensorMap, TensorShape};

use super::kernels::units_sm90 as kernel;
use crate::support::{fast_device, strict_devices, with_gpu};

fn devices() -> Vec<(Device, String)> {
    warpo::device::cuda::images::add(super::cubins::ALL);
    let host = || {
        let mut devices = strict_devices();
        devices.push((fast_device(1), "host".into()));
        devices
    };
    with_gpu(host).into_iter().filter(|(device, _)| !device.is_cuda() || device.arch() == Arch::Sm90).collect()
}

/// Whole numbers from -7 to 7: sums of 64 products are exact.
fn numbers(seed: usize, count: usize) -> Vec<bf16> {
    (0..count).map(|i| bf16::from_f32(((i * 31 + i / 7 + seed * 5) % 15) as f32 - 7.0)).collect()
}

/// `x` (rows, 64), and as it lies in memory: so, or transposed.
fn operand(device: &Device, x: &[bf16], rows: usize, across: bool) -> (Buffer<bf16>, TensorMap) {
    let (stored, shape) = if across {
        let stored = (0..64 * rows).map(|i| x[i % rows * 64 + i / rows]).collect();
        (stored, TensorShape::matrix(64, rows, rows, [64, 64]))
    } else {
        (x.to_vec(), TensorShape::matrix(rows, 64, 64, [rows, 64]))
    };
    let buffer = device.upload(&stored).unwrap();
    let map = device.tensor_map(&buffer, &shape).unwrap();
    (buffer, map)
}

type Launcher = unsafe fn(&Device, Launch, kernel::Product) -> anyhow::Result<()>;

#[test]
fn products_in_every_operand_order() {
    let cases: [(&str, Launcher, bool, bool); 5] = [
        ("nt", kernel::product_nt, false, false),
        ("nn", kernel::product_nn, false, true),
        ("tn", kernel::product_tn, true, true),
        ("tt", kernel::product_tt, true, false),
        ("registers", kernel::product_registers, false, false),
    ];
    let (a, b) = (numbers(1, 64 * 64), numbers(2, 128 * 64));
    let dot = |m: usize, n: usize| (0..64).map(|k| a[m * 64 + k].to_f32() * b[n * 64 + k].to_f32()).sum::<f32>();
    let want: Vec<f32> = (0..64 * 128).map(|i| dot(i / 128, i % 128)).collect();
    for (device, on) in devices() {
        for (name, launcher, a_across, b_across) in cases {
            let (_a, a_map) = operand(&device, &a, 64, a_across);
            let (_b, b_map) = operand(&device, &b, 128, b_across);
            let d = device.alloc::<f32>(64 * 128).unwrap();
            let launch = Launch::linear(1, 128).with_smem(1024 + 3 * 8192);
            // SAFETY: the kernel writes 64 x 128 numbers.
            unsafe { launcher(&device, launch, kernel::Product { d: &d, a_map: &a_map, b_map: &b_map }) }
                .unwrap_or_else(|why| panic!("{name} on {on}: {why:#}"));
            assert!(device.download(&d).unwrap() == want, "{name} on {on}");
        }
    }
}

#[test]
fn boxes_over_the_edges() {
    move_boxes(&[(0, 0, 0, 0), (-8, -3, 8, 2), (40, 15, 60, 14), (100, 100, 0, 0), (8, -9, 48, 12), (64, 0, 64, 0)]);
}

/// Moves boxes from (x, y) to (x, y) of a tensor whose edges they reach over.
fn move_boxes(places: &[(i32, i32, i32, i32)]) {
    const ROWS: usize = 20;
    // Two columns short of whole 16 bytes; rows are 72 apart.
    const COLUMNS: usize = 70;
    const PITCH: usize = 72;
    let x: Vec<f32> = (0..ROWS * PITCH).map(|i| i as f32 + 1.0).collect();
    for (device, on) in devices() {
        for swizzle in [Swizzle::None, Swizzle::Bytes128] {
            for (add, (from_x, from_y, to_x, to_y)) in
                [0, 1].into_iter().flat_map(|add| places.iter().map(move |&p| (add, p)))
            {
                let shape = TensorShape { dims: vec![COLUMNS, ROWS], pitches: vec![PITCH], tile: vec![32, 8], swizzle };
                let (from, to) = (device.upload(&x).unwrap(), device.upload(&x).unwrap());
                let maps = [&from, &to].map(|buffer| device.tensor_map(buffer, &shape).unwrap());
                let launch = Launch::linear(1, 32).with_smem(1024 + 1024);
                // SAFETY: boxes are cut at the tensors' edges.
                unsafe {
                    kernel::MoveBox { from: &maps[0], to: &maps[1], x: from_x, y: from_y, to_x, to_y, bytes: 1024, add }
                        .launch(&device, launch)
                }
                .unwrap_or_else(|why| panic!("{from_x}, {from_y} on {on}: {why:#}"));
                let at = |x: &[f32], row: i32, column: i32| {
                    let inside = (0..ROWS as i32).contains(&row) && (0..COLUMNS as i32).contains(&column);
                    if inside { x[row as usize * PITCH + column as usize] } else { 0.0 }
                };
                let mut want = x.clone();
                for (row, column) in (0..8).flat_map(|row| (0..32).map(move |column| (row, column))) {
                    let (to_row, to_column) = (to_y + row, to_x + column);
                    // Loads end with the last column, stores with whole 16 bytes.
                    if (0..ROWS as i32).contains(&to_row) && (0..PITCH as i32).contains(&to_column) {
                        let place = to_row as usize * PITCH + to_column as usize;
                        let moved = at(&x, from_y + row, from_x + column);
                        want[place] = if add == 1 { want[place] + moved } else { moved };
                    }
                }
                assert!(
                    device.download(&to).unwrap() == want,
                    "{swizzle:?} add {add} from ({from_x}, {from_y}) on {on}"
                );
            }
        }
    }
}

/// Where the hardware stops with an illegal instruction: a row of the box does not start at a multiple of 16 bytes, or a store
/// begins before the tensor, which a load may.
#[test]
fn boxes_that_hardware_refuses() {
    const ODD: &str = "is no multiple of 16 bytes";
    const BEFORE: &str = "begins before the tensor";
    for (device, on) in strict_devices() {
        let x = device.zeros::<f32>(20 * 72).unwrap();
        let shape =
            TensorShape { dims: vec![72, 20], pitches: vec![72], tile: vec![32, 8], swizzle: Swizzle::Bytes128 };
        let map = device.tensor_map(&x, &shape).unwrap();
        let launch = Launch::linear(1, 32).with_smem(1024 + 1024);
        for (from_x, to_x, to_y, reason) in [(-5, 0, 0, ODD), (0, 2, 0, ODD), (0, -8, 2, BEFORE), (0, 8, -2, BEFORE)] {
            // SAFETY: boxes are cut at the tensors' edges.
            let why = unsafe {
                kernel::MoveBox { from: &map, to: &map, x: from_x, y: 0, to_x, to_y, bytes: 1024, add: 0 }
                    .launch(&device, launch)
            };
            let why = format!("{:#}", why.unwrap_err());
            assert!(why.contains(reason), "{from_x}, {to_x}, {to_y} on {on}: {why}");
        }
    }
}

#[test]
fn a_tile_for_two_and_numbers_handed_round() {
    let x = numbers(3, 64 * 64);
    for (device, on) in devices() {
        let from = device.upload(&x).unwrap();
        let map = device.tensor_map(&from, &TensorShape::matrix(64, 64, 64, [32, 64])).unwrap();
        let y = device.alloc::<bf16>(2 * 64 * 64).unwrap();
        // SAFETY: each of two CTAs writes one tile.
        unsafe {
            kernel::MulticastPair { y: &y, map: &map }.launch(&device, Launch::linear(2, 64).with_smem(1024 + 8192))
        }
        .unwrap_or_else(|why| panic!("on {on}: {why:#}"));
        assert!(device.download(&y).unwrap() == [&x[..], &x[..]].concat(), "on {on}");

        let y = device.alloc::<f32>(8).unwrap();
        // SAFETY: each of eight CTAs writes one number.
        unsafe { kernel::HandOn { y: &y }.launch(&device, Launch::linear(8, 32).with_smem(16)) }
            .unwrap_or_else(|why| panic!("on {on}: {why:#}"));
        assert_eq!(device.download(&y).unwrap(), [13.0, 10.0, 11.0, 12.0, 13.0, 10.0, 11.0, 12.0], "on {on}");
    }
}

#[test]
fn matrices_stored_and_loaded() {
    for (device, on) in devices() {
        let y = device.alloc::<i32>(128).unwrap();
        // SAFETY: the kernel writes 128 numbers.
        unsafe { kernel::StoreAndLoadMatrix { y: &y }.launch(&device, Launch::linear(1, 32).with_smem(512)) }.unwrap();
        assert_eq!(device.download(&y).unwrap(), [1; 128], "on {on}");
    }
}

#[test]
fn a_ring_of_slots() {
    let x: Vec<f32> = (0..256 * 13).map(|i| (i % 97) as f32).collect();
    for (device, on) in devices() {
        for (stages, count) in [(1, 1), (1, 5), (2, 1), (2, 2), (2, 7), (4, 3), (4, 4), (4, 5), (4, 13)] {
            let (from, y) = (device.upload(&x).unwrap(), device.alloc::<f32>(256).unwrap());
            let launch = Launch::linear(1, 384).with_smem(1024 * (1 + stages as usize));
            // SAFETY: `count` pieces of 256 numbers are read and 256 written.
            unsafe { kernel::Ring { y: &y, x: &from, stages, count }.launch(&device, launch) }
                .unwrap_or_else(|why| panic!("{stages} stages, {count} on {on}: {why:#}"));
            let sum = |i: usize| (0..count as usize).map(|piece| x[256 * piece + i]).sum();
            let want: Vec<f32> = (0..256).map(sum).collect();
            assert_eq!(device.download(&y).unwrap(), want, "{stages} stages, {count} on {on}");
        }
    }
}
