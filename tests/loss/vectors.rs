//! Every loss against `losses_vectors.json`: values from torch in float64, gradients in closed form, checked against
//! autograd. `LOSSES_VECTORS` names another file of the same kind.

use serde_json::Value;
use warpo::{
    device::Device,
    loss::{Loss, Mean, Outputs, Step, Term},
    ops::{
        head::HeadShape,
        head::distributions::{self, Divergence, RowSlopes},
        loss_batch,
        loss_rows::RowInputs,
    },
};

use super::{Case, split};
use crate::support::for_each_device;

/// The file's losses by name.
pub fn vectors() -> serde_json::Map<String, Value> {
    let text = match std::env::var_os("LOSSES_VECTORS") {
        Some(path) => std::fs::read_to_string(path).expect("LOSSES_VECTORS names a file"),
        None => include_str!("../fixtures/losses_vectors.json").to_owned(),
    };
    let all: Value = serde_json::from_str(&text).unwrap();
    all["losses"].as_object().unwrap().clone()
}

/// One loss of the file.
pub struct Vector {
    pub key: String,
    pub all: Value,
}

impl Vector {
    /// An input, or nothing.
    pub fn input(&self, name: &str) -> Option<Vec<f64>> {
        Some(numbers(self.all["inputs"].get(name)?))
    }

    fn need(&self, name: &str) -> Vec<f64> {
        self.input(name).unwrap_or_else(|| panic!("{}: no input `{name}`", self.key))
    }

    fn parameter(&self, name: &str) -> Option<f64> {
        self.all["params"].get(name)?.as_f64()
    }

    pub fn loss(&self) -> Vec<f64> {
        numbers(&self.all["loss"])
    }

    /// In closed form: the target in saturated tails.
    pub fn grad(&self, name: &str) -> Vec<f64> {
        numbers(&self.all["grad_closed"][name])
    }
}

/// All numbers of nested lists, in order.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

/// What the file calls a parameter, and what we do.
const NAMES: [(&str, &[&str]); 15] = [
    ("beta", &["beta"]),
    ("eps", &["label_smoothing"]),
    ("tau", &["tau", "discopop_tau"]),
    ("alpha", &["alpha", "ld_alpha", "cpo_alpha"]),
    ("gap", &["gap"]),
    ("gamma", &["simpo_gamma", "gamma"]),
    ("delta", &["delta"]),
    ("lam", &["lambda"]),
    ("lam_d", &["desirable_weight"]),
    ("lam_u", &["undesirable_weight"]),
    ("eta", &["eta"]),
    ("temp", &["temperature"]),
    ("clip", &["clip"]),
    ("l1_u", &["l1_reward"]),
    ("l1_d", &["l1_divergence"]),
];

/// Keys whose loss is another one with a choice set.
const CHOICES: [(&str, &str, &str, &str); 1] = [("fdpo_js", "dpo", "f_divergence_type", "js_divergence")];

/// The loss a vector is of, weighted so that it is the sum over groups.
pub fn loss_of(vector: &Vector, groups: usize) -> Loss {
    let choice = CHOICES.iter().find(|(key, ..)| *key == vector.key);
    let mut term = Term::named(choice.map_or(vector.key.as_str(), |(_, name, ..)| name)).unwrap();
    let definition = term.definition;
    let mut set = |name: &str, value: toml::Value| term.parameters.set(definition, name, &value).unwrap();
    if let Some((_, _, name, word)) = choice {
        set(name, toml::Value::String((*word).into()));
    }
    for (theirs, ours) in NAMES {
        let Some(mut value) = vector.parameter(theirs) else { continue };
        let known = |name: &&&str| definition.all_parameters().any(|parameter| parameter.name == **name);
        let Some(name) = ours.iter().find(known) else {
            // IPO's beta is 1, and alpha of a mix of references is the caller's.
            assert!(value == 1.0 || value == 0.0, "{}: parameter {theirs}", vector.key);
            continue;
        };
        if vector.key == "cpo_batch_token_nll" && *name == "cpo_alpha" {
            // A mean over the step's tokens already: what makes the rest a sum must not touch it.
            value /= groups as f64;
        }
        set(name, toml::Value::Float(value));
    }
    // A list's rewards are given as such.
    if vector.input("s").is_some() {
        set("beta", toml::Value::Float(1.0));
    }
    let own = (definition.parts)(&term.parameters).iter().all(|part| part.mean == Mean::Own);
    term.weight = if own { 1.0 } else { groups as f64 };
    Loss::new(vec![term]).unwrap()
}

/// What is left of f32's range below its smallest normal number.
const FLOOR: f64 = 1e-37;

/// The vectors' own rounding where their closed form is `sig(u) - p`, a difference of numbers up to 1, times beta of 0.1.
const LABEL_FLOOR: f64 = 1e-16;
const LABELS: [&str; 8] =
    ["cdpo", "soft_label", "dno_soft", "mcts_dpo", "spa_refined", "upo_as_printed", "upo_nll", "scir"];

/// Relative error up to `limit`, above the floor.
fn assert_close(what: &str, got: f64, want: f64, limit: f64) {
    let floor = if LABELS.iter().any(|label| what.starts_with(label)) { LABEL_FLOOR } else { FLOOR };
    assert!((got - want).abs() <= limit * want.abs() + floor, "{what}: {got:e} instead of {want:e}");
}

/// A sequence with these sums in `rows` rows; exact to 2^-48.
fn sums(case: &mut Case, rows: usize, policy: f64, reference: f64) -> usize {
    let spread = |x: f64| {
        let mut all = vec![0.0; rows.max(2)];
        all[..2].copy_from_slice(&split(x));
        all
    };
    case.sequence(&spread(policy), &spread(reference))
}

/// One sum of log-probabilities a sequence: its name in the file, and the sequence of each group.
type Sequences = Vec<(&'static str, Vec<usize>)>;

/// Pairs and single sequences given by sums.
fn from_sums(vector: &Vector) -> (Case, Sequences) {
    let mut case = Case::default();
    let (aw, count) = (vector.need("aw"), vector.need("aw").len());
    let get = |name: &str, default: f64| vector.input(name).unwrap_or(vec![default; count]);
    let pairs = vector.input("al").is_some();
    let (al, rw, rl) = (get("al", 0.0), get("rw", 0.0), get("rl", 0.0));
    let (ow, ol, mix) =
        (get("ow", 0.0), get("ol", 0.0), vector.input("ow").and(vector.parameter("alpha")).unwrap_or(0.0));
    let (nw, nl, nr) = (get("nw", 3.0), get("nl", 3.0), get("nr", 3.0));
    let mut found: Sequences = vec![("aw", vec![]), ("al", vec![]), ("ar", vec![])];
    for i in 0..count {
        let mixed = |r: f64, o: f64| (1.0 + mix) * r - mix * o;
        let chosen = sums(&mut case, nw[i] as usize, aw[i], mixed(rw[i], ow[i]));
        found[0].1.push(chosen);
        let first = ["p", "Qw", "Vw", "umix", "Ps", "Pw", "grp", "g", "lab", "sw"];
        let values = if vector.key == "upo_nll_sign_fixed" {
            [vector.need("p")[i], vector.need("sw")[i]]
        } else {
            [first.iter().find_map(|name| vector.input(name)).map_or(0.0, |values| values[i]), 0.0]
        };
        let mut members = vec![(chosen, values)];
        if pairs {
            let rejected = sums(&mut case, nl[i] as usize, al[i], mixed(rl[i], ol[i]));
            found[1].1.push(rejected);
            let value =
                ["Ql", "Vl", "Pl", "sl"].iter().find_map(|name| vector.input(name)).map_or(0.0, |values| values[i]);
            members.push((rejected, [value, 0.0]));
        }
        if let Some(ar) = vector.input("ar") {
            let rationale = sums(&mut case, nr[i] as usize, ar[i], 0.0);
            found[2].1.push(rationale);
            members.push((rationale, [0.0; 2]));
        }
        if let (Some(akl), Some(rkl)) = (vector.input("akl"), vector.input("rkl")) {
            members.push((sums(&mut case, 3, akl[i], rkl[i]), [0.0; 2]));
        }
        case.group(&members);
    }
    if vector.key == "wpo_weighted" {
        // Every sequence has three rows; the third of the chosen one's makes the weight exp(mean surprise) = p.
        case.collisions = case.logps.clone();
        for (i, p) in vector.need("p").iter().enumerate() {
            case.collisions[6 * i + 2] = (-3.0 * p.ln()) as f32;
        }
    }
    found.retain(|(_, sequences)| !sequences.is_empty());
    (case, found)
}

/// Runs a vector of sums; every row of a sequence must have its slope.
fn check_sums(vector: &Vector, device: &Device, on: &str) {
    // Sums are exact to 2^-48 of some hundred nats and the arithmetic is f64: one rounding to f32 is left, 6e-8. WPO's
    // weight is given by one f32.
    const LIMIT: f64 = 1e-6;
    let (case, sequences) = from_sums(vector);
    let loss = loss_of(vector, case.groups.len());
    let got = case.run(device, &loss);
    let (want, what) = (vector.loss(), format!("{} on {on}", vector.key));
    let means = loss.parts().iter().all(|(_, part)| part.mean == Mean::Groups);
    if means {
        for (i, (got, want)) in got.losses.iter().zip(&want).enumerate() {
            assert_close(&format!("{what}: loss {i}"), got / case.groups.len() as f64, *want, LIMIT);
        }
    }
    let total = got.metrics.iter().find(|(name, _)| name == "loss").unwrap().1;
    assert_close(&format!("{what}: loss"), total, want.iter().sum(), 1e-5);
    let ends = case.sequence_rows();
    for (name, sequences) in sequences {
        let want = vector.grad(name);
        assert_eq!(want.len(), sequences.len());
        for (i, sequence) in sequences.into_iter().enumerate() {
            for row in ends[sequence]..ends[sequence + 1] {
                let got = f64::from(got.coefficients[row as usize]);
                assert_close(&format!("{what}: d{name} {i}"), got, want[i], LIMIT);
            }
        }
    }
}

/// Lists given by rewards.
fn check_lists(vector: &Vector, device: &Device, on: &str) {
    const LIMIT: f64 = 1e-6;
    let (s, v, want) = (vector.need("s"), vector.need("v"), vector.loss());
    let size = s.len() / want.len();
    let mut case = Case::default();
    for (s, v) in s.chunks(size).zip(v.chunks(size)) {
        let members: Vec<_> = s.iter().zip(v).map(|(&s, &v)| (sums(&mut case, 2, s, 0.0), [v, 0.0])).collect();
        case.group(&members);
    }
    let got = case.run(device, &loss_of(vector, want.len()));
    let what = format!("{} on {on}", vector.key);
    for (i, (got, want)) in got.losses.iter().zip(&want).enumerate() {
        // A sum of terms of either sign: compared on the scale of its largest.
        assert!(
            (got / want.abs().max(1.0) / (s.len() / size) as f64 - want / want.abs().max(1.0)).abs() < LIMIT,
            "{what}: loss {i}: {got} for {want}"
        );
    }
    let grad = vector.grad("s");
    for (i, want) in grad.iter().enumerate() {
        // A slope is a difference of two shares below 1 in f64.
        let error = (f64::from(got.coefficients[2 * i]) - want).abs();
        assert!(error <= LIMIT * want.abs() + 1e-14, "{what}: ds {i}: {} for {want}", got.coefficients[2 * i]);
    }
}

/// Pairs given token by token.
fn check_tokens(vector: &Vector, device: &Device, on: &str) {
    // Inputs are rounded to f32: 60 nats by 2e-6, and beta times that moves a slope.
    const LIMIT: f64 = 1e-5;
    let want = vector.loss();
    let width = vector.need("pw").len() / want.len();
    let mut case = Case::default();
    let mut tokens: Vec<(&str, usize, usize)> = Vec::new();
    for i in 0..want.len() {
        let mut members = Vec::new();
        for side in ["w", "l"] {
            let n = vector.need(&format!("n{side}"))[i] as usize;
            let rows = |name: &str| -> Vec<f32> {
                let all = vector.input(&format!("{name}{side}")).unwrap_or(vec![0.0; want.len() * width]);
                all[i * width..i * width + n].iter().map(|&x| x as f32).collect()
            };
            members.push((case.sequence(&rows("p"), &rows("q")), [0.0; 2]));
            tokens.extend((0..n).map(|t| (if side == "w" { "pw" } else { "pl" }, i, t)));
        }
        case.group(&members);
    }
    let loss = loss_of(vector, want.len());
    if vector.key == "ld_dpo" {
        let alpha = vector.parameter("alpha").unwrap();
        let (nw, nl) = (vector.need("nw"), vector.need("nl"));
        let weight = |&(_, i, t): &(&str, usize, usize)| if (t as f64) < nw[i].min(nl[i]) { 1.0 } else { alpha as f32 };
        case.groups.weights = tokens.iter().map(weight).collect();
    }
    let got = case.run(device, &loss);
    let what = format!("{} on {on}", vector.key);
    for (i, (got, want)) in got.losses.iter().zip(&want).enumerate() {
        assert_close(&format!("{what}: loss {i}"), got / case.groups.len() as f64, *want, LIMIT);
    }
    for (row, (name, i, t)) in tokens.iter().enumerate() {
        let want = vector.grad(name)[i * width + t];
        assert_close(&format!("{what}: d{name} {i} {t}"), got.coefficients[row].into(), want, LIMIT);
    }
}

/// Pairs given by logits: the head that makes distributions, the loss, and the way back to logits.
fn check_distributions(vector: &Vector, device: &Device, on: &str) {
    let want = vector.loss();
    let tokens = vector.need("yw").len() / want.len();
    let vocab = vector.need("zw").len() / vector.need("yw").len();
    let head = HeadShape { vocab, hidden: 8, chunk_rows: 64, softcap: None };
    // RowInputs: pair by pair, the chosen side first.
    let sides = |name: &str, width: usize| -> Vec<f32> {
        let [w, l] = ["w", "l"].map(|side| vector.need(&format!("{name}{side}")));
        let (w, l) = (w.chunks(tokens * width), l.chunks(tokens * width));
        w.zip(l).flat_map(|(w, l)| [w, l].concat()).map(|x| x as f32).collect()
    };
    let padded = |name: &str| -> Vec<f32> {
        let pad = vec![0.0; head.ld() - vocab];
        sides(name, vocab).chunks(vocab).flat_map(|row| [row, &pad].concat()).collect()
    };
    let rows = 2 * want.len() * tokens;
    let targets: Vec<i32> = sides("y", 1).iter().map(|&y| y as i32).collect();
    let (z, q, targets) =
        (device.upload(&padded("z")).unwrap(), device.upload(&padded("q")).unwrap(), device.upload(&targets).unwrap());
    let alloc = || device.alloc::<f32>(rows).unwrap();
    let kept = Divergence::alloc(device, rows).unwrap();
    distributions::divergence_rows(device, &kept, &z, &q, &targets, &head).unwrap();

    let mut case = Case::default();
    for _ in 0..want.len() {
        let sequence = |case: &mut Case| (case.sequence(&vec![0.0; tokens], &vec![0.0; tokens]), [0.0; 2]);
        let members = [sequence(&mut case), sequence(&mut case)];
        case.group(&members);
    }
    let loss = loss_of(vector, want.len());
    let state = device.zeros(loss_batch::STATE).unwrap();
    let step = Step::new(device, &loss, &state, std::slice::from_ref(&case.groups)).unwrap();
    let rows_in = RowInputs {
        logps: Some(kept.logps.clone()),
        ref_logps: Some(kept.ref_logps.clone()),
        weights: Some(device.upload(&sides("mu", 1)).unwrap()),
        divergences: Some(kept.divergences.clone()),
        divergence_weights: Some(device.upload(&sides("md", 1)).unwrap()),
        ..RowInputs::default()
    };
    let ends = device.upload(&case.sequence_rows()).unwrap();
    step.sum(0, &rows_in, &ends).unwrap();
    step.run(None).unwrap();
    let (c, k) = (alloc(), alloc());
    let outputs = Outputs { coefficients: &c, divergence_coefficients: Some(&k) };
    step.spread(0, outputs, &rows_in, &ends).unwrap();
    let dz = device.alloc::<f32>(z.len()).unwrap();
    let slopes = RowSlopes { logps: &c, divergences: &k };
    distributions::dlogits(device, &dz, [&z, &q], [&kept.lse, &kept.ref_lse], &slopes, &targets, &head).unwrap();

    let what = format!("{} on {on}", vector.key);
    if vector.all["grad_closed"].get("muw").is_some() {
        let by = [alloc(), alloc()];
        step.by_weights(0, [&by[0], &by[1]], &rows_in, &ends).unwrap();
        for (by, name) in by.iter().zip(["mu", "md"]) {
            let got = device.download(by).unwrap();
            for (s, side) in ["w", "l"].into_iter().enumerate() {
                for (i, want) in vector.grad(&format!("{name}{side}")).iter().enumerate() {
                    let got = f64::from(got[(2 * (i / tokens) + s) * tokens + i % tokens]);
                    // A log-ratio of up to 200 nats is off by 2e-5, and beta times the logistic's slope moves with the margin.
                    assert!(
                        (got - want).abs() <= 1e-5 * want.abs().max(1.0),
                        "{what}: d{name}{side} {i}: {got} for {want}"
                    );
                }
            }
        }
    }
    // A log-probability is a difference of f32 logits of up to 200 and of a normaliser: 2e-5; ten of them and beta, and
    // the logistic's slope of at most 1/4, move the loss by 1e-5 of the largest.
    let measured = step.measured().unwrap();
    let top = want.iter().copied().fold(1.0, f64::max);
    for (i, (&got, want)) in measured.losses[0].iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * top, "{what}: loss {i}: {got} for {want}");
    }
    let got = device.download(&dz).unwrap();
    for (s, name) in ["zw", "zl"].into_iter().enumerate() {
        let want = vector.grad(name);
        let largest = want.iter().fold(0.0f64, |top, x| top.max(x.abs()));
        for (i, want) in want.iter().enumerate() {
            let (pair, token, v) = (i / (tokens * vocab), i / vocab % tokens, i % vocab);
            let got = f64::from(got[((2 * pair + s) * tokens + token) * head.ld() + v]);
            assert!((got - want).abs() <= 1e-5 * largest, "{what}: d{name} {i}: {got} for {want}");
        }
    }
}

#[test]
fn every_loss_agrees_with_its_vector() {
    let all = vectors();
    assert!(all.len() >= 54, "{} vectors", all.len());
    for_each_device(|device, on| {
        let mut counts = [0; 4];
        for (key, value) in &all {
            let vector = Vector { key: key.clone(), all: value.clone() };
            let has = |name: &str| vector.all["inputs"].get(name).is_some();
            let kind = [has("aw"), has("s"), has("pw"), has("zw")].iter().position(|&has| has).expect("a known kind");
            counts[kind] += 1;
            match kind {
                0 => check_sums(&vector, device, on),
                1 => check_lists(&vector, device, on),
                2 => check_tokens(&vector, device, on),
                _ => check_distributions(&vector, device, on),
            }
        }
        let least = [45, 4, 2, 3];
        assert!(
            counts.iter().zip(least).all(|(count, least)| *count >= least),
            "losses by the kind of inputs: {counts:?}"
        );
    });
}
