//! A run that is begun anew, made longer, ended early, and the best weights it had.

use std::fs;

use super::fixture::{Fixture, stderr};

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Under a rate that does not depend on the length, a run that was made longer has the bits of one that always was.
#[test]
fn a_longer_run_goes_on() {
    let fixture = Fixture::new();
    let flat = ["optim.schedule=constant", "train.eval_every=0"];
    let sets = |steps: &'static str| [&flat[..], &[steps]].concat();
    fixture.run("long", &sets("train.steps=5")).unwrap();
    fixture.run("grown", &sets("train.steps=3")).unwrap();
    let short = fs::read(fixture.path("grown/final/model.safetensors")).unwrap();
    let flags: Vec<&str> = sets("train.steps=5").iter().flat_map(|set| ["--set", set]).collect();
    let flags = [&["--resume"][..], &flags].concat();
    let grown = fixture.execute("grown", &flags);
    assert!(grown.status.success(), "{}", stderr(&grown));
    let text = stdout(&grown);
    assert!(
        text.contains("the run is 5 steps long, it was 3: the learning rate goes on as that of 5 steps, 1.000e-3"),
        "{text}"
    );
    let bytes = |path: &str| fs::read(fixture.path(path)).unwrap();
    assert_eq!(bytes("grown/final/model.safetensors"), bytes("long/final/model.safetensors"));
    assert_eq!(bytes("grown/checkpoint-5/optimizer.safetensors"), bytes("long/checkpoint-5/optimizer.safetensors"));
    assert_eq!(bytes("grown/final-3/model.safetensors"), short);
    // A run cannot have fewer steps than are done.
    let flags: Vec<&str> = sets("train.steps=4").iter().flat_map(|set| ["--set", set]).collect();
    let shorter = fixture.execute("grown", &[&["--resume"][..], &flags].concat());
    assert_eq!(shorter.status.code(), Some(1));
    let why = stderr(&shorter);
    assert!(why.contains("5 steps are done, `train.steps`, `train.epochs` and the rows there are give 4"), "{why}");
}

/// The cosine of the longer run is the one that is followed from there on.
#[test]
fn a_longer_run_follows_its_own_schedule() {
    let fixture = Fixture::new();
    fixture.run("run", &["train.steps=4"]).unwrap();
    let grown = fixture.execute("run", &["--resume", "--set", "train.steps=6"]);
    assert!(grown.status.success(), "{}", stderr(&grown));
    let rates: Vec<f64> =
        fixture.metrics("run").iter().filter_map(|record| record.get("learning_rate")?.as_f64()).collect();
    let cosine =
        |step: f64, total: f64| 1e-3 * 0.5 * (1.0 + (std::f64::consts::PI * (step - 2.0) / (total - 2.0)).cos());
    let want = [0.0, 5e-4, 1e-3, cosine(3.0, 4.0), cosine(4.0, 6.0), cosine(5.0, 6.0)];
    assert_eq!(rates.len(), want.len());
    // Both sides take fewer than ten roundings of numbers up to 1e-3.
    rates.iter().zip(want).for_each(|(got, want)| assert!((got - want).abs() < 1e-17, "{got} is not {want}"));
}

#[test]
fn overwriting_removes_a_run_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.run("run", &["train.steps=2"]).unwrap();
    let first = fixture.timeless_metrics("run");
    let again = |args: &[&str]| fixture.execute("run", &[&["--overwrite", "--set", "train.steps=2"], args].concat());
    fs::write(fixture.path("run/notes.txt"), "mine").unwrap();
    let refused = again(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("holds `notes.txt`, which no run wrote"), "{}", stderr(&refused));
    fs::remove_file(fixture.path("run/notes.txt")).unwrap();
    // A run that cannot begin removes nothing.
    assert_eq!(again(&["--set", "data.train=nowhere.jsonl"]).status.code(), Some(1));
    assert!(fixture.path("run/checkpoint-2").exists());
    let done = again(&["--set", "train.seed=4"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_ne!(fixture.timeless_metrics("run"), first);
    assert!(fixture.path("run/final").exists());
    assert_eq!(again(&["--resume"]).status.code(), Some(2));
    // What is no run's folder is left alone, with or without the flag.
    fs::create_dir(fixture.path("other")).unwrap();
    fs::write(fixture.path("other/thesis.tex"), "years").unwrap();
    let refused = fixture.execute("other", &["--overwrite"]);
    assert!(stderr(&refused).contains("holds no run"), "{}", stderr(&refused));
    assert!(fixture.path("other/thesis.tex").exists());
}

/// At so high a rate the held-out loss rises: the best weights are early ones, and the run ends before its last step.
#[test]
fn the_best_weights_are_kept_and_a_run_without_progress_ends() {
    let fixture = Fixture::new();
    let set = ["train.steps=40", "train.eval_every=1", "train.save_best=eval_loss", "train.early_stop=3"];
    let set = [&set[..], &["optim.lr=0.03", "optim.warmup_steps=0", "optim.schedule=constant", "train.save_every=1"]]
        .concat();
    let flags: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let done = fixture.execute("run", &flags);
    assert!(done.status.success(), "{}", stderr(&done));
    let losses: Vec<(u64, f64)> = fixture
        .metrics("run")
        .iter()
        .filter_map(|record| Some((record.get("step")?.as_u64()?, record.get("eval_loss")?.as_f64()?)))
        .filter(|&(step, _)| step > 0)
        .collect();
    let &(last, _) = losses.last().unwrap();
    let &(best, value) = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(last, best + 3, "{losses:?}");
    assert!(last < 40);
    let bytes = |path: &str| fs::read(fixture.path(path)).unwrap();
    let checkpoint = |step: u64| bytes(&format!("run/checkpoint-{step}/model.safetensors"));
    assert_eq!(bytes("run/best/model.safetensors"), checkpoint(best));
    assert_eq!(bytes("run/final/model.safetensors"), checkpoint(last));
    let text = stdout(&done);
    let line =
        format!("early stop after step {last}: no better in 3 evaluations than eval_loss {value:.4} after step {best}");
    assert!(text.contains(&line), "{text}");
    // It has ended; with more patience it goes on from where it was.
    let resumed = fixture.execute("run", &[&["--resume"], &flags[..]].concat());
    assert!(
        resumed.status.success() && !stdout(&resumed).contains(&format!("step {}/", last + 1)),
        "{}",
        stdout(&resumed)
    );
    let patient = [&["--resume"], &flags[..], &["--set", "train.early_stop=4"]].concat();
    let patient = fixture.execute("run", &patient);
    assert!(stdout(&patient).contains(&format!("step {}/40", last + 1)), "{}", stdout(&patient));
    // `final/` is the model of the run's end now, and the one that was is kept.
    assert_eq!(bytes(&format!("run/final-{last}/model.safetensors")), checkpoint(last));
    assert_ne!(bytes("run/final/model.safetensors"), checkpoint(last));
}

#[test]
fn what_is_watched_is_there() {
    let fixture = Fixture::new();
    for (set, why) in [
        (
            &["train.save_best=eval_loss", "train.eval_every=0"][..],
            "`train.save_best` is set and `train.eval_every` = 0",
        ),
        (&["train.early_stop=2", "data.eval="], "`train.early_stop` is set and `data.eval` is not"),
        (&["train.save_best=eval_rewards/ndcg"], "this loss has only eval_loss, "),
        (&["train.save_best=grad_norm"], "whether more of it is better is not known: name eval_loss"),
    ] {
        let flags: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let refused = fixture.execute("run", &flags);
        assert_eq!(refused.status.code(), Some(1), "{set:?}");
        let said = stderr(&refused);
        assert!(said.contains(why) && said.lines().count() == 1, "{set:?}: {said}");
    }
}
