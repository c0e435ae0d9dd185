//! Pipes, devices, holes and pointers in place of the files of a model folder: each ends with one line, at once.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::scratch::Scratch;

/// The longest a refusal may take, and the memory it may use, in KiB.
const PATIENCE: Duration = Duration::from_secs(20);
const MEMORY_KIB: u64 = 1 << 20;

/// Runs `warpo train` under limits; what it says is one line with these parts.
fn refused(scratch: &Scratch, parts: &[&str]) {
    let started = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
    command.args(["train", "run.toml", "--out", "out", "--device", "host", "--set", "train.threads=1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).current_dir(scratch.path(""));
    let mut child = command.spawn().unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(peak_kib(child.id()));
        if started.elapsed() > PATIENCE || peak > MEMORY_KIB {
            child.kill().unwrap();
            panic!("{parts:?}: still running after {:?} with {peak} KiB", started.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && why.lines().count() == 1, "{parts:?}: {why}");
    assert!(parts.iter().all(|part| why.contains(part)), "{parts:?}: {why}");
    assert!(!scratch.path("out").exists());
}

/// The most memory a process has had, where the system says.
fn peak_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// What a model folder describes itself with.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "adapter_config.json",
];

#[cfg(unix)]
#[test]
fn pipes_devices_and_holes_in_place_of_files() {
    for name in SMALL_FILES {
        let scratch = Scratch::new();
        let path = scratch.path("model").join(name);
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused(&scratch, &[name, "a pipe or device"]);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused(&scratch, &[name, "a pipe or device"]);
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        refused(&scratch, &[name, "takes 1099511627776 bytes"]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused(&scratch, &[name, "a folder"]);
    }
    let scratch = Scratch::new();
    scratch.remove("model/model.safetensors");
    assert!(Command::new("mkfifo").arg(scratch.path("model/model.safetensors")).status().unwrap().success());
    refused(&scratch, &["model.safetensors", "pipe or device"]);
}

#[test]
fn pointers_of_git_lfs_in_place_of_files() {
    for name in SMALL_FILES.into_iter().chain(["model.safetensors"]) {
        let scratch = Scratch::new();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345678\n";
        scratch.write(&format!("model/{name}"), pointer);
        refused(&scratch, &[name, "a Git LFS pointer", "git lfs pull"]);
    }
}
