//! A feed made up here, of rows that no file has: the trainer takes its work like any other.

use anyhow::Result;
use warpo::{
    data::loader::Position,
    device::DType,
    feed::{Feed, Work},
    forest::Tree,
    loss::Loss,
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    optim::{Optimizer, RuleKind, Settings},
    roles::Roles,
    stop::Stop,
};

use super::fixture::{Fixture, trainer};
use crate::support::fast_device;

/// Pairs that are made when they are asked for, by the step and by what the policy is.
struct Made {
    step: u32,
}

impl Feed<f32> for Made {
    fn next(&mut self, roles: &Roles<f32>, _stop: &Stop) -> Result<Work> {
        let vocab = roles.policy.model.config().vocab as u32;
        self.step += 1;
        let pair = |i: u32| {
            Tree::pair(format!("made {i}"), vec![7, self.step % 5 + 1, i], vec![vocab - 1, 31], vec![40, 41, 42])
        };
        Ok(Work { trees: (1..5).map(pair).collect(), packs: vec![0..2, 2..4], reference: None })
    }

    fn position(&self) -> Position {
        Position { epoch: 0, index: self.step as usize }
    }

    fn epochs(&self) -> f64 {
        0.0
    }
}

#[test]
fn rows_may_be_made_while_training() {
    let fixture = Fixture::new();
    let shape = ModelConfig::load(&fixture.path("model")).unwrap();
    let capacity = Capacity { tokens: 64, rows: 64, head_chunk_rows: 16 };
    let plan = MemoryPlan::new(&shape, DType::F32, capacity).unwrap();
    let model = Model::<f32>::new(&fast_device(2), &shape, plan).unwrap();
    model.randomize(5).unwrap();
    let rule = RuleKind::adamw(0.9, 0.999, 1e-8);
    let settings = Settings { rule, weight_decay: 0.0, max_grad_norm: 1.0 };
    let optimizer = Optimizer::new(model.params(), &settings).unwrap();
    let trainer = trainer(model, optimizer, Loss::named("simpo").unwrap());
    let mut feed: Box<dyn Feed<f32>> = Box::new(Made { step: 0 });
    let losses: Vec<f64> = (0..12)
        .map(|step| {
            let work = feed.next(&trainer.roles, &false.into()).unwrap();
            trainer.step(&work, 2e-3, step == 0).unwrap().metrics.get("loss").unwrap()
        })
        .collect();
    assert_eq!(feed.position().index, 12);
    assert!(losses[11] < losses[0], "{losses:?}");
}
