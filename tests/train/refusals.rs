//! Runs that must not start, must not go on, or must stop by themselves.

use std::{fs, path::Path};

use safetensors::SafeTensors;

use super::fixture::{Fixture, stderr};

#[test]
fn a_folder_in_use_is_left_alone() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("out")).unwrap();
    fs::write(fixture.path("out/thesis.tex"), "mine").unwrap();
    let refused = fixture.execute("out", &[]);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(
        text.contains("is not empty: --resume goes on with the run in it, --overwrite begins anew, --out names"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
    let refused = fixture.execute("out", &["--resume"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("holds no run"), "{}", stderr(&refused));
    assert_eq!(fs::read_dir(fixture.path("out")).unwrap().count(), 1);
}

#[test]
fn a_resume_under_other_settings_names_the_key() {
    let fixture = Fixture::new();
    fixture.run("out", &["train.steps=2"]).unwrap();
    let refused = fixture.execute("out", &["--resume", "--set", "train.steps=2", "--set", "loss.beta=0.2"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(text.contains("`loss.beta` = 0.2") && text.contains("began with 0.1"), "{text}");
    // What does not alter the run may change.
    let free = ["--resume", "--set", "train.steps=2", "--set", "train.threads=1", "--set", "train.save_every=7"];
    assert!(fixture.execute("out", &free).status.success());
}

#[test]
fn a_resume_on_other_data_is_refused() {
    let fixture = Fixture::new();
    fixture.run("out", &["train.steps=2"]).unwrap();
    let path = fixture.path("train.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("kindness", "kindnesses", 1)).unwrap();
    let refused = fixture.execute("out", &["--resume", "--set", "train.steps=2"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(text.contains("the rows of `data.train`: changed since the run in "), "{text}");
}

/// A rate of 1e15 throws the weights so far off that the scores of the next forward pass overflow f32.
#[test]
fn five_gradients_in_a_row_that_are_not_finite_end_the_run() {
    let fixture = Fixture::new();
    let wild = ["train.save_every=1", "train.keep_checkpoints=1", "train.steps=20", "optim.lr=1e15"];
    let wild = [&wild[..], &["optim.warmup_steps=0", "train.eval_every=0", "batch.tokens=512"]].concat();
    let why = format!("{:#}", fixture.run("out", &wild).unwrap_err());
    assert!(why.contains("not finite 5 times in a row") && why.contains("`optim.lr`"), "{why}");
    let metrics = fixture.metrics("out");
    let skipped: Vec<_> = metrics.iter().filter_map(|r| r.get("skipped_steps")?.as_u64()).collect();
    let applied = skipped.iter().filter(|&&count| count == 0).count();
    assert_eq!(skipped[applied..], [1, 2, 3, 4, 5], "{skipped:?}");
    assert!(metrics[metrics.len() - 1]["grad_norm"].is_null());
    // The checkpoint before the first skipped step stays, and nothing after it was saved.
    assert_eq!(checkpoints(&fixture.path("out")), [format!("checkpoint-{applied}")]);
}

/// Rates at which the last update leaves nothing, whatever the step before it was like.
#[test]
fn weights_that_give_nothing_are_no_final_model() {
    for (precision, lr, steps) in [
        ("f32", "1e30", "train.steps=1"),
        ("f32", "1e30", "train.steps=3"),
        ("bf16", "1e30", "train.steps=1"),
        ("bf16", "1e30", "train.steps=3"),
    ] {
        for eval in ["data.eval=", "train.eval_every=0"] {
            let fixture = Fixture::new();
            let (lr, precision) = (format!("optim.lr={lr}"), format!("train.precision={precision}"));
            let set =
                ["optim.warmup_steps=0", "optim.schedule=constant", "train.save_every=0", &lr, &precision, steps, eval];
            let why = format!("{:#}", fixture.run("out", &set).unwrap_err());
            assert!(why.contains("the run diverged: ") && why.contains("lower `optim.lr` = 1"), "{set:?}: {why}");
            assert!(!fixture.path("out/final").exists(), "{set:?}: {why}");
            // Nor does a resume make one of what there is.
            let options = warpo::train::Options {
                config: fixture.config(&set),
                device: warpo::device::Choice::Host,
                out: fixture.path("out"),
                resume: true,
                overwrite: false,
            };
            assert!(warpo::train::run(&options, &false.into()).is_err(), "{set:?}");
            assert!(!fixture.path("out/final").exists(), "{set:?}");
        }
    }
}

/// Weights of a million are finite, and no language model.
#[test]
fn a_rate_far_above_the_weights_is_said_before_and_after() {
    let fixture = Fixture::new();
    let set =
        |rate: &str| ["optim.schedule=constant", "optim.warmup_steps=0", "train.steps=2", rate].map(str::to_owned);
    let run = |out: &str, rate: &str| {
        let args = set(rate).into_iter().flat_map(|set| ["--set".to_owned(), set]).collect::<Vec<_>>();
        let output = fixture.execute(out, &args.iter().map(String::as_str).collect::<Vec<_>>());
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (done, text) = run("wild", "optim.lr=1e6");
    assert!(text.contains("warning: `optim.lr` = 1000000.0: a step of AdamW moves"), "{text}");
    assert!(!done && !fixture.path("wild/final").exists(), "{text}");
    let (done, text) = run("sound", "optim.lr=1e-3");
    assert!(done && !text.contains("warning"), "{text}");
}

/// A pair and the same pair the other way round cancel to the bit.
#[test]
fn rows_that_contradict_each_other_train() {
    let fixture = Fixture::new();
    let rows = [("yes", "no"), ("no", "yes")].map(|(chosen, rejected)| {
        format!(r#"{{"prompt": "Well?", "chosen": " {chosen}", "rejected": " {rejected}"}}"#)
    });
    fs::write(fixture.path("train.jsonl"), rows.join("\n")).unwrap();
    for precision in ["f32", "bf16"] {
        let set = format!("train.precision={precision}");
        let args = ["--set", &set, "--set", "batch.pairs=2", "--set", "train.steps=2", "--set", "loss.sft_weight=0"];
        let output = fixture.execute(precision, &args);
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

/// With `down_proj` at zero nothing flows back into gate and up: right for models that begin so, and said.
/// The norm before them gets nothing either, so there are three.
#[test]
fn a_tensor_without_a_gradient_is_named() {
    let fixture = Fixture::new();
    fixture.run("first", &["train.steps=1"]).unwrap();
    let path = fixture.path("first/final/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let place = {
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor("model.layers.1.mlp.down_proj.weight").unwrap().data();
        let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
        start..start + data.len()
    };
    bytes[place].fill(0);
    fs::write(&path, bytes).unwrap();
    let model = format!("model.path=\"{}\"", fixture.path("first/final").display());
    let args = ["--set", &model, "--set", "model.init=pretrained", "--set", "train.steps=2"];
    let output = fixture.execute("second", &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let note = "note: 3 of 20 tensors get no gradient in the first step, `model.layers.1.mlp.gate_proj.weight` first: ";
    assert!(text.contains(note), "{text}");
}

fn checkpoints(out: &Path) -> Vec<String> {
    let names = fs::read_dir(out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> = names.filter(|name| name.starts_with("checkpoint-")).collect();
    found.sort();
    found
}
