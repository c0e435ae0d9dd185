//! Which function does what is tested by loss; here, more groups than a CTA has threads.

use warpo::loss::Loss;

use crate::{
    loss::Case,
    oracles::losses::{Sequence, step},
    support::{for_each_device, normal},
};

/// The step's loss against the oracle, and slopes of some rows against its central differences: with a step of 1e-4, whose
/// square times a third derivative below 1e-2 of the slope's scale is 1e-10, and f64 roundings of a sum of some hundred
/// terms, divided by the step; slopes are rounded to f32.
#[test]
fn more_groups_than_threads() {
    const GROUPS: usize = 261;
    for name in ["kto", "bco", "aot", "aot_unpaired", "maxmin"] {
        let loss = Loss::named(name).unwrap();
        let parameters = &loss.terms()[0].parameters;
        let mut case = Case::default();
        let mut groups = Vec::new();
        for g in 0..GROUPS {
            let members = [0, 1].map(|place| {
                let logps = normal((2 * g + place) as u64, 3).iter().map(|x| 4.0 * x - 9.0).collect::<Vec<f32>>();
                let ref_logps =
                    normal((2 * g + place + 7000) as u64, 3).iter().map(|x| 4.0 * x - 9.0).collect::<Vec<f32>>();
                let widen = |rows: &[f32]| rows.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
                let values = [if name == "maxmin" { (g % 5) as f64 } else { (g % 2) as f64 }, 0.0];
                let sequence = case.sequence(&logps, &ref_logps);
                (
                    (sequence, values),
                    Sequence { lp: widen(&logps), lq: widen(&ref_logps), values, ..Sequence::default() },
                )
            });
            case.group(&[members[0].0, members[1].0]);
            groups.push(members.map(|(_, sequence)| sequence).to_vec());
        }
        let value = |groups: &Vec<Vec<Sequence>>, fixed: &Vec<Vec<Sequence>>| {
            step(name, &|key| parameters.get(key), groups, fixed)
        };
        let want = value(&groups, &groups);
        for_each_device(|device, on| {
            let got = case.run(device, &loss);
            let total = got.metrics.iter().find(|(metric, _)| metric == "loss").unwrap().1;
            assert!((total - want).abs() <= 1e-12 * want.abs().max(1.0), "{name} on {on}: {total} for {want}");
            for g in [0, 1, 100, 255, 256, 260] {
                for place in 0..2 {
                    let along = |h: f64| {
                        let mut moved = groups.clone();
                        moved[g][place].lp[1] += h;
                        value(&moved, &groups)
                    };
                    let slope = (along(1e-4) - along(-1e-4)) / 2e-4;
                    let got = f64::from(got.coefficients[(2 * g + place) * 3 + 1]);
                    let limit = 1e-6 * slope.abs() + 1e-9 / GROUPS as f64 + 100.0 * f64::EPSILON / 1e-4;
                    assert!(
                        (got - slope).abs() <= limit,
                        "{name} on {on}: group {g}, place {place}: {got} for {slope}"
                    );
                }
            }
        });
    }
}
