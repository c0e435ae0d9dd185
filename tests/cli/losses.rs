//! `warpo losses`.

use std::process::{Command, Output};

fn losses(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warpo")).arg("losses").args(args).output().unwrap()
}

#[test]
fn lists_and_describes() {
    let all = String::from_utf8(losses(&[]).stdout).unwrap();
    assert_eq!(all.lines().count(), warpo::loss::all().count());
    assert!(all.lines().any(|line| line.starts_with("simpo ") && line.contains("F2")), "{all}");
    // By TRL's name as well.
    let one = String::from_utf8(losses(&["robust"]).stdout).unwrap();
    for line in [
        "rdpo",
        "* also called: `robust`, `rdpo_robust`",
        "* gradient: `-[(1-e) sig(-u) + e sig(u)] / (1-2e)`",
        "* `label_smoothing`: share of labels taken to be wrong; 0 or more and below 0.5; default 0.1",
        "* mind: not bounded below: the loss may be negative and the margin is pushed without end",
    ] {
        assert!(one.lines().any(|found| found == line), "{line}: {one}");
    }
    let unknown = losses(&["dpp"]);
    assert_eq!(unknown.status.code(), Some(1));
    let line = String::from_utf8(unknown.stderr).unwrap();
    assert_eq!(line, "error: `dpp`: there is no loss of this name: `warpo losses` lists them\n");
}
