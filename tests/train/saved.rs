//! What a run saves, and what it starts from, as folders.

use std::{fs, os::unix::fs::MetadataExt};

use safetensors::SafeTensors;
use warpo::model::{Layout, ModelConfig};

use super::fixture::Fixture;

/// The f32 values of a file's tensor.
fn values(path: &std::path::Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let tensor = SafeTensors::deserialize(&bytes).unwrap();
    bytemuck::allocation::pod_collect_to_vec(tensor.tensor(name).unwrap().data())
}

/// One step too small to change anything, in bf16, from f32 weights that bf16 cannot hold.
#[test]
fn a_bf16_run_keeps_what_an_f32_folder_holds() {
    let fixture = Fixture::new();
    fixture.run("first", &["train.steps=1"]).unwrap();
    let model = fixture.path("first/final");
    let set = format!("model.path={}", model.display());
    let tiny = ["model.init=pretrained", "train.precision=bf16", "train.steps=1", "optim.lr=1e-30"];
    fixture.run("second", &[&[set.as_str()], &tiny[..]].concat()).unwrap();
    let master = values(&fixture.path("second/checkpoint-1/optimizer.safetensors"), "master");
    let layout = Layout::new(&ModelConfig::load(&model).unwrap());
    let mut lost = 0;
    for spec in &layout.tensors {
        let exact = values(&model.join("model.safetensors"), &spec.name);
        assert_eq!(master[spec.range()], exact, "{}", spec.name);
        lost += exact.iter().filter(|&&value| half::bf16::from_f32(value).to_f32() != value).count();
    }
    assert!(lost > layout.elements / 2, "{lost} values of {} are none of bf16", layout.elements);
}

/// Whoever changes one folder does not change the other.
#[test]
fn final_shares_no_file_with_a_checkpoint() {
    let fixture = Fixture::new();
    let model = fixture.path("model");
    fs::create_dir(model.join("additional_chat_templates")).unwrap();
    fs::write(model.join("additional_chat_templates/tool_use.jinja"), "{{ tools }}").unwrap();
    fixture.run("run", &["train.steps=2"]).unwrap();
    let [last, end] = ["run/checkpoint-2", "run/final"].map(|name| fixture.path(name));
    for name in ["model.safetensors", "config.json", "tokenizer.json", "additional_chat_templates/tool_use.jinja"] {
        let [a, b] = [&last, &end].map(|folder| folder.join(name));
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap(), "{name}");
        assert_ne!(fs::metadata(&a).unwrap().ino(), fs::metadata(&b).unwrap().ino(), "{name}");
    }
    assert!(!end.join("optimizer.safetensors").exists() && !end.join("trainer_state.json").exists());
}

#[test]
fn checkpoints_and_final_carry_the_template_of_the_run() {
    let fixture = Fixture::new();
    fs::write(fixture.path("model/chat_template.jinja"), "{{ other }}").unwrap();
    let mine = "{% for m in messages %}{{ m.content }}{% endfor %}";
    fs::write(fixture.path("mine.jinja"), mine).unwrap();
    let set = format!("data.template={}", fixture.path("mine.jinja").display());
    fixture.run("run", &["train.steps=2", &set]).unwrap();
    for folder in ["run/checkpoint-2", "run/final"] {
        assert_eq!(fs::read_to_string(fixture.path(folder).join("chat_template.jinja")).unwrap(), mine, "{folder}");
    }
}
