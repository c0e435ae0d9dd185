//! A loss of one's own, in a few lines: what a loss is to the engine is one slope for every log-probability.
//!
//! ```text
//! cargo run --release --example own_loss
//! ```
//!
//! The loss here is unlikelihood of the rejected response beside likelihood of the chosen one (Welleck et al. 2020, arXiv
//! 1908.04319): `-sum log p(chosen) - sum log(1 - p(rejected))`, by tokens.

use warpo::{
    device::{Device, HostOptions},
    error::Error,
    forest::{Forest, Tree},
    model::{Capacity, MemoryPlan, Model, ModelConfig, Slopes},
    optim::{Optimizer, RuleKind, Settings},
};

const STEPS: usize = 20;

fn main() -> Result<(), Error> {
    let device = Device::host(HostOptions::default())?;
    let config = ModelConfig::load("examples/quickstart-model".as_ref())?;

    // A prompt with two responses: the prompt is computed once.
    let tree = Tree::pair("a row", vec![5, 17, 23, 4], vec![9, 31, 2], vec![40, 41, 42, 2]);
    let forest = Forest::pack([&tree])?;

    // Memory is planned before anything is allocated.
    let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 64 };
    let plan = MemoryPlan::new(&config, warpo::device::DType::F32, capacity)?.on(&device, &config);
    let model = Model::<f32>::new(&device, &config, plan)?;
    model.randomize(1)?;
    let rule = RuleKind::adamw(0.9, 0.999, 1e-8);
    let optimizer = Optimizer::new(model.params(), &Settings { rule, weight_decay: 0.0, max_grad_norm: 1.0 })?;

    let batch = model.upload(&forest)?;
    let ends = &forest.sequence_rows;
    let mut losses = Vec::new();
    for step in 0..STEPS {
        model.zero_grads()?;
        model.forward(&batch)?;
        let logps = device.download(&model.logps(&batch)?)?;

        let (mut loss, mut slopes) = (0.0, vec![0.0; logps.len()]);
        for row in ends[0] as usize..ends[1] as usize {
            loss -= logps[row];
            slopes[row] = -1.0;
        }
        for row in ends[1] as usize..ends[2] as usize {
            let p = logps[row].exp();
            loss -= (-p).ln_1p();
            slopes[row] = p / (1.0 - p);
        }

        model.backward(&batch, &Slopes::by_logps(&device.upload(&slopes)?))?;
        let update = optimizer.step(1e-3)?;
        println!("step {:>2}  loss {loss:.4}  gradient norm {:.3}", step + 1, update.grad_norm);
        losses.push(loss);
    }
    assert!(losses[STEPS - 1] < 0.7 * losses[0], "the loss falls");
    Ok(())
}
