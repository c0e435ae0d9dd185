use half::bf16;
use warpo::{
    device::{DType, Device, Float, HostOptions},
    forest::{Forest, Tree},
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    ops::{
        gemm::{self, Gemm},
        rmsnorm,
    },
    roles::RunPlan,
};

use crate::support;

use super::{document, list, model_for, pair, steps, tiny_config, tiny_json};

fn device() -> Device {
    Device::host(HostOptions { threads: 1, ..HostOptions::default() }).unwrap()
}

#[test]
fn what_is_planned_is_what_is_allocated() {
    for gradients in [DType::F32, DType::Bf16] {
        allocated::<f32>(DType::F32, gradients);
        allocated::<bf16>(DType::Bf16, gradients);
    }
}

#[test]
fn a_forward_plan_is_what_is_allocated() {
    let config = tiny_config(false, 2);
    let capacity = Capacity { tokens: 100, rows: 60, head_chunk_rows: 16 };
    let plan = MemoryPlan::forward_only(&config, DType::Bf16, capacity).unwrap();
    let device = device();
    let _model = Model::<bf16>::new(&device, &config, plan.clone()).unwrap();
    assert_eq!(device.memory().allocated, plan.parameters + plan.arena);
    assert_eq!(plan.total(), plan.parameters + plan.arena + plan.tables);
    assert_eq!(plan.parts().map(|(name, bytes)| (name, bytes > 0))[2], ("gradients", false));
    let deep = tiny_json(false, 2).replace(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 6"#);
    let deeper = MemoryPlan::forward_only(&ModelConfig::parse(&deep).unwrap(), DType::Bf16, capacity).unwrap();
    assert!(deeper.parameters > plan.parameters);
    assert_eq!(deeper.arena, plan.arena);
}

fn allocated<T: Float>(precision: DType, gradients: DType) {
    let config = tiny_config(false, 2);
    let forest = Forest::pack(&[pair(1, [20, 9, 14]), steps(2), list(3, 4, 8)]).unwrap();
    let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 16 };
    let plan = MemoryPlan::new(&config, precision, capacity).unwrap().adding_up_in(&config, gradients);
    let device = device();
    let model = Model::<T>::new(&device, &config, plan.clone()).unwrap();
    let held = device.memory().allocated;
    assert_eq!(held, plan.parameters + plan.low + plan.gradients + plan.arena);
    assert_eq!(plan.arena, plan.saved + plan.scratch + plan.head);
    let batch = model.upload(&forest).unwrap();
    let tables = device.memory().allocated - held;
    assert!(tables <= plan.tables, "{tables} bytes of tables, {} planned", plan.tables);
    drop(batch);

    let parameters = config.parameters() as usize;
    // The f32 master, which of a bf16 weight is the weight and 16 more bits; gradients and moments are f32.
    let saved = if gradients == DType::Bf16 { 2 * model.layout().matrices() } else { 0 };
    let state = parameters * (4 + 4 + 8) - saved;
    assert_eq!(plan.parameters + plan.low + plan.gradients + plan.optimizer, state);
    assert_eq!(plan.total(), state + plan.arena + plan.tables);
    assert_eq!(plan.clone().remembering(11).optimizer, 11);
    let plan = RunPlan::from(plan);
    plan.check_free(plan.total()).unwrap();
    let message = plan.check_free(plan.total() - 1).unwrap_err().to_string();
    assert!(message.contains("the run needs") && message.contains("are free"), "{message}");
}

/// On Hopper the head of bf16 stores no logits in f32; f32 and other devices plan as before.
#[test]
fn a_plan_on_a_device_saves_what_its_head_does_not_store() {
    let config = tiny_config(false, 2);
    let capacity = Capacity { tokens: 100, rows: 60, head_chunk_rows: 16 };
    let plan = |precision| MemoryPlan::new(&config, precision, capacity).unwrap();
    let hopper = support::fast_hopper(1);
    let saved = plan(DType::Bf16).arena - plan(DType::Bf16).on(&hopper, &config).arena;
    // 67 columns in rows of 72, in place of which a pair and a target's logit a row are kept; parts begin at 256 bytes.
    assert_eq!(saved, (16 * 72 * 4usize).next_multiple_of(256) - (16 * 3 * 4usize).next_multiple_of(256));
    assert_eq!(plan(DType::F32).on(&hopper, &config).arena, plan(DType::F32).arena);
    assert_eq!(plan(DType::Bf16).on(&device(), &config).arena, plan(DType::Bf16).arena);
    let why = Model::<bf16>::new(&device(), &config, plan(DType::Bf16).on(&hopper, &config)).err().unwrap();
    assert!(why.to_string().contains("for another device"), "{why}");
}

/// Parts of weights' gradients have the place of slices of the norms' gradients.
#[test]
fn a_plan_on_a_device_has_room_for_parts_of_gradients() {
    let config = ModelConfig::parse(
        r#"{"model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": true}"#,
    )
    .unwrap();
    let capacity = Capacity { tokens: 4096, rows: 1000, head_chunk_rows: 500 };
    let hopper = support::fast_hopper(1);
    let plain = MemoryPlan::new(&config, DType::Bf16, capacity).unwrap();
    let norms = rmsnorm::bwd_partials(4096, 256);
    let weights = [(3 * 256, 256), (256, 256), (2 * 384, 256), (256, 384)];
    let parts = weights.map(|(m, n)| gemm::split_workspace::<bf16>(&hopper, &Gemm::tn(m, n, 4096)));
    let most = parts.into_iter().max().unwrap();
    assert!(most > norms, "{most} elements of parts, {norms} of slices");
    assert_eq!(plain.clone().on(&hopper, &config).scratch, plain.scratch + 4 * (most - norms));
    assert_eq!(plain.clone().on(&device(), &config).scratch, plain.scratch);
}

#[test]
fn the_table_names_every_part() {
    let config = ModelConfig::parse(
        r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true}"#,
    )
    .unwrap();
    let capacity = Capacity { tokens: 4096, rows: 3072, head_chunk_rows: 1024 };
    let plan = MemoryPlan::new(&config, DType::Bf16, capacity).unwrap();
    insta::assert_snapshot!(RunPlan::from(plan).to_string());
}

#[test]
fn what_the_kernels_take_for_granted_is_checked() {
    let config = tiny_config(true, 2);
    let device = device();
    let model = model_for::<f32>(&device, &config, &Forest::pack(&[pair(1, [5, 5, 5])]).unwrap());
    let refused = |model: &Model<f32>, tree: Tree| {
        let forest = Forest::pack(&[tree]).unwrap();
        model.upload(&forest).err().expect("the micro-batch is refused").to_string()
    };
    assert!(refused(&model, pair(1, [5, 5, 6])).contains("16 tokens is larger than the plan's 15"));
    assert!(refused(&model, document(1, 15)).contains("14 prediction rows is larger than the plan's 10"));
    assert!(refused(&model, document(1, 1)).contains("no prediction rows"));
    let outside = Tree::pair("x", vec![1, 67], vec![2], vec![3]);
    assert!(refused(&model, outside).contains("token id 67 is outside the model's vocabulary of 67"));
    let capacity = Capacity { tokens: 200, rows: 200, head_chunk_rows: 8 };
    let model = Model::<f32>::new(&device, &config, MemoryPlan::new(&config, DType::F32, capacity).unwrap()).unwrap();
    assert!(refused(&model, document(1, 129)).contains("129 tokens is longer than max_position_embeddings 128"));
    model.upload(&Forest::pack(&[document(1, 128)]).unwrap()).unwrap();

    let none = Capacity { tokens: 0, rows: 1, head_chunk_rows: 1 };
    assert!(MemoryPlan::new(&config, DType::F32, none).unwrap_err().to_string().contains("0 tokens"));
    let plan = MemoryPlan::new(&config, DType::Bf16, capacity).unwrap();
    assert!(Model::<f32>::new(&device, &config, plan).err().unwrap().to_string().contains("Bf16"));
    let other = ModelConfig::parse(&tiny_json(false, 2)).unwrap();
    let plan = MemoryPlan::new(&other, DType::F32, capacity).unwrap();
    assert!(Model::<f32>::new(&device, &config, plan).is_err());
}
