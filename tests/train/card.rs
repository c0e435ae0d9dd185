//! `final/README.md`: what the hub and people read about a model.

use std::fs;

use super::fixture::{Fixture, stderr};

/// The part of a text between two places.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from}: {text}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to} behind {from}: {text}")).0
}

#[test]
fn a_final_model_has_a_card() {
    let fixture = Fixture::new();
    let run = fixture.execute("run", &["--set", "train.threads=1", "--set", "loss.beta=0.25"]);
    assert!(run.status.success(), "{}", stderr(&run));
    let card = fs::read_to_string(fixture.path("run/final/README.md")).unwrap();
    let head = between(&card, "---\n", "---\n");
    assert_eq!(head, "library_name: transformers\npipeline_tag: text-generation\ntags:\n- warpo\n- dpo\n");
    assert!(
        card.contains("\n# model, trained with dpo\n\nTrained by warpo from a random start in the shape of `model`.\n")
    );
    let data = between(&card, "## Data\n\n", "\n\n## Results");
    assert!(data.starts_with("8 steps, 1.364 epochs of `train.jsonl`: "), "{data}");
    assert!(data.ends_with("prompts that responses share counted once. Held out: `eval.jsonl`."), "{data}");
    // The last records, and nothing that a clock says.
    let metrics = fixture.metrics("run");
    let [step, evaluation] = [metrics.len() - 2, metrics.len() - 1].map(|at| &metrics[at]);
    let row = between(&card, "| `rewards/margins` |", "|\n");
    let numbers: Vec<f64> = row.split('|').map(|number| number.trim().parse().unwrap()).collect();
    for (found, value) in numbers.iter().zip([&step["rewards/margins"], &evaluation["eval_rewards/margins"]]) {
        let value = value.as_f64().unwrap();
        assert!((found - value).abs() <= 1e-3 * value.abs(), "{found} {value}");
    }
    assert!(!card.contains("tokens_per_second") && !card.contains(fixture.path("").to_str().unwrap()), "{card}");
    let config: toml::Table = between(&card, "```toml\n", "```").parse().unwrap();
    assert_eq!(config["loss"]["beta"].as_float(), Some(0.25));
    assert!(config["train"].get("threads").is_none());
    assert!(!fixture.path("run/checkpoint-8/README.md").exists());
}

/// A folder of the hub's cache says whose model it is.
#[test]
fn a_base_from_the_hub_is_named() {
    let fixture = Fixture::new();
    let snapshot = fixture.path("hub/models--owner--tiny-model/snapshots/0123");
    fs::create_dir_all(&snapshot).unwrap();
    assert!(fixture.execute("first", &["--set", "train.steps=1"]).status.success());
    for entry in fs::read_dir(fixture.path("first/final")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
    }
    let path = format!("model.path={}", snapshot.display());
    let run = fixture.execute("run", &["--set", &path, "--set", "model.init=pretrained", "--set", "train.steps=1"]);
    assert!(run.status.success(), "{}", stderr(&run));
    let card = fs::read_to_string(fixture.path("run/final/README.md")).unwrap();
    assert!(card.starts_with(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nbase_model: owner/tiny-model\ntags:\n"
    ));
    let line = "Trained by warpo from [owner/tiny-model](https://huggingface.co/owner/tiny-model).";
    assert!(card.contains(line), "{card}");
}
