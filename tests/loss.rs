//! Losses against golden vectors, their metrics and what they refuse.

use std::f64::consts::LN_2;

use serde_json::Value;
use warpo::{
    device::Device,
    forest::{Forest, Tree},
    loss::{Dpo, MetricSums, Rows, Totals, dpo::STATS},
};

use crate::support::{fast_device, for_each_device};

fn vectors(key: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("fixtures/losses_vectors.json")).unwrap();
    all["losses"][key].clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Relative error up to 1e-6, with a floor for values so small that only their size matters.
fn assert_close(what: &str, got: f64, want: f64) {
    const FLOOR: f64 = 1e-9;
    assert!((got - want).abs() <= 1e-6 * want.abs() + FLOOR, "{what}: {got} instead of {want}");
}

/// `(coefficients, stats)` of sequences given by their sums: `rows_each` rows per sequence, in f32.
fn run(
    device: &Device,
    loss: &Dpo,
    logps: &[f32],
    ref_logps: &[f32],
    rows_each: i32,
    totals: Totals,
) -> (Vec<f32>, Vec<f32>) {
    let sequences = logps.len() as i32 / rows_each;
    let sequence_rows: Vec<i32> = (0..=sequences).map(|s| s * rows_each).collect();
    let table: Vec<i32> = (0..sequences).collect();
    let coefficients = device.alloc(logps.len()).unwrap();
    let stats = device.alloc(table.len() / 2 * STATS).unwrap();
    let rows = Rows {
        logps: &device.upload(logps).unwrap(),
        ref_logps: &device.upload(ref_logps).unwrap(),
        sequence_rows: &device.upload(&sequence_rows).unwrap(),
        pairs: &device.upload(&table).unwrap(),
    };
    loss.run(device, &coefficients, &stats, rows, totals).unwrap();
    (device.download(&coefficients).unwrap(), device.download(&stats).unwrap())
}

/// The vectors hold sums in f64; as two rows, `x = hi + lo`, they are exact to 2^-48 as f32 inputs.
fn two_rows(chosen: &[f64], rejected: &[f64]) -> Vec<f32> {
    let split = |&x: &f64| [x as f32, (x - f64::from(x as f32)) as f32];
    chosen.iter().zip(rejected).flat_map(|(c, r)| [split(c), split(r)].concat()).collect()
}

fn golden(device: &Device, on: &str, key: &str) {
    let vector = vectors(key);
    let input = |name: &str| numbers(&vector["inputs"][name]);
    let logps = two_rows(&input("aw"), &input("al"));
    let ref_logps = two_rows(&input("rw"), &input("rl"));
    let beta = vector["params"]["beta"].as_f64().unwrap();
    let label_smoothing = vector["params"]["eps"].as_f64().unwrap_or(0.0);
    let loss = Dpo { beta, label_smoothing, ..Dpo::default() };
    // The vectors' gradients are those of the sum over pairs.
    let totals = Totals { pairs: 1, chosen_tokens: 1 };
    let (coefficients, stats) = run(device, &loss, &logps, &ref_logps, 2, totals);
    let (want_loss, want_aw) = (numbers(&vector["loss"]), numbers(&vector["grad"]["aw"]));
    let want_al = numbers(&vector["grad"]["al"]);
    assert_eq!(want_loss.len(), 16, "{key}: pairs");
    for pair in 0..want_loss.len() {
        let what = format!("{key} pair {pair} on {on}");
        assert_close(&format!("{what}: loss"), stats[pair * STATS].into(), want_loss[pair]);
        for row in 0..2 {
            assert_close(&format!("{what}: chosen"), coefficients[4 * pair + row].into(), want_aw[pair]);
            assert_close(&format!("{what}: rejected"), coefficients[4 * pair + 2 + row].into(), want_al[pair]);
        }
    }
}

#[test]
fn dpo_agrees_with_the_vectors() {
    for_each_device(|device, on| golden(device, on, "dpo"));
}

#[test]
fn cdpo_agrees_with_the_vectors() {
    for_each_device(|device, on| golden(device, on, "cdpo"));
}

/// Saturated pairs keep a gradient that is exact relative to itself: nothing is clamped.
#[test]
fn margins_of_60_keep_their_gradient() {
    let device = fast_device(1);
    let totals = Totals { pairs: 1, chosen_tokens: 1 };
    let loss = Dpo { beta: 1.0, ..Dpo::default() };
    let (coefficients, stats) = run(&device, &loss, &[60.0, 0.0, 0.0, 60.0], &[0.0; 4], 1, totals);
    let tail = (-60f64).exp();
    assert!((f64::from(stats[0]) / tail - 1.0).abs() < 1e-6, "loss at +60: {}", stats[0]);
    assert!((f64::from(coefficients[0]) / -tail - 1.0).abs() < 1e-6, "slope at +60: {}", coefficients[0]);
    assert_eq!(stats[STATS], 60.0, "loss at -60");
    assert_eq!(coefficients[2..], [-1.0, 1.0], "slope at -60");
}

#[test]
fn metrics_of_a_step_do_not_depend_on_its_micro_batches() {
    let device = fast_device(1);
    let loss = Dpo { sft_weight: 0.5, weight: 2.0, ..Dpo::default() };
    let totals = Totals { pairs: 3, chosen_tokens: 3 };
    let logps = [-1.0, -2.0, -3.0, -1.0, -0.5, -4.0];
    let ref_logps = [-2.0, -1.0, -2.5, -1.5, -0.5, -4.0];
    let (_, stats) = run(&device, &loss, &logps, &ref_logps, 1, totals);
    let mut whole = MetricSums::default();
    loss.metrics(&mut whole, &stats, totals);
    let mut parts = MetricSums::default();
    let (head, tail) = stats.split_at(STATS);
    loss.metrics(&mut parts, head, totals);
    loss.metrics(&mut parts, tail, totals);
    for ((name, part), (_, all)) in parts.iter().zip(whole.iter()) {
        assert!((part - all).abs() <= 1e-14, "{name}: {part} in two micro-batches, {all} in one");
    }

    let names: Vec<&str> = whole.iter().map(|(name, _)| name).collect();
    let expected = [
        "loss",
        "dpo_loss",
        "nll_loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    ];
    assert_eq!(names, expected);
    // Margins 0.1 * (1 - -1), 0.1 * (-0.5 - 0.5) and 0: the last one is not counted as right.
    let pair_loss = |u: f64| (-u).exp().ln_1p();
    let dpo = (pair_loss(0.2) + pair_loss(-0.1) + LN_2) / 3.0;
    let nll = (1.0 + 3.0 + 0.5) / 3.0;
    for (name, want) in [
        ("loss", 2.0 * dpo + 0.5 * nll),
        ("dpo_loss", dpo),
        ("rewards/margins", 0.1 / 3.0),
        ("rewards/accuracies", 1.0 / 3.0),
        ("logps/chosen", -nll),
        ("nll_loss", nll),
    ] {
        assert_close(name, whole.get(name).unwrap(), want);
    }
    let mut plain = MetricSums::default();
    Dpo::default().metrics(&mut plain, &stats, totals);
    assert_eq!((plain.get("nll_loss"), plain.get("dpo_loss")), (None, None), "without the likelihood term");
}

#[test]
fn totals_count_pairs_and_their_chosen_rows() {
    let tree = |chosen: usize, rejected: usize| Tree::pair("test", vec![1, 2], vec![3; chosen], vec![4; rejected]);
    let forest = Forest::pack(&[tree(3, 9), tree(5, 1)]).unwrap();
    let totals: Totals = [&forest, &forest].into_iter().collect();
    assert_eq!(totals, Totals { pairs: 4, chosen_tokens: 16 });
}

#[test]
fn options_outside_their_range_are_refused_by_name() {
    let refusal = |loss: Dpo| loss.validate().unwrap_err().to_string();
    let d = Dpo::default();
    assert!(d.validate().is_ok());
    assert_eq!(refusal(Dpo { beta: 0.0, ..d }), "`beta` = 0: expected a number above 0");
    assert_eq!(refusal(Dpo { beta: f64::NAN, ..d }), "`beta` = NaN: expected a number above 0");
    let smoothing = refusal(Dpo { label_smoothing: 0.5, ..d });
    assert_eq!(smoothing, "`label_smoothing` = 0.5: expected 0 or more and less than 0.5");
    assert_eq!(refusal(Dpo { sft_weight: -1.0, ..d }), "`sft_weight` = -1: expected a number of 0 or more");
    assert_eq!(refusal(Dpo { weight: f64::INFINITY, ..d }), "`weight` = inf: expected a number of 0 or more");
    assert_eq!(refusal(Dpo { weight: 0.0, ..d }), "`weight` and `sft_weight` are both 0: there is nothing to train");
}

#[test]
fn options_read_from_toml() {
    assert_eq!(toml::from_str::<Dpo>("").unwrap(), Dpo::default());
    let read: Dpo = toml::from_str("beta = 0.05\nsft_weight = 1.0").unwrap();
    assert_eq!(read, Dpo { beta: 0.05, sft_weight: 1.0, ..Dpo::default() });
    let error = toml::from_str::<Dpo>("betta = 0.1").unwrap_err().to_string();
    assert!(error.contains("unknown field `betta`"), "{error}");
}
