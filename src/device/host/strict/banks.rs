//! How often the lanes of an instruction meet in a bank of shared memory.
//!
//! Shared memory has 32 banks of four bytes. A warp's access of up to four bytes a lane takes one pass if no bank is asked for
//! two different words; eight bytes a lane go in halves of the warp, sixteen in quarters. What is counted here is how many
//! passes an instruction takes beyond these. The k-th access of a lane at a place is taken to belong to the k-th of the
//! others: what it does if all lanes take the same way.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use super::{super::BankConflicts, places::Places};

const BANKS: usize = 32;
const WORD: u64 = 4;
const LANES: usize = 32;

/// The book of a device.
#[derive(Default)]
pub(in super::super) struct Book(Mutex<BTreeMap<(&'static str, String, bool), BankConflicts>>);

impl Book {
    /// Everything so far, by kernel and place.
    pub fn read(&self) -> Vec<BankConflicts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn add(&self, kernel: &'static str, place: String, write: bool, counts: &Counts) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = book.entry((kernel, place.clone(), write)).or_insert_with(|| BankConflicts {
            kernel,
            place,
            write,
            instructions: 0,
            passes: 0,
            least: 0,
            degree: 0,
        });
        entry.instructions += counts.instructions;
        entry.passes += counts.passes;
        entry.least += counts.least;
        entry.degree = entry.degree.max(counts.degree);
    }
}

#[derive(Default)]
struct Counts {
    instructions: u64,
    passes: u64,
    least: u64,
    degree: usize,
}

/// One access of a lane: which lane, from which byte, how many bytes.
type Part = (usize, u64, usize);

/// What a warp did at one place and is not complete yet.
struct Open {
    /// Accesses of each lane so far.
    counts: [usize; LANES],
    /// The instruction that stands first in `parts`.
    first: usize,
    parts: VecDeque<Vec<Part>>,
}

/// Accesses of the CTA that is running on a worker.
#[derive(Default)]
pub(super) struct Banks {
    book: Option<Arc<Book>>,
    /// By warp, place and whether it writes.
    open: HashMap<(usize, u32, bool), Open>,
    done: HashMap<(u32, bool), Counts>,
    /// Of places, by their numbers.
    names: HashMap<u32, String>,
}

impl Banks {
    pub fn start(&mut self, book: Option<Arc<Book>>) {
        self.book = book;
    }

    /// A lane's access to shared memory, `address` counted from the start of its CTA's.
    pub fn access(&mut self, thread: usize, at: u32, write: bool, address: u64, bytes: usize) {
        if self.book.is_none() {
            return;
        }
        let (warp, lane) = (thread / LANES, thread % LANES);
        let fresh = || Open { counts: [0; LANES], first: 0, parts: VecDeque::new() };
        let open = self.open.entry((warp, at, write)).or_insert_with(fresh);
        let turn = open.counts[lane] - open.first;
        open.counts[lane] += 1;
        if open.parts.len() <= turn {
            open.parts.resize_with(turn + 1, Vec::new);
        }
        open.parts[turn].push((lane, address, bytes));
        while open.parts.front().is_some_and(|parts| parts.len() == LANES) {
            let parts = open.parts.pop_front().unwrap_or_default();
            open.first += 1;
            self.done.entry((at, write)).or_default().add(&parts);
        }
    }

    /// Counts what is left and hands everything to the book.
    pub fn end(&mut self, kernel: &'static str, places: &Places) {
        let Some(book) = self.book.take() else { return };
        for ((_, at, write), open) in self.open.drain() {
            let counts = self.done.entry((at, write)).or_default();
            open.parts.iter().filter(|parts| !parts.is_empty()).for_each(|parts| counts.add(parts));
        }
        for ((at, write), counts) in self.done.drain() {
            let place = self.names.entry(at).or_insert_with(|| places.describe(at)).clone();
            book.add(kernel, place, write, &counts);
        }
    }
}

impl Counts {
    fn add(&mut self, parts: &[Part]) {
        self.instructions += 1;
        let widest = parts.iter().map(|&(_, _, bytes)| bytes).max().unwrap_or(1);
        // Lanes that go together.
        let together = match widest {
            0..=4 => LANES,
            5..=8 => LANES / 2,
            _ => LANES / 4,
        };
        for group in 0..LANES / together {
            let mut words: Vec<u64> = parts
                .iter()
                .filter(|(lane, ..)| lane / together == group)
                .flat_map(|&(_, address, bytes)| address / WORD..=(address + bytes as u64 - 1) / WORD)
                .collect();
            if words.is_empty() {
                continue;
            }
            words.sort_unstable();
            words.dedup();
            let mut asked = [0; BANKS];
            words.iter().for_each(|word| asked[*word as usize % BANKS] += 1);
            let degree = asked.into_iter().max().unwrap_or(1);
            self.passes += degree as u64;
            self.least += 1;
            self.degree = self.degree.max(degree);
        }
    }
}
