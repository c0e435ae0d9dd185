//! Models by the names of the Hugging Face hub, as they lie in its cache.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use super::scratch::Scratch;

const COMMIT: &str = "0123456789abcdef";

/// A scratch folder whose model is a snapshot of `some/model` in the cache under `home/.cache`.
fn cached() -> Scratch {
    let scratch = Scratch::new();
    let repository = scratch.path("home/.cache/huggingface/hub/models--some--model");
    fs::create_dir_all(repository.join("snapshots")).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    fs::rename(scratch.path("model"), repository.join("snapshots").join(COMMIT)).unwrap();
    scratch
}

/// `warpo data run.toml` with a model, under a home and with variables.
fn data(scratch: &Scratch, model: &str, variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", scratch.path("home")).envs(variables.iter().copied());
    command.current_dir(scratch.path("")).args(["data", "run.toml", "--set", &format!("model.path={model}")]);
    command.output().unwrap()
}

fn runs(scratch: &Scratch, model: &str, variables: &[(&str, &Path)]) {
    let output = data(scratch, model, variables);
    assert!(output.status.success(), "{model}: {}", String::from_utf8_lossy(&output.stderr));
}

fn refused(scratch: &Scratch, model: &str, variables: &[(&str, &Path)], parts: &[&str]) {
    let output = data(scratch, model, variables);
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && why.lines().count() == 1, "{model}: {why}");
    assert!(parts.iter().all(|part| why.contains(part)), "{model}: {why}");
}

#[test]
fn an_id_is_the_snapshot_of_its_main_branch() {
    let scratch = cached();
    runs(&scratch, "some/model", &[]);
    refused(&scratch, "some/other", &[], &["`model.path`", "model `some/other`", "hf download some/other"]);
    // Not every word with a slash is an id.
    refused(&scratch, "./some/model", &[], &["config.json", "there is no such folder"]);
    refused(&scratch, "some/model/more", &[], &["config.json", "there is no such folder"]);
    refused(&scratch, "word", &[], &["word/config.json", "there is no such folder"]);
}

#[test]
fn the_cache_lies_where_hugging_face_looks_for_it() {
    let scratch = cached();
    let hub = scratch.path("home/.cache/huggingface/hub");
    let elsewhere = scratch.path("elsewhere");
    fs::create_dir_all(elsewhere.join("hub")).unwrap();
    let moved = elsewhere.join("hub/models--some--model");
    fs::rename(hub.join("models--some--model"), &moved).unwrap();
    refused(&scratch, "some/model", &[], &["home/.cache/huggingface/hub"]);
    runs(&scratch, "some/model", &[("HF_HOME", &elsewhere)]);
    runs(&scratch, "some/model", &[("HF_HUB_CACHE", &elsewhere.join("hub")), ("HF_HOME", &hub)]);
    runs(&scratch, "some/model", &[("HUGGINGFACE_HUB_CACHE", &elsewhere.join("hub")), ("HF_HOME", &hub)]);
    fs::rename(&elsewhere, scratch.path("huggingface")).unwrap();
    runs(&scratch, "some/model", &[("XDG_CACHE_HOME", &scratch.path(""))]);
}

#[test]
fn a_folder_wins_over_an_id() {
    let scratch = cached();
    fs::create_dir_all(scratch.path("some/model")).unwrap();
    refused(&scratch, "some/model", &[], &["some/model/config.json", "needs a config.json"]);
}

#[test]
fn a_repository_of_the_cache_and_a_home_path_are_found() {
    let scratch = cached();
    let repository = "~/.cache/huggingface/hub/models--some--model";
    runs(&scratch, repository, &[]);
    runs(&scratch, &format!("{repository}/snapshots/{COMMIT}"), &[]);
    let path = scratch.path("home/.cache/huggingface/hub/models--some--model");
    runs(&scratch, path.to_str().unwrap(), &[]);
    fs::write(path.join("refs/main"), "../../..").unwrap();
    refused(&scratch, repository, &[], &["refs/main names", "hf download"]);
    fs::write(path.join("refs/main"), "gone").unwrap();
    refused(&scratch, "some/model", &[], &["refs/main names `gone`"]);
    fs::remove_file(path.join("refs/main")).unwrap();
    refused(&scratch, "some/model", &[], &["without refs/main", "name one of its snapshots"]);
}

#[test]
fn a_home_path_names_data_too() {
    let scratch = cached();
    fs::rename(scratch.path("train.jsonl"), scratch.path("home/rows.jsonl")).unwrap();
    scratch.replace("run.toml", "train.jsonl", "~/rows.jsonl");
    runs(&scratch, "some/model", &[]);
}

/// The file of a run may name a model that only another machine has.
#[test]
fn an_id_of_the_file_is_not_looked_up_where_the_command_line_names_a_model() {
    let scratch = cached();
    scratch.replace("run.toml", "path = \"model\"", "path = \"nobody/nothing\"");
    runs(&scratch, "some/model", &[]);
}
