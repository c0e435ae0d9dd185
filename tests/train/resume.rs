//! What a resumed run must find as it was: all it learns from, and every part of its checkpoint.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use warpo::{
    config::Config,
    device::Choice,
    train::{Options, Outcome},
};

use super::{
    fixture::{Fixture, stderr},
    losses::write_rows,
};

/// Runs of two steps from weights of a file, one for each kind of loss.
struct Class {
    name: &'static str,
    loss: &'static str,
    file: &'static str,
    set: &'static [&'static str],
    /// Beside tokens, what this loss learns from: a piece of a row's text and what it becomes.
    extra: Option<[&'static str; 2]>,
    /// Whether the run computes values under the starting weights once.
    keeps_reference: bool,
}

const CLASSES: [Class; 11] = [
    Class::new("reference values", "name = \"dpo\"", "pairs.jsonl", true),
    Class::new("margins", "name = \"scir\"", "pairs.jsonl", true),
    Class {
        extra: Some(["\"score_chosen\":1.0", "\"score_chosen\":1.5"]),
        ..Class::new("scores", "name = \"gpo\"", "pairs.jsonl", true)
    },
    Class {
        extra: Some(["\"uncertainty\":0.0", "\"uncertainty\":0.01"]),
        ..Class::new("weights of pairs", "name = \"upo\"", "pairs.jsonl", true)
    },
    Class {
        extra: Some(["\"scores\":[1.0,0.0,0.5]", "\"scores\":[1.0,0.0,0.25]"]),
        ..Class::new("lists", "name = \"tpo\"", "lists.jsonl", true)
    },
    Class {
        extra: Some(["\"label\":true", "\"label\":false"]),
        ..Class::new("labels and a reference point", "name = \"kto\"", "unpaired.jsonl", true)
    },
    Class::new("a model beside", "name = \"tdpo2\"", "pairs.jsonl", false),
    Class::new("masks of tokens", "name = \"sparse_po_independent\"", "pairs.jsonl", false),
    Class {
        set: &["train.track_reference=false"],
        ..Class::new("no reference", "name = \"simpo\"", "pairs.jsonl", false)
    },
    Class {
        set: &["train.track_reference=false"],
        extra: Some(["\"score\":0.0", "\"score\":0.5"]),
        ..Class::new("likelihood", "name = \"rwr\"", "single.jsonl", false)
    },
    Class { set: &["OLDER"], ..Class::new("an older reference", "name = \"apo_accelerated\"", "pairs.jsonl", true) },
];

impl Class {
    const fn new(name: &'static str, loss: &'static str, file: &'static str, keeps_reference: bool) -> Self {
        Self { name, loss, file, set: &[], extra: None, keeps_reference }
    }

    fn config(&self, fixture: &Fixture) -> Config {
        let path = |name: &str| fixture.path(name).display().to_string();
        let mut set = vec![
            format!("loss={{ {} }}", self.loss),
            format!("model={{ path = \"{}\" }}", path("start")),
            format!("data.train=\"{}\"", path(self.file)),
            format!("data.eval=\"{}\"", path(&format!("eval-{}", self.file))),
        ];
        set.extend(["train.steps=2", "train.save_every=1", "train.eval_every=0", "batch.tokens=320"].map(String::from));
        let older = format!("model.older_reference=\"{}\"", path("older"));
        set.extend(self.set.iter().map(|set| if *set == "OLDER" { older.clone() } else { (*set).to_owned() }));
        fixture.config(&set.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// Files to change, and how a run says what changed.
type Change = (&'static str, fn(&Fixture, &Class), &'static str);

fn edit(path: PathBuf, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(&path).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text, "{}", path.display());
    fs::write(path, changed).unwrap();
}

/// Turns one bit in the last value of a file of tensors.
fn turn_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - 2;
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn edit_json(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

const CHANGES: [Change; 8] = [
    (
        "a token",
        |f, class| edit(f.path(class.file), |t| t.replacen("the", "this", 1)),
        "the rows of `data.train`: changed",
    ),
    (
        "a held-out token",
        |f, class| edit(f.path(&format!("eval-{}", class.file)), |t| t.replacen("the", "this", 1)),
        "the rows of `data.eval`: changed",
    ),
    (
        "a row less",
        |f, class| edit(f.path(class.file), |t| t.lines().skip(1).collect::<Vec<_>>().join("\n")),
        "the rows of `data.train`: changed",
    ),
    (
        "rows in another order",
        |f, class| edit(f.path(class.file), |t| t.lines().rev().collect::<Vec<_>>().join("\n")),
        "the rows of `data.train`: changed",
    ),
    (
        "the tokenizer",
        |f, _| {
            edit_json(f.path("start/tokenizer.json"), |json| {
                drop(json["model"]["merges"].as_array_mut().unwrap().pop())
            })
        },
        "the tokenizer of `model.path`: changed",
    ),
    (
        "the template",
        |f, _| fs::write(f.path("start/chat_template.jinja"), "{{ messages[0].content }}!").unwrap(),
        "the chat template",
    ),
    (
        "the model's shape",
        |f, _| edit_json(f.path("start/config.json"), |json| json["rope_theta"] = json!(20000.0)),
        "config.json of `model.path`: changed",
    ),
    (
        "a part of the checkpoint",
        |f, _| turn_a_bit(&f.path("run/checkpoint-1/optimizer.safetensors")),
        "optimizer.safetensors: not the file that was saved",
    ),
];

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => fs::copy(&path, &target).map(|_| ()).unwrap(),
        }
    }
}

/// Folders `start` and `older` with weights, rows of every shape, and the same rows held out.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.run("first", &["train.steps=2"]).unwrap();
    for (from, to) in [("first/final", "start"), ("first/checkpoint-2", "older")] {
        copy(&fixture.path(from), &fixture.path(to));
    }
    write_rows(&fixture);
    for file in ["pairs.jsonl", "lists.jsonl", "unpaired.jsonl", "single.jsonl"] {
        let rows = fs::read_to_string(fixture.path(file)).unwrap();
        let some: Vec<&str> = rows.lines().take(4).collect();
        fs::write(fixture.path(&format!("eval-{file}")), some.join("\n")).unwrap();
    }
    fixture
}

fn resume(fixture: &Fixture, class: &Class) -> anyhow::Result<Outcome> {
    let options = Options {
        config: class.config(fixture),
        device: Choice::Host,
        out: fixture.path("run"),
        resume: true,
        overwrite: false,
    };
    Ok(warpo::train::run(&options, &false.into())?)
}

/// What is changed, how, and what a run says of it.
type Edit<'a> = (&'static str, Box<dyn Fn(&Fixture) + 'a>, &'static str);

/// Everything a class can be changed in, and how a run says what changed.
fn changes(class: &Class) -> Vec<Edit<'_>> {
    let mut all: Vec<Edit> = Vec::new();
    for (what, change, says) in CHANGES {
        all.push((what, Box::new(move |fixture| change(fixture, class)), says));
    }
    if let Some([from, to]) = class.extra {
        let change = move |fixture: &Fixture| edit(fixture.path(class.file), |text| text.replacen(from, to, 1));
        all.push(("what comes with a row", Box::new(change), "the rows of `data.train`: changed"));
    }
    let weights = |fixture: &Fixture| turn_a_bit(&fixture.path("start/model.safetensors"));
    if class.keeps_reference {
        let reference = |fixture: &Fixture| turn_a_bit(&fixture.path("run/reference.safetensors"));
        all.push(("the reference values", Box::new(reference), "reference.safetensors: changed"));
    } else {
        all.push(("the starting weights", Box::new(weights), "the starting weights of `model.path`: changed"));
    }
    if class.set == ["OLDER"] {
        let older = |fixture: &Fixture| turn_a_bit(&fixture.path("older/model.safetensors"));
        all.push(("the older weights", Box::new(older), "the weights of `model.older_reference`: changed"));
    }
    all
}

#[test]
fn a_resumed_run_is_refused_whatever_it_learns_from_has_changed() {
    let fixture = fixture();
    for class in &CLASSES {
        let options = Options {
            config: class.config(&fixture),
            device: Choice::Host,
            out: fixture.path("run"),
            resume: false,
            overwrite: false,
        };
        warpo::train::run(&options, &false.into()).unwrap_or_else(|why| panic!("{}: {why:#}", class.name));
        assert_eq!(fixture.path("run/reference.safetensors").exists(), class.keeps_reference, "{}", class.name);
        let whole = fixture.files("run");
        for gone in ["checkpoint-2", "final"] {
            fs::remove_dir_all(fixture.path("run").join(gone)).unwrap();
        }
        let kept = tempfile::tempdir().unwrap();
        let folders = ["start", "older", "run"];
        folders.iter().for_each(|folder| copy(&fixture.path(folder), &kept.path().join(folder)));
        for (what, change, says) in changes(class) {
            let rows = [class.file.to_owned(), format!("eval-{}", class.file)].map(|file| fixture.path(&file));
            let before = rows.clone().map(|path| fs::read(path).unwrap());
            change(&fixture);
            let why = match resume(&fixture, class) {
                Err(why) => format!("{why:#}"),
                Ok(outcome) => panic!("{}, {what}: {outcome:?}", class.name),
            };
            assert!(why.contains(says) && !why.contains('\n'), "{}, {what}: {why}", class.name);
            assert!(!fixture.path("run/checkpoint-2").exists());
            rows.iter().zip(before).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
            for folder in folders {
                fs::remove_dir_all(fixture.path(folder)).unwrap();
                copy(&kept.path().join(folder), &fixture.path(folder));
            }
        }
        // With everything as it was, the run goes on to the same bits.
        assert_eq!(resume(&fixture, class).unwrap(), Outcome::Finished, "{}", class.name);
        assert!(fixture.files("run") == whole, "{}: other bits", class.name);
        fs::remove_dir_all(fixture.path("run")).unwrap();
    }
}

/// What its own reference file stands for, a run does not need again; and it says so.
#[test]
fn a_run_with_its_own_reference_values_goes_on_without_the_weights_it_started_from() {
    let fixture = fixture();
    let start = format!("model={{ path = \"{}\" }}", fixture.path("start").display());
    let set = ["--set", start.as_str(), "--set", "train.steps=4"];
    assert!(fixture.execute("straight", &set).status.success());
    assert!(fixture.execute("run", &set).status.success());
    for gone in ["checkpoint-4", "final"] {
        fs::remove_dir_all(fixture.path("run").join(gone)).unwrap();
    }
    turn_a_bit(&fixture.path("start/model.safetensors"));
    let resumed = fixture.execute("run", &[&set[..], &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    let said = String::from_utf8(resumed.stdout).unwrap();
    assert!(
        said.contains("the starting weights of `model.path`: changed since the run began; its checkpoint and"),
        "{said}"
    );
    fixture.assert_same_run("straight", "run");
    // Before the first checkpoint nothing stands for them.
    for gone in ["checkpoint-2", "checkpoint-4", "final"] {
        fs::remove_dir_all(fixture.path("run").join(gone)).unwrap();
    }
    let refused = fixture.execute("run", &[&set[..], &["--resume"]].concat());
    let why = stderr(&refused);
    assert!(
        why.contains("reference.safetensors: the starting weights of `model.path` changed since it was made"),
        "{why}"
    );
    fs::remove_file(fixture.path("run/reference.safetensors")).unwrap();
    let resumed = fixture.execute("run", &[&set[..], &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
}

#[test]
fn parts_of_a_checkpoint_belong_together() {
    let fixture = Fixture::new();
    let set = ["--set", "loss={ name = \"sparse_po\" }", "--set", "train.steps=6"];
    assert!(fixture.execute("straight", &set).status.success());
    let parts =
        ["model.safetensors", "optimizer.safetensors", "token_mask.safetensors", "config.json", "trainer_state.json"];
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("a bit turned", turn_a_bit),
        ("of another step", |path| {
            let other = path.parent().unwrap().with_file_name("checkpoint-2").join(path.file_name().unwrap());
            fs::copy(other, path).unwrap();
        }),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    for part in parts {
        for (what, damage) in damages {
            if (part, what) == ("config.json", "of another step") {
                continue;
            }
            let out = fixture.path("run");
            copy(&fixture.path("straight"), &out);
            for gone in ["checkpoint-6", "final"] {
                fs::remove_dir_all(out.join(gone)).unwrap();
            }
            damage(&out.join("checkpoint-4").join(part));
            let refused = fixture.execute("run", &[&set[..], &["--resume"]].concat());
            let why = stderr(&refused);
            assert_eq!(refused.status.code(), Some(1), "{part} {what}");
            assert!(
                why.contains("remove its folder to go on from the one before") && why.contains("checkpoint-4"),
                "{why}"
            );
            assert!(why.contains(part) || what == "of another step", "{part} {what}: {why}");
            // The remedy.
            fs::remove_dir_all(out.join("checkpoint-4")).unwrap();
            let resumed = fixture.execute("run", &[&set[..], &["--resume"]].concat());
            assert!(resumed.status.success(), "{}", stderr(&resumed));
            fixture.assert_same_run("straight", "run");
            fs::remove_dir_all(out).unwrap();
        }
    }
}

/// A run of a program that kept less: its configuration has fewer keys, its checkpoints are of format 2.
#[test]
fn checkpoints_of_format_2_resume() {
    let fixture = Fixture::new();
    assert!(fixture.execute("straight", &[]).status.success());
    assert!(fixture.execute("old", &[]).status.success());
    for gone in ["checkpoint-6", "checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("old").join(gone)).unwrap();
    }
    edit_json(fixture.path("old/checkpoint-4/trainer_state.json"), |state| {
        let state = state.as_object_mut().unwrap();
        ["settings", "bound", "machine", "files", "check"].iter().for_each(|key| drop(state.remove(*key).unwrap()));
        state.insert("format".into(), json!(2));
        state.insert("config_hash".into(), json!("0123456789abcdef"));
    });
    edit(fixture.path("old/config.toml"), |text| {
        text.lines().filter(|line| !line.starts_with("save_minutes")).collect::<Vec<_>>().join("\n")
    });
    let resumed = fixture.execute("old", &["--resume"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    let said = String::from_utf8(resumed.stdout).unwrap();
    assert!(said.contains("checkpoint-4 is of format 2: "), "{said}");
    for later in ["checkpoint-4", "checkpoint-6", "checkpoint-8"] {
        let state: Value =
            serde_json::from_slice(&fs::read(fixture.path("old").join(later).join("trainer_state.json")).unwrap())
                .unwrap();
        assert_eq!(state["format"], if later == "checkpoint-4" { 2 } else { 4 }, "{later}");
    }
    fs::remove_dir_all(fixture.path("old/checkpoint-4")).unwrap();
    copy(&fixture.path("straight/checkpoint-4"), &fixture.path("old/checkpoint-4"));
    fixture.assert_same_run("straight", "old");
}

/// By the clock or by the step, a checkpoint changes nothing.
#[test]
fn checkpoints_by_the_clock_change_no_bits() {
    let fixture = Fixture::new();
    fixture.run("straight", &["train.save_every=0", "train.save_minutes=0"]).unwrap();
    fixture.run("clock", &["train.save_every=0", "train.save_minutes=1e-7"]).unwrap();
    assert!(!fixture.path("straight/checkpoint-7").exists());
    for step in 1..=8 {
        assert!(fixture.path(&format!("clock/checkpoint-{step}")).is_dir(), "step {step}");
    }
    fixture.assert_same_run("straight", "clock");
}

#[test]
fn a_resume_on_another_device_or_build_is_said() {
    let fixture = Fixture::new();
    assert!(fixture.execute("run", &[]).status.success());
    for gone in ["checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("run").join(gone)).unwrap();
    }
    let state = fixture.path("run/checkpoint-6/trainer_state.json");
    let text = fs::read_to_string(&state).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let [device, check] = [&value["machine"]["device"], &value["check"]].map(|value| value.as_str().unwrap());
    let text = text.replace(device, "another device").replace(check, &"0".repeat(64));
    let check = blake3::hash(text.as_bytes()).to_hex();
    fs::write(&state, text.replace(&"0".repeat(64), &check)).unwrap();
    let resumed = fixture.execute("run", &["--resume"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    let said = String::from_utf8(resumed.stdout).unwrap();
    let line = said.lines().find(|line| line.starts_with("resumed on host")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(", saved on another device with warpo "), "{line}");
}

/// So many checkpoints of half a megabyte each that no disk holds them.
#[test]
fn a_run_that_the_disk_has_no_room_for_is_refused_before_it_begins() {
    let fixture = Fixture::new();
    let set = ["train.steps=1000000000000", "train.keep_checkpoints=1000000000"];
    let why = format!("{:#}", fixture.run("run", &set).unwrap_err());
    assert!(why.contains(": the run writes ") && why.contains("lower `train.keep_checkpoints` = 1000000000"), "{why}");
    assert!(!fixture.path("run").exists() && !why.contains('\n'));
}
