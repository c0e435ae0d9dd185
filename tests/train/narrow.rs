//! Runs whose optimizer keeps less than f32: their bits, their files, what they learn.

use safetensors::SafeTensors;

use super::{
    bits::{start, wait_for},
    fixture::{Fixture, stderr},
};

/// Settings, and the tensors that a checkpoint then has of the optimizer.
const NARROW: [(&str, &[&str]); 4] = [
    ("optim.moments=\"bf16\"", &["m", "m_vectors", "v", "v_vectors"]),
    ("optim.moments=\"8bit\"", &["m", "m_exponents", "m_vectors", "v", "v_exponents", "v_vectors"]),
    ("optim.gradients=\"bf16\"", &["m", "v"]),
    (
        "optim={ lr = 1e-3, gradients = \"bf16\", moments = \"8bit\" }",
        &["m", "m_exponents", "m_vectors", "v", "v_exponents", "v_vectors"],
    ),
];

/// Twice the same, on one thread and on two; in f32 and in bf16.
#[test]
fn narrow_runs_repeat_their_bits() {
    for (narrow, names) in NARROW {
        for precision in ["train.precision=\"f32\"", "train.precision=\"bf16\""] {
            let fixture = Fixture::new();
            fixture.run("one", &[narrow, precision, "train.threads=1"]).unwrap();
            fixture.run("two", &[narrow, precision, "train.threads=2"]).unwrap();
            fixture.assert_same_run("one", "two");
            let bytes = std::fs::read(fixture.path("one/checkpoint-8/optimizer.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let mut found = file.names();
            found.retain(|name| *name != "master");
            found.sort_unstable();
            assert_eq!(found, names, "{narrow} {precision}");
            fixture.run("exact", &[precision]).unwrap();
            let weights = |out: &str| std::fs::read(fixture.path(out).join("final/model.safetensors")).unwrap();
            assert!(weights("one") != weights("exact"), "{narrow} {precision}: as with f32");
        }
    }
}

#[test]
fn narrow_runs_go_on_after_a_kill() {
    for (narrow, _) in NARROW {
        let fixture = Fixture::new();
        let set = ["--set", narrow, "--set", "train.steps=60"];
        let straight = fixture.execute("straight", &set);
        assert!(straight.status.success(), "{}", stderr(&straight));
        let mut child = start(&fixture, "killed", &set);
        wait_for(&fixture.path("killed/checkpoint-4"), &mut child);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "the run ended before it was killed");
        let resumed = fixture.execute("killed", &[&set[..], &["--resume"]].concat());
        assert!(resumed.status.success(), "{}", stderr(&resumed));
        fixture.assert_same_run("straight", "killed");
        let other = fixture.execute("killed", &["--set", "train.steps=60", "--resume"]);
        assert_eq!(other.status.code(), Some(1));
        let why = stderr(&other);
        assert!(why.contains("`optim.") && why.contains(": the run in"), "{why}");
    }
}

/// Other random bits are another run.
#[test]
fn the_seed_decides_about_roundings() {
    let fixture = Fixture::new();
    let weights = |out: &str| std::fs::read(fixture.path(out).join("final/model.safetensors")).unwrap();
    // From weights of a file and rows in their order: nothing else is drawn.
    fixture.run("start", &["train.steps=1"]).unwrap();
    let model = format!("model.path={}", fixture.path("start/final").display());
    let same = [model.as_str(), "model.init=\"pretrained\"", "data.order=\"file\""];
    for (name, moments) in [("exact", "optim.moments=\"f32\""), ("narrow", "optim.moments=\"8bit\"")] {
        for seed in [3, 4] {
            let seeded = format!("train.seed={seed}");
            fixture.run(&format!("{name}-{seed}"), &[&same[..], &[moments, &seeded]].concat()).unwrap();
        }
    }
    assert!(weights("exact-3") == weights("exact-4"), "something else is drawn");
    assert!(weights("narrow-3") != weights("narrow-4"), "nothing was drawn");
}
