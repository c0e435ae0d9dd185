//! `warpo report`: runs that are over, live or none.

use std::{
    fmt::Write,
    fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// Folders of runs, made up.
struct Runs(TempDir);

impl Runs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A run of so many steps with an evaluation at its start and every ten.
    fn add(&self, name: &str, beta: f64, steps: u64) {
        self.write(name, "config.toml", &format!("[loss]\nname = \"dpo\"\nbeta = {beta}\n\n[train]\nseed = 1\n"));
        self.write(name, "metrics.jsonl", &metrics(beta, steps));
    }

    fn write(&self, name: &str, file: &str, text: &str) {
        fs::create_dir_all(self.path().join(name)).unwrap();
        fs::write(self.path().join(name).join(file), text).unwrap();
    }

    fn report(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
        command.arg("report").args(args).current_dir(self.path()).output().unwrap()
    }

    fn text(&self, args: &[&str]) -> String {
        let output = self.report(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.report(args);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Records as a run of DPO writes them; the loss is `beta` over the step.
fn metrics(beta: f64, steps: u64) -> String {
    let mut text = String::new();
    let held_out = |step: u64, loss: f64| {
        let epoch = step as f64 / steps as f64;
        format!("{{\"step\":{step},\"epoch\":{epoch},\"eval_loss\":{loss},\"eval_rewards/margins\":{step}}}\n")
    };
    text += &held_out(0, 9.0);
    for step in 1..=steps {
        let (share, accuracy) = (step as f64 / steps as f64, f64::from(u8::from(step.is_multiple_of(3))));
        writeln!(
            text,
            "{{\"step\":{step},\"epoch\":{share},\"loss\":{},\"rewards/chosen\":{share},\"rewards/rejected\":-{share},\
             \"rewards/margins\":{},\"rewards/accuracies\":{accuracy},\"logps/chosen\":-20.5,\"logps/rejected\":-{},\
             \"grad_norm\":{},\"learning_rate\":{},\"num_tokens\":{},\"skipped_steps\":0,\"tokens_per_second\":2000.0,\
             \"speed_of_light\":0.25,\"step_ms\":500.0,\"memory_bytes\":3221225472}}",
            beta / step as f64,
            2.0 * share,
            20.0 + share,
            1.0 + 1.0 / step as f64,
            1e-5 * share,
            1000 * step,
        )
        .unwrap();
        if step.is_multiple_of(10) {
            text += &held_out(step, beta / step as f64 + (step as f64 - 20.0).abs());
        }
    }
    text
}

#[test]
fn a_summary_has_last_and_best_values_and_what_differs() {
    let runs = Runs::new();
    runs.add("a", 0.5, 30);
    runs.add("b", 0.25, 20);
    fs::create_dir(runs.path().join("a/final")).unwrap();
    let text = runs.text(&["a", "b"]);
    for line in [
        "a: finished after 30 steps, 1 epochs",
        "  15s of steps, 2000 tokens/s, 30k tokens, memory 3.00 GiB, speed of light 25.0 %",
        "  loss                 0.01667  0.01667    30     10.02  0.02500    20",
        "  rewards/margins        2.000    2.000    30     30.00    30.00    30",
        "  logps/chosen          -20.50",
        "b: at step 20, 1 epochs; no final model yet",
        "  differs      a     b",
        "  loss.beta  0.5  0.25",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("train.seed") && !text.contains("step_ms"), "{text}");
    assert!(!runs.text(&["a"]).contains("differs"));
}

#[test]
fn a_live_run_is_reported_up_to_its_last_whole_record() {
    let runs = Runs::new();
    let text = metrics(0.5, 20);
    runs.add("live", 0.5, 20);
    runs.write("live", "metrics.jsonl", &format!("{text}{{\"step\":21,\"lo"));
    let whole = runs.text(&["live"]);
    assert!(whole.contains("live: at step 20") && !whole.contains("no records"), "{whole}");
    // A line that is broken in the middle is said.
    runs.write("live", "metrics.jsonl", &text.replacen("{\"step\":7,", "\u{0}\u{0}{", 1));
    let text = runs.text(&["live"]);
    assert!(text.contains("  left out, for they are no records: 1 of the lines of metrics.jsonl\n"), "{text}");
}

#[test]
fn what_is_no_run_is_one_line() {
    let runs = Runs::new();
    fs::create_dir(runs.path().join("empty")).unwrap();
    runs.write("begun", "config.toml", "");
    runs.write("torn", "config.toml", "[loss\n");
    runs.write("torn", "metrics.jsonl", &metrics(0.5, 1));
    for (run, why) in [
        ("empty", "empty: holds no run: config.toml is missing: name what `warpo train` wrote to"),
        ("nowhere", "nowhere: no such folder: name the folder of a run, such as runs/quickstart"),
        ("begun", "begun: nothing to report yet: the run in it has not begun its first step"),
        ("torn", "torn/config.toml: TOML parse error at line 1"),
    ] {
        let line = runs.refused(&[run]);
        assert!(line.starts_with(&format!("error: {why}")) && line.lines().count() == 1, "{line}");
    }
}
