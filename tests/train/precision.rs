//! `train.precision = "auto"`: what it stands for is said, kept, and what a run goes on with.

use std::fs;

use super::fixture::{Fixture, stderr};

const TWO_STEPS: [&str; 4] = ["--set", "train.steps=2", "--set", "train.save_every=1"];

fn arguments<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&TWO_STEPS[..], rest].concat()
}

#[test]
fn auto_on_the_host_device_is_a_run_in_f32() {
    let fixture = Fixture::new();
    let auto = fixture.execute("auto", &arguments(&["--set", "train.precision=auto"]));
    assert!(auto.status.success(), "{}", stderr(&auto));
    let said = String::from_utf8(auto.stdout).unwrap();
    let second = said.lines().nth(1);
    assert_eq!(second, Some("precision: f32 (auto: bf16 on a GPU, f32 on the host device)"), "{said}");
    let kept = fs::read_to_string(fixture.path("auto/config.toml")).unwrap();
    assert!(kept.contains("precision = \"f32\"\n"), "{kept}");
    assert!(fixture.execute("named", &arguments(&["--set", "train.precision=f32"])).status.success());
    fixture.assert_same_run("named", "auto");
}

/// The configuration leaves it open, the run in the folder does not.
#[test]
fn a_run_goes_on_in_the_precision_it_began_with() {
    let fixture = Fixture::new();
    for precision in ["bf16", "f32"] {
        let set = format!("train.precision={precision}");
        assert!(fixture.execute(precision, &arguments(&["--set", &set])).status.success());
        let folder = fixture.path(precision);
        fs::remove_dir_all(folder.join("checkpoint-2")).unwrap();
        fs::remove_dir_all(folder.join("final")).unwrap();
        let resumed = fixture.execute(precision, &arguments(&["--set", "train.precision=auto", "--resume"]));
        assert!(resumed.status.success(), "{}", stderr(&resumed));
        let said = String::from_utf8(resumed.stdout).unwrap();
        assert!(said.contains(&format!("\nprecision: {precision}")) && said.contains("resumed after step 1"), "{said}");
        let kept = fs::read_to_string(folder.join("config.toml")).unwrap();
        assert!(kept.contains(&format!("precision = \"{precision}\"\n")), "{kept}");
    }
    // Another one that is named is another run.
    let other = fixture.execute("f32", &arguments(&["--set", "train.precision=bf16", "--resume"]));
    assert_eq!(other.status.code(), Some(1));
    assert!(stderr(&other).contains("`train.precision` = \"bf16\": the run in "), "{}", stderr(&other));
}
