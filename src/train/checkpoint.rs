//! What a run leaves in its folder, and how it goes on from there.
//!
//! `OUT/checkpoint-N/` is a model folder `transformers` loads as it is, with `optimizer.safetensors` and
//! `trainer_state.json` beside the weights; `OUT/final/` holds the model files of the last one. The state has the hash of
//! every other file of its folder and of itself, so that no part of another step and no damaged one is taken for its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{best::Best, binding::Machine, step::Done};
use crate::{
    cache::{Hashes, file_hash},
    data::loader::Position,
    device::{Device, Float},
    files::{
        self,
        safetensors::{self, Reader, Spec},
    },
    model::{AnyBuffer, Companions},
    ops::loss_batch,
    optim::{Ema, Optimizer},
    roles::{Policy, Roles},
};

/// The model card in a final model's folder.
const CARD: &str = "README.md";
const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Of a checkpoint: the weights of a reference that follows the policy.
pub const REFERENCE: &str = "reference";
/// May have moments of other types than f32.
const FORMAT: u32 = 4;
/// The first that is bound to what the run learns from and has the hashes of its files.
const BOUND: u32 = 3;
const OLDEST: u32 = 2;
const PREFIX: &str = "checkpoint-";
/// What stands in the place of a state's own hash while it is computed.
const NO_CHECK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Where a run stands. Randomness is a function of seed, epoch and step, so these numbers are its whole state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Changes with what is read.
    pub format: u32,
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Of the whole run.
    pub total_steps: u64,
    /// Passes over the training file.
    pub epoch: f64,
    /// Where the next step starts in the shuffled training file.
    pub data: Position,
    /// Tokens trained on, shared prompts counted once.
    pub num_tokens: u64,
    /// Of shuffles and random starts.
    pub seed: u64,
    /// Steps whose update was applied.
    pub updates: u64,
    /// Steps whose gradient norm was not finite.
    pub skipped_steps: u64,
    /// Of these, the last ones without a step in between that was applied.
    pub skipped_in_a_row: u64,
    /// Of the held-out metric that is watched, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// What the loss carries from step to step: see `ops::loss_batch::STATE`.
    pub loss_state: Vec<f64>,
    /// The settings that alter the run: see [`settings::text`](super::settings::text).
    #[serde(default)]
    pub settings: String,
    /// What the run learns from: see [`Bound`](super::binding::Bound).
    #[serde(default)]
    pub bound: Hashes,
    /// What computed it.
    #[serde(default)]
    pub machine: Machine,
    /// Hashes of the other files of the checkpoint.
    #[serde(default)]
    pub files: Hashes,
    /// Of this state's text, zeros in the place of this.
    #[serde(default)]
    pub check: String,
}

impl State {
    /// A run that has not started.
    pub fn new(total_steps: u64, seed: u64, settings: String, machine: Machine) -> Self {
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
            best: None,
            loss_state: vec![0.0; loss_batch::STATE],
            settings,
            bound: Hashes::new(),
            machine,
            files: Hashes::new(),
            check: String::new(),
        }
    }

    /// Where a run stands that goes on from `saved`: under what it was begun with, on what it is now and as long as it is now.
    pub fn after(self, saved: &Self) -> Self {
        let mut bound = self.bound;
        bound.extend(saved.bound.clone());
        let Self { settings, machine, total_steps, .. } = self;
        Self { format: FORMAT, total_steps, settings, bound, machine, ..saved.clone() }
    }

    /// A step was done: the next begins at `data`, after `epoch` passes over the rows.
    pub fn advance(&mut self, done: &Done, data: Position, epoch: f64) {
        self.step += 1;
        (self.data, self.epoch) = (data, epoch);
        self.num_tokens += done.tokens as u64;
        self.loss_state = done.loss_state.clone();
        self.updates += u64::from(done.update.applied);
        self.skipped_steps += u64::from(!done.update.applied);
        self.skipped_in_a_row = if done.update.applied { 0 } else { self.skipped_in_a_row + 1 };
    }

    /// What the last steps say against the weights.
    pub fn unsound_end(&self) -> Option<String> {
        let Self { skipped_in_a_row, total_steps, .. } = self;
        (*skipped_in_a_row > 0)
            .then(|| format!("the gradient norm was not finite in the last {skipped_in_a_row} of {total_steps} steps"))
    }

    /// Whether it is of a format that binds nothing and has no hashes.
    pub fn is_unbound(&self) -> bool {
        self.format < BOUND
    }

    /// As the file has it, with the hashes of the files in `folder` and its own.
    fn sealed(&self, folder: &Path) -> Result<String> {
        let mut state = Self { format: FORMAT, files: Hashes::new(), check: NO_CHECK.into(), ..self.clone() };
        hash_below(folder, "", &mut state.files)?;
        let mut text = serde_json::to_string_pretty(&state)?;
        text.push('\n');
        let check = blake3::hash(text.as_bytes()).to_hex();
        Ok(text.replace(NO_CHECK, &check))
    }
}

/// Takes in every file below `folder`, whose name is `prefix`.
fn hash_below(folder: &Path, prefix: &str, files: &mut Hashes) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = format!("{prefix}{}", path.file_name().unwrap_or_default().to_string_lossy());
        match path.is_dir() {
            true => hash_below(&path, &format!("{name}/"), files)?,
            false => drop(files.insert(name, file_hash(&path)?.hex())),
        }
    }
    Ok(())
}

/// What to do about a checkpoint that cannot be read.
const SKIP_DAMAGED: &str = "the newest checkpoint cannot be used: remove its folder to go on from the one before, if there is none from the start";

/// `out/checkpoint-N`.
pub fn folder(out: &Path, step: u64) -> PathBuf {
    out.join(format!("{PREFIX}{step}"))
}

/// Writes `out/checkpoint-N`, whole or not at all, and returns its path; with the reference, where it `follows` the policy.
///
/// # Errors
/// The folder cannot be written.
pub fn save<T: Float>(
    out: &Path,
    roles: &Roles<T>,
    follows: bool,
    companions: &Companions,
    state: &State,
) -> Result<PathBuf> {
    let Policy { model, optimizer, masks, ema } = &roles.policy;
    let following = roles.reference.beside().filter(|_| follows);
    let target = folder(out, state.step);
    files::folder_whole(&target, |folder| {
        model.save(folder, companions)?;
        save_tensors(model.device(), &tensors(optimizer, ema.as_ref()), &folder.join(OPTIMIZER))?;
        if let Some(reference) = following {
            reference.save(&folder.join(REFERENCE), companions)?;
        }
        masks.iter().try_for_each(|masks| masks.save(folder))?;
        fs::write(folder.join(STATE), state.sealed(folder)?).context(STATE)
    })?;
    Ok(target)
}

/// What to do about a checkpoint that could not be written.
pub fn not_saved(out: &Path, step: u64) -> String {
    let there = list(out).unwrap_or_default();
    let (from, spare) = match &there[..] {
        [] => ("it begins at the start, nothing was saved".to_owned(), ""),
        [(step, _)] => (format!("it begins after step {step}"), ""),
        [.., (step, _)] => (format!("it begins after step {step}"), " (all checkpoints but the newest may go)"),
    };
    format!("{}: not saved: make room there{spare}, then go on with --resume: {from}", folder(out, step).display())
}

/// Fills a policy from a checkpoint.
///
/// # Errors
/// A file is missing, damaged or belongs to another model.
pub fn load<T: Float>(folder: &Path, policy: &Policy<T>, state: &State) -> Result<()> {
    let Policy { model, optimizer, masks, ema } = policy;
    model.load(folder).context(SKIP_DAMAGED)?;
    optimizer.resume(state.updates)?;
    let tensors = tensors(optimizer, ema.as_ref());
    load_tensors(model.device(), &tensors, &folder.join(OPTIMIZER)).context(SKIP_DAMAGED)?;
    masks.iter().try_for_each(|masks| masks.load(folder))
}

/// The newest complete checkpoint in `out`, with its state. Every file of it was read and is the one that was saved, which
/// a checkpoint of format 2 cannot say.
///
/// # Errors
/// `out` cannot be read, or a checkpoint is damaged or holds files of another.
pub fn newest(out: &Path) -> Result<Option<(PathBuf, State)>> {
    let Some((step, folder)) = list(out)?.pop() else { return Ok(None) };
    let state = read_state(&folder.join(STATE)).and_then(|state| {
        ensure!(state.step == step, "{}: holds the state of step {}", folder.display(), state.step);
        verify(&folder, &state)?;
        Ok(state)
    });
    Ok(Some((folder, state.context(SKIP_DAMAGED)?)))
}

/// What the loss had carried to a checkpoint, as far as the folder is one.
///
/// # Errors
/// The state is damaged.
pub fn carried(folder: &Path) -> Result<Option<Vec<f64>>> {
    let path = folder.join(STATE);
    if path.is_file() { read_state(&path).map(|state| Some(state.loss_state)) } else { Ok(None) }
}

fn verify(folder: &Path, state: &State) -> Result<()> {
    for (name, hash) in &state.files {
        let path = folder.join(name);
        ensure!(
            file_hash(&path)?.hex() == *hash,
            "{}: not the file that was saved with step {}: damaged, changed or of another step",
            path.display(),
            state.step
        );
    }
    Ok(())
}

fn read_state(path: &Path) -> Result<State> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let state: State = serde_json::from_str(&text).with_context(|| format!("{}: damaged", path.display()))?;
    ensure!(
        (OLDEST..=FORMAT).contains(&state.format),
        "{}: format {}, this program reads {OLDEST} to {FORMAT}",
        path.display(),
        state.format
    );
    // A format alone proves nothing: one bit of it may have turned.
    let unsealed = state.is_unbound() && state.check.is_empty();
    let whole = || blake3::hash(text.replace(&state.check, NO_CHECK).as_bytes()).to_hex().as_str() == state.check;
    ensure!(unsealed || (state.check.len() == NO_CHECK.len() && whole()), "{}: damaged", path.display());
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

/// Makes `out/final`, if it is not there, from a checkpoint's model files, with the card of the model. They are copied, so that whoever changes one
/// folder does not change the other: the disk needs room for the model once more, unless it can share what is equal.
///
/// # Errors
/// The folder cannot be written.
pub fn finish(out: &Path, checkpoint: &Path, card: impl FnOnce() -> String) -> Result<PathBuf> {
    let target = out.join("final");
    if target.exists() {
        return Ok(target);
    }
    files::folder_whole(&target, |folder| {
        copy_model(checkpoint, folder)?;
        fs::write(folder.join(CARD), card()).context(CARD)
    })?;
    Ok(target)
}

/// Copies a folder, but for the run's own files.
fn copy_model(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, target) = (entry.file_name(), to.join(entry.file_name()));
        if name == STATE || name == OPTIMIZER || name == REFERENCE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_model(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            fs::File::open(&target)?.sync_all()?;
        }
    }
    Ok(())
}

/// Steps and folders, oldest first.
///
/// # Errors
/// `out` cannot be read.
pub fn list(out: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(out).with_context(|| format!("{}: cannot be read", out.display()))? {
        let path = entry.with_context(|| format!("{}: cannot be read", out.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok())
            && path.is_dir()
        {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// What training remembers beside the weights.
fn tensors<T: Float>(optimizer: &Optimizer<T>, ema: Option<&Ema>) -> Vec<(&'static str, AnyBuffer)> {
    optimizer.tensors().into_iter().chain(ema.map(Ema::tensor)).collect()
}

/// One piece of one tensor at a time is in host memory.
fn save_tensors(device: &Device, tensors: &[(&str, AnyBuffer)], path: &Path) -> Result<()> {
    let spec = |(name, buffer): &(&str, AnyBuffer)| Spec {
        name: name.to_string(),
        dtype: buffer.dtype(),
        shape: vec![buffer.len()],
    };
    let specs: Vec<Spec> = tensors.iter().map(spec).collect();
    safetensors::write(path, None, &specs, |file| {
        tensors.iter().enumerate().try_for_each(|(number, (_, buffer))| buffer.save(device, file, number))
    })
}

fn load_tensors(device: &Device, tensors: &[(&str, AnyBuffer)], path: &Path) -> Result<()> {
    let file = Reader::open(path.to_owned()).with_context(|| format!("{}: cannot be read", path.display()))?;
    tensors.iter().try_for_each(|(name, buffer)| buffer.load(device, &file, name, &[buffer.len()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let machine = Machine { warpo: "0".into(), kernels: "0".into(), device: "host".into() };
        let mut state = State::new(9, 1, "seed = 1".into(), machine);
        // Seventeen digits, which a hasty reader takes for its neighbour.
        (state.step, state.epoch) = (3, 0.1 + 0.2);
        state.loss_state.fill(1.0 / 3.0 + 1e-16);
        state
    }

    /// A checkpoint folder with a file in a folder of its own.
    fn saved() -> tempfile::TempDir {
        let out = tempfile::tempdir().unwrap();
        files::folder_whole(&folder(out.path(), 3), |folder| {
            fs::write(folder.join("a.safetensors"), "weights")?;
            fs::create_dir(folder.join("templates"))?;
            fs::write(folder.join("templates/tool_use.jinja"), "{{ tools }}")?;
            Ok(fs::write(folder.join(STATE), state().sealed(folder)?)?)
        })
        .unwrap();
        out
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let out = saved();
        let (_, found) = newest(out.path()).unwrap().unwrap();
        assert_eq!(found.files.keys().collect::<Vec<_>>(), ["a.safetensors", "templates/tool_use.jinja"]);
        assert_eq!(State { files: Hashes::new(), check: String::new(), ..found }, state());
    }

    #[test]
    fn no_bit_of_a_checkpoint_may_turn() {
        for name in ["a.safetensors", "templates/tool_use.jinja", STATE] {
            let out = saved();
            let path = folder(out.path(), 3).join(name);
            let bytes = fs::read(&path).unwrap();
            for at in 0..bytes.len() {
                let mut other = bytes.clone();
                other[at] ^= 1;
                fs::write(&path, other).unwrap();
                let why = format!("{:#}", newest(out.path()).unwrap_err());
                assert!(why.contains("remove its folder") && why.contains(name), "byte {at} of {name}: {why}");
            }
        }
    }
}
