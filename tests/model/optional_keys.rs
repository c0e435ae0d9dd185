//! Every optional key of every family taken away and added, against what transformers makes of the file:
//! `tests/parity/optional_keys.py --record`.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use warpo::model::ModelConfig;

#[derive(Deserialize)]
struct Record {
    bases: BTreeMap<String, Base>,
    cases: Vec<Case>,
}

/// A file, and the sizes and switches that transformers takes from it.
#[derive(Deserialize)]
struct Base {
    config: Map<String, Value>,
    outcome: Map<String, Value>,
}

/// The file of a family with some keys changed.
#[derive(Deserialize)]
struct Case {
    family: String,
    set: Map<String, Value>,
    unset: Vec<String>,
    /// What differs from the family's own; none where transformers refuses the file.
    outcome: Option<Map<String, Value>>,
}

/// What became of a case.
#[derive(Debug, PartialEq)]
enum Verdict {
    Equal,
    RefusedByName,
    RefusedByBoth,
    Wrong(String),
}

fn parse(config: &Map<String, Value>) -> Result<ModelConfig> {
    ModelConfig::parse(&Value::Object(config.clone()).to_string())
}

/// Of two numbers in f64, one of them written with ten digits.
fn same(ours: f64, theirs: &Value) -> bool {
    theirs.as_f64().is_some_and(|theirs| (ours - theirs).abs() <= 1e-9 * theirs.abs())
}

/// What differs, with both values.
fn difference(ours: &ModelConfig, theirs: &Map<String, Value>) -> Option<String> {
    let sizes = [
        ("vocab", ours.vocab),
        ("hidden", ours.hidden),
        ("ffn", ours.ffn),
        ("layers", ours.layers),
        ("heads", ours.heads),
        ("kv_heads", ours.kv_heads),
        ("head_dim", ours.head_dim),
        ("positions", ours.positions),
    ];
    let size = sizes.into_iter().find(|(name, size)| theirs[*name] != *size as u64);
    let cap =
        |cap: Option<f32>, theirs: &Value| cap.map(|cap| Value::from(f64::from(cap))).unwrap_or_default() == *theirs;
    if let Some((name, size)) = size {
        return Some(format!("{name} {size}, not {}", theirs[name]));
    }
    for (name, is_same) in [
        ("tied", theirs["tied"] == ours.tied),
        // Ours is the f32 of the same number.
        ("norm_eps", theirs["norm_eps"].as_f64().map(|eps| eps as f32) == Some(ours.norm_eps)),
        ("scale", same(ours.attention_scale, &theirs["scale"])),
        ("attention_softcap", cap(ours.attention_softcap, &theirs["attention_softcap"])),
        ("final_softcap", cap(ours.final_softcap, &theirs["final_softcap"])),
    ] {
        if !is_same {
            return Some(format!("{name}, which is {}", theirs[name]));
        }
    }
    (0..ours.layers).find_map(|layer| layer_difference(ours, theirs, layer))
}

fn layer_difference(ours: &ModelConfig, theirs: &Map<String, Value>, layer: usize) -> Option<String> {
    let kind = ours.layer_kinds[layer];
    let window = &theirs["windows"][layer];
    if kind.window.map(|window| window as u64) != window.as_u64() {
        return Some(format!("window {:?} of layer {layer}, not {window}", kind.window));
    }
    let table = theirs["ropes"][layer].as_u64().map(|table| &theirs["tables"][table as usize]);
    let rope = kind.rope.map(|rope| &ours.ropes[rope]);
    let is_same = match (rope, table) {
        (None, None) => true,
        (Some(rope), Some(table)) => {
            let frequencies = rope.frequencies(ours.head_dim);
            let listed = table["frequencies"].as_array().unwrap();
            frequencies.len() == listed.len()
                && frequencies.iter().zip(listed).all(|(&ours, theirs)| same(ours, theirs))
                && same(rope.amplitude(), &table["amplitude"])
        }
        _ => false,
    };
    (!is_same).then(|| format!("rotary table {rope:?} of layer {layer}, not {table:?}"))
}

fn verdict(base: &Base, case: &Case) -> Verdict {
    let mut config = base.config.clone();
    config.retain(|key, _| !case.unset.contains(key));
    config.extend(case.set.clone());
    match (parse(&config), &case.outcome) {
        (Err(_), None) => Verdict::RefusedByBoth,
        (Ok(_), None) => Verdict::Wrong("transformers refuses it".into()),
        (Err(why), Some(_)) => {
            let why = format!("{why:#}");
            let is_named = case.set.keys().chain(&case.unset).any(|key| why.contains(key.as_str()));
            if is_named && !why.contains('\n') { Verdict::RefusedByName } else { Verdict::Wrong(why) }
        }
        (Ok(ours), Some(changes)) => {
            let mut theirs = base.outcome.clone();
            theirs.extend(changes.clone());
            difference(&ours, &theirs).map_or(Verdict::Equal, Verdict::Wrong)
        }
    }
}

#[test]
fn every_optional_key_of_every_family_is_read_as_transformers_reads_it_or_refused() {
    let text = std::fs::read(crate::support::root().join("tests/fixtures/parity/optional_keys.json")).unwrap();
    let record: Record = serde_json::from_slice(&text).unwrap();
    for (family, Base { config, outcome }) in &record.bases {
        assert_eq!(difference(&parse(config).unwrap(), outcome), None, "{family}");
    }
    let (mut wrong, mut counts) = (Vec::new(), [0; 3]);
    for case in &record.cases {
        match verdict(&record.bases[&case.family], case) {
            Verdict::Equal => counts[0] += 1,
            Verdict::RefusedByName => counts[1] += 1,
            Verdict::RefusedByBoth => counts[2] += 1,
            Verdict::Wrong(why) => {
                let (set, unset) = (Value::Object(case.set.clone()), &case.unset);
                wrong.push(format!("{}: {set}, without {unset:?}: {why}", case.family));
            }
        }
    }
    println!("{} equal, {} refused by name, {} refused by both", counts[0], counts[1], counts[2]);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), record.cases.len(), wrong.join("\n"));
    // A record of refusals alone would prove nothing.
    assert!(counts[0] > 1000, "{counts:?}");
}
