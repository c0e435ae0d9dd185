//! Packing, micro-batches and threads change nothing; a list of two is a pair.

use warpo::{
    device::{Device, HostOptions},
    loss::{Loss, LossHead, Shape, all},
};

use super::{Case, Got, run_step, split};
use crate::support::{fast_device, normal};

const GROUPS: usize = 24;

/// Groups of a loss's shape with values any loss takes: group `g` is the same whichever groups stand around it.
fn case(loss: &Loss, groups: &[usize]) -> Case {
    let mut case = Case::default();
    for &g in groups {
        let sizes = match loss.shape() {
            Shape::Single => 1,
            Shape::List => 2 + g % 5,
            _ => 3,
        };
        let mut members = Vec::new();
        for place in 0..sizes {
            let seed = (100 * g + place) as u64;
            let rows = 1 + (7 * g + 3 * place) % 40;
            let logps: Vec<f32> = normal(seed, rows).iter().map(|x| -x.abs() - 0.01).collect();
            let noise = normal(seed + 50, rows);
            let ref_logps: Vec<f32> = logps.iter().zip(noise).map(|(logp, x)| logp + 0.5 * x).collect();
            let value = match loss.shape() {
                Shape::Labelled => (g % 2) as f64,
                Shape::List => (place * place) as f64,
                _ => 0.25 + (g % 3) as f64 / 4.0,
            };
            if loss.names() == "ld_dpo" {
                case.groups.weights.extend((0..rows).map(|row| if row < 5 { 1.0 } else { 0.5 }));
            }
            let surprise = logps.iter().map(|logp| logp - 0.5);
            case.collisions.extend(surprise);
            members.push((case.sequence(&logps, &ref_logps), [value, 0.5]));
        }
        if loss.shape() == Shape::Pair && !loss.terms()[0].definition.rationale || loss.shape() == Shape::Labelled {
            members.truncate(2);
        }
        case.group(&members);
    }
    case
}

/// Coefficients by group, whatever the order the groups were packed in.
fn by_group(cases: &[Case], orders: &[Vec<usize>], got: &[Got]) -> Vec<Vec<f32>> {
    let mut all = vec![Vec::new(); GROUPS];
    for ((case, order), got) in cases.iter().zip(orders).zip(got) {
        let ends = case.sequence_rows();
        let mut sequence = 0;
        for &g in order {
            let count = match case.groups.of(order.iter().position(|&other| other == g).unwrap()).len() {
                2 if case.groups.rows.len() == 3 * order.len() => 3,
                count => count,
            };
            let rows = ends[sequence] as usize..ends[sequence + count] as usize;
            all[g] = got.coefficients[rows].to_vec();
            sequence += count;
        }
    }
    all
}

fn run(device: &Device, loss: &Loss, orders: &[Vec<usize>], one_by_one: bool) -> (Vec<Vec<f32>>, f64) {
    let cases: Vec<Case> = orders.iter().map(|order| case(loss, order)).collect();
    let got = run_step(device, loss, &cases, one_by_one);
    let total = got[0].metrics.iter().find(|(name, _)| name == "loss").unwrap().1;
    (by_group(&cases, orders, &got), total)
}

#[test]
fn micro_batches_order_and_threads_change_nothing() {
    let in_order: Vec<usize> = (0..GROUPS).collect();
    let mut shuffled = in_order.clone();
    shuffled.sort_by_key(|g| g * 7 % GROUPS);
    let parts = |order: &[usize], size: usize| order.chunks(size).map(<[usize]>::to_vec).collect::<Vec<_>>();
    for definition in all() {
        let loss = Loss::named(definition.name).unwrap();
        if loss.needs_divergence() {
            // Coefficients come through the same kernels; divergences are the head's.
            continue;
        }
        let coupled = loss.couples_the_step();
        let (want, total) = run(&fast_device(1), &loss, &parts(&in_order, GROUPS), !coupled);
        for (orders, threads) in [
            (parts(&in_order, 5), 1),
            (parts(&in_order, 1), 2),
            (parts(&shuffled, GROUPS), 1),
            (parts(&shuffled, 7), 2),
        ] {
            let device = Device::host(HostOptions { threads, ..HostOptions::default() }).unwrap();
            let (got, sum) = run(&device, &loss, &orders, !coupled);
            let name = definition.name;
            assert!((sum - total).abs() <= 1e-12 * total.abs().max(1.0), "{name}: {sum} instead of {total}");
            for (g, (got, want)) in got.iter().zip(&want).enumerate() {
                if coupled {
                    // A mean in f64 over another order, rounded to f32.
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
                    assert!(got.iter().zip(want).all(close), "{name}: group {g}: {got:?} instead of {want:?}");
                } else {
                    let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(got), bits(want), "{name}: group {g}");
                }
            }
        }
    }
}

/// Where the formulas coincide, a list of two with hard labels gives the bits of the pair.
#[test]
fn a_list_of_two_is_a_pair() {
    let device = fast_device(1);
    for (list, pair) in [("infonca", "dpo"), ("nca", "nca_pair")] {
        let (list, pair) = (Loss::with(list, &[("beta", 0.1)]).unwrap(), Loss::with(pair, &[("beta", 0.1)]).unwrap());
        assert!(matches!(list.parts()[0].1.head, LossHead::List { .. }));
        let mut pairs = Case::default();
        // From equal over usual margins to saturated ones, the chosen one behind and in front.
        for (i, margin) in [0.0, 0.3, -2.0, 45.5, -45.5, 600.0, -600.0, 1e-3, 8000.0].into_iter().enumerate() {
            let noise = f64::from(normal(i as u64, 1)[0]);
            let side = |case: &mut Case, x: f64| case.sequence(&split(-90.0 + x), &split(-90.0 + noise));
            let members = [side(&mut pairs, margin), side(&mut pairs, 0.5 * noise)];
            pairs.group(&[(members[0], [1.0, 1.0]), (members[1], [0.0, 1.0])]);
        }
        let (as_pair, as_list) = (pairs.run(&device, &pair), pairs.run(&device, &list));
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&as_list.coefficients), bits(&as_pair.coefficients), "{}", list.names());
        assert_eq!(as_list.losses, as_pair.losses, "{}", list.names());
    }
}

/// What a step that is skipped for its numbers leaves behind is what was there before.
#[test]
fn rewards_that_are_not_finite_do_not_enter_the_running_mean() {
    let device = fast_device(1);
    let loss = Loss::named("bco").unwrap();
    let state = device.upload(&[3.0, 4.0, 0.0]).unwrap();
    for (poison, want) in [(f32::NAN, [3.0, 4.0, 0.75]), (f32::NEG_INFINITY, [3.0, 4.0, 0.75])] {
        let mut case = case(&loss, &[0, 1, 2]);
        case.logps[0] = poison;
        let step = warpo::loss::Step::new(&device, &loss, &state, std::slice::from_ref(&case.groups)).unwrap();
        let (rows, ends) = case.rows(&device);
        step.sum(0, &rows, &ends).unwrap();
        step.run(None).unwrap();
        assert_eq!(device.download(&state).unwrap(), want, "{poison}");
    }
}

/// Held-out rows are measured by the mean of what was trained on, whatever their own rewards are.
#[test]
fn held_out_rows_do_not_move_the_running_mean() {
    let loss = Loss::named("bco").unwrap();
    let parameter = |loss: &Loss| loss.terms()[0].parameters.get("delta");
    assert!(parameter(&loss).is_nan());
    assert_eq!(parameter(&loss.held(&[3.0, 4.0, 9.0])), 0.75);
    assert_eq!(parameter(&loss.held(&[0.0, 0.0, 0.0])), 0.0);
    assert_eq!(parameter(&Loss::with("bco", &[("delta", 0.5)]).unwrap().held(&[3.0, 4.0, 9.0])), 0.5);
}

/// A step's value moves a running reference point once, however it is cut.
#[test]
fn the_running_mean_goes_on_from_step_to_step() {
    let device = fast_device(1);
    let loss = Loss::named("bco").unwrap();
    let state = device.zeros(warpo::ops::loss_batch::STATE).unwrap();
    let mut seen = Vec::new();
    for step in 0..3 {
        let groups: Vec<usize> = (step * 8..(step + 1) * 8).collect();
        let case = case(&loss, &groups);
        let on_device = warpo::loss::Step::new(&device, &loss, &state, std::slice::from_ref(&case.groups)).unwrap();
        let (rows, ends) = case.rows(&device);
        on_device.sum(0, &rows, &ends).unwrap();
        on_device.run(None).unwrap();
        let measured = on_device.measured().unwrap();
        let rho = |group: usize| {
            let sequence = case.groups.slots[case.groups.starts[group]];
            let rows = case.sequence_rows();
            let rows = rows[sequence] as usize..rows[sequence + 1] as usize;
            rows.map(|row| f64::from(case.logps[row]) - f64::from(case.ref_logps[row])).sum::<f64>()
        };
        seen.extend((0..8).map(|group| 0.1 * rho(group)));
        let want = seen.iter().sum::<f64>() / seen.len() as f64;
        let got = measured.metrics().get("delta").unwrap();
        assert!((got - want).abs() < 1e-12, "step {step}: {got} instead of {want}");
    }
}
