//! What the fuzz targets do with their bytes: the way of a stranger's file into a run, up to where arithmetic begins.
//!
//! A target fails by a panic, by one of the checks here, or by more time or memory than the fuzzer allows. `tests/fuzz.rs`
//! takes the same files and feeds them seeds and mutations of seeds without a fuzzer.

pub mod config;
pub mod rows;
pub mod safetensors;
pub mod template;

use std::{fs, path::Path};

use anyhow::Error;
use warpo::{
    data::{Dataset, tokenize::Tokenizer},
    forest::Forest,
};

/// Rows of the embedding table that the small tokenizer belongs to.
const VOCAB: usize = 320;
/// A byte-level BPE of 314 tokens, EOS 0, no BOS in front.
const TOKENIZER: &str = include_str!("../../tests/fixtures/parity/tokenizer/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../tests/fixtures/parity/tokenizer/tokenizer_config.json");

/// A way in.
pub trait Target {
    /// Inputs to start from.
    fn seeds() -> Vec<Vec<u8>>;
    /// With a folder for the files it reads, which is empty.
    fn new(folder: &Path) -> Self;
    /// Takes any bytes.
    fn run(&self, bytes: &[u8]);
}

/// A first byte that chooses, and what it chooses for.
fn input(choice: u8, bytes: &[u8]) -> Vec<u8> {
    [&[choice], bytes].concat()
}

/// The parts between occurrences of `between`.
fn split<'a>(bytes: &'a [u8], between: &[u8]) -> Vec<&'a [u8]> {
    let (mut parts, mut rest) = (Vec::new(), bytes);
    while let Some(at) = rest.windows(between.len()).position(|window| window == between) {
        parts.push(&rest[..at]);
        rest = &rest[at + between.len()..];
    }
    parts.push(rest);
    parts
}

fn write(file: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(file, bytes).expect("the folder can be written");
}

/// Files that the input before this one may have left.
fn remove(folder: &Path, names: &[&str]) {
    for name in names {
        let _ = fs::remove_file(folder.join(name));
    }
}

fn small_tokenizer(folder: &Path) -> Tokenizer {
    write(&folder.join("tokenizer.json"), TOKENIZER);
    write(&folder.join("tokenizer_config.json"), TOKENIZER_CONFIG);
    Tokenizer::load(folder, VOCAB).expect("the small tokenizer loads")
}

/// What a run would take from these rows is what the kernels can index.
fn check_rows(data: &Dataset) {
    let trees: Vec<_> = data.trees.iter().map(|tree| tree.expect("what was written is read")).collect();
    Forest::pack(&trees).expect("an encoded row is a tree");
    let mut ids = trees.iter().flat_map(|tree| &tree.segments).flat_map(|segment| &segment.tokens);
    assert!(ids.all(|&id| (id as usize) < VOCAB), "an id without an embedding");
    let mut numbers = trees.iter().flat_map(|tree| &tree.scores);
    assert!(numbers.all(|score| score.is_finite()), "a score that is no number");
}

/// A refusal says something.
fn check_refusal(why: &Error) {
    assert!(!format!("{why:#}").trim().is_empty(), "a refusal without a word");
}
