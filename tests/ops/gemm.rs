use half::bf16;
use warpo::{
    device::{Buffer, Device, Float, HostOptions},
    ops::gemm::{self, Gemm, Order},
};

use crate::{
    oracles,
    support::{cast, for_each_device, normal, roundoff, type_name, widen},
};

pub const ORDERS: [fn(usize, usize, usize) -> Gemm; 3] = [Gemm::nt, Gemm::nn, Gemm::tn];

/// (m, n, k): one element, one row, one column, ragged, exact tiles, one to five k-blocks of 32 (one more than the
/// ring has stages), and more tiles than the persistent grid of 8 CTAs has, also with more tile rows than a band.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (1, 40, 33),
    (130, 1, 7),
    (5, 131, 17),
    (128, 128, 32),
    (33, 24, 64),
    (40, 20, 96),
    (17, 9, 128),
    (9, 30, 160),
    (129, 260, 45),
    (257, 640, 40),
    (1160, 9, 33),
];

/// Larger than the native backend's blocks and panels.
const NATIVE_SHAPES: &[(usize, usize, usize)] = &[(300, 17, 530), (20, 515, 1030), (270, 300, 40)];

#[test]
fn f32_sums_of_f32() {
    for_each_device(|device, on| every_order::<f32, f32>(device, on, SHAPES));
}

#[test]
fn bf16_sums_of_bf16() {
    for_each_device(|device, on| every_order::<bf16, bf16>(device, on, SHAPES));
}

#[test]
fn f32_sums_of_bf16() {
    for_each_device(|device, on| every_order::<bf16, f32>(device, on, SHAPES));
}

#[test]
fn native_backend_agrees_with_the_oracle() {
    let device = native(2);
    for shapes in [SHAPES, NATIVE_SHAPES] {
        every_order::<f32, f32>(&device, "native", shapes);
        every_order::<bf16, bf16>(&device, "native", shapes);
        every_order::<bf16, f32>(&device, "native", shapes);
    }
}

#[test]
fn native_backend_gives_the_same_bits_on_any_number_of_threads() {
    for (m, n, k) in [(700, 600, 530), (1030, 20, 100)] {
        for gemm in ORDERS.map(|order| order(m, n, k)) {
            let by = |threads| Case::<bf16, f32>::new(padded::<bf16>(gemm)).run(&native(threads)).1;
            assert_eq!(by(1), by(2), "{gemm:?}");
            let by = |threads| Case::<f32, f32>::new(gemm).run(&native(threads)).1;
            assert_eq!(by(1), by(3), "{gemm:?}");
        }
    }
}

#[test]
fn says_what_does_not_fit() {
    let device = native(1);
    let bf = device.zeros::<bf16>(256).unwrap();
    let wide = device.zeros::<f32>(256).unwrap();
    let message = |why: anyhow::Result<()>| why.expect_err("must be refused").to_string();

    let why = message(gemm::run(&device, &Gemm::nt(4, 4, 12), &wide, &bf, &bf));
    assert!(why.ends_with("rows of A are 12 bf16 apart, no multiple of 8"), "{why}");
    let why = message(gemm::run(&device, &Gemm::nt(4, 4, 8), &wide, &bf, &bf.slice(4..256)));
    assert!(why.ends_with("B starts 8 bytes after a multiple of 16"), "{why}");
    let why = message(gemm::run(&device, &Gemm::nn(40, 8, 8), &wide, &bf, &bf));
    assert!(why.ends_with("A needs 320 elements, found 256"), "{why}");
    let why = message(gemm::run(&device, &Gemm { lda: 7, ..Gemm::nt(4, 4, 8) }, &wide, &wide, &wide));
    assert!(why.ends_with("rows of A have 8 elements and are 7 apart"), "{why}");
    let why = message(gemm::run(&device, &Gemm::nt(4, 4, 8), &bf, &wide, &wide));
    assert!(why.contains("F32 and F32 into Bf16"), "{why}");
    let why = message(gemm::run(&device, &Gemm::nt(4, 4, 0), &wide, &wide, &wide));
    assert!(why.ends_with("no terms to sum"), "{why}");

    gemm::run(&device, &Gemm::nt(0, 4, 8), &wide.slice(0..0), &wide.slice(0..0), &wide).unwrap();
    gemm::run(&device, &Gemm::tn(4, 4, 0).accumulating(), &wide, &wide, &wide).unwrap();
}

fn native(threads: usize) -> Device {
    Device::host(HostOptions { threads, ..HostOptions::default() }).unwrap()
}

fn every_order<T: Float, O: Float>(device: &Device, on: &str, shapes: &[(usize, usize, usize)]) {
    for (i, &(m, n, k)) in shapes.iter().enumerate() {
        for (j, order) in ORDERS.iter().enumerate() {
            let gemm = padded::<T>(order(m, n, k));
            // Half of the shapes of every order, to keep strict runs short.
            let gemm = if (i + j) % 2 == 1 { gemm.accumulating() } else { gemm };
            Case::<T, O>::new(gemm).check(device, on);
        }
    }
}

/// Rows further apart than packed ones: bf16 operands on multiples of 8, the result on an odd pitch for odd n.
fn padded<T: Float>(gemm: Gemm) -> Gemm {
    let step = 16 / size_of::<T>();
    let [lda, ldb] = [gemm.lda, gemm.ldb].map(|ld| if step == 8 { ld.next_multiple_of(8) + 8 } else { ld + 3 });
    Gemm { lda, ldb, ldd: gemm.n + 2, ..gemm }
}

/// One product with its data; padding is NaN in the operands and must stay as it is in the result.
pub struct Case<T, O> {
    pub gemm: Gemm,
    a: Vec<T>,
    b: Vec<T>,
    pub before: Vec<O>,
}

impl<T: Float, O: Float> Case<T, O> {
    pub fn new(gemm: Gemm) -> Self {
        let Gemm { order, m, n, k, lda, ldb, ldd, .. } = gemm;
        let (a_shape, b_shape) = match order {
            Order::Nt => ((m, k), (n, k)),
            Order::Nn => ((m, k), (k, n)),
            Order::Tn => ((k, m), (k, n)),
        };
        Self { gemm, a: matrix(1, a_shape, lda), b: matrix(2, b_shape, ldb), before: cast(&normal(3, m * ldd)) }
    }

    /// Returns the result, padding included, wide and as it is.
    fn run(&self, device: &Device) -> (Vec<f64>, Vec<O>) {
        let d = self.by(device, |d, a, b| gemm::run(device, &self.gemm, d, a, b)).unwrap();
        (widen(&d), d)
    }

    /// The result, padding included, of a product that `run` launches.
    pub fn by(
        &self,
        device: &Device,
        run: impl FnOnce(&Buffer<O>, &Buffer<T>, &Buffer<T>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<O>> {
        let d = device.upload(&self.before)?;
        run(&d, &device.upload(&self.a)?, &device.upload(&self.b)?)?;
        device.download(&d)
    }

    fn check(&self, device: &Device, on: &str) {
        let (got, _) = self.run(device);
        self.compare(&got, on);
    }

    /// Against the oracle.
    pub fn compare(&self, got: &[f64], on: &str) {
        let Gemm { n, k, ldd, accumulate, .. } = self.gemm;
        let (sums, magnitudes) = oracles::gemm::run(&self.gemm, &widen(&self.a), &widen(&self.b));
        let before = widen(&self.before);
        for (at, (&got, &before)) in got.iter().zip(&before).enumerate() {
            let (row, column) = (at / ldd, at % ldd);
            let what =
                || format!("{:?} {} to {} on {on}: ({row}, {column})", self.gemm, type_name::<T>(), type_name::<O>());
            if column >= n {
                let is_ours = column < n.next_multiple_of(16 / size_of::<O>());
                assert!(is_ours || got == before, "{}: padding was overwritten", what());
                continue;
            }
            let start = if accumulate { before } else { 0.0 };
            let want = start + sums[row * n + column];
            // k products and k additions in any order, each off by at most one last place (tensor cores truncate);
            // then the rounding of the result.
            let magnitude = start.abs() + magnitudes[row * n + column];
            let sum_error = (k + 1) as f64 * 2.0 * roundoff::<f32>() * magnitude;
            let limit = sum_error + roundoff::<O>() * (want.abs() + sum_error);
            assert!((got - want).abs() <= limit, "{}: {got} instead of {want}, limit {limit:.3e}", what());
        }
    }
}

fn matrix<T: Float>(seed: u64, (rows, columns): (usize, usize), pitch: usize) -> Vec<T> {
    let mut data = normal(seed, rows * pitch);
    for row in data.chunks_mut(pitch) {
        row[columns..].fill(f32::NAN);
    }
    cast(&data)
}
