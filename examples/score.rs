//! Reads a data file as `warpo train` does and scores it: how likely a model finds the responses of every row.
//!
//! ```text
//! cargo run --release --example score -- [MODEL FOLDER ROWS.jsonl]
//! ```
//!
//! Without arguments: the quickstart's held-out rows under random weights.

use std::{env, path::PathBuf};

use warpo::{
    Error, Forest, Model,
    config::{Config, Precision},
    data::{batches, sets::Sets},
    device::Choice,
    model::{Capacity, MemoryPlan, ModelConfig},
    roles::reference::compute,
};

fn main() -> Result<(), Error> {
    let mut config = Config::default();
    let mut args = env::args().skip(1).map(PathBuf::from);
    let folder = args.next();
    config.model.path = folder.clone().unwrap_or("examples/quickstart-model".into());
    config.data.train = args.next().unwrap_or("examples/data/persona_agreeableness/eval.jsonl".into()).into();
    config.train.precision = Precision::F32;
    // Every value is checked, and paths become absolute.
    let config = config.with_overrides(&[])?;

    let device = config.open_device(Choice::Auto, config.host())?;
    let shape = ModelConfig::load(&config.model.path)?;
    let sets = Sets::read(config.encoder(shape.vocab, shape.positions)?, &config.sets()?, |_| Box::new(|_| ()))?;
    let rows = &sets.train;

    let [tokens, predictions] = batches::largest(&[rows], config.batch.tokens);
    let capacity = Capacity { tokens, rows: predictions, head_chunk_rows: 256 };
    let plan = MemoryPlan::forward_only(&shape, config.train.precision.on(&device), capacity)?.on(&device, &shape);
    let model = Model::<f32>::new(&device, &shape, plan)?;
    match folder {
        Some(folder) => model.load(&folder)?,
        None => model.randomize(1)?,
    }

    let values = compute(&model, &rows.trees, config.batch.tokens)?;
    let (mut right, mut pairs) = (0, 0);
    for row in 0..rows.trees.len() {
        let (tree, logps) = (rows.trees.tree(row)?, values.row(row)?);
        let ends = Forest::pack([&tree])?.sequence_rows;
        let sums: Vec<f32> = ends.windows(2).map(|end| logps[end[0] as usize..end[1] as usize].iter().sum()).collect();
        println!("{}: {sums:.3?}", tree.name);
        for [chosen, rejected] in &tree.pairs {
            right += usize::from(sums[*chosen] > sums[*rejected]);
            pairs += 1;
        }
    }
    println!("{right} of {pairs} pairs have the chosen response more likely than the rejected one");
    Ok(())
}
