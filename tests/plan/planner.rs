//! The planner as a function: which rungs and which chunk of the head, for how many bytes.

use warpo::{
    config::Recompute,
    device::{DType, Device},
    model::{Capacity, ModelConfig, Rung},
    roles::{Decision, Demand, Planner, Rates},
};

use super::{hopper, shape};

/// Bytes a parameter of bf16 gradients and 8-bit moments less than of what is planned here: room that a test may give instead.
const SAVED: f64 = 16.0 - 8.007_812_5;

fn demand<'a>(shape: &'a ModelConfig, device: &'a Device) -> Demand<'a> {
    let remembered = 8 * shape.parameters() as usize;
    Demand {
        shape,
        precision: DType::Bf16,
        device,
        gradients: DType::F32,
        remembered,
        on_host: 0,
        distributions: false,
        beside: false,
    }
}

fn planner<'a>(demand: Demand<'a>, tokens: usize, free: usize) -> Planner<'a> {
    let capacity = Capacity { tokens, rows: (2 * tokens).div_ceil(3), head_chunk_rows: 10240 };
    Planner {
        demand,
        capacity,
        longest_row: 1480,
        mean_keys: 600.0,
        free,
        levels: None,
        chunk_is_fixed: false,
        rates: Rates::default(),
        savings: Vec::new(),
    }
}

/// What 82.0 GB hold beside 8.008 bytes a parameter.
fn budget(name: &str, tokens: usize) -> Decision {
    let (shape, device) = (shape(name), hopper());
    let free = 82_000_000_000 + (SAVED * shape.parameters() as f64) as usize;
    planner(demand(&shape, &device), tokens, free).decide().unwrap()
}

/// The rungs of an 80 GB card's budget as they were worked out beside this code: 8B and 7B at 4k, 8k and 16k tokens.
#[test]
fn the_cheapest_rungs_that_fit_are_those_of_the_budget() {
    let rungs = |name, tokens| {
        let found = budget(name, tokens);
        assert!(found.fits(), "{name} {tokens}");
        let work = format!("{:.0}", 100.0 * found.more_work);
        let chunk = found.plan.policy.capacity.head_chunk_rows;
        (Recompute::of(&found.plan.policy.levels).to_string(), chunk, work)
    };
    let want = |levels: &str, chunk, work: &str| (levels.to_owned(), chunk, work.to_owned());
    assert_eq!(rungs("llama-3-8b", 4096), want("none", 2731, "0"));
    assert_eq!(rungs("llama-3-8b", 8192), want("gate_up:15,attention:17", 2048, "9"));
    assert_eq!(rungs("llama-3-8b", 16384), want("qkv:6,gate_up:26", 2048, "18"));
    assert_eq!(rungs("qwen2.5-7b", 4096), want("none", 2731, "0"));
    assert_eq!(rungs("qwen2.5-7b", 8192), want("gate_up:7,attention:21", 2048, "5"));
    assert_eq!(rungs("qwen2.5-7b", 16384), want("gate_up:24,attention:4", 4096, "16"));
}

/// One byte less than the least costs a layer more, and the choice is the cheapest of its chunk.
#[test]
fn every_byte_counts_and_nothing_is_computed_again_for_nothing() {
    let (shape, device) = (shape("llama-3.2-1b"), hopper());
    let at = |free| planner(demand(&shape, &device), 16384, free).decide().unwrap();
    let all = at(0);
    assert_eq!((all.more_work, all.plan.total()), (0.0, all.without.total()));
    assert!(all.plan.policy.levels.iter().all(|rung| *rung == Rung::None));
    let (mut free, mut work) = (all.without.total(), 0.0);
    loop {
        let found = at(free);
        if !found.fits() {
            break;
        }
        assert!(found.plan.total() <= free && found.more_work >= work, "{free}");
        (work, free) = (found.more_work, found.plan.total() - 1);
    }
    assert!(work > 0.15, "{work}");
    // What is left is everything: all layers on the last rung, the smallest chunk.
    let least = at(free);
    assert_eq!(least.plan.policy.levels, vec![Rung::Block; 16]);
    assert_eq!(least.plan.policy.capacity.head_chunk_rows, 2048);
}

/// Attention is left alone where it costs more than products: with many keys a token, or heads that are small beside the width.
#[test]
fn attention_is_computed_again_only_where_it_is_cheap() {
    let (shape, device) = (shape("llama-3-8b"), hopper());
    let levels = |mean_keys| {
        let planner = planner(demand(&shape, &device), 8192, 0);
        let free = planner.decide().unwrap().without.total() - 3_000_000_000;
        Planner { mean_keys, free, chunk_is_fixed: true, ..planner }.decide().unwrap().plan.policy.levels
    };
    assert!(levels(600.0).contains(&Rung::Attention));
    let far = levels(4000.0);
    assert!(far[0] > Rung::Attention && !far.contains(&Rung::Attention), "{far:?}");
}

#[test]
fn what_was_asked_for_stays() {
    let (shape, device) = (shape("llama-3.2-1b"), hopper());
    let usual = planner(demand(&shape, &device), 16384, 0);
    let free = usual.decide().unwrap().without.total() - 1;
    let fixed = Planner { levels: Some(vec![Rung::None; 16]), free, ..planner(demand(&shape, &device), 16384, free) };
    let found = fixed.decide().unwrap();
    assert!(found.fits() && found.plan.policy.capacity.head_chunk_rows < 10240);
    let found = Planner { chunk_is_fixed: true, ..fixed }.decide().unwrap();
    assert_eq!((found.fits(), found.plan.policy.capacity.head_chunk_rows), (false, 10240));
    let why = found.check().unwrap_err().to_string();
    assert!(why.contains("what would help: train.recompute = \"auto\": "), "{why}");
}

/// Remedies in their order, each with what the run would take, the longest row being the least micro-batch.
#[test]
fn a_refusal_says_what_would_help() {
    let (shape, device) = (shape("llama-3-8b"), hopper());
    let smaller = Demand { remembered: 2 * shape.parameters() as usize, ..demand(&shape, &device) };
    let planner = |longest_row, free| Planner {
        longest_row,
        savings: vec![("a smaller state".into(), smaller)],
        ..planner(demand(&shape, &device), 8192, free)
    };
    // Ten bytes a parameter are 80.3 GB.
    let found = planner(1480, 84_000_000_000).decide().unwrap();
    assert_eq!(found.remedies(), ["a smaller state: 84.7 GB, not enough"]);
    let found = planner(1480, 84_800_000_000).decide().unwrap();
    assert_eq!(found.remedies(), ["a smaller state: 84.8 GB"]);
    // Room for the state and a little.
    let found = planner(1480, 130_000_000_000).decide().unwrap();
    let tokens = &found.remedies()[0];
    assert!(tokens.starts_with("batch.tokens = ") && tokens.contains(" and everything computed again: "), "{tokens}");
    assert!(!tokens.contains("not enough"), "{tokens}");
    let asked: usize = tokens.split(' ').nth(2).unwrap().parse().unwrap();
    assert!((1480..8192).contains(&asked) && asked.is_multiple_of(256), "{asked}");
    // A row that is longer than that leaves the other way.
    let found = planner(asked + 1, 130_000_000_000).decide().unwrap();
    assert_eq!(found.remedies().len(), 1);
}

/// Llama-3.2-1B at 16384 tokens took 38.6 GB on an H200 when a master was four bytes and not two.
#[test]
fn a_measured_step_is_planned_within_three_percent() {
    let (shape, device) = (shape("llama-3.2-1b"), hopper());
    let total = planner(demand(&shape, &device), 16384, 0).decide().unwrap().plan.total();
    let then = (total + 2 * shape.parameters() as usize) as f64;
    assert!((then / 38.6e9 - 1.0).abs() < 0.03, "{then}");
}
