//! What a row takes of the host's memory while a run starts: measured on the program itself.

use std::{fmt::Write, fs, process::Stdio, thread, time::Duration};

use super::fixture::Fixture;

/// Bytes a row at most, and what two runs of one size may differ by.
const ROW_BYTES: usize = 34;
const NOISE: usize = 4 << 20;
/// A loss that looks at no reference.
const WITHOUT: [&str; 4] = ["--set", "loss={ name = \"simpo\" }", "--set", "train.track_reference=false"];

/// The most bytes that a run over so many short pairs had resident, as Linux counts them.
fn peak(fixture: &Fixture, out: &str, rows: usize) -> usize {
    let file = format!("{rows}.jsonl");
    if !fixture.path(&file).exists() {
        let mut text = String::new();
        for row in 0..rows {
            writeln!(text, r#"{{"prompt": "{row}: yes or no?", "chosen": " Yes", "rejected": " No"}}"#).unwrap();
        }
        fs::write(fixture.path(&file), text).unwrap();
    }
    let data = format!("data.train={}", fixture.path(&file).display());
    let mut command = fixture.command(out, &["--set", &data, "--set", "train.steps=1"]);
    let mut child = command.args(WITHOUT).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        // The number only grows, and the last step comes after all that is measured.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak = line.map_or(peak, |kilobytes: usize| kilobytes << 10);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{rows} rows: {status}");
            return peak;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Encoding them and reading them from the cache.
#[test]
fn a_row_takes_few_bytes_of_memory() {
    if !fs::exists("/proc/self/status").unwrap_or(false) {
        println!("skipped: no /proc");
        return;
    }
    let fixture = Fixture::new();
    let [few, many] = [50_000, 200_000];
    for kind in ["cold", "warm"] {
        let [small, large] = [few, many].map(|rows| peak(&fixture, &format!("{kind}-{rows}"), rows));
        let bytes = (large as f64 - small as f64) / (many - few) as f64;
        println!("{kind}: {small} bytes for {few} rows, {large} for {many}: {bytes:.1} a row");
        assert!(large < small + ROW_BYTES * (many - few) + NOISE, "{kind}: {bytes:.1} bytes a row");
    }
}
