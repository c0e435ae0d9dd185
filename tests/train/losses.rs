//! Every loss as a run: by its name, on rows that have what it needs.

use std::fs;

use serde_json::{Value, json};
use warpo::{
    loss::{Shape, all},
    train::Outcome,
};

use super::{
    evaluation::assert_as_recorded,
    fixture::{Fixture, stderr},
};

/// Rows of every shape with every number and text a loss could ask for, from the fixture's pairs.
pub fn write_rows(fixture: &Fixture) {
    let text = fs::read_to_string(fixture.path("train.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let write = |name: &str, make: &dyn Fn(usize, &Value) -> Value| {
        let lines: Vec<String> = rows.iter().enumerate().map(|(i, row)| make(i, row).to_string()).collect();
        fs::write(fixture.path(name), lines.join("\n")).unwrap();
    };
    write("pairs.jsonl", &|i, row| {
        let mut row = row.clone();
        let x = i as f64 / 22.0;
        let numbers = json!({
            "score_chosen": 1.0 + x, "score_rejected": -x, "preference": 0.6 + 0.3 * x, "win_rate_chosen": 0.7,
            "win_rate_rejected": 0.2 + 0.1 * x, "visits_chosen": 3 + i, "visits_rejected": 2, "margin": x - 0.5,
            "uncertainty": 0.5 * x, "judge_logit": 2.0 * x - 1.0, "group": i % 3,
            "rationale_prompt": format!("Which answer is better, {} or {}?", row["chosen"], row["rejected"]),
            "rationale": format!(" The first one, because it says{}.", row["chosen"].as_str().unwrap()),
        });
        row.as_object_mut().unwrap().extend(numbers.as_object().unwrap().clone());
        row
    });
    write(
        "lists.jsonl",
        &|i, row| json!({"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], " Perhaps"], "scores": [1.0, 0.0, 0.5 + 0.01 * i as f64]}),
    );
    write("unpaired.jsonl", &|i, row| {
        let side = if i % 3 == 0 { "rejected" } else { "chosen" };
        json!({"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"})
    });
    write(
        "single.jsonl",
        &|i, row| json!({"prompt": row["prompt"], "completion": row["chosen"], "score": 0.1 * i as f64}),
    );
}

#[test]
fn every_loss_trains() {
    let fixture = Fixture::new();
    write_rows(&fixture);
    for loss in all().filter(|loss| loss.name != "apo_accelerated") {
        let file = match loss.shape {
            Shape::Pair => "pairs.jsonl",
            Shape::List => "lists.jsonl",
            Shape::Labelled => "unpaired.jsonl",
            Shape::Single => "single.jsonl",
        };
        let data = format!("data.train=\"{}\"", fixture.path(file).display());
        let name = format!("loss={{ name = \"{}\" }}", loss.name);
        let set = [
            &name,
            &data,
            "data.eval=[]",
            "train.steps=3",
            "train.save_every=0",
            "train.eval_every=0",
            "batch.tokens=320",
            // The host device refuses what a graph cannot hold.
            "train.cuda_graph=true",
        ];
        // The fixture's evaluation file holds plain pairs.
        let set: Vec<&str> = set.into_iter().filter(|set| !set.starts_with("data.eval")).collect();
        let eval = format!("data.eval=\"{}\"", fixture.path(file).display());
        let out = format!("run-{}", loss.name);
        let outcome = fixture.run(&out, &[&set[..], &[&eval]].concat());
        assert!(matches!(outcome, Ok(Outcome::Finished)), "{}: {outcome:?}", loss.name);
        let records = fixture.metrics(&out);
        let losses: Vec<f64> = records.iter().filter_map(|record| record.get("loss")?.as_f64()).collect();
        assert_eq!(losses.len(), 3, "{}: {records:?}", loss.name);
        // A term on the policy's own samples has no slope before the policy has left the reference.
        let norms: Vec<f64> = records.iter().filter_map(|record| record.get("grad_norm")?.as_f64()).collect();
        assert!(norms.iter().all(|&norm| norm > 0.0) || loss.name == "hypo", "{}: {norms:?}", loss.name);
        assert!(records[0].contains_key("eval_loss"), "{}", loss.name);
        assert_as_recorded(&fixture, &[&set[..], &[&eval]].concat(), &out, "checkpoint-3");
    }
}

/// What carries a loss from step to step is part of a checkpoint.
#[test]
fn a_resumed_run_goes_on_with_its_reference_point() {
    let fixture = Fixture::new();
    let set = ["--set", "loss={ name = \"bco\" }"];
    assert!(fixture.execute("straight", &set).status.success());
    assert!(fixture.execute("again", &set).status.success());
    for later in ["checkpoint-6", "checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("again").join(later)).unwrap();
    }
    let resumed = fixture.execute("again", &[&set[..], &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    fixture.assert_same_run("straight", "again");
    let deltas: Vec<f64> =
        fixture.metrics("straight").iter().filter_map(|record| record.get("delta")?.as_f64()).collect();
    assert!(deltas.windows(2).all(|pair| pair[0] != pair[1]), "the reference point stands still: {deltas:?}");
}

/// Without a reference in the loss, the reference pass is for the metrics alone and can be left out.
#[test]
fn a_loss_without_a_reference_needs_no_reference_pass() {
    let fixture = Fixture::new();
    let loss = "loss={ name = \"simpo\" }";
    fixture.run("with", &[loss]).unwrap();
    fixture.run("without", &[loss, "train.track_reference=false"]).unwrap();
    assert!(!fixture.path("without/reference.safetensors").exists());
    let (with, without) = (fixture.metrics("with"), fixture.metrics("without"));
    let last = with.len() - 1;
    assert_eq!(with[last]["eval_loss"], without[last]["eval_loss"]);
    assert!(with[last].contains_key("eval_logps/chosen_fell"), "{:?}", with[last]);
    assert!(!without[last].contains_key("eval_logps/chosen_fell"), "{:?}", without[last]);
}

#[test]
fn accelerated_preferences_carry_the_reference_on() {
    let fixture = Fixture::new();
    fixture.run("first", &["train.steps=4"]).unwrap();
    let model = format!("model={{ path = \"{}\" }}", fixture.path("first/final").display());
    let older = |path: &str| format!("model.older_reference=\"{}\"", fixture.path(path).display());
    let loss = "loss={ name = \"apo_accelerated\", alpha = 0.5 }";
    fixture.run("plain", &[&model, "loss={ name = \"dpo\" }"]).unwrap();
    // The same model twice: nothing to carry on.
    fixture.run("still", &[&model, loss, &older("first/final")]).unwrap();
    let first_loss = |out: &str| fixture.metrics(out)[1]["loss"].as_f64().unwrap();
    assert!(
        (first_loss("still") - first_loss("plain")).abs() < 1e-6,
        "{} and {}",
        first_loss("still"),
        first_loss("plain")
    );
    fixture.run("carried", &[&model, loss, &older("first/checkpoint-2")]).unwrap();
    assert!((first_loss("carried") - first_loss("plain")).abs() > 1e-5, "{}", first_loss("carried"));
    let refused = fixture.execute("refused", &["--set", &model, "--set", loss]);
    let missing = stderr(&refused);
    assert!(missing.contains("`model.older_reference` is not set"), "{missing}");
}

/// Refused by name, before a run folder is made.
#[test]
fn rows_a_loss_cannot_use_are_refused_before_training() {
    let fixture = Fixture::new();
    write_rows(&fixture);
    for (loss, file, says) in [
        (
            "kto",
            "single.jsonl",
            "single.jsonl:1: the row has no label, and the loss `kto` learns from completions with a label",
        ),
        ("dpo", "unpaired.jsonl", "unpaired.jsonl:1: the row has no two responses of which one is better"),
        ("tpo", "single.jsonl", "single.jsonl:1: the row has no two responses of different score or label"),
        ("gpo", "train.jsonl", "train.jsonl:1: the row has no `score_chosen` and `score_rejected`"),
    ] {
        let data = format!("data.train=\"{}\"", fixture.path(file).display());
        let set = ["--set", &format!("loss={{ name = \"{loss}\" }}"), "--set", &data];
        let output = fixture.execute("refused", &set);
        assert_eq!(output.status.code(), Some(1), "{loss} on {file}");
        assert!(stderr(&output).contains(says), "{loss} on {file}: {}", stderr(&output));
        assert!(!fixture.path("refused").exists());
    }
}

/// DOVE's sides answer prompts of their own, and all of their tokens are learnt; other losses refuse such rows.
#[test]
fn sides_with_prompts_of_their_own() {
    let fixture = Fixture::new();
    let row = json!({"prompt": "Say yes.", "chosen": " Yes", "rejected_prompt": "Say no, please.", "rejected": " No"});
    fs::write(fixture.path("joint.jsonl"), format!("{row}\n{row}\n{row}\n{row}\n")).unwrap();
    let data = format!("data.train=\"{}\"", fixture.path("joint.jsonl").display());
    let set = [data.as_str(), "train.steps=2", "train.save_every=0"];
    fixture.run("dove", &[&["loss={ name = \"dove\" }"], &set[..]].concat()).unwrap();
    let record = &fixture.metrics("dove")[1];
    // Both texts have more tokens than their answers alone.
    let logps = record["logps/chosen"].as_f64().unwrap();
    assert!(logps < -4.0 * 1024f64.ln() * 0.9, "{logps}");
    let refused = fixture.run("dpo", &[&["loss={ name = \"dpo\" }"], &set[..]].concat()).unwrap_err().to_string();
    assert!(
        refused.contains("has a `rejected_prompt`, and the loss `dpo` compares answers to one prompt"),
        "{refused}"
    );
}

/// Several losses in one file, as tables of their own.
#[test]
fn several_losses_are_added_up() {
    let fixture = Fixture::new();
    let text = fs::read_to_string(fixture.path("run.toml")).unwrap();
    let several =
        text.replace("loss = { sft_weight = 0.5 }", "loss = [{ name = \"dpo\" }, { name = \"sft\", weight = 0.5 }]");
    assert_ne!(several, text);
    fs::write(fixture.path("run.toml"), several).unwrap();
    fixture.run("several", &[]).unwrap();
    fs::write(fixture.path("run.toml"), text).unwrap();
    fixture.run("one", &[]).unwrap();
    // The same sum under two spellings.
    let loss =
        |out: &str| fixture.metrics(out).iter().filter_map(|record| record.get("loss")?.as_f64()).collect::<Vec<f64>>();
    assert_eq!(loss("several"), loss("one"));
}
