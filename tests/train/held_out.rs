//! Which rows a run learns from and which it holds out: shares drawn by chance, files with columns of their own, prompts that
//! stand on both sides.

use std::fs;

use serde_json::{Map, Value, json};

use super::{
    evaluation::assert_as_recorded,
    fixture::{Fixture, stderr},
};

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_share_of_the_rows_is_held_out_and_a_resumed_run_has_the_same() {
    let fixture = Fixture::new();
    let set = ["data.eval=", "data.eval_fraction=0.2"];
    let flags: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let output = fixture.execute("run", &flags);
    assert!(output.status.success(), "{}", stderr(&output));
    // A fifth of 22 is 4.4.
    assert!(stdout(&output).contains("data: 18 rows to train on, 4 held out"), "{}", stdout(&output));
    assert_as_recorded(&fixture, &set, "run", "final");
    fixture.run("cut", &set).unwrap();
    for later in ["checkpoint-6", "checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("cut").join(later)).unwrap();
    }
    let resumed = fixture.execute("cut", &[&flags[..], &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    fixture.assert_same_run("run", "cut");
    let other = fixture.execute("cut", &["--resume", "--set", "data.eval=", "--set", "data.eval_fraction=0.4"]);
    assert!(stderr(&other).contains("`data.eval_fraction` = 0.4: the run in"), "{}", stderr(&other));
}

/// A file with other names of columns, and a share of it, is the file that was written out.
#[test]
fn a_file_has_its_own_columns_and_share() {
    let fixture = Fixture::new();
    let text = fs::read_to_string(fixture.path("train.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let renamed = |row: &Value| json!({"question": row["prompt"], "chosen": row["chosen"], "worse": row["rejected"]});
    let write = |name: &str, rows: Vec<String>| fs::write(fixture.path(name), rows.join("\n")).unwrap();
    write("a.jsonl", rows[..10].iter().map(Value::to_string).collect());
    write("b.jsonl", rows[10..].iter().map(|row| renamed(row).to_string()).collect());
    let [a, b] = ["a.jsonl", "b.jsonl"].map(|name| fixture.path(name).display().to_string());
    let own = "columns = { prompt = \"question\", rejected = \"worse\" }";
    let both = format!("data.train=[\"{a}\", {{ path = \"{b}\", {own} }}]");
    fixture.run("whole", &[]).unwrap();
    fixture.run("parts", &[&both]).unwrap();
    assert_eq!(fixture.timeless_metrics("whole"), fixture.timeless_metrics("parts"));
    // The run folder's configuration says the same, and the cache does not take one for the other.
    let resolved = fs::read_to_string(fixture.path("parts/config.toml")).unwrap();
    assert!(resolved.contains("question"), "{resolved}");
    let wrong = format!("data.train=[\"{a}\", \"{b}\"]");
    let why = fixture.run("wrong", &[&wrong]).unwrap_err().to_string();
    assert!(why.contains("b.jsonl"), "{why}");
    let half = format!("data.train=[\"{a}\", {{ path = \"{b}\", fraction = 0.5, {own} }}]");
    let output = fixture.execute("half", &["--set", &half]);
    assert!(stdout(&output).contains("data: 16 rows to train on"), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn prompts_on_both_sides_are_counted() {
    let fixture = Fixture::new();
    let train = fs::read_to_string(fixture.path("train.jsonl")).unwrap();
    let mut eval = fs::read_to_string(fixture.path("eval.jsonl")).unwrap();
    let mut known: Value = serde_json::from_str(train.lines().nth(3).unwrap()).unwrap();
    // Other responses to a prompt that is learnt from.
    known["chosen"] = " Something else".into();
    eval += &format!("\n{known}");
    fs::write(fixture.path("eval.jsonl"), eval).unwrap();
    let output = fixture.execute("run", &["--set", "train.steps=1"]);
    let said = stdout(&output);
    assert!(said.contains("note: 1 of 6 held-out rows have a prompt that is trained on too"), "{said}");
    let none =
        fixture.execute("other", &["--set", "train.steps=1", "--set", "data.eval=", "--set", "data.eval_fraction=0.3"]);
    assert!(!stdout(&none).contains("trained on too"), "{}", stdout(&none));
}

#[test]
fn held_out_rows_have_one_source() {
    let fixture = Fixture::new();
    let refused = |set: &[&str]| {
        let flags: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let output = fixture.execute("run", &flags);
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    };
    let why = refused(&["data.eval_fraction=0.1"]);
    assert!(why.contains("`data.eval_fraction` = 0.1: `data.eval` names held-out rows as well"), "{why}");
    let why = refused(&["data.eval=", "data.eval_fraction=1"]);
    assert!(
        why.contains("`data.eval_fraction` = 1: give a number of 0 or more and below 1")
            || why.contains("below 1, such as"),
        "{why}"
    );
    let why = refused(&["data.order=length", "batch.packs=1", "batch.pairs="]);
    assert!(why.contains("`data.order` = \"length\": steps are counted in packs"), "{why}");
}

/// The file of margins against the metrics of the same evaluation, and the rows' own texts.
#[test]
fn pairs_are_told_by_their_margin() {
    let fixture = Fixture::new();
    let run = fixture.execute("run", &[]);
    assert!(run.status.success(), "{}", stderr(&run));
    let text = fs::read_to_string(fixture.path("run/held_out.jsonl")).unwrap();
    let lines: Vec<Map<String, Value>> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let number = |line: &Map<String, Value>, name: &str| line[name].as_f64().unwrap();
    let margins: Vec<f64> = lines.iter().map(|line| number(line, "margin")).collect();
    assert!(margins.is_sorted_by(|a, b| a >= b) && margins[0] > margins[4], "{margins:?}");
    let metrics = fixture.metrics("run");
    for name in ["margin", "rewards/chosen", "rewards/rejected"] {
        let mean = lines.iter().map(|line| number(line, name)).sum::<f64>() / lines.len() as f64;
        let known = match name {
            "margin" => number(&metrics[metrics.len() - 1], "eval_rewards/margins"),
            name => number(&metrics[metrics.len() - 1], &format!("eval_{name}")),
        };
        assert!((mean - known).abs() < 1e-9, "{name}: {mean} {known}");
    }
    let data = fs::read_to_string(fixture.path("eval.jsonl")).unwrap();
    let mut seen: Vec<usize> = lines
        .iter()
        .map(|line| {
            let place: usize = line["row"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
            let row: Map<String, Value> = serde_json::from_str(data.lines().nth(place - 1).unwrap()).unwrap();
            for side in ["chosen", "rejected"] {
                let said = line[side].as_str().unwrap();
                assert_eq!(said, format!("{}<|endoftext|>", row[side].as_str().unwrap()), "{side} of {row:?}");
            }
            place
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}
