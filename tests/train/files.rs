//! Several data files in a run: lists, patterns and weights.

use std::fs;

use warpo::train::inputs::Inputs;

use super::fixture::{Fixture, stderr};

/// `train.jsonl` cut into two files, `part-a.jsonl` with 12 rows and `part-b.jsonl` with 10.
fn parts() -> Fixture {
    let fixture = Fixture::new();
    let text = fs::read_to_string(fixture.path("train.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    fs::write(fixture.path("part-a.jsonl"), lines[..12].join("\n")).unwrap();
    fs::write(fixture.path("part-b.jsonl"), lines[12..].join("\n")).unwrap();
    fixture
}

/// `data.train=VALUE`, `$` being the fixture's folder.
fn train(fixture: &Fixture, value: &str) -> String {
    format!("data.train={}", value.replace('$', &fixture.path("").display().to_string()))
}

#[test]
fn two_files_and_a_pattern_are_the_file_they_were_cut_from() {
    let fixture = parts();
    fixture.run("whole", &[]).unwrap();
    fixture.run("list", &[&train(&fixture, r#"["$part-a.jsonl", "$part-b.jsonl"]"#)]).unwrap();
    fixture.assert_same_run("whole", "list");
    fixture.run("pattern", &[&train(&fixture, "$part-*.jsonl")]).unwrap();
    fixture.assert_same_run("whole", "pattern");
}

#[test]
fn an_epoch_takes_rows_as_often_as_their_file_weighs() {
    let fixture = parts();
    let list = r#"["$part-a.jsonl", { path = "$part-b.jsonl", weight = 2.5 }]"#;
    let config = fixture.config(&[&train(&fixture, list)]);
    let inputs = Inputs::read(&config).unwrap();
    let name = inputs.train.trees.tree(12).unwrap().name;
    assert!(name.ends_with("part-b.jsonl:1"), "{name}");
    let mut loader = inputs.loader;
    let mut taken = [0; 22];
    while loader.position().epoch == 0 {
        loader.next_step().into_iter().flatten().for_each(|row| taken[row] += 1);
    }
    assert!(taken[..12].iter().all(|&times| times == 1), "{taken:?}");
    assert!(taken[12..].iter().all(|&times| times == 2 || times == 3), "{taken:?}");
    fixture.run("weighted", &[&train(&fixture, list)]).unwrap();
}

/// A row that comes twice may share a pack with itself, which then holds more tokens than the file.
#[test]
fn a_file_smaller_than_a_pack_can_weigh_more_than_once() {
    let fixture = Fixture::new();
    let text = fs::read_to_string(fixture.path("train.jsonl")).unwrap();
    fs::write(fixture.path("one.jsonl"), text.lines().next().unwrap()).unwrap();
    let list = train(&fixture, r#"[{ path = "$one.jsonl", weight = 4 }]"#);
    fixture.run("run", &[&list, "batch.tokens=2000", "train.steps=2"]).unwrap();
}

#[test]
fn the_same_rows_twice_and_patterns_without_a_file_are_refused() {
    let fixture = parts();
    fs::create_dir(fixture.path("sub")).unwrap();
    for (list, part) in [
        (r#"["$part-a.jsonl", "$sub/../part-a.jsonl"]"#, "sub/../part-a.jsonl is named twice: name it once"),
        (r#"["$part-*.jsonl", "$part-b.jsonl"]"#, "part-b.jsonl is named twice"),
        ("$nothing-*.jsonl", "`data.train`: no file fits `"),
        (r#"["$part-a.jsonl", "$absent.jsonl"]"#, "absent.jsonl`: cannot be read: name an existing file"),
    ] {
        let why = format!("{:#}", fixture.run("run", &[&train(&fixture, list)]).unwrap_err());
        assert!(why.contains(part) && !why.contains('\n'), "{why}");
        assert!(!fixture.path("run").exists());
    }
}

#[test]
fn a_resumed_run_keeps_its_weights() {
    let fixture = parts();
    let list = |weight: &str| {
        let list = r#"["$part-a.jsonl", { path = "$part-b.jsonl", weight = W }]"#.replace('W', weight);
        train(&fixture, &list)
    };
    fixture.run("run", &[&list("2.0"), "train.save_every=2"]).unwrap();
    let output = fixture.execute("run", &["--resume", "--set", &list("3.0")]);
    let why = stderr(&output);
    assert!(
        why.contains("`data.train weights` = 1.0, 3.0: the run in ") && why.contains("began with 1.0, 2.0"),
        "{why}"
    );
    let output = fixture.execute("run", &["--resume", "--set", &list("2.0")]);
    assert!(output.status.success(), "{}", stderr(&output));
}
