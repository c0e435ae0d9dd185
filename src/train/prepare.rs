//! Everything that can be found wrong before anything is trained: run folder, model, tokenizer, data, memory.

use std::{
    collections::HashSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::{
    Options, batches,
    binding::{Bound, Machine, REFERENCE},
    checkpoint::{self, State},
    folder::LOCK,
    log::Counter,
    reshape, settings,
    space::Writes,
};
use crate::{
    config::{self, Config, Files, Precision},
    data::{
        Dataset,
        cache::{Origin, TokenCache},
        encode::{Encoder, too_long_for_the_model},
        source,
        template::{Date, Templates},
    },
    device::{DType, Device},
    files,
    forest::Tree,
    loss::Loss,
    model::{self, Capacity, MemoryPlan, ModelConfig},
    ops::head,
};

/// The resolved configuration in the run folder.
pub const CONFIG: &str = "config.toml";

/// The options with the day that the templates write, where they write one: the configuration's, that of the run that
/// goes on, else today.
///
/// # Errors
/// A template cannot be read.
pub fn dated(options: &Options) -> Result<Options> {
    let mut options = options.clone();
    let date = options.config.data.date;
    if date.is_none() && Templates::of(&options.config)?.is_some_and(|templates| templates.uses_date()) {
        options.config.data.date = Some(recorded_date(&options).unwrap_or_else(Date::today));
    }
    Ok(options)
}

/// The day in the run folder's configuration.
fn recorded_date(options: &Options) -> Option<Date> {
    let text = fs::read_to_string(options.out.join(CONFIG)).ok().filter(|_| options.resume)?;
    let table: toml::Table = text.parse().ok()?;
    table.get("data")?.get("date")?.clone().try_into().ok()
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
    ensure!(*resume, "run folder {shown} is not empty: --resume goes on with the run in it, --out names another");
    let path = out.join(CONFIG);
    ensure!(path.is_file(), "run folder {shown} holds no run: {CONFIG} is missing; --out names another");
    settings::check_unchanged(&path, config)?;
    Ok(match checkpoint::newest(out)? {
        Some((folder, state)) => Start::From(folder, Box::new(state)),
        None => Start::Again,
    })
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
    Ok(spared.into_iter().chain(Machine::here(device).differs(&state.machine)).collect())
}

/// Removes what a killed run left half written in the run folder and writes the resolved configuration.
///
/// # Errors
/// The folder cannot be written.
pub fn open_folder(out: &Path, config: &Config) -> Result<()> {
    let shown = out.display();
    let text = config.to_toml()?;
    files::remove_parts(out)
        .and_then(|()| files::write_whole(&out.join(CONFIG), |file| Ok(file.write_all(text.as_bytes())?)))
        .with_context(|| format!("run folder {shown}: make room there or name another by --out"))
}

/// Model shape and tokenized data.
pub struct Inputs {
    pub model: ModelConfig,
    pub loss: Loss,
    pub train: Dataset,
    pub eval: Option<Dataset>,
    pub total_steps: u64,
    /// Where the tokens came from.
    pub origins: Vec<String>,
    /// What the run learns from.
    pub bound: Bound,
}

/// The tokenized data files of a run.
pub struct Sets {
    pub encoder: Encoder,
    pub train: Dataset,
    pub eval: Option<Dataset>,
    /// Where the tokens came from, a line a file; and what was wrong with the cache.
    pub origins: Vec<String>,
}

impl Sets {
    /// Reads the tokenizer and the data files of both sets, from the cache if their trees are there.
    ///
    /// # Errors
    /// A file is missing or malformed, or a row is bad.
    pub fn read(config: &Config, model: &ModelConfig) -> Result<Self> {
        let encoder = Encoder::from_config(config, model.vocab)?.within(model.positions);
        let options = format!("{}\n{}", encoder.key().hex(), encoding_options(config)?);
        let open = |folder| TokenCache::new(folder, &config.model.path, &options);
        let cache = config.cache.folder().map(open).transpose()?;
        let mut origins = Vec::new();
        let mut load = |key: &str, files: &Files| -> Result<Dataset> {
            let mut all = Dataset::default();
            let files = expand(key, files)?;
            let name = match &files[..] {
                [(file, _)] => file.display().to_string(),
                files => format!("`{key}`, {} files", files.len()),
            };
            for (file, weight) in files {
                let (mut data, origin) = load_file(&file, config, &encoder, cache.as_ref())?;
                describe(&file, &data, origin, &mut origins);
                data.fit(&file.display().to_string(), config.batch.tokens, config.data.on_error)?;
                all.append(data, weight);
            }
            ensure!(!all.trees.is_empty(), "{}", crate::data::no_row(&name, 0, None));
            Ok(all)
        };
        let train = load("data.train", &config.data.train)?;
        let eval = config.data.eval.as_ref().map(|files| load("data.eval", files)).transpose()?;
        Ok(Self { encoder, train, eval, origins })
    }

    /// Changes all rows to what a loss learns from.
    ///
    /// # Errors
    /// A row does not have what the change needs, or is too long after it.
    pub fn reshape(&mut self, loss: &Loss, config: &Config) -> Result<()> {
        for data in [Some(&mut self.train), self.eval.as_mut()].into_iter().flatten() {
            reshape::apply(loss.reshape(), &mut data.trees, self.encoder.tokenizer(), config.batch.tokens)?;
        }
        Ok(())
    }
}

/// Every file of a set with its weight, patterns written out.
fn expand(key: &str, files: &Files) -> Result<Vec<(PathBuf, f32)>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for config::Source { path, weight } in &files.0 {
        for file in source::expand(path).with_context(|| format!("`{key}`"))? {
            // A file that is not there is the reader's to refuse.
            let same = file.canonicalize().unwrap_or_else(|_| file.clone());
            ensure!(
                seen.insert(same),
                "`{key}`: {} is named twice: name it once, with a weight if its rows shall count more often",
                file.display()
            );
            found.push((file, *weight));
        }
    }
    Ok(found)
}

fn load_file(file: &Path, config: &Config, encoder: &Encoder, cache: Option<&TokenCache>) -> Result<(Dataset, Origin)> {
    let started = Instant::now();
    let config::Data { columns, on_error, max_row_bytes, .. } = &config.data;
    // A name that says something else than the bytes is refused whether or not the same bytes are in the cache.
    let opened = source::open(file, *max_row_bytes)?;
    let (kind, regular) = (opened.kind, opened.regular);
    let encode = || {
        let counter = Counter::new(&format!("tokenising {}", file.file_name().unwrap_or_default().display()));
        Dataset::load_counting(opened, columns, encoder, *on_error, |rows| counter.show(rows))
    };
    match cache {
        Some(cache) if regular => cache.load(file, kind, encode),
        Some(_) => {
            let data = encode()?;
            let warning = Some(format!("{} is a pipe: its tokens are not kept", file.display()));
            Ok((data, Origin::Encoded { time: started.elapsed(), warning }))
        }
        None => Ok((encode()?, Origin::Encoded { time: started.elapsed(), warning: None })),
    }
}

/// A line on where the tokens came from, and one on what was wrong with the cache.
fn describe(file: &Path, data: &Dataset, origin: Origin, lines: &mut Vec<String>) {
    let name = file.file_name().unwrap_or_default().display().to_string();
    lines.extend(data.notes.lines(&name));
    if data.is_empty() {
        lines.push(format!("warning: {} has no row", file.display()));
        return;
    }
    match origin {
        Origin::Cache => lines.push(format!("tokens: {name} read from the cache")),
        Origin::Encoded { time, warning } => {
            lines.extend(warning.map(|warning| format!("cache: {warning}")));
            let rows = data.rows() + data.skipped.len();
            let pace = rows as f64 / time.as_secs_f64();
            lines.push(format!("tokens: {name} tokenised, {pace:.0} rows/s"));
        }
    }
}

/// The options under which rows become trees: all of `[data]` but the names of its files.
fn encoding_options(config: &Config) -> Result<String> {
    let mut table = toml::Table::try_from(&config.data)?;
    table.retain(|key, _| !matches!(key, "train" | "eval"));
    Ok(table.to_string())
}

impl Inputs {
    /// Reads the model's config, the tokenizer and both data files.
    ///
    /// # Errors
    /// A file is missing or malformed, or a row is bad.
    pub fn read(config: &Config) -> Result<Self> {
        let model = ModelConfig::load(&config.model.path)?;
        let loss = config.loss.read()?;
        let mut sets = Sets::read(config, &model)?;
        sets.reshape(&loss, config)?;
        let Sets { encoder, train, eval, origins } = sets;
        let bound = Bound::new(config, &encoder, &train.trees, eval.as_ref().map(|eval| &eval.trees[..]))?;
        for tree in train.trees.iter().chain(eval.iter().flat_map(|eval| &eval.trees)) {
            loss.groups([tree])?;
        }
        check_lengths(train.trees.iter().chain(eval.iter().flat_map(|eval| &eval.trees)), &model)?;
        let by_epochs = || Ok::<_, anyhow::Error>(batches::loader(&train, config)?.steps_in(config.train.epochs));
        let total_steps = config.train.steps.map_or_else(by_epochs, |steps| Ok(Some(steps)))?.with_context(|| {
            format!("`train.epochs` = {}: too many steps to count: give a smaller number", config.train.epochs)
        })?;
        Ok(Self { model, loss, train, eval, total_steps, origins, bound })
    }

    /// Bytes of the run, refused if the device does not have them.
    ///
    /// # Errors
    /// The run does not fit.
    pub fn plan(&self, config: &Config, device: &Device) -> Result<MemoryPlan> {
        let mut plan = MemoryPlan::new(&self.model, dtype(config), self.capacity(config, device))?;
        if !self.loss.needs_distributions() {
            plan = plan.on(device, &self.model);
        }
        if let Some(reference) = self.reference_plan(config, device)? {
            plan = plan.beside(&reference);
        }
        check_fits(&plan, device)?;
        Ok(plan)
    }

    /// Refuses a run that the disk has no room for; a line where it has only just enough.
    ///
    /// # Errors
    /// Names need, room and remedy.
    pub fn check_space(&self, options: &Options, plan: &MemoryPlan, start: &Start) -> Result<Option<String>> {
        let trees = self.train.trees.iter().chain(self.eval.iter().flat_map(|eval| &eval.trees));
        let computed = !options.out.join(REFERENCE).is_file();
        let reference_rows = if computed { trees.map(Tree::rows).sum() } else { 0 };
        let writes = Writes { plan, reference_rows, steps: [start.step(), self.total_steps] };
        writes.check(&options.out, &options.config)
    }

    /// The plan of the model that runs beside the policy, where the loss needs one.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn reference_plan(&self, config: &Config, device: &Device) -> Result<Option<MemoryPlan>> {
        let plan = || MemoryPlan::forward_only(&self.model, dtype(config), self.capacity(config, device));
        self.loss.needs_divergence().then(plan).transpose()
    }

    fn capacity(&self, config: &Config, device: &Device) -> Capacity {
        let files: Vec<&Dataset> = [&self.train].into_iter().chain(&self.eval).collect();
        let capacity = capacity(&files, config, device, &self.model);
        // Whole distributions are f32 logits, of both models.
        let head_chunk_rows = match self.loss.needs_distributions() {
            true => capacity.head_chunk_rows.min(head::F32_CHUNK_ROWS),
            false => capacity.head_chunk_rows,
        };
        Capacity { head_chunk_rows, ..capacity }
    }
}

/// Element type of weights and activations.
pub fn dtype(config: &Config) -> DType {
    match config.train.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
    }
}

/// Refuses rows that are longer than the model can read.
///
/// # Errors
/// Names the first such row.
pub fn check_lengths<'a>(trees: impl IntoIterator<Item = &'a Tree>, model: &ModelConfig) -> Result<()> {
    for tree in trees {
        let longest = tree.longest_path();
        ensure!(longest <= model.positions, "{}: {}", tree.name, too_long_for_the_model(longest, model.positions));
    }
    Ok(())
}

/// Refuses a model of which the device cannot launch a kernel, before the data is read.
///
/// # Errors
/// The model's configuration cannot be read, or a kernel takes more shared memory than there is.
pub fn check_kernels(config: &Config, device: &Device) -> Result<()> {
    model::check_kernels(device, &ModelConfig::load(&config.model.path)?, dtype(config), true)
}

/// Refuses a plan for which the device has no memory.
///
/// # Errors
/// It does not fit.
pub fn check_fits(plan: &MemoryPlan, device: &Device) -> Result<()> {
    let free = device.memory().free;
    // Zero: the operating system does not say.
    if free > 0 { plan.check(free) } else { Ok(()) }
}

/// The largest micro-batch there can be: never more tokens than an epoch has, and no more rows in a token than in the
/// densest example.
pub fn capacity(files: &[&Dataset], config: &Config, device: &Device, model: &ModelConfig) -> Capacity {
    let all = files.iter().map(|file| file.epoch_tokens()).max().unwrap_or(1);
    let tokens = config.batch.tokens.min(all);
    let trees = files.iter().flat_map(|file| &file.trees);
    let rows = trees.map(|tree| (tree.rows() * tokens).div_ceil(tree.tokens())).max().unwrap_or(1);
    let head_chunk_rows = head::default_chunk_rows(device, dtype(config), model.vocab, model.hidden);
    Capacity { tokens, rows, head_chunk_rows }
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
            let options = Options { config: config.clone(), device: Choice::Host, out, resume };
            dated(&options).unwrap().config.data.date.map(Date::text)
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
