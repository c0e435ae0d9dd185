//! A number for every row of every example: the log-probabilities under the starting weights, as a run keeps them in its
//! folder.
//!
//! They lie in a file and are read from it when a step needs them. A resumed run reads those of its folder, so that it
//! continues with the same bits and never needs the starting weights again. The file says what it was made from.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::keys::data_key;
use crate::{
    cache::{Hashes, Key},
    data::trees::Trees,
    files::{
        self,
        blob::{Blob, NAMELESS, nameless, take_room},
        safetensors::{self, Dtype, Reader, Spec},
    },
};

/// Examples between two whose place is known without counting.
const STRIDE: usize = 64;
/// Bytes that are read, or changed, at a time.
const BLOCK: usize = 1 << 20;
const NUMBER: u64 = size_of::<f32>() as u64;
/// The key of the data and the hash of the values: the tensor `check`.
const CHECK: usize = 64;
/// Where a reference file keeps what it was made from.
const BOUND: &str = "bound";

/// Which rows of numbers belong to which example.
#[derive(Clone, Debug, Default)]
struct Rows {
    each: Arc<Vec<u32>>,
    /// Rows before every [`STRIDE`]th example.
    before: Arc<Vec<u64>>,
    all: u64,
}

impl Rows {
    fn of(trees: &Trees) -> Self {
        let each = trees.rows().clone();
        let mut all = 0;
        let mut before = Vec::with_capacity(each.len().div_ceil(STRIDE));
        for chunk in each.chunks(STRIDE) {
            before.push(all);
            all += sum(chunk);
        }
        Self { each, before: Arc::new(before), all }
    }

    /// Rows before an example, and its own.
    fn place(&self, example: usize) -> (u64, usize) {
        let start = example / STRIDE * STRIDE;
        (self.before[example / STRIDE] + sum(&self.each[start..example]), self.each[example] as usize)
    }
}

fn sum(rows: &[u32]) -> u64 {
    rows.iter().map(|&rows| u64::from(rows)).sum()
}

/// Rows of every example of one data file, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct RowValues {
    blob: Arc<Blob>,
    /// Where they begin.
    start: u64,
    rows: Rows,
}

impl RowValues {
    /// No values: what a loss without a reference has.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.rows.all == 0
    }

    /// The rows of one example.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn row(&self, example: usize) -> Result<Vec<f32>> {
        let (before, own) = self.rows.place(example);
        let mut values = vec![0.0; own];
        self.blob.read_at(bytemuck::cast_slice_mut(&mut values), self.start + NUMBER * before)?;
        Ok(values)
    }
}

/// A file that values are written to in any order: the one that a run keeps, while it has another name, or one without a
/// name.
#[derive(Debug)]
pub struct ValueFile {
    file: File,
    shown: String,
    /// Where it will be, if it stays.
    path: Option<PathBuf>,
    /// Bytes before the values.
    head: u64,
    sets: [Rows; 2],
}

impl ValueFile {
    /// The file of a run, with room for the values of both sets, made from `bound`.
    ///
    /// # Errors
    /// It cannot be made, or there is no room.
    pub fn of_run(path: &Path, bound: &Hashes, sets: [&Trees; 2]) -> Result<Self> {
        let make = || -> Result<Self> {
            let sets = sets.map(Rows::of);
            let head = header(bound, &sets)?;
            let part = files::part_name(path);
            let file = File::options().read(true).write(true).create(true).truncate(true).open(part)?;
            let shown = path.display().to_string();
            let made = Self { file, shown, path: Some(path.to_owned()), head: head.len() as u64, sets };
            take_room(&made.file, made.check_place() + CHECK as u64)?;
            made.file.write_all_at(&head, 0)?;
            Ok(made)
        };
        make().with_context(|| format!("{}: cannot be written", path.display()))
    }

    /// A file that is gone with the program.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn nameless(sets: [&Trees; 2]) -> Result<Self> {
        let sets = sets.map(Rows::of);
        let file =
            nameless(NUMBER * (sets[0].all + sets[1].all)).with_context(|| format!("{NAMELESS}: cannot be made"))?;
        Ok(Self { file, shown: NAMELESS.to_owned(), path: None, head: 0, sets })
    }

    fn check_place(&self) -> u64 {
        self.head + NUMBER * (self.sets[0].all + self.sets[1].all)
    }

    fn start(&self, set: usize) -> u64 {
        self.head + if set == 0 { 0 } else { NUMBER * self.sets[0].all }
    }

    /// Writes the rows of an example, counted through both sets. False if it has another number of them.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn put(&self, example: usize, values: &[f32]) -> Result<bool> {
        let first = self.sets[0].each.len();
        let (set, example) = if example < first { (0, example) } else { (1, example - first) };
        let (before, own) = self.sets[set].place(example);
        let place = self.start(set) + NUMBER * before;
        let written = || self.file.write_all_at(bytemuck::cast_slice(values), place);
        if own == values.len() {
            written().map_err(|why| anyhow!(why).context(format!("{}: cannot be written", self.shown)))?;
        }
        Ok(own == values.len())
    }

    /// Carries the change from `older` to these values on by `alpha`: accelerated preference optimisation, by
    /// log-probabilities.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn accelerate(&self, older: &Self, alpha: f64) -> Result<()> {
        let (mut values, mut others) = (vec![0f32; BLOCK / NUMBER as usize], vec![0f32; BLOCK / NUMBER as usize]);
        let bytes = self.check_place() - self.head;
        for place in (0..bytes).step_by(BLOCK) {
            let count = ((bytes - place).min(BLOCK as u64) / NUMBER) as usize;
            let (values, others) = (&mut values[..count], &mut others[..count]);
            let mut change = || -> io::Result<()> {
                self.file.read_exact_at(bytemuck::cast_slice_mut(values), self.head + place)?;
                older.file.read_exact_at(bytemuck::cast_slice_mut(others), older.head + place)?;
                for (value, older) in values.iter_mut().zip(&*others) {
                    *value = ((1.0 + alpha) * f64::from(*value) - alpha * f64::from(*older)) as f32;
                }
                self.file.write_all_at(bytemuck::cast_slice(values), self.head + place)
            };
            change().with_context(|| format!("{}: cannot be written", self.shown))?;
        }
        Ok(())
    }

    /// Gives a run's file its name, with the key of its data and a checksum: whole, and on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, data: &Key) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let save = || -> Result<()> {
            let place = self.check_place();
            let check = [data.0, *hash(&self.file, self.head, place)?.as_bytes()].concat();
            self.file.write_all_at(&check, place)?;
            self.file.sync_all()?;
            fs::rename(files::part_name(path), path)?;
            files::sync_parent(path)
        };
        save().with_context(|| format!("{}: cannot be written", self.shown))
    }

    /// The values of both sets.
    ///
    /// # Errors
    /// The program has too many files open.
    pub fn values(&self) -> Result<[RowValues; 2]> {
        let file = self.file.try_clone().with_context(|| format!("{}: cannot be read", self.shown))?;
        let blob = Blob::File { file, len: self.check_place(), name: self.shown.clone() };
        Ok(both(blob, [0, 1].map(|set| self.start(set)), self.sets.clone()))
    }
}

/// What was not saved is of no use.
impl Drop for ValueFile {
    fn drop(&mut self) {
        let part = self.path.as_deref().map(files::part_name);
        // Saved, it has another name.
        let _ = part.map(fs::remove_file);
    }
}

fn both(blob: Blob, [train, eval]: [u64; 2], sets: [Rows; 2]) -> [RowValues; 2] {
    let (blob, [train_rows, eval_rows]) = (Arc::new(blob), sets);
    [RowValues { blob: blob.clone(), start: train, rows: train_rows }, RowValues { blob, start: eval, rows: eval_rows }]
}

/// The head of a file: its length, and where everything is.
fn header(bound: &Hashes, sets: &[Rows; 2]) -> Result<Vec<u8>> {
    let about = HashMap::from([(BOUND.to_owned(), serde_json::to_string(bound)?)]);
    let spec = |name: &str, dtype, count| Spec { name: name.to_owned(), dtype, shape: vec![count] };
    let specs = [
        spec("train", Dtype::F32, sets[0].all as usize),
        spec("eval", Dtype::F32, sets[1].all as usize),
        spec("check", Dtype::U8, CHECK),
    ];
    Ok(safetensors::head(Some(about), &specs)?.0)
}

fn hash(file: &File, start: u64, end: u64) -> io::Result<blake3::Hash> {
    let (mut hasher, mut block, mut place) = (blake3::Hasher::new(), vec![0; BLOCK], start);
    while place < end {
        let piece = &mut block[..(end - place).min(BLOCK as u64) as usize];
        file.read_exact_at(piece, place)?;
        hasher.update_rayon(piece);
        place += piece.len() as u64;
    }
    Ok(hasher.finalize())
}

/// What a file holds: the values of both sets, and what they were made from as far as the file says.
pub type LoadedValues = ([RowValues; 2], Hashes);

/// Opens what [`ValueFile::save`] wrote; `None` if there is no file. Of files that older programs wrote, whose `check` is the
/// start of the data's key and a sum of another kind, the key is looked at; a checkpoint knows the hash of the whole file.
///
/// # Errors
/// The file is damaged or belongs to other data.
pub fn load(path: &Path, sets: [&Trees; 2]) -> Result<Option<LoadedValues>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why).with_context(|| format!("{}: cannot be read", path.display())),
    };
    let damaged = || format!("{}: damaged: restore it, or start another run with --out", path.display());
    let (rows, head) = (sets.map(Rows::of), read_header(path).with_context(damaged)?);
    let mut check = vec![0; (head.check.1 - head.check.0) as usize];
    file.read_exact_at(&mut check, head.check.0).with_context(damaged)?;
    let data = data_key(sets, |_| {})?;
    let (key, sum) = match check.len() {
        CHECK => (check[..32] == data.0, Some(&check[32..])),
        16 => (check[..8].iter().rev().eq(&data.0[..8]), None),
        _ => bail!(damaged()),
    };
    ensure!(
        key,
        "{}: made for other data: `data.train`, `data.eval` or the tokenizer changed since the run began: restore them, or \
         start another run with --out",
        path.display()
    );
    let fits = [head.train, head.eval].iter().zip(&rows).all(|((start, end), rows)| end - start == NUMBER * rows.all);
    ensure!(fits, damaged());
    if let Some(sum) = sum {
        let values = hash(&file, head.train.0, head.eval.1).with_context(damaged)?;
        ensure!(head.train.1 == head.eval.0 && values.as_bytes()[..] == *sum, damaged());
    }
    let blob = Blob::File { file, len: head.train.1.max(head.eval.1), name: path.display().to_string() };
    Ok(Some((both(blob, [head.train.0, head.eval.0], rows), head.bound)))
}

/// Where things are in a file, and what it was made from.
struct Header {
    train: (u64, u64),
    eval: (u64, u64),
    check: (u64, u64),
    bound: Hashes,
}

fn read_header(path: &Path) -> Result<Header> {
    let file = Reader::open(path.to_owned())?;
    let place = |name: &str, dtype: &[Dtype]| -> Result<(u64, u64)> {
        let (info, place) = file.info(name).zip(file.place(name)).with_context(|| format!("no `{name}`"))?;
        ensure!(dtype.contains(&info.dtype), "`{name}` of another type");
        Ok((place.start, place.end))
    };
    Ok(Header {
        train: place("train", &[Dtype::F32])?,
        eval: place("eval", &[Dtype::F32])?,
        check: place("check", &[Dtype::U8, Dtype::U64])?,
        bound: file.about(BOUND).map(serde_json::from_str).transpose()?.unwrap_or_default(),
    })
}
