//! A run in a pseudo-terminal, and with its outputs led elsewhere: what stays on the screen, and what a log holds.
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    process::{Command, Stdio},
    thread,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::train::fixture::Fixture;

/// Eight steps with evaluations after 0, 3, 6 and 8; a line is due after the first and every other.
const EVERY_OTHER: [&str; 2] = ["--set", "train.log_every=2"];
const DUE: [u64; 5] = [1, 2, 4, 6, 8];

/// What a shell runs with `$0 ... $@` in a terminal so wide; all that was written to the terminal.
fn in_terminal(columns: u16, script: &str, fixture: &Fixture, out: &str) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    let inside = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap();
    let reader = thread::spawn(move || {
        let (mut file, mut bytes, mut piece) = (File::from(terminal), Vec::new(), [0; 4096]);
        // Reading fails when nobody has the other side open.
        while let Ok(count @ 1..) = file.read(&mut piece) {
            bytes.extend_from_slice(&piece[..count]);
        }
        String::from_utf8(bytes).unwrap()
    });
    let program = fixture.command(out, &EVERY_OTHER);
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(program.get_program()).args(program.get_args());
    shell.current_dir(fixture.path("")).env("TERM", "xterm").env_remove("RUST_BACKTRACE");
    shell.stdin(Stdio::null()).stdout(inside.try_clone().unwrap()).stderr(inside);
    let status = shell.status().unwrap();
    drop(shell);
    let written = reader.join().unwrap();
    assert!(status.success(), "{script}: {written}");
    written
}

/// The lines that are left on a terminal so wide. Knows what the program may send, and nothing else.
fn left_on(columns: usize, written: &str) -> Vec<String> {
    let (mut lines, mut row, mut column) = (vec![Vec::new()], 0, 0);
    let mut letters = written.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => {
                assert_eq!((letters.next(), letters.next()), (Some('['), Some('K')), "{written:?}");
                lines[row].truncate(column);
            }
            letter => {
                assert!(!letter.is_control(), "{letter:?}");
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
                lines.resize(lines.len().max(row + 1), Vec::new());
                let line: &mut Vec<char> = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = letter;
                column += 1;
            }
        }
        lines.resize(lines.len().max(row + 1), Vec::new());
    }
    lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

fn steps<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<u64> {
    let number = |line: &str| line.strip_prefix("step ")?.split_once("/8  loss ")?.0.parse().ok();
    lines.filter_map(number).collect()
}

#[test]
fn a_terminal_keeps_the_history_and_no_piece_of_a_bar() {
    let fixture = Fixture::new();
    for columns in [60, 80, 140] {
        let written = in_terminal(columns, "\"$0\" \"$@\"", &fixture, &format!("out{columns}"));
        let columns = usize::from(columns);
        let bars: Vec<&str> = written.split('\r').filter_map(|piece| piece.strip_suffix("\x1b[K")).collect();
        let drawn: Vec<&&str> = bars.iter().filter(|bar| bar.contains("/8  ") && bar.contains('>')).collect();
        assert!(drawn.len() > 1, "{columns}: no bar was drawn: {written:?}");
        for bar in bars {
            assert!(bar.chars().count() < columns, "{columns}: a bar wraps: {bar}");
        }
        let left = left_on(columns, &written);
        assert_eq!(steps(left.iter().map(String::as_str)), DUE, "{columns}: {left:#?}");
        assert!(!left.iter().any(|line| line.contains("=>") || line.contains("> ")), "{columns}: {left:#?}");
        // The last line ends with a line feed, behind which nothing is left.
        assert_eq!(left.last().map(String::as_str), Some(""), "{columns}: {left:#?}");
        assert!(left.iter().any(|line| line.starts_with("done: the model is in")), "{columns}: {left:#?}");
    }
}

#[test]
fn a_log_has_the_steps_wherever_the_other_output_goes() {
    let fixture = Fixture::new();
    let log = || fs::read_to_string(fixture.path("log")).unwrap();
    // What `tee` copies to the terminal stands there without a bar between.
    let written = in_terminal(80, "\"$0\" \"$@\" | tee log", &fixture, "tee");
    assert_eq!(steps(log().lines()), DUE, "{}", log());
    assert_eq!(written.replace('\r', ""), log());
    // A file takes the lines, and the terminal has a bar that goes again.
    let written = in_terminal(80, "\"$0\" \"$@\" > log", &fixture, "file");
    assert_eq!(steps(log().lines()), DUE, "{}", log());
    assert!(written.contains("/8  "), "{written:?}");
    assert_eq!(left_on(80, &written), [""], "{written:?}");
    let written = in_terminal(140, "\"$0\" \"$@\" 2>errors", &fixture, "errors-to-a-file");
    assert_eq!(steps(written.lines()), DUE, "{written}");
    assert_eq!(fs::read(fixture.path("errors")).unwrap(), b"");
}

#[test]
fn closed_outputs_do_no_harm() {
    let fixture = Fixture::new();
    for (number, closed) in ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"].into_iter().enumerate() {
        let out = format!("closed{number}");
        let log = in_terminal(80, &format!("\"$0\" \"$@\" {closed}"), &fixture, &out);
        assert_eq!(log.contains("done: "), closed == "2>&-", "{closed}: {log}");
        assert!(fixture.path(&out).join("final/model.safetensors").is_file(), "{closed}");
        assert_eq!(fixture.metrics(&out).len(), 12, "{closed}");
    }
}

#[test]
fn quiet_says_the_last_line_and_verbose_every_step_and_setting() {
    let fixture = Fixture::new();
    let said = |out: &str, args: &[&str]| {
        let output = fixture.execute(out, &[&EVERY_OTHER[..], args].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let quiet = said("quiet", &["--quiet"]);
    assert_eq!(quiet, format!("done: the model is in {}\n", fixture.path("quiet/final").display()));
    let (usual, verbose) = (said("usual", &[]), said("verbose", &["-v"]));
    assert_eq!(steps(usual.lines()), DUE);
    assert_eq!(steps(verbose.lines()), [1, 2, 3, 4, 5, 6, 7, 8]);
    for part in ["  logps/chosen -", "\n[optim]\n", "\nwarmup_steps = 2\n"] {
        assert!(verbose.contains(part) && !usual.contains(part), "{part}: {verbose}");
    }
    assert_eq!(fixture.execute("both", &["-q", "-v"]).status.code(), Some(2));
}
