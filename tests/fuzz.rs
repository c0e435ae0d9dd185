//! The fuzz targets without a fuzzer: their seeds, and a few hundred mutations of each from a fixed seed. `fuzz/run` is the
//! long form of this.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

#[path = "../fuzz/src/lib.rs"]
mod targets;

use targets::Target;

/// What `fuzz/run` gives an input.
const TIME: Duration = Duration::from_secs(20);
/// Bytes that formats are made of, and numbers at their limits.
const WORDS: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b",",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\0",
    b"\n",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{%",
    b"%}",
    b"{{",
    b"}}",
    b"-%}",
    b"|",
    b"\x1b[31m",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
];

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..start + self.below((len - start).min(64) + 1)
    }
}

/// One change of the kinds that fuzzers make.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let (at, range) = (dice.below(bytes.len()), dice.range(bytes.len()));
    match dice.below(8) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 if !bytes.is_empty() => bytes[at] = dice.below(256) as u8,
        2 => drop(bytes.drain(range)),
        3 => {
            let piece = bytes[range].to_vec();
            bytes.splice(at..at, piece);
        }
        4 => {
            let other = &seeds[dice.below(seeds.len())];
            let piece = other[dice.range(other.len())].to_vec();
            bytes.splice(range, piece);
        }
        5 => bytes.truncate(at),
        _ => drop(bytes.splice(range, WORDS[dice.below(WORDS.len())].iter().copied())),
    }
}

/// Runs the seeds, then `count` of them with up to four changes.
fn feed<T: Target>(count: usize) {
    let folder = tempfile::tempdir().unwrap();
    let target = T::new(folder.path());
    let seeds = T::seeds();
    let mut dice = Dice(1);
    let run = |bytes: &[u8]| {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target.run(bytes)));
        assert!(outcome.is_ok() && start.elapsed() < TIME, "{:?}: b\"{}\"", start.elapsed(), bytes.escape_ascii());
    };
    seeds.iter().for_each(|seed| run(seed));
    for i in 0..count {
        let mut bytes = seeds[i % seeds.len()].clone();
        for _ in 0..=dice.below(4) {
            mutate(&mut dice, &mut bytes, &seeds);
        }
        run(&bytes);
    }
}

#[test]
fn rows() {
    feed::<targets::rows::Rows>(4000);
}

#[test]
fn template() {
    feed::<targets::template::Template>(1500);
}

#[test]
fn safetensors() {
    feed::<targets::safetensors::Safetensors>(4000);
}

#[test]
fn config() {
    feed::<targets::config::Config>(3000);
}
