//! Where a run begins: in an empty folder, from the start again, or from a checkpoint whose inputs are unchanged.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use super::{
    Options, best,
    binding::{Machine, REFERENCE},
    checkpoint::{self, State},
    folder::{CONFIG, LOCK, MEAN, METRICS},
    inputs::Inputs,
    settings,
};
use crate::{
    config::{Config, Precision, TrainSection},
    data::template::Date,
    device::Device,
    files,
    report::{MARGINS, events},
};

/// The options with what the run that goes on chose for itself where the configuration leaves it open: its precision, the rows of
/// the head's chunk where they are fewer than usual, and the day that the templates write, where they write one; without such a run today.
///
/// # Errors
/// A template cannot be read.
pub fn settled(options: &Options) -> Result<Options> {
    let mut options = options.clone();
    if options.config.train.precision == Precision::Auto {
        options.config.train.precision = recorded(&options, "train", "precision").unwrap_or_default();
    }
    let chunk = options.config.train.head_chunk_rows;
    options.config.train.head_chunk_rows = chunk.or_else(|| recorded(&options, "train", "head_chunk_rows"));
    let date = options.config.data.date;
    if date.is_none() && options.config.templates()?.is_some_and(|templates| templates.uses_date()) {
        options.config.data.date = Some(recorded(&options, "data", "date").unwrap_or_else(Date::today));
    }
    Ok(options)
}

/// A key of the configuration in the folder of a run that is to go on.
fn recorded<T: DeserializeOwned>(options: &Options, section: &str, key: &str) -> Option<T> {
    let text = fs::read_to_string(options.out.join(CONFIG)).ok().filter(|_| options.resume)?;
    let table: toml::Table = text.parse().ok()?;
    table.get(section)?.get(key)?.clone().try_into().ok()
}

/// Where a run begins.
pub enum Start {
    Fresh,
    /// From the start, in the folder of a run that saved nothing.
    Again,
    From(PathBuf, Box<State>),
}

impl Start {
    /// Steps done.
    pub fn step(&self) -> u64 {
        if let Self::From(_, state) = self { state.step } else { 0 }
    }
}

/// Finds out where the run begins, and refuses a folder that holds something else. The folder is this run's: see
/// [`RunFolder`](super::folder::RunFolder).
///
/// # Errors
/// The folder holds files and `--resume` is not given, holds no run, or holds one with other settings or damaged parts.
pub fn start(options: &Options) -> Result<Start> {
    let Options { config, out, resume, .. } = options;
    let shown = out.display();
    let entries = fs::read_dir(out).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = entries.with_context(|| format!("run folder {shown}: cannot be read: name another by --out"))?;
    // Its own lock, and what a run leaves that is killed while it writes its first file.
    let own = [LOCK.to_owned(), format!("{CONFIG}{}", files::PART)];
    if entries.iter().all(|entry| own.iter().any(|own| entry.file_name() == own.as_str())) {
        return Ok(Start::Fresh);
    }
    if options.overwrite {
        check_removable(out)?;
        return Ok(Start::Fresh);
    }
    ensure!(
        *resume,
        "run folder {shown} is not empty: --resume goes on with the run in it, --overwrite begins anew, --out names another"
    );
    let path = out.join(CONFIG);
    ensure!(path.is_file(), "run folder {shown} holds no run: {CONFIG} is missing; --out names another");
    settings::check_unchanged(&path, config)?;
    Ok(match checkpoint::newest(out)? {
        Some((folder, state)) => Start::From(folder, Box::new(state)),
        None => Start::Again,
    })
}

/// What a run writes into its folder, by how the names begin.
const OWN: [&str; 10] =
    [CONFIG, LOCK, MARGINS, METRICS, MEAN, REFERENCE, "checkpoint-", "final", best::FOLDER, events::PREFIX];

/// Refuses to remove what no run wrote.
fn check_removable(out: &Path) -> Result<()> {
    let shown = out.display();
    ensure!(
        out.join(CONFIG).is_file(),
        "run folder {shown} holds no run: {CONFIG} is missing, and --overwrite removes runs only; --out names another"
    );
    for entry in fs::read_dir(out)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(
            OWN.iter().any(|own| name.starts_with(own)),
            "run folder {shown} holds `{name}`, which no run wrote: move it away, or name another folder by --out"
        );
    }
    Ok(())
}

/// Removes the run in a folder, but for the lock.
///
/// # Errors
/// Something in it cannot be removed, or no run wrote it.
pub fn remove_run(out: &Path) -> Result<()> {
    check_removable(out)?;
    let remove = |name: &std::ffi::OsStr| -> Result<()> {
        let path = out.join(name);
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .with_context(|| format!("{}: cannot be removed", path.display()))
    };
    let entries = fs::read_dir(out)?.collect::<std::io::Result<Vec<_>>>()?;
    let names = entries.iter().map(|entry| entry.file_name()).filter(|name| name != LOCK && name != CONFIG);
    names.into_iter().try_for_each(|name| remove(&name))?;
    // Last: as long as it is there, the folder is a run's.
    remove(CONFIG.as_ref())
}

/// Moves the model of a run that had ended, and goes on, out of the name `final`. Says where it is.
///
/// # Errors
/// It cannot be moved.
pub fn set_final_aside(out: &Path, saved: &State, total_steps: u64, train: &TrainSection) -> Result<Option<String>> {
    let (path, aside) = (out.join("final"), out.join(format!("final-{}", saved.step)));
    let goes_on = saved.step < total_steps && !best::Best::ends(&saved.best, train);
    if !goes_on || !path.exists() {
        return Ok(None);
    }
    fs::rename(&path, &aside).with_context(|| format!("{}: cannot be moved", path.display()))?;
    Ok(Some(format!("the model of the {} steps that were is in {}", saved.step, aside.display())))
}

/// How long the run was and is, and what that does to its learning rate, if it is not as it was.
fn other_length(saved: &State, total_steps: u64, config: &Config) -> Option<String> {
    let State { step, total_steps: before, .. } = *saved;
    if before == total_steps || step >= total_steps {
        return None;
    }
    let [now, then] = [total_steps, before].map(|total| config.learning_rate(total).at(step));
    let then = if step < before { format!("{then:.3e} of the {before}") } else { "none, the run was over".into() };
    Some(format!(
        "the run is {total_steps} steps long, it was {before}: the learning rate goes on as that of {total_steps} steps, \
         {now:.3e} at the next step (before: {then})"
    ))
}

/// Refuses to go on from a checkpoint if anything the run learns from changed, and gives a line for what may differ but not
/// unsaid.
///
/// # Errors
/// Names what changed and what to do.
pub fn check_resumed(
    start: &Start,
    inputs: &Inputs,
    out: &Path,
    config: &Config,
    device: &Device,
) -> Result<Vec<String>> {
    let Start::From(folder, state) = start else { return Ok(Vec::new()) };
    let name = folder.file_name().unwrap_or_default().display();
    if state.is_unbound() {
        let older = format!(
            "{name} is of format {}: whether rows, weights, template and its own files are those it was \
                             saved with cannot be checked",
            state.format
        );
        return Ok(vec![older]);
    }
    settings::check_saved(&state.settings, config, out).with_context(|| folder.display().to_string())?;
    let reference = out.join(REFERENCE);
    let kept = reference.is_file() && !inputs.loss.needs_divergence();
    let spared = inputs.bound.clone().with_reference(&reference)?.check(&state.bound, kept, out)?;
    let longer = other_length(state, inputs.total_steps, config);
    Ok(spared.into_iter().chain(Machine::here(device).differs(&state.machine)).chain(longer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Choice;

    /// The day that a run in a folder with this configuration writes, and one that goes on in it.
    fn days(template: &str, before: &str) -> [Option<String>; 2] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        fs::write(folder.path().join(CONFIG), before).unwrap();
        let mut config = Config::default();
        config.model.path = folder.path().into();
        [false, true].map(|resume| {
            let out = folder.path().into();
            let options = Options { config: config.clone(), device: Choice::Host, out, resume, overwrite: false };
            settled(&options).unwrap().config.data.date.map(Date::text)
        })
    }

    #[test]
    fn a_run_keeps_the_day_it_began_on_where_its_template_writes_one() {
        let today = Some(Date::today().text());
        let began = Some("2024-03-05".to_owned());
        let before = "[data]\ndate = \"2024-03-05\"\n";
        assert_eq!(days("{{ strftime_now('%d') }}", before), [today.clone(), began]);
        assert_eq!(days("{{ strftime_now('%d') }}", ""), [today.clone(), today]);
        assert_eq!(days("{{ messages }}", before), [None, None]);
    }
}
