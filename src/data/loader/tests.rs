use std::collections::BTreeMap;

use super::*;

fn loader(seed: u64, rows: usize, size: StepSize) -> Loader {
    let lengths: Vec<u32> = (0..rows as u32).map(|row| 1 + row % 5).collect();
    Loader::new(EpochPlan { order: Order::Random, seed, lengths: lengths.into(), weights: Vec::new(), size, budget: 9 })
        .unwrap()
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
    let plan = EpochPlan {
        order: Order::Random,
        seed: 4,
        lengths: lengths.into(),
        weights: Vec::new(),
        size: StepSize::Packs(8),
        budget: 1000,
    };
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
        let plan = EpochPlan {
            order: Order::Random,
            seed: 5,
            lengths: vec![3; 6].into(),
            weights: weights.clone(),
            size,
            budget: 9,
        };
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
    let plan = || EpochPlan {
        order: Order::Random,
        seed: 0,
        lengths: vec![3, 4].into(),
        weights: vec![],
        size: StepSize::Rows(1),
        budget: 4,
    };
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

#[test]
fn rows_come_in_the_files_order_where_that_is_asked() {
    let lengths: Vec<u32> = vec![4, 4, 5, 1, 9, 2, 2, 2];
    let of = |weights: Vec<f32>, size| {
        let plan = EpochPlan { order: Order::File, seed: 1, lengths: lengths.clone().into(), weights, size, budget: 9 };
        Loader::new(plan).unwrap()
    };
    let mut rows = of(Vec::new(), StepSize::Rows(3));
    for _ in 0..2 {
        let mut steps: Vec<Vec<usize>> = epoch(&mut rows).iter().map(|step| step.concat()).collect();
        // Packs may turn the rows of a step round.
        steps.iter_mut().for_each(|step| step.sort_unstable());
        assert_eq!(steps, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
    }
    let packs = epoch(&mut of(Vec::new(), StepSize::Packs(2)));
    assert_eq!(packs, [vec![vec![0, 1], vec![2, 3]], vec![vec![4], vec![5, 6, 7]]]);
    let twice = epoch(&mut of(vec![2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], StepSize::Rows(2)));
    assert_eq!(twice[0].concat(), [0, 0]);
}

#[test]
fn rows_of_a_length_stand_together_where_that_is_asked() {
    let lengths: Vec<u32> = (0..400).map(|row| 1 + (row * 7919) % 83).collect();
    let plan = |order, seed| {
        let lengths = lengths.clone().into();
        EpochPlan { order, seed, lengths, weights: Vec::new(), size: StepSize::Rows(4), budget: 1000 }
    };
    let spread = |plan: EpochPlan| {
        let steps = epoch(&mut Loader::new(plan).unwrap());
        let mut rows = steps.concat().concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..400).collect::<Vec<_>>());
        let range = |step: &Vec<Vec<usize>>| {
            let of: Vec<u32> = step.concat().iter().map(|&row| lengths[row]).collect();
            of.iter().max().unwrap() - of.iter().min().unwrap()
        };
        steps.iter().map(range).sum::<u32>() as f64 / steps.len() as f64
    };
    // Two hundred sorted rows of 83 lengths: four neighbours are at most a few lengths apart, four random ones some fifty.
    assert!(spread(plan(Order::Length, 3)) < 4.0);
    assert!(spread(plan(Order::Random, 3)) > 40.0);
    let first = |seed| epoch(&mut Loader::new(plan(Order::Length, seed)).unwrap())[0].clone();
    assert_ne!(first(3), first(4));
}
