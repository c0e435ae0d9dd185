//! Log-probabilities of every response token under the starting weights: computed once, kept in the run folder.
//!
//! A resumed run reads them back, so that it continues with the same bits and never needs the starting weights again.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    batches::{self, MicroBatch},
    hash::Hasher,
};
use crate::{device::Float, files, forest::Tree, model::Model};

/// Rows of every example of one data file, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reference {
    logps: Vec<f32>,
    /// (examples + 1)
    offsets: Vec<usize>,
}

impl Reference {
    /// Runs the model over every example. `go_on` hears how many are done; `None` if it says no.
    ///
    /// # Errors
    /// A launch fails, or a log-probability is not finite.
    pub fn compute<T: Float>(
        model: &Model<T>,
        trees: &[Tree],
        budget: usize,
        mut go_on: impl FnMut(usize) -> bool,
    ) -> Result<Option<Self>> {
        let mut reference = Self::empty(trees);
        let mut done = 0;
        for members in batches::plan_all(trees, budget)? {
            let batch = batches::build(trees, &members)?;
            let on_device = model.upload(&batch.forest)?;
            model.forward(&on_device)?;
            let logps = model.device().download(&model.logps(&on_device)?)?;
            reference.take(trees, &batch, &logps)?;
            done += batch.examples.len();
            if !go_on(done) {
                return Ok(None);
            }
        }
        Ok(Some(reference))
    }

    fn take(&mut self, trees: &[Tree], batch: &MicroBatch, logps: &[f32]) -> Result<()> {
        for (place, &example) in batch.examples.iter().enumerate() {
            let values = &logps[batch.forest.tree_rows[place]..batch.forest.tree_rows[place + 1]];
            ensure!(
                values.iter().all(|v| v.is_finite()),
                "{}: the starting weights give a log-probability that is not finite",
                trees[example].name
            );
            self.logps[self.offsets[example]..self.offsets[example + 1]].copy_from_slice(values);
        }
        Ok(())
    }

    /// The rows of these examples, back to back, as a forest of them has its rows.
    pub fn of(&self, examples: &[usize]) -> Vec<f32> {
        examples.iter().flat_map(|&e| &self.logps[self.offsets[e]..self.offsets[e + 1]]).copied().collect()
    }

    fn empty(trees: &[Tree]) -> Self {
        let mut offsets = vec![0];
        for tree in trees {
            offsets.push(offsets[offsets.len() - 1] + tree.rows());
        }
        Self { logps: vec![0.0; offsets[trees.len()]], offsets }
    }
}

/// What the reference log-probabilities of a run belong to: every token of both files.
pub fn data_key(train: &[Tree], eval: &[Tree]) -> u64 {
    let mut hasher = Hasher::default();
    for trees in [train, eval] {
        hasher.word(trees.len() as u64);
        for segment in trees.iter().flat_map(|tree| &tree.segments) {
            hasher.word(segment.tokens.len() as u64);
            segment.tokens.iter().for_each(|&token| hasher.word(u64::from(token)));
        }
    }
    hasher.finish()
}

/// Writes both sets, with the key of their data and a checksum, in one piece.
///
/// # Errors
/// The file cannot be written.
pub fn save(path: &Path, key: u64, train: &Reference, eval: &Reference) -> Result<()> {
    let check = [key, checksum(train, eval)].map(u64::to_le_bytes).concat();
    let rows = |set: &'_ Reference| (set.logps.len(), bytemuck::allocation::pod_collect_to_vec::<f32, u8>(&set.logps));
    let sets = [("train", rows(train)), ("eval", rows(eval))];
    let mut views = vec![("check", TensorView::new(Dtype::U64, vec![2], &check)?)];
    for (name, (rows, bytes)) in &sets {
        views.push((*name, TensorView::new(Dtype::F32, vec![*rows], bytes)?));
    }
    let bytes = safetensors::serialize(views, None)?;
    files::write_whole(path, |file| Ok(file.write_all(&bytes)?))
}

/// Reads what [`save`] wrote; `None` if there is no file.
///
/// # Errors
/// The file is damaged or belongs to other data.
pub fn load(path: &Path, train: &[Tree], eval: &[Tree]) -> Result<Option<(Reference, Reference)>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why).with_context(|| format!("{}: cannot be read", path.display())),
    };
    let read = || -> Result<(Vec<u64>, Vec<f32>, Vec<f32>)> {
        let tensors = SafeTensors::deserialize(&bytes)?;
        let data = |name: &str| -> Result<&[u8]> { Ok(tensors.tensor(name)?.data()) };
        Ok((
            bytemuck::allocation::pod_collect_to_vec(data("check")?),
            bytemuck::allocation::pod_collect_to_vec(data("train")?),
            bytemuck::allocation::pod_collect_to_vec(data("eval")?),
        ))
    };
    let damaged = || format!("{}: damaged: start a run in another folder", path.display());
    let (check, train_logps, eval_logps) = read().with_context(damaged)?;
    let [key, sum] = check[..] else { bail!(damaged()) };
    ensure!(
        key == data_key(train, eval),
        "{}: made for other data: `data.train`, `data.eval` or the tokenizer changed since the run began",
        path.display()
    );
    let (mut train, mut eval) = (Reference::empty(train), Reference::empty(eval));
    ensure!(train.logps.len() == train_logps.len() && eval.logps.len() == eval_logps.len(), damaged());
    (train.logps, eval.logps) = (train_logps, eval_logps);
    ensure!(sum == checksum(&train, &eval), damaged());
    Ok(Some((train, eval)))
}

fn checksum(train: &Reference, eval: &Reference) -> u64 {
    let mut hasher = Hasher::default();
    for value in train.logps.iter().chain(&eval.logps) {
        hasher.word(u64::from(value.to_bits()));
    }
    hasher.finish()
}
