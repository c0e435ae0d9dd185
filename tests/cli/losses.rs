//! `warpo losses`.

use std::process::{Command, Output};

fn losses(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warpo")).arg("losses").args(args).output().unwrap()
}

/// By family, and every sign of the notation once.
#[test]
fn lists_by_family() {
    let all = String::from_utf8(losses(&[]).stdout).unwrap();
    let (losses, notation) = all.split_once("\nNotation\n").expect("a notation");
    let lines: Vec<&str> = losses.lines().collect();
    let of = |name: &str| lines.iter().position(|line| line.trim_start().split(' ').next() == Some(name)).unwrap();
    let heading = |at: usize| lines[..at].iter().rfind(|line| line.starts_with('F')).unwrap();
    for loss in warpo::loss::all() {
        let at = of(loss.name);
        assert_eq!(heading(at).replacen("  ", ": ", 1), loss.family.describe());
        assert!(lines[at].contains(loss.formula), "{}", lines[at]);
    }
    let headings: Vec<_> = lines.iter().filter(|line| line.starts_with('F')).collect();
    assert!(headings.len() > 5 && headings.is_sorted(), "{headings:?}");
    assert!(lines[of("dpo")].ends_with("(also sigmoid)"), "{losses}");
    for sign in ["rho ", "beta ", "u ", "sig ", "sp ", "sg ", "KL "] {
        assert_eq!(notation.matches(&format!("\n  {sign}")).count(), 1, "{sign}: {notation}");
    }
}

#[test]
fn describes_by_any_name() {
    let text = |name: &str| String::from_utf8(losses(&[name]).stdout).unwrap();
    // By TRL's name as well.
    let one = text("robust");
    for line in [
        "`robust` is `rdpo` here",
        "rdpo",
        "* also called: `robust`, `rdpo_robust`",
        "* gradient: `-[(1-e) sig(-u) + e sig(u)] / (1-2e)`",
        "* `label_smoothing`: share of labels taken to be wrong; 0 or more and below 0.5; default 0.1",
        "* mind: not bounded below: the loss may be negative and the margin is pushed without end",
    ] {
        assert!(one.lines().any(|found| found == line), "{line}: {one}");
    }
    assert_eq!(text("DPO"), text("dpo"));
    assert!(text("dpo").starts_with("dpo\n"), "{}", text("dpo"));
    assert!(text("Sigmoid").starts_with("`Sigmoid` is `dpo` here\n\ndpo\n"), "{}", text("Sigmoid"));
}

#[test]
fn an_unknown_name_is_told_what_is_near() {
    for (name, hint) in [("dpp", "did you mean `dpo`? "), ("SimPro", "did you mean `simpo`? "), ("zzzzzzzzz", "")] {
        let unknown = losses(&[name]);
        assert_eq!(unknown.status.code(), Some(1));
        let line = String::from_utf8(unknown.stderr).unwrap();
        assert_eq!(line, format!("error: `{name}`: there is no loss of this name: {hint}`warpo losses` lists them\n"));
    }
}
