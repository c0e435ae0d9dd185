//! What the emulated instructions mean, against their definitions; the same under every schedule.

use half::bf16;
use warpo::device::{Device, Launch};

use super::kernels::semantics as kernel;
use crate::support::{cast, fast_device, normal, strict_devices};

/// The strict device under every schedule, and the fast one on one and two threads.
fn on_every_host(mut test: impl FnMut(&Device, &str)) {
    for (device, on) in strict_devices() {
        test(&device, &on);
    }
    test(&fast_device(1), "host on 1 thread");
    test(&fast_device(2), "host on 2 threads");
}

/// Small integers from -8 to 8, exact in bf16 and in sums of thousands of products.
fn integers(seed: u64, len: usize) -> Vec<f32> {
    normal(seed, len).into_iter().map(|x| (4.0 * x).round().clamp(-8.0, 8.0)).collect()
}

#[test]
fn shuffles() {
    on_every_host(|device, on| {
        for width in [32usize, 16, 8, 4, 2] {
            for operand in [0usize, 1, 3, 5, 17, 31] {
                let y = device.alloc::<i32>(128).unwrap();
                // SAFETY: the kernel writes four numbers a lane.
                unsafe {
                    kernel::Shuffles { y: &y, operand: operand as i32, width: width as i32 }
                        .launch(device, Launch::linear(1, 32))
                        .unwrap()
                };
                let got = device.download(&y).unwrap();
                for lane in 0..32usize {
                    let base = lane / width * width;
                    let xor = lane ^ operand;
                    let want = [
                        base + operand % width,
                        if xor < base + width { xor } else { lane },
                        if lane >= base + operand { lane - operand } else { lane },
                        if lane + operand < base + width { lane + operand } else { lane },
                    ];
                    for (kind, want) in ["idx", "xor", "up", "down"].iter().zip(want.iter().enumerate()) {
                        let got = got[32 * want.0 + lane] - 100;
                        assert_eq!(got, *want.1 as i32, "{kind} {operand} width {width} lane {lane} on {on}");
                    }
                }
            }
        }
    });
}

#[test]
fn votes() {
    on_every_host(|device, on| {
        for pattern in [0u32, u32::MAX, 0x8000_0001, 0xffff_1234, 0x00ff_ffff] {
            let bits: Vec<i32> = (0..32).map(|lane| (pattern >> lane & 1) as i32 * (lane + 1)).collect();
            let (y, x) = (device.alloc::<u32>(128).unwrap(), device.upload(&bits).unwrap());
            // SAFETY: the kernel writes four numbers a lane.
            unsafe { kernel::Votes { y: &y, x: &x }.launch(device, Launch::linear(1, 32)).unwrap() };
            let got = device.download(&y).unwrap();
            for lane in 0..32 {
                let half = 0xffffu32 << (lane / 16 * 16);
                let of_half = (pattern & half).wrapping_add(2 * u32::from(pattern & half == half));
                let want = [pattern, u32::from(pattern != 0), u32::from(pattern == u32::MAX), of_half];
                let got: [u32; 4] = std::array::from_fn(|kind| got[32 * kind + lane]);
                assert_eq!(got, want, "pattern {pattern:#010x} lane {lane} on {on}");
            }
        }
    });
}

#[test]
fn reductions_are_butterflies() {
    let values = normal(3, 64);
    on_every_host(|device, on| {
        let x = device.upload(&values).unwrap();
        let (sum, max) = (device.alloc::<f32>(64).unwrap(), device.alloc::<f32>(64).unwrap());
        let sum64 = device.alloc::<f64>(64).unwrap();
        // SAFETY: one element a thread.
        unsafe {
            kernel::Reductions { sum: &sum, sum64: &sum64, max: &max, x: &x }
                .launch(device, Launch::linear(1, 64))
                .unwrap()
        };
        let (sum, sum64, max) =
            (device.download(&sum).unwrap(), device.download(&sum64).unwrap(), device.download(&max).unwrap());
        for warp in 0..2 {
            let mut want: [f32; 32] = std::array::from_fn(|lane| values[32 * warp + lane]);
            let mut want64 = want.map(f64::from);
            let want_max = want.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for offset in [16, 8, 4, 2, 1] {
                want = std::array::from_fn(|lane| want[lane] + want[lane ^ offset]);
                want64 = std::array::from_fn(|lane| want64[lane] + want64[lane ^ offset]);
            }
            for lane in 0..32 {
                let i = 32 * warp + lane;
                assert_eq!((sum[i], sum64[i], max[i]), (want[lane], want64[lane], want_max), "thread {i} on {on}");
            }
        }
    });
}

#[test]
fn ldmatrix() {
    let x: Vec<bf16> = (0..256).map(|i| bf16::from_bits(0x3000 + i)).collect();
    on_every_host(|device, on| {
        for pitch in [8, 24] {
            let (y, x) = (device.alloc::<u32>(256).unwrap(), device.upload(&x).unwrap());
            let launch = Launch::linear(1, 32).with_smem(32 * pitch * 2);
            // SAFETY: the shared memory holds 32 rows of `pitch` elements.
            unsafe { kernel::LoadMatrices { y: &y, x: &x, pitch: pitch as i32 }.launch(device, launch).unwrap() };
            let got = device.download(&y).unwrap();
            let element = |matrix: usize, row: usize, column: usize| (0x3000 + 64 * matrix + 8 * row + column) as u32;
            for lane in 0..32 {
                let (g, q) = (lane / 4, lane % 4 * 2);
                for matrix in 0..4 {
                    let plain = element(matrix, g, q) | element(matrix, g, q + 1) << 16;
                    let trans = element(matrix, q, g) | element(matrix, q + 1, g) << 16;
                    let at = 4 * lane + matrix;
                    assert_eq!((got[at], got[128 + at]), (plain, trans), "lane {lane} matrix {matrix} on {on}");
                }
            }
        }
    });
}

#[test]
fn mma_multiplies_integers_exactly() {
    let (a, b, d) = (integers(1, 256), integers(2, 128), integers(3, 128));
    let mut want = d.clone();
    for m in 0..16 {
        for n in 0..8 {
            want[8 * m + n] += (0..16).map(|k| a[16 * m + k] * b[8 * k + n]).sum::<f32>();
        }
    }
    on_every_host(|device, on| {
        let (a, b) = (device.upload(&cast::<bf16>(&a)).unwrap(), device.upload(&cast::<bf16>(&b)).unwrap());
        let d = device.upload(&d).unwrap();
        // SAFETY: one warp, operands of the shapes the kernel names.
        unsafe { kernel::MultiplyMatrices { d: &d, a: &a, b: &b }.launch(device, Launch::linear(1, 32)).unwrap() };
        assert_eq!(device.download(&d).unwrap(), want, "on {on}");
    });
}

#[test]
fn named_barriers_hand_over() {
    on_every_host(|device, on| {
        for steps in [1usize, 2, 3, 9] {
            let numbers: Vec<i32> = (0..32 * steps as i32).collect();
            let (y, x) = (device.alloc::<i32>(32 * steps).unwrap(), device.upload(&numbers).unwrap());
            let launch = Launch::linear(1, 64).with_smem(256);
            // SAFETY: 32 numbers a step.
            unsafe { kernel::ProduceAndConsume { y: &y, x: &x, steps: steps as i32 }.launch(device, launch).unwrap() };
            let want: Vec<i32> = (0..steps as i32).flat_map(|s| (0..32).map(move |lane| 32 * s + 31 - lane)).collect();
            assert_eq!(device.download(&y).unwrap(), want, "{steps} steps on {on}");
        }
    });
}

const CTAS: usize = 5;

fn run_pipeline(device: &Device, a: &[f32], b: &[f32], k: usize, mistake: i32) -> anyhow::Result<Vec<f32>> {
    let (a, b) = (device.upload(&cast::<bf16>(a))?, device.upload(&cast::<bf16>(b))?);
    let y = device.alloc::<f32>(CTAS * 32 * 16)?;
    let launch = Launch::linear(CTAS, 64).with_smem(3 * 48 * 16 * 2);
    // SAFETY: a holds 32 rows a CTA, b 16 rows, of k columns.
    unsafe { kernel::Pipeline { y: &y, a: &a, b: &b, k: k as i32, mistake }.launch(device, launch)? };
    device.download(&y)
}

#[test]
fn a_pipeline_of_copies_and_products() {
    for steps in [1, 2, 3, 4, 10] {
        let k = 16 * steps;
        let (a, b) = (integers(1, CTAS * 32 * k), integers(2, 16 * k));
        let dot = |m: usize, n: usize| (0..k).map(|i| a[m * k + i] * b[n * k + i]).sum::<f32>();
        let want: Vec<f32> = (0..CTAS * 32 * 16).map(|i| dot(i / 16, i % 16)).collect();
        on_every_host(|device, on| {
            let got = run_pipeline(device, &a, &b, k, 0).unwrap_or_else(|why| panic!("{steps} steps on {on}: {why:#}"));
            assert_eq!(got, want, "{steps} steps on {on}");
        });
    }
}

#[test]
fn a_pipeline_with_mistakes_is_reported() {
    let k = 16 * 6;
    let (a, b) = (integers(1, CTAS * 32 * k), integers(2, 16 * k));
    for (device, on) in strict_devices() {
        for (mistake, says) in [(1, ["race", "pending"]), (2, ["pending", "pending"])] {
            let why = format!("{:#}", run_pipeline(&device, &a, &b, k, mistake).unwrap_err());
            assert!(says.iter().any(|part| why.contains(part)), "mistake {mistake} on {on}: {why}");
        }
        run_pipeline(&device, &a, &b, k, 0).unwrap();
    }
}

#[test]
fn bits_do_not_depend_on_worker_threads() {
    let k = 160;
    let (a, b) = (normal(1, CTAS * 32 * k), normal(2, 16 * k));
    let bits = |device: &Device| -> Vec<u32> {
        run_pipeline(device, &a, &b, k, 0).unwrap().into_iter().map(f32::to_bits).collect()
    };
    let want = bits(&fast_device(1));
    on_every_host(|device, on| assert_eq!(bits(device), want, "on {on}"));
}

#[test]
fn thread_and_block_indices() {
    on_every_host(|device, on| {
        let launch = Launch { grid: [2, 3, 2], block: [4, 2, 3], smem_bytes: 0 };
        let y = device.alloc::<i32>(12 * 24).unwrap();
        // SAFETY: one number a thread of the grid.
        unsafe { kernel::Indices { y: &y }.launch(device, launch).unwrap() };
        let digits =
            |i: i32, [x, y, _]: [u32; 3]| i % x as i32 + i / x as i32 % y as i32 * 10 + i / (x * y) as i32 * 100;
        let want: Vec<i32> =
            (0..12 * 24).map(|i| digits(i % 24, launch.block) + 1000 * digits(i / 24, launch.grid)).collect();
        assert_eq!(device.download(&y).unwrap(), want, "on {on}");
    });
}
