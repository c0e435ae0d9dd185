//! `warpo bench WORD`: kernels and whole steps timed, results compared, a roofline drawn.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use serde_json::Value;

use crate::{
    bench::{
        compare,
        kernels::{self, KernelOptions},
        step::{self, StepOptions},
    },
    device::{Choice, DType},
    files,
    optim::Moments,
};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Times every kernel of a training step; on the host device counts bytes and FLOPs instead
    Kernels(KernelArgs),
    /// Times whole steps of released models with random weights; on the host device a small one, and counts the others
    Step(StepArgs),
    /// Two results side by side, with their spreads
    Compare(CompareArgs),
    /// Draws what kernels reached of what memory and arithmetic allow
    Roofline(RooflineArgs),
}

#[derive(clap::Args)]
struct KernelArgs {
    /// Part of the names of kernels, such as `gemm`; all without it
    #[arg(value_name = "NAME", default_value = "")]
    filter: String,
    /// auto, cuda, cuda:N or host; auto takes the first GPU if there is one
    #[arg(long, default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    results: ResultArgs,
}

#[derive(clap::Args)]
struct StepArgs {
    /// Part of the name of a released model, such as `llama-3.2-1b`; all without it
    #[arg(long, value_name = "NAME", default_value = "")]
    model: String,
    /// dpo, sft or score; all without it
    #[arg(long, value_name = "NAME", default_value = "")]
    task: String,
    /// shared or separate prompts; both without it
    #[arg(long, value_name = "NAME", default_value = "")]
    layout: String,
    /// Pairs of a step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_1)]
    pairs: usize,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_1)]
    prompt: usize,
    /// Tokens of a response
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_1)]
    response: usize,
    /// Tokens of a micro-batch at most, shared prompts counted once
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = at_least_1)]
    tokens: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_1)]
    steps: usize,
    /// Whether each micro-batch of a dpo step is launched as a CUDA graph
    #[arg(long, value_name = "true|false", default_value_t = false, action = clap::ArgAction::Set)]
    graph: bool,
    /// f32 or bf16: what gradients are added up in
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = gradients)]
    gradients: DType,
    /// f32, bf16 or 8bit: what AdamW's moments are kept as
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = moments)]
    moments: Moments,
    /// auto, cuda, cuda:N or host; auto takes the first GPU if there is one
    #[arg(long, default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    results: ResultArgs,
}

#[derive(clap::Args)]
struct ResultArgs {
    /// Writes the results with the time of every run, a JSON list
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compares with the results in a file that `--json` wrote before
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

#[derive(clap::Args)]
struct CompareArgs {
    /// Results that `--json` wrote
    #[arg(value_name = "BEFORE.json")]
    before: PathBuf,
    /// Later results of the same bench
    #[arg(value_name = "NOW.json")]
    now: PathBuf,
}

#[derive(clap::Args)]
struct RooflineArgs {
    /// Results of `warpo bench kernels --json` on a GPU
    #[arg(value_name = "RESULTS.json")]
    results: PathBuf,
    /// The picture, an SVG file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Above the picture; the device's name if not given
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

fn gradients(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        _ => Err("expected f32 or bf16".into()),
    }
}

fn moments(text: &str) -> Result<Moments, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected f32, bf16 or 8bit".into())
}

fn at_least_1(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected 1 or more".into())
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Kernels(args) => {
            let results = args.results.open()?;
            let KernelArgs { filter, device, .. } = args;
            results.finish(&kernels::run(&KernelOptions { device: *device, filter: filter.clone() })?)?;
        }
        What::Step(args) => {
            let results = args.results.open()?;
            results.finish(&step::run(&args.options())?)?;
        }
        What::Compare(CompareArgs { before, now }) => {
            super::print(&compare::table(&read(before)?, &read(now)?)?)?;
        }
        What::Roofline(args) => draw(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl StepArgs {
    fn options(&self) -> StepOptions {
        let Self {
            model, task, layout, pairs, prompt, response, tokens, steps, graph, gradients, moments, device, ..
        } = self;
        let (model, task, layout) = (model.clone(), task.clone(), layout.clone());
        let [pairs, prompt, response, tokens, steps] = [pairs, prompt, response, tokens, steps].map(|number| *number);
        StepOptions {
            device: *device,
            model,
            task,
            layout,
            pairs,
            prompt,
            response,
            tokens,
            steps,
            graph: *graph,
            gradients: *gradients,
            moments: *moments,
        }
    }
}

/// Where results go, and what they are compared with: both known to be of use before anything is timed.
struct Results<'a> {
    json: Option<&'a Path>,
    before: Option<Vec<Value>>,
}

impl ResultArgs {
    fn open(&self) -> Result<Results<'_>> {
        let json = self.json.as_deref();
        json.map(files::try_whole).transpose().context("name another file by --json")?;
        Ok(Results { json, before: self.compare.as_deref().map(read).transpose()? })
    }
}

impl Results<'_> {
    fn finish(&self, results: &[Value]) -> Result<()> {
        if let Some(path) = self.json {
            let text = serde_json::to_string_pretty(results)?;
            files::write_whole(path, |file| Ok(writeln!(file, "{text}")?))?;
        }
        let Some(before) = &self.before else { return Ok(()) };
        super::print(&format!("\n{}", compare::table(before, results)?))
    }
}

fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    compare::read(&text).with_context(|| path.display().to_string())
}

#[cfg(feature = "figures")]
fn draw(args: &RooflineArgs) -> Result<()> {
    let is_svg = args.out.extension().is_some_and(|end| end.eq_ignore_ascii_case("svg"));
    ensure!(is_svg, "--out {}: the picture is an SVG file: name one that ends in .svg", args.out.display());
    let results = read(&args.results)?;
    let device = results.iter().find_map(|result| result.get("device")?.as_str());
    let title = args.title.as_deref().or(device).unwrap_or_default();
    let text = crate::bench::roofline::svg(&results, title).with_context(|| args.results.display().to_string())?;
    files::write_whole(&args.out, |file| Ok(file.write_all(text.as_bytes())?))
}

#[cfg(not(feature = "figures"))]
fn draw(_: &RooflineArgs) -> Result<()> {
    anyhow::bail!("this program draws no pictures: build it with the feature `figures`")
}
