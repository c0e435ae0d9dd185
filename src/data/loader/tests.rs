use std::collections::BTreeMap;

use super::*;

fn loader(seed: u64, rows: usize, size: StepSize) -> Loader {
    let lengths: Vec<u32> = (0..rows as u32).map(|row| 1 + row % 5).collect();
    Loader::new(EpochPlan { seed, lengths: lengths.into(), weights: Vec::new(), size, budget: 9 }).unwrap()
}

/// The steps of one epoch, from a loader at its start.
fn epoch(loader: &mut Loader) -> Vec<Vec<Vec<usize>>> {
    let epoch = loader.position().epoch;
    let mut steps = Vec::new();
    while loader.position().epoch == epoch {
        steps.push(loader.next_step());
    }
    assert_eq!(loader.position(), Position { epoch: epoch + 1, index: 0 });
    steps
}

#[test]
fn every_row_once_an_epoch_and_a_smaller_last_step() {
    for (size, steps) in [(StepSize::Rows(4), 3), (StepSize::Packs(2), 2)] {
        let mut loader = loader(1, 10, size);
        assert_eq!(loader.steps_in(3), Some(3 * steps));
        let mut orders = Vec::new();
        for _ in 0..3 {
            let taken = epoch(&mut loader);
            assert_eq!(taken.len() as u64, steps);
            if size == StepSize::Rows(4) {
                assert_eq!(taken.iter().map(|step| step.concat().len()).collect::<Vec<_>>(), [4, 4, 2]);
            }
            let order = taken.concat().concat();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1]);
        assert_ne!(orders[1], orders[2]);
    }
}

#[test]
fn a_stored_position_continues_exactly() {
    for size in [StepSize::Rows(3), StepSize::Packs(2)] {
        let mut straight = loader(9, 17, size);
        for steps in 0..12 {
            let text = serde_json::to_string(&straight.position()).unwrap();
            let mut resumed = loader(9, 17, size);
            resumed.seek(serde_json::from_str(&text).unwrap()).unwrap();
            assert_eq!(resumed.epochs(), straight.epochs());
            assert_eq!(resumed.next_step(), straight.next_step(), "after {steps} steps");
            assert_eq!(resumed.position(), straight.position());
        }
        assert!(loader(9, 7, size).seek(Position { epoch: 0, index: 7 }).is_err());
    }
}

#[test]
fn windows_lose_no_row_and_leave_one_pack_with_room() {
    let rows = 3 * LOOK_AHEAD + 5;
    let lengths: Vec<u32> = (0..rows as u32).map(|row| 20 + (row * 7919) % 83).collect();
    let tokens: u32 = lengths.iter().sum();
    let plan =
        EpochPlan { seed: 4, lengths: lengths.into(), weights: Vec::new(), size: StepSize::Packs(8), budget: 1000 };
    let packs = epoch(&mut Loader::new(plan).unwrap()).concat();
    let mut seen = packs.concat();
    seen.sort_unstable();
    assert_eq!(seen, (0..rows).collect::<Vec<_>>());
    assert!(f64::from(tokens) / (packs.len() * 1000) as f64 > 0.995, "{tokens} tokens in {} packs", packs.len());
}

#[test]
fn a_row_comes_as_often_as_it_weighs() {
    let weights = vec![0.0, 1.0, 2.0, 0.25, 1.75, 1.0];
    for size in [StepSize::Rows(4), StepSize::Packs(2)] {
        let plan = EpochPlan { seed: 5, lengths: vec![3; 6].into(), weights: weights.clone(), size, budget: 9 };
        let mut loader = Loader::new(plan).unwrap();
        let total = loader.steps_in(400).unwrap();
        let (mut times, mut steps) = (BTreeMap::new(), 0);
        for _ in 0..400 {
            let taken = epoch(&mut loader);
            steps += taken.len() as u64;
            taken.concat().concat().into_iter().for_each(|row| *times.entry(row).or_insert(0usize) += 1);
        }
        assert_eq!(steps, total);
        assert_eq!((times.get(&0), times[&1], times[&2], times[&5]), (None, 400, 800, 400));
        // Five standard errors of 400 draws at a quarter: 5 sqrt(400 * 3/16) = 43.
        assert!(times[&3].abs_diff(100) < 43 && times[&4].abs_diff(700) < 43, "{times:?}");
    }
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    let plan =
        || EpochPlan { seed: 0, lengths: vec![3, 4].into(), weights: vec![], size: StepSize::Rows(1), budget: 4 };
    assert!(Loader::new(plan()).is_ok());
    for bad in [
        EpochPlan { lengths: vec![].into(), ..plan() },
        EpochPlan { size: StepSize::Packs(0), ..plan() },
        EpochPlan { budget: 3, ..plan() },
        EpochPlan { weights: vec![1.0], ..plan() },
        EpochPlan { weights: vec![1.0, f32::NAN], ..plan() },
        EpochPlan { weights: vec![1.0, -1.0], ..plan() },
    ] {
        assert!(Loader::new(bad).is_err());
    }
    // Weights so small that most epochs draw nothing.
    let mut rare = Loader::new(EpochPlan { weights: vec![1e-9; 2], ..plan() }).unwrap();
    assert_eq!(rare.next_step(), [[0]]);
}
