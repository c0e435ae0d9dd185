//! Losses that look at distributions, and one that couples the step, on Hopper's kernels in bf16.

use half::bf16;
use warpo::{
    data::trees::Trees,
    device::{DType, Device, Float},
    feed::Work,
    forest::Tree,
    loss::Loss,
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    optim::{Optimizer, RuleKind, Settings},
    roles::{Policy, Reference, Roles, TrainedMasks, reference::compute},
    train::step::{StepOptions, Trainer},
};

use crate::{
    model::{pair, random_params, tiny_json},
    support::{fast_device, fast_hopper, normal, relative_error, strict_hoppers, widen},
};

const SETTINGS: Settings = Settings { rule: RuleKind::adamw(0.9, 0.999, 1e-8), weight_decay: 0.0, max_grad_norm: 0.0 };

/// Gradients of one step over two micro-batches.
fn grads<T: Float>(device: &Device, config: &ModelConfig, loss: &Loss, trees: &[Tree]) -> Vec<f64> {
    let capacity = Capacity { tokens: 48, rows: 48, head_chunk_rows: 20 };
    let precision = if size_of::<T>() == 2 { DType::Bf16 } else { DType::F32 };
    let mut plan = MemoryPlan::new(config, precision, capacity).unwrap();
    if !loss.needs_distributions() {
        plan = plan.on(device, config);
    }
    // The same numbers in every precision.
    let rounded = |x: bf16| T::from_f32(x.to_f32());
    let params: Vec<bf16> = random_params::<bf16>(config);
    let noise = normal(12, params.len());
    let ref_params = params.iter().zip(noise).map(|(&w, noise)| rounded(bf16::from_f32(w.to_f32() + 0.05 * noise)));
    let beside =
        Model::<T>::new(device, config, MemoryPlan::forward_only(config, precision, capacity).unwrap()).unwrap();
    device.copy_in(&beside.params().values(), &ref_params.collect::<Vec<T>>()).unwrap();
    let model = Model::<T>::new(device, config, plan).unwrap();
    device.copy_in(&model.params().values(), &params.into_iter().map(rounded).collect::<Vec<T>>()).unwrap();
    let rows: Trees = trees.iter().cloned().collect();
    let values = compute(&beside, &rows, 48).unwrap();
    let optimizer = Optimizer::new(model.params(), &SETTINGS).unwrap();
    let masks = TrainedMasks::new(device, loss, config, 5, SETTINGS).unwrap();
    let policy = Policy { model, optimizer, masks, ema: None };
    let reference = if loss.needs_divergence() { Reference::Beside(Box::new(beside)) } else { Reference::Values };
    let trainer = Trainer::new(Roles { policy, reference }, loss.clone(), StepOptions::default()).unwrap();
    let work = Work::of(&rows, &(0..trees.len() as u32).collect::<Vec<_>>(), 48, &values).unwrap();
    assert!(work.packs.len() > 1);
    trainer.step(&work, 0.0, false).unwrap();
    let mut all = widen(&device.download(trainer.model().params().grads()).unwrap());
    // Of masks as well, on their own scale.
    if let Some(masks) = &trainer.roles.policy.masks {
        all.extend(device.download(masks.masks.params().grads()).unwrap().into_iter().map(|g| 100.0 * f64::from(g)));
    }
    all
}

/// Both paths round to bf16, each at places of its own: neither is further from f32 than twice the other.
#[test]
fn whole_distributions_on_both_paths() {
    let heads_of_64 = tiny_json(true, 2).replace(r#""head_dim": 32"#, r#""head_dim": 64"#);
    let config = ModelConfig::parse(&heads_of_64).unwrap();
    let trees: Vec<Tree> =
        [[9, 5, 8], [12, 7, 3], [6, 4, 6]].into_iter().enumerate().map(|(i, n)| pair(i as u64 + 1, n)).collect();
    for name in ["wpo", "tdpo1", "sparse_po_independent", "aot"] {
        let loss = Loss::named(name).unwrap();
        let exact = grads::<f32>(&fast_device(2), &config, &loss, &trees);
        let portable = relative_error(&grads::<bf16>(&fast_device(2), &config, &loss, &trees), &exact);
        let mut devices = vec![(fast_hopper(2), "sm_90a".to_string())];
        devices.extend(strict_hoppers().into_iter().take(1));
        for (device, on) in devices {
            let hopper = relative_error(&grads::<bf16>(&device, &config, &loss, &trees), &exact);
            println!("{name}: {on} {hopper:.1e}, portable {portable:.1e}");
            assert!(
                hopper <= 2.0 * portable,
                "{name}: {on} is {hopper:.2e} from f32, the portable kernels {portable:.2e}"
            );
        }
        // bf16 keeps 2^-9 of a number, and a few dozen roundings lie between weights and gradients: a fifth is out of the question.
        assert!(portable < 0.2, "{name}: {portable}");
    }
}
