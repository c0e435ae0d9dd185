//! Counter-based random numbers: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
//!
//! A number is a pure function of (seed, stream, index): no state to save, no order to keep, the same bits on any
//! number of threads and after a resume.

use std::f64::consts::TAU;

use half::bf16;

/// What the numbers are for; each purpose has 2^32 streams of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Order of the training data, one stream per epoch.
    Shuffle = 1,
    /// Random starting weights, one stream per tensor.
    Init = 2,
    /// Which rows an epoch takes once more, one stream per epoch.
    Weights = 3,
    /// Order of the packs of an epoch, one stream per epoch.
    Packs = 4,
    /// Starting values of learned token masks, one stream per mask.
    Masks = 5,
    /// Rounding of an optimizer's moments, one stream per step.
    Moments = 6,
    /// Rounding of gradients that are added up in bf16, one stream per step.
    Gradients = 7,
    /// Which rows are held out (stream 0), and which of a file are taken (one stream per file).
    Split = 17,
}

/// Whose random bits a launch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Of the run.
    pub seed: u64,
    /// Of the step.
    pub number: u32,
}

/// One stream of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
    stream: [u32; 2],
}

impl Philox {
    /// Stream `number` of a purpose.
    pub fn new(seed: u64, purpose: Purpose, number: u32) -> Self {
        Self { key: words(seed), stream: [number, purpose as u32] }
    }

    /// A part of that stream: what tells apart the uses of a number, in 24 bits.
    pub fn part(seed: u64, purpose: Purpose, number: u32, part: u32) -> Self {
        Self { key: words(seed), stream: [number, purpose as u32 | part << 8] }
    }

    /// Sixteen random bits for each of the elements `8 * chunk .. 8 * chunk + 8` of an arena, as `kernels/lib/philox.cuh` has
    /// them.
    pub fn halves(&self, chunk: u64) -> [u16; 8] {
        let words = self.block(chunk);
        std::array::from_fn(|i| (words[i / 2] >> (16 * (i % 2))) as u16)
    }

    /// Four random words.
    pub fn block(&self, index: u64) -> [u32; 4] {
        let [low, high] = words(index);
        philox4x32_10([low, high, self.stream[0], self.stream[1]], self.key)
    }

    /// A whole number below `bound`; off from uniform by less than `bound / 2^64`.
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        let [low, high, ..] = self.block(index);
        let word = u64::from(high) << 32 | u64::from(low);
        ((u128::from(word) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal numbers `4 * index .. 4 * index + 4` of the stream (Box-Muller).
    pub fn normal4(&self, index: u64) -> [f64; 4] {
        let [a, b, c, d] = self.block(index);
        let (x, y) = box_muller(a, b);
        let (z, w) = box_muller(c, d);
        [x, y, z, w]
    }

    /// Fills `values` with normal numbers of the given standard deviation.
    pub fn fill_normal(&self, values: &mut [f32], deviation: f64) {
        self.fill_normal_from(0, values, deviation);
    }

    /// The same with numbers `4 * block ..` of the stream: a long row is filled piece by piece.
    pub fn fill_normal_from(&self, block: u64, values: &mut [f32], deviation: f64) {
        for (index, chunk) in (block..).zip(values.chunks_mut(4)) {
            for (value, normal) in chunk.iter_mut().zip(self.normal4(index)) {
                *value = (normal * deviation) as f32;
            }
        }
    }

    /// A random order of `0..len`, which is less than 2^32 (Fisher-Yates).
    pub fn permutation(&self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i as u64, i as u64 + 1) as usize);
        }
        order
    }
}

/// Up with the probability of what is cut off: of `half`, which is 16 random bits. Infinities stay, NaN becomes quiet.
pub fn bf16_by_chance(value: f32, half: u16) -> bf16 {
    let bits = value.to_bits();
    if !value.is_finite() {
        let quiet = if value.is_nan() { 0x40 } else { 0 };
        return bf16::from_bits((bits >> 16) as u16 | quiet);
    }
    bf16::from_bits(((bits + u32::from(half)) >> 16) as u16)
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Both uniforms lie strictly between 0 and 1, so the logarithm is finite.
fn box_muller(a: u32, b: u32) -> (f64, f64) {
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * unit(a).ln()).sqrt();
    let (sin, cos) = (TAU * unit(b)).sin_cos();
    (radius * cos, radius * sin)
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let multiply = |a: u32, b: u32| words(u64::from(a) * u64::from(b));
    for _ in 0..10 {
        let [low0, high0] = multiply(0xd251_1f53, counter[0]);
        let [low1, high1] = multiply(0xcd9e_8d57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123 (`kat_vectors`, philox4x32 with 10 rounds).
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let mut values = vec![0.0; 40_001];
        Philox::new(3, Purpose::Init, 1).fill_normal(&mut values, 2.0);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        // Five standard errors: 2 / sqrt(n) of the mean, 4 sqrt(2 / n) of the variance.
        assert!(mean.abs() < 0.05, "{mean}");
        assert!((variance - 4.0).abs() < 0.15, "{variance}");
    }

    #[test]
    fn permutations_hold_every_index_and_differ_by_seed_and_stream() {
        let order = |seed, epoch| Philox::new(seed, Purpose::Shuffle, epoch).permutation(100);
        let mut sorted = order(1, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert!(Philox::new(1, Purpose::Shuffle, 0).permutation(0).is_empty());
    }
}
