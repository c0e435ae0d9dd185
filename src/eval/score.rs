//! Scoring a data file: the log-probability a model gives to every response, without training anything.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, ErrorKind, Write, stdout},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use serde_json::{Map, Value, json};

use crate::{
    config::Config,
    data::{batches, sets::Sets, trees::Trees},
    device::{Choice, DType, Device, Float},
    error::Error,
    escape::visible_json,
    eval::summary::Summary,
    files,
    forest::{Forest, Tree},
    model::{Capacity, MemoryPlan, Model, ModelConfig, check_kernels},
    ops::head,
    report::terminal::{self, Terminal, conclude, say},
    roles::{
        RunPlan,
        reference::{ReferencePass, ValueFile},
    },
    units::duration,
};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct ScoreOptions {
    /// `model.path`, `data.train`, `batch.tokens`, `train.precision`, `train.threads` and the options of `[data]` count.
    pub config: Config,
    /// Whether micro-batches grow to the longest row where that has more than `batch.tokens`; else it is refused.
    pub grows: bool,
    /// Where it runs.
    pub device: Choice,
    /// JSON lines: a file, which must not exist; a device or a pipe; or `-` for standard output.
    pub out: PathBuf,
    /// Whether a line has the log-probability of every token as well.
    pub per_token: bool,
}

/// Writes one JSON line a row of the file, in its order. A file appears whole, when all rows are scored; what a killed
/// run computed is in the cache.
///
/// # Errors
/// The output exists, the model or the data cannot be read, a row is bad, or the run does not fit on the device.
pub fn run(options: &ScoreOptions) -> Result<(), Error> {
    Ok(score_rows(options)?)
}

fn score_rows(options: &ScoreOptions) -> Result<()> {
    let mut options = options.clone();
    let output = Output::open(&options.out)?;
    let least = options.config.batch.tokens;
    if options.grows {
        options.config.batch.tokens = usize::MAX;
    }
    let config = &options.config;
    let device = config.open_device(options.device, config.host())?;
    let shape = ModelConfig::load(&config.model.path)?;
    let precision = config.train.precision.on(&device);
    check_kernels(&device, &shape, precision, false)?;
    let sets = Sets::read(config.encoder(shape.vocab, shape.positions)?, &config.sets()?, terminal::counting_rows)?;
    sets.check_lengths(shape.positions)?;
    if options.grows {
        let longest = sets.train.trees.tokens().iter().max().map_or(0, |&longest| longest as usize);
        options.config.batch.tokens = least.max(longest);
    }
    let (options, config) = (&options, &options.config);
    let [tokens, rows] = batches::largest(&[&sets.train], config.batch.tokens);
    let head_chunk_rows = head::default_chunk_rows(&device, precision, shape.vocab, shape.hidden);
    let capacity = Capacity { tokens, rows, head_chunk_rows };
    let plan = RunPlan::from(MemoryPlan::forward_only(&shape, precision, capacity)?.on(&device, &shape));
    plan.check(&device)?;
    say(&format!("device: {}", device.describe()));
    say(&config.train.precision.describe(&device));
    plan.to_string().lines().for_each(say);
    sets.train.skipped.iter().for_each(|skipped| say(&format!("left out: {skipped}")));
    sets.origins.iter().for_each(|origin| say(origin));
    match precision {
        DType::Bf16 => score::<bf16>(options, output, &sets, &shape, &device, plan),
        _ => score::<f32>(options, output, &sets, &shape, &device, plan),
    }
}

fn score<T: Float>(
    options: &ScoreOptions,
    output: Output,
    sets: &Sets,
    shape: &ModelConfig,
    device: &Device,
    plan: RunPlan,
) -> Result<()> {
    let config = &options.config;
    let trees = &sets.train.trees;
    let model = Model::<T>::new(device, shape, plan.policy)?;
    model.load(&config.model.path)?;
    let sets = [trees, &Trees::default()];
    let file = ValueFile::nameless(sets)?;
    let mut pass = ReferencePass::new(&model, config.batch.tokens, config.cache.folder(), sets, &file)?;
    pass.warnings.drain(..).for_each(|warning| say(&format!("cache: {warning}")));
    say(&format!("scores: {}", pass.describe()?));
    let (started, missing) = (Instant::now(), pass.missing());
    let bar = Terminal::new(0, pass.missing_tokens(), u64::MAX);
    let scored = pass.run(|done| {
        bar.show(done.tokens, "scoring");
        true
    });
    bar.finish();
    pass.warnings.drain(..).for_each(|warning| say(&format!("cache: {warning}")));
    scored?.context("nothing interrupts the pass")?;
    let [values, _] = file.values()?;
    let mut summary = Summary::default();
    output.write(&options.out, |file| {
        let mut examples = 0..;
        summary = Summary::default();
        trees.visit(
            |_| (),
            |tree, ()| {
                let logps = values.row(examples.next().unwrap_or_default())?;
                let line = line(tree, &logps, options.per_token)?;
                summary.add(&line);
                let line = serde_json::to_string(&line)?;
                Ok(writeln!(file, "{}", visible_json(&line))?)
            },
        )
    })?;
    let time = duration(started.elapsed());
    say(&format!("{} rows, {missing} of them computed in {time}: {}", trees.len(), options.out.display()));
    conclude(&summary.describe());
    Ok(())
}

/// Names of standard output.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Where the lines go.
enum Output {
    /// A file that appears whole.
    File,
    Stdout,
    /// A device or a pipe.
    Stream(File),
}

impl Output {
    /// Finds out before anything is computed whether there can be an output.
    fn open(out: &Path) -> Result<Self> {
        let shown = out.display();
        if STDOUT.iter().any(|name| out == Path::new(name)) {
            terminal::leave_output_alone();
            return Ok(Self::Stdout);
        }
        let remedy = "name another file by --out";
        match fs::metadata(out) {
            Err(why) if why.kind() == ErrorKind::NotFound => {
                let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                ensure!(
                    folder.is_dir(),
                    "{shown}: the folder {} does not exist: make it, or name another by --out",
                    folder.display()
                );
                files::try_whole(out).with_context(|| remedy)?;
                Ok(Self::File)
            }
            Err(why) => Err(why).with_context(|| format!("{shown}: cannot be looked up: {remedy}")),
            Ok(found) if found.is_file() => bail!("{shown} exists: {remedy}, or remove it"),
            Ok(found) if found.is_dir() => bail!("{shown} is a folder: {remedy}"),
            Ok(_) => {
                let stream = OpenOptions::new().write(true).open(out);
                Ok(Self::Stream(stream.with_context(|| format!("{shown}: cannot be written: {remedy}"))?))
            }
        }
    }

    /// Writes through `fill`. A reader that has seen enough (`| head`) is no error.
    fn write(self, out: &Path, mut fill: impl FnMut(&mut dyn Write) -> Result<()>) -> Result<()> {
        let stream: Box<dyn Write> = match self {
            Self::File => return files::write_whole(out, |file| fill(file)),
            Self::Stdout => Box::new(stdout()),
            Self::Stream(file) => Box::new(file),
        };
        let mut stream = BufWriter::new(stream);
        match fill(&mut stream).and_then(|()| Ok(stream.flush()?)) {
            Err(why) if is_broken_pipe(&why) => {
                // What is left in the buffer has nowhere to go.
                let _ = stream.into_parts();
                Ok(())
            }
            done => done.with_context(|| format!("{}: cannot be written", out.display())),
        }
    }
}

fn is_broken_pipe(why: &anyhow::Error) -> bool {
    why.downcast_ref::<std::io::Error>().is_some_and(|why| why.kind() == ErrorKind::BrokenPipe)
}

/// A row's line: `chosen_` and `rejected_` for a pair, arrays in the order of the responses for anything else.
fn line(tree: &Tree, logps: &[f32], per_token: bool) -> Result<Map<String, Value>> {
    let bounds = Forest::pack([tree])?.sequence_rows;
    let responses: Vec<&[f32]> = bounds.windows(2).map(|ends| &logps[ends[0] as usize..ends[1] as usize]).collect();
    let sum = |response: &[f32]| response.iter().map(|&logp| f64::from(logp)).sum::<f64>();
    // The file's name without its folders, and the place in it.
    let row = tree.name.rsplit(std::path::MAIN_SEPARATOR).next().unwrap_or(&tree.name);
    let mut line = Map::from_iter([("row".to_owned(), Value::from(row))]);
    if let (&[[chosen, rejected]], 2) = (&tree.pairs[..], responses.len()) {
        let sides = [("chosen", responses[chosen]), ("rejected", responses[rejected])];
        line.extend(sides.map(|(side, response)| (format!("{side}_logps"), sum(response).into())));
        line.extend(sides.map(|(side, response)| (format!("{side}_tokens"), response.len().into())));
        if per_token {
            line.extend(sides.map(|(side, response)| (format!("{side}_token_logps"), response.into())));
        }
        return Ok(line);
    }
    line.insert("logps".into(), responses.iter().map(|response| sum(response)).collect());
    line.insert("tokens".into(), responses.iter().map(|response| response.len()).collect());
    if per_token {
        line.insert("token_logps".into(), json!(responses));
    }
    Ok(line)
}
