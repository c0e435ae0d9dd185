//! Times whole steps of models with random weights.
//!
//! A step is everything between two points at which the device has nothing left to do: index tables, forward and backward
//! pass of every micro-batch, the loss, the update. `dpo` is launched as in training, while the step before runs, and takes
//! from the end of that one to its own; `--graph true` makes each of its micro-batches a graph. It has its reference
//! log-probabilities at hand, `sft` trains on both responses, `score` runs forward only. Names select by part. On the host device the table holds what the counts say about
//! the real shapes, and every case runs at a small one.

use std::time::Instant;

use crate::{
    data::trees::Trees,
    device::{Choice, DType, Device, GemmBackend, HostOptions},
    feed::Work,
    forest::{Forest, Tree},
    loss::Loss,
    model::{Capacity, Layout as Weights, MemoryPlan, Model, ModelConfig, Slopes, flops},
    ops::head,
    optim::{Moments, Optimizer, RuleKind, Settings},
    roles::{
        Demand, Planner, Policy, Rates, Reference, Roles, RunPlan,
        reference::{RowValues, compute},
    },
    train::step::{self, Trainer},
};
use anyhow::{Context, Result, ensure};
use half::bf16;
use serde_json::{Value, json};

use super::{
    row,
    shapes::{self, Layout, Lengths},
    times::Times,
};

const LEARNING_RATE: f64 = 1e-6;
/// Steps that warm up.
const UNTIMED: usize = 2;
/// Dense bf16 FLOP/s of an H100 SXM, for the table of the host device.
const H100_FLOPS: f64 = 989.4e12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Dpo,
    Sft,
    Score,
}

impl Task {
    const ALL: [Self; 3] = [Self::Dpo, Self::Sft, Self::Score];

    fn name(self) -> &'static str {
        match self {
            Self::Dpo => "dpo",
            Self::Sft => "sft",
            Self::Score => "score",
        }
    }

    /// Passes that cost as much as the forward one.
    fn passes(self) -> f64 {
        if self == Self::Score { 1.0 } else { 3.0 }
    }
}

/// What is timed, and where. Names select by part, all without one.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Where.
    pub device: Choice,
    /// Of a released model.
    pub model: String,
    /// `dpo`, `sft` or `score`.
    pub task: String,
    /// `shared` or `separate` prompts.
    pub layout: String,
    /// Pairs of a step.
    pub pairs: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens of a response.
    pub response: usize,
    /// Tokens of a micro-batch at most.
    pub tokens: usize,
    /// Steps that are timed.
    pub steps: usize,
    /// Whether a micro-batch of a `dpo` step is launched as a graph.
    pub graph: bool,
    /// What gradients of matrices and tables are added up in.
    pub gradients: DType,
    /// What AdamW's moments are kept as.
    pub moments: Moments,
}

impl StepOptions {
    fn settings(&self) -> Settings {
        let rule = RuleKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, moments: self.moments, windows: None };
        Settings { rule, weight_decay: 0.0, max_grad_norm: 1.0 }
    }

    fn lengths(&self) -> Lengths {
        Lengths { prompt: self.prompt, response: self.response }
    }
}

/// A model, a task and the batches of one step.
struct Case<'a> {
    model: &'a str,
    shape: &'a ModelConfig,
    task: Task,
    layout: Layout,
    work: Work,
    forests: Vec<Forest>,
    plan: MemoryPlan,
}

/// Runs the cases, printing a row each, and gives their results: an object each, in the schema of `benches/baselines`.
///
/// # Errors
/// There is no such device or model, or a launch fails.
pub fn run(options: &StepOptions) -> Result<Vec<Value>> {
    check(options)?;
    let device = Device::open(options.device, HostOptions::default())?;
    row!("{}\n", device.describe());
    if !device.is_cuda() {
        account(options)?;
    }
    row!(
        "| model | task | layout | ms a step | pairs/s | packed tokens/s | % of peak | GB | ms, others | ms to queue a micro-batch |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"
    );
    let mut results = Vec::new();
    for (model, shape) in if device.is_cuda() { shapes::released()? } else { vec![shapes::small()?] } {
        for (task, layout) in selected(options, &model, !device.is_cuda()) {
            let case = case(options, &device, &model, &shape, task, layout)?;
            if let Err(why) = RunPlan::from(case.plan.clone()).check(&device) {
                row!("| {model} | {} | {} | {why} | | | | | | |", task.name(), layout.name());
                continue;
            }
            results.push(report(&device, &case, options, &timed(&device, &case, options)?)?);
        }
    }
    Ok(results)
}

/// Names that select nothing are refused.
fn check(options: &StepOptions) -> Result<()> {
    let models: Vec<String> = shapes::released()?.into_iter().map(|(name, _)| name).collect();
    let known = |what: &str, part: &str, all: &[&str]| {
        ensure!(all.iter().any(|name| name.contains(part)), "--{what} {part}: there are {}", all.join(", "));
        Ok(())
    };
    known("model", &options.model, &models.iter().map(String::as_str).collect::<Vec<_>>())?;
    known("task", &options.task, &Task::ALL.map(Task::name))?;
    known("layout", &options.layout, &Layout::ALL.map(Layout::name))
}

/// Tasks and layouts asked for; a small model stands for all.
fn selected(options: &StepOptions, model: &str, stands_for_all: bool) -> Vec<(Task, Layout)> {
    let wanted = |name: &str, part: &str| name.contains(part);
    let tasks = Task::ALL.into_iter().filter(|task| wanted(task.name(), &options.task));
    let layouts = || Layout::ALL.into_iter().filter(|layout| wanted(layout.name(), &options.layout));
    let all = tasks.flat_map(|task| layouts().map(move |layout| (task, layout)));
    all.filter(|_| stands_for_all || wanted(model, &options.model)).collect()
}

fn case<'a>(
    options: &StepOptions,
    device: &Device,
    model: &'a str,
    shape: &'a ModelConfig,
    task: Task,
    layout: Layout,
) -> Result<Case<'a>> {
    // The host device does a sixteenth, in one piece.
    let share = if device.is_cuda() { 1 } else { 16 };
    let lengths = Lengths { prompt: options.prompt.div_ceil(share), response: options.response.div_ceil(share) };
    let trees = shapes::pairs(options.pairs.div_ceil(share), layout, lengths, shape.vocab);
    Case::new(model, shape, task, layout, trees, options, device)
}

impl<'a> Case<'a> {
    /// Packs, and the memory that they take: on a GPU as much is computed again as it takes to fit.
    fn new(
        model: &'a str,
        shape: &'a ModelConfig,
        task: Task,
        layout: Layout,
        trees: Vec<Tree>,
        options: &StepOptions,
        device: &Device,
    ) -> Result<Self> {
        let rows: Trees = trees.into_iter().collect();
        let work = Work::of(&rows, &(0..rows.len() as u32).collect::<Vec<_>>(), options.tokens, &RowValues::none())?;
        let forests = work.forests()?;
        let most = |count: fn(&Forest) -> usize| forests.iter().map(count).max().unwrap_or(1);
        let capacity = Capacity {
            tokens: most(Forest::len),
            rows: most(Forest::rows),
            head_chunk_rows: head::default_chunk_rows(device, DType::Bf16, shape.vocab, shape.hidden),
        };
        let plan = match task {
            Task::Score => MemoryPlan::forward_only(shape, DType::Bf16, capacity)?.on(device, shape),
            _ => {
                let keys = forests.iter().map(Forest::mean_keys).max().unwrap_or(1);
                training_plan(shape, capacity, keys, options, device)?
            }
        };
        Ok(Self { model, shape, task, layout, work, forests, plan })
    }
}

/// The cheapest that fits on a GPU; nothing is computed again where steps are counted only.
fn training_plan(
    shape: &ModelConfig,
    capacity: Capacity,
    keys: usize,
    options: &StepOptions,
    device: &Device,
) -> Result<MemoryPlan> {
    let gradients = options.gradients;
    let remembered = options.settings().rule.bytes(&Weights::new(shape).groups(), gradients);
    let (precision, distributions, beside) = (DType::Bf16, false, false);
    let demand = Demand { shape, precision, device, gradients, remembered, on_host: 0, distributions, beside };
    let planner = Planner {
        demand,
        capacity,
        longest_row: capacity.tokens,
        mean_keys: keys as f64,
        free: if device.is_cuda() { device.memory().free } else { 0 },
        levels: None,
        chunk_is_fixed: false,
        rates: Rates::default(),
        savings: Vec::new(),
    };
    Ok(planner.decide()?.plan.policy)
}

/// What was measured of a case.
struct Measured {
    step_ms: Vec<f64>,
    /// Until everything that one micro-batch runs was queued, where a step is that and nothing else (not `dpo`).
    queued_ms: Vec<f64>,
    /// Most memory in use.
    peak: usize,
}

/// Runs a step; of a task that queues one micro-batch after another says when the first was queued.
type RunStep<'a> = Box<dyn FnMut() -> Result<Option<Instant>> + 'a>;

fn timed(device: &Device, case: &Case, options: &StepOptions) -> Result<Measured> {
    let model = Model::<bf16>::new(device, case.shape, case.plan.clone())?;
    shapes::fill(&model)?;
    let mut step: RunStep = match case.task {
        Task::Dpo => dpo(case, model, options)?,
        Task::Sft => sft(device, case, model, &options.settings())?,
        Task::Score => Box::new(move || {
            let mut queued = None;
            for forest in &case.forests {
                let batch = model.upload(forest)?;
                model.forward(&batch)?;
                model.logps(&batch)?;
                queued.get_or_insert_with(Instant::now);
            }
            Ok(queued)
        }),
    };
    let (mut step_ms, mut queued_ms) = (Vec::new(), Vec::new());
    let ms_since = |start: Instant, end: Instant| (end - start).as_secs_f64() * 1e3;
    let mut end = Instant::now();
    let alone = case.task != Task::Dpo;
    for i in 0..UNTIMED + options.steps {
        let mut start = end;
        // A training step is launched while the one before runs, and takes from the end of that one to its own.
        if alone {
            device.synchronize()?;
            start = Instant::now();
        }
        let queued = step()?;
        if alone {
            device.synchronize()?;
        }
        end = Instant::now();
        if i >= UNTIMED {
            step_ms.push(ms_since(start, end));
            queued_ms.extend(queued.map(|at| ms_since(start, at)));
        }
    }
    Ok(Measured { step_ms, queued_ms, peak: device.memory().peak })
}

fn dpo<'a>(case: &'a Case, model: Model<bf16>, options: &StepOptions) -> Result<RunStep<'a>> {
    let trees: Trees = case.work.trees.iter().cloned().collect();
    let rows: Vec<u32> = (0..trees.len() as u32).collect();
    let values = compute(&model, &trees, case.plan.capacity.tokens)?;
    let work = Work::of(&trees, &rows, case.plan.capacity.tokens, &values)?;
    let optimizer = Optimizer::new(model.params(), &options.settings())?;
    let roles = Roles { policy: Policy { model, optimizer, masks: None, ema: None }, reference: Reference::Values };
    let trainer = Trainer::new(roles, Loss::named("dpo")?, step::StepOptions { graphed: options.graph })?;
    let mut unread = None;
    Ok(Box::new(move || {
        let queued = trainer.queue(&work, LEARNING_RATE, false)?;
        if let Some(before) = unread.replace(queued) {
            trainer.finish(before)?;
        }
        Ok(None)
    }))
}

/// Both responses, by the mean over their tokens.
fn sft<'a>(device: &Device, case: &'a Case, model: Model<bf16>, settings: &Settings) -> Result<RunStep<'a>> {
    let optimizer = Optimizer::new(model.params(), settings)?;
    let rows: usize = case.forests.iter().map(Forest::rows).sum();
    let device = device.clone();
    Ok(Box::new(move || {
        model.zero_grads()?;
        let mut queued = None;
        for forest in &case.forests {
            let batch = model.upload(forest)?;
            model.forward(&batch)?;
            model.logps(&batch)?;
            model.backward(&batch, &Slopes::by_logps(&device.upload(&vec![-1.0 / rows as f32; batch.rows])?))?;
            queued.get_or_insert_with(Instant::now);
        }
        optimizer.step(LEARNING_RATE).map(|_| queued)
    }))
}

/// One row of the table, and the result in the schema of benches/baselines/README.md.
fn report(device: &Device, case: &Case, options: &StepOptions, measured: &Measured) -> Result<Value> {
    let Measured { step_ms, queued_ms, peak } = measured;
    let queued = Times::of(queued_ms.clone()).map(|times| times.median());
    let times = Times::of(step_ms.clone()).context("no step was timed")?;
    let ([shortest, longest], median) = (times.ends(), times.median());
    let tokens: usize = case.forests.iter().map(Forest::len).sum();
    let (pairs, flops) = (case.work.trees.len(), case.task.passes() * forward_flops(case));
    let share = flops / (median / 1e3) / device.peak_flops(DType::Bf16);
    let rate = |count: usize| count as f64 / median * 1e3;
    row!(
        "| {} | {} | {} | {median:.1} | {:.1} | {:.0} | {:.1} | {:.1} | {:.1} to {:.1} | {} |",
        case.model,
        case.task.name(),
        case.layout.name(),
        rate(pairs),
        rate(tokens),
        100.0 * share,
        *peak as f64 / 1e9,
        shortest,
        longest,
        queued.map_or(String::new(), |ms| format!("{ms:.2} of {:.1}", median / case.forests.len() as f64))
    );
    Ok(json!({
        "engine": format!("warpo {}", env!("CARGO_PKG_VERSION")), "model": case.model, "task": case.task.name(),
        "layout": case.layout.name(), "precision": "bf16", "device": device.describe(), "pairs": pairs,
        "prompt": options.prompt, "response": options.response, "packed_tokens": tokens,
        "micro_batches": case.forests.len(), "steps": step_ms.len(), "step_ms": step_ms, "pairs_per_s": rate(pairs),
        "flops": flops, "share_of_peak": share, "planned_bytes": case.plan.total(), "peak_bytes": peak,
        "queued_ms": queued, "graph": options.graph, "moments": options.moments,
        "gradients": if options.gradients == DType::Bf16 { "bf16" } else { "f32" },
        "levels": case.plan.levels.iter().map(|rung| rung.name()).collect::<Vec<_>>(),
        "head_chunk_rows": case.plan.capacity.head_chunk_rows,
    }))
}

fn forward_flops(case: &Case) -> f64 {
    case.forests.iter().map(|forest| flops(case.shape, forest)).sum()
}

/// What the counts say about the real shapes: FLOPs of a step, the time they take at the peak of an H100, memory.
fn account(options: &StepOptions) -> Result<()> {
    // Its head stores what a Hopper GPU's does.
    let counted = Device::host(HostOptions { hopper: true, gemm: GemmBackend::Kernel, ..HostOptions::default() })?;
    row!(
        "| model | task | layout | micro-batches | packed tokens | PFLOP | ms at an H100's peak | GB planned | loss head's share |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for (model, shape) in shapes::released()? {
        for (task, layout) in selected(options, &model, false) {
            let trees = shapes::pairs(options.pairs, layout, options.lengths(), shape.vocab);
            let case = Case::new(&model, &shape, task, layout, trees, options, &counted)?;
            let flops = task.passes() * forward_flops(&case);
            let heads = case
                .forests
                .iter()
                .map(|forest| Loss::named("dpo").map(|loss| loss.cost(forest.rows(), forest.sequences()).0));
            let share = match task {
                Task::Dpo => format!("{:.0e}", heads.sum::<Result<f64>>()? / flops),
                _ => String::new(),
            };
            row!(
                "| {model} | {} | {} | {} | {} | {:.3} | {:.0} | {:.1} | {share} |",
                task.name(),
                layout.name(),
                case.forests.len(),
                case.forests.iter().map(Forest::len).sum::<usize>(),
                flops / 1e15,
                flops / H100_FLOPS * 1e3,
                case.plan.total() as f64 / 1e9
            );
        }
    }
    row!("");
    Ok(())
}
