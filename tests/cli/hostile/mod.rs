//! Hostile input: whatever a stranger's file holds, the program ends with one line, soon and in little memory, and sends
//! nothing of it raw to a terminal.

mod bombs;
mod deep;
#[cfg(unix)]
mod files;
mod sizes;
mod templates;
mod terminal;
mod weights;

use std::{
    fs,
    io::{Read, Seek},
    panic::catch_unwind,
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::{bad_input::check_says, scratch::Scratch};

/// The time a refusal may take of a processor, and the most memory it may ever hold.
const TIME: Duration = Duration::from_secs(20);
/// What a busy machine may make of that time.
const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY_KIB: u64 = 1 << 20;
const LEVELS: usize = 100_000;

#[derive(Clone, Copy)]
enum Program {
    Data,
    /// Bad rows are left out.
    Skip,
    Train,
}

/// One input, and what the refusal has to say in this order.
struct Case {
    name: &'static str,
    program: Program,
    damage: fn(&Scratch),
    says: &'static [&'static str],
}

const fn data(name: &'static str, damage: fn(&Scratch), says: &'static [&'static str]) -> Case {
    Case { name, program: Program::Data, damage, says }
}

const fn skip(name: &'static str, damage: fn(&Scratch), says: &'static [&'static str]) -> Case {
    Case { name, program: Program::Skip, damage, says }
}

const fn train(name: &'static str, damage: fn(&Scratch), says: &'static [&'static str]) -> Case {
    Case { name, program: Program::Train, damage, says }
}

/// What a process left behind.
struct Seen {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Runs the program to its end, or up to the limits.
fn watch(name: &str, scratch: &Scratch, args: &[&str]) -> Seen {
    let [mut stdout, mut stderr] = [(); 2].map(|()| tempfile::tempfile().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
    command.args(args).current_dir(scratch.path("")).stdin(Stdio::null());
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let (start, mut peak, mut worked) = (Instant::now(), 0, Duration::ZERO);
    let mut child = command.spawn().unwrap();
    let status = loop {
        peak = peak.max(peak_kib(child.id()));
        worked = worked.max(processor_time(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if worked > TIME || start.elapsed() > PATIENCE || peak > MEMORY_KIB {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name}: ended after {:?}, {worked:?} of a processor, with {peak} KiB", start.elapsed());
        }
        sleep(Duration::from_millis(2));
    };
    println!("{name}: {:?}, {worked:?} of a processor, {peak} KiB", start.elapsed());
    let text = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).unwrap();
        String::from_utf8(bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    Seen { status, stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

/// The most memory that the process has held; 0 where the system does not say.
fn peak_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// User's and system's time of the process; none where the system does not say.
fn processor_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    // Fields 14 and 15 in hundredths of a second, which Linux shows on every architecture.
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

/// The one line of a refusal.
fn refusal(name: &str, seen: &Seen) -> String {
    let Seen { status, stdout, stderr } = seen;
    assert_eq!(status.code(), Some(1), "{name}: {status}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{name}: {stderr}");
    assert!(stderr.starts_with("error: "), "{name}: {stderr}");
    assert!(!stderr.contains("panicked"), "{name}: {stderr}");
    assert!(harmless(stderr) && harmless(stdout), "{name}: {stderr:?} {stdout:?}");
    stderr.clone()
}

/// Nothing that a terminal would obey: neither control characters nor those that turn the direction of text.
fn harmless(text: &str) -> bool {
    text.chars()
        .all(|c| c == '\n' || !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

/// Runs each case on a scratch folder of its own and shows every failure, not only the first.
fn check(cases: &[Case]) {
    let failed: Vec<&str> =
        cases.iter().filter(|case| catch_unwind(|| check_one(case)).is_err()).map(|c| c.name).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

fn check_one(case: &Case) {
    let scratch = Scratch::new();
    (case.damage)(&scratch);
    let args: &[&str] = match case.program {
        Program::Data => &["data", "run.toml"],
        Program::Skip => &["data", "run.toml", "--set", "data.on_error=skip"],
        Program::Train => &["train", "run.toml", "--out", "out", "--device", "host"],
    };
    let line = refusal(case.name, &watch(case.name, &scratch, args));
    println!("  {line}");
    check_says(case.name, &line, case.says);
}

/// Arrays in arrays.
fn nested() -> String {
    "[".repeat(LEVELS) + &"]".repeat(LEVELS)
}
