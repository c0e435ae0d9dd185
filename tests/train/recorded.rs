//! The bits of runs, as they were recorded: a change that is not meant to change them must not.
//!
//! `RECORD_BITS=1 cargo test recorded` writes `tests/fixtures/bits.json` anew, for whoever changes arithmetic on purpose.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use serde_json::Value;
use warpo::{
    config::Config,
    device::{Choice, Device, GemmBackend, HostOptions},
    train::{Options, Outcome, run_with},
};

use super::fixture::Fixture;
use crate::support::root;

/// Under the arithmetic of a host device, hashes of weights and metrics by run.
type Recorded = BTreeMap<String, BTreeMap<String, [String; 2]>>;

/// A run by what is special about it: loss, settings beside the fixture's, device.
type Run = (&'static str, &'static str, &'static [&'static str], fn() -> HostOptions);

const RUNS: [Run; 11] = [
    ("reference file", "name = \"dpo\", sft_weight = 0.5", &[], native),
    ("bf16", "name = \"dpo\"", &["train.precision=\"bf16\""], native),
    ("full packs", "name = \"ipo\"", &["batch={ packs = 2, tokens = 160 }"], native),
    ("no reference", "name = \"simpo\"", &["train.track_reference=false"], native),
    ("a model beside", "name = \"tdpo2\"", &[], native),
    ("a model beside in bf16", "name = \"tdpo2\"", &["train.precision=\"bf16\""], native),
    ("a coupled step", "name = \"bco\"", &[], native),
    ("learned masks", "name = \"sparse_po_independent\"", &[], native),
    ("fixed masks", "name = \"mapo\"", &[], native),
    ("portable kernels", "name = \"dpo\"", &["train.precision=\"bf16\"", "train.steps=2"], kernels),
    ("Hopper's kernels", "name = \"dpo\"", &["train.precision=\"bf16\"", "train.steps=2"], hopper),
];

fn native() -> HostOptions {
    HostOptions { threads: 2, ..HostOptions::default() }
}

fn kernels() -> HostOptions {
    HostOptions { gemm: GemmBackend::Kernel, ..native() }
}

fn hopper() -> HostOptions {
    HostOptions { hopper: true, ..kernels() }
}

fn path() -> PathBuf {
    root().join("tests/fixtures/bits.json")
}

/// Weights at the end, and the metrics without what a clock or the memory of the process says.
fn hashes(fixture: &Fixture, out: &str) -> [String; 2] {
    let weights = fs::read(fixture.path(out).join("final/model.safetensors")).unwrap();
    let metrics = serde_json::to_string(&fixture.timeless_metrics(out)).unwrap();
    [&weights, metrics.as_bytes()].map(|bytes| blake3::hash(bytes).to_hex().to_string())
}

fn train(config: Config, out: PathBuf, host: HostOptions, resume: bool) {
    let options = Options { config, device: Choice::Host, out, resume, overwrite: false };
    assert_eq!(run_with(&options, host, &false.into()).unwrap(), Outcome::Finished);
}

/// Every run, under the arithmetic it has here.
fn runs() -> Recorded {
    let mut found = Recorded::new();
    let fixture = Fixture::new();
    let mut take = |name: &str, host: HostOptions, hashes: [String; 2]| {
        let arithmetic = Device::host(host).unwrap().arithmetic();
        found.entry(arithmetic).or_default().insert(name.to_owned(), hashes);
    };
    for (name, loss, set, host) in RUNS {
        let loss = format!("loss={{ {loss} }}");
        let set = [&[&*loss], set].concat();
        train(fixture.config(&set), fixture.path(name), host(), false);
        take(name, host(), hashes(&fixture, name));
    }
    // The last checkpoint taken away, a run does its last two steps again.
    let config = fixture.config(&["loss={ name = \"dpo\", sft_weight = 0.5 }"]);
    for gone in ["checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("reference file").join(gone)).unwrap();
    }
    train(config, fixture.path("reference file"), native(), true);
    take("resumed", native(), hashes(&fixture, "reference file"));
    for example in ["quickstart", "lists"] {
        let set = ["train.steps=4", "train.eval_every=0", "cache.dir=\"off\""].map(String::from);
        let config = Config::load(&root().join("examples").join(format!("{example}.toml")), &set).unwrap();
        train(config, fixture.path(example), native(), false);
        take(example, native(), hashes(&fixture, example));
    }
    found
}

/// Weights and metrics are those that were recorded, byte for byte. On a processor whose vectors are wider or narrower than
/// those of the recording one, products round otherwise: then only the runs by kernels alone are compared.
#[test]
fn runs_have_the_recorded_bits() {
    let found = runs();
    let recorded: Recorded =
        fs::read(path()).ok().map(|text| serde_json::from_slice(&text).unwrap()).unwrap_or_default();
    if env::var_os("RECORD_BITS").is_some() {
        let all: Value = serde_json::to_value(recorded.into_iter().chain(found).collect::<Recorded>()).unwrap();
        return fs::write(path(), serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
    }
    let mut compared = 0;
    for (arithmetic, runs) in &found {
        let Some(want) = recorded.get(arithmetic) else {
            println!("not recorded: {arithmetic}");
            continue;
        };
        for (name, hashes) in runs {
            assert_eq!(want.get(name), Some(hashes), "{name} on {arithmetic}: weights and metrics");
            compared += 1;
        }
    }
    assert!(compared >= 2, "{compared} runs were compared");
}
