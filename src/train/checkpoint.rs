//! What a run leaves in its folder, and how it goes on from there.
//!
//! `OUT/checkpoint-N/` is a model folder `transformers` loads as it is, with `optimizer.safetensors` and
//! `trainer_state.json` beside the weights; `OUT/final/` holds the model files of the last one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use serde::{Deserialize, Serialize};

use super::token_mask::TokenMasks;
use crate::{
    data::loader::Position,
    device::{Buffer, DType, Device, Float},
    files,
    model::Model,
    ops::loss_batch,
    optim::AdamW,
};

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const FORMAT: u32 = 2;
const PREFIX: &str = "checkpoint-";

/// Where a run stands. Randomness is a function of seed, epoch and step, so these numbers are its whole state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub format: u32,
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    pub total_steps: u64,
    /// Passes over the training file.
    pub epoch: f64,
    /// Where the next step starts in the shuffled training file.
    pub data: Position,
    /// Tokens trained on, shared prompts counted once.
    pub num_tokens: u64,
    pub seed: u64,
    /// Steps whose update was applied.
    pub updates: u64,
    /// Steps whose gradient norm was not finite.
    pub skipped_steps: u64,
    /// Of these, the last ones without a step in between that was applied.
    pub skipped_in_a_row: u64,
    /// What the loss carries from step to step: see `ops::loss_batch::STATE`.
    pub loss_state: Vec<f64>,
    /// Of the settings that alter the run.
    pub config_hash: String,
}

impl State {
    /// A run that has not started.
    pub fn new(total_steps: u64, seed: u64, config_hash: String) -> Self {
        Self {
            format: FORMAT,
            step: 0,
            total_steps,
            epoch: 0.0,
            data: Position::default(),
            num_tokens: 0,
            seed,
            updates: 0,
            skipped_steps: 0,
            skipped_in_a_row: 0,
            loss_state: vec![0.0; loss_batch::STATE],
            config_hash,
        }
    }
}

/// What to do about a checkpoint that cannot be read.
const SKIP_DAMAGED: &str = "the newest checkpoint cannot be used: remove its folder to go on from the one before";

/// `out/checkpoint-N`.
pub fn folder(out: &Path, step: u64) -> PathBuf {
    out.join(format!("{PREFIX}{step}"))
}

/// Writes `out/checkpoint-N`, whole or not at all, and returns its path. The tokenizer's files come from `source`.
///
/// # Errors
/// The folder cannot be written.
pub fn save<T: Float>(
    out: &Path,
    model: &Model<T>,
    source: &Path,
    optimizer: &AdamW<T>,
    masks: Option<&TokenMasks>,
    state: &State,
) -> Result<PathBuf> {
    let target = folder(out, state.step);
    files::folder_whole(&target, |folder| {
        model.save(folder, Some(source))?;
        save_optimizer(model.device(), optimizer, &folder.join(OPTIMIZER))?;
        masks.iter().try_for_each(|masks| masks.save(model.device(), folder))?;
        let mut text = serde_json::to_string_pretty(state)?;
        text.push('\n');
        fs::write(folder.join(STATE), text).context(STATE)
    })?;
    Ok(target)
}

/// Fills parameters and optimizer from a checkpoint.
///
/// # Errors
/// A file is missing, damaged or belongs to another model.
pub fn load<T: Float>(folder: &Path, model: &Model<T>, optimizer: &AdamW<T>, state: &State) -> Result<()> {
    model.load(folder).context(SKIP_DAMAGED)?;
    optimizer.resume(model.device(), state.updates)?;
    load_optimizer(model.device(), optimizer, &folder.join(OPTIMIZER)).context(SKIP_DAMAGED)
}

/// The newest complete checkpoint in `out`, with its state.
///
/// # Errors
/// `out` cannot be read, or a checkpoint's state is damaged.
pub fn newest(out: &Path) -> Result<Option<(PathBuf, State)>> {
    let Some((_, folder)) = list(out)?.pop() else { return Ok(None) };
    let state = read_state(&folder.join(STATE)).context(SKIP_DAMAGED)?;
    Ok(Some((folder, state)))
}

fn read_state(path: &Path) -> Result<State> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let state: State = serde_json::from_str(&text).with_context(|| format!("{}: damaged", path.display()))?;
    ensure!(state.format == FORMAT, "{}: format {} instead of {FORMAT}", path.display(), state.format);
    ensure!(state.loss_state.len() == loss_batch::STATE, "{}: damaged: `loss_state`", path.display());
    Ok(state)
}

/// Removes the oldest checkpoints beyond the `keep` newest; 0 keeps all.
///
/// # Errors
/// A folder cannot be removed.
pub fn prune(out: &Path, keep: usize) -> Result<()> {
    let checkpoints = list(out)?;
    let surplus = if keep == 0 { 0 } else { checkpoints.len().saturating_sub(keep) };
    checkpoints[..surplus].iter().try_for_each(|(_, folder)| files::remove_folder(folder))
}

/// Makes `out/final`, if it is not there, from a checkpoint's model files. They are linked where the file system can, so
/// that a large model is not stored twice.
///
/// # Errors
/// The folder cannot be written.
pub fn finish(out: &Path, checkpoint: &Path) -> Result<PathBuf> {
    let target = out.join("final");
    if target.exists() {
        return Ok(target);
    }
    files::folder_whole(&target, |folder| {
        for entry in fs::read_dir(checkpoint)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != STATE && name != OPTIMIZER {
                let (from, to) = (entry.path(), folder.join(&name));
                fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
            }
        }
        Ok(())
    })?;
    Ok(target)
}

/// Steps and folders, oldest first.
fn list(out: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(out).with_context(|| format!("{}: cannot be read", out.display()))? {
        let path = entry.with_context(|| format!("{}: cannot be read", out.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The tensors of the state by name; the parameter arena is its own master in f32.
fn parts<T: Float>(optimizer: &AdamW<T>) -> Vec<(&'static str, &Buffer<f32>)> {
    let mut parts = vec![("m", &optimizer.m), ("v", &optimizer.v)];
    if T::DTYPE != DType::F32 {
        parts.push(("master", &optimizer.master));
    }
    parts
}

/// One part at a time is in host memory.
fn save_optimizer<T: Float>(device: &Device, optimizer: &AdamW<T>, path: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    let mut end = 0;
    for (name, buffer) in parts(optimizer) {
        let data_offsets = (end, end + buffer.bytes());
        tensors.push((name.to_string(), TensorInfo { dtype: Dtype::F32, shape: vec![buffer.len()], data_offsets }));
        end = data_offsets.1;
    }
    let mut header = serde_json::to_vec(&Metadata::new(None, tensors)?)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    files::write_whole(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, buffer) in parts(optimizer) {
            file.write_all(bytemuck::cast_slice(&device.download(buffer)?))?;
        }
        Ok(())
    })
}

fn load_optimizer<T: Float>(device: &Device, optimizer: &AdamW<T>, path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| format!("{}: damaged", path.display()))?;
    for (name, buffer) in parts(optimizer) {
        let tensor = tensors.tensor(name).with_context(|| format!("{}: tensor `{name}`", path.display()))?;
        ensure!(
            tensor.dtype() == Dtype::F32 && tensor.shape() == [buffer.len()],
            "{}: tensor `{name}`: expected f32 [{}], found {:?} {:?}",
            path.display(),
            buffer.len(),
            tensor.dtype(),
            tensor.shape()
        );
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(tensor.data());
        device.copy_in(buffer, &values)?;
    }
    Ok(())
}
