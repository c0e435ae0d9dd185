//! What a step says about itself.

use std::f64::consts::LN_2;

use warpo::loss::Loss;

use super::{Case, Got};
use crate::support::fast_device;

fn value(got: &Got, name: &str) -> f64 {
    got.metrics.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}: {:?}", got.metrics)).1
}

fn assert_close(got: &Got, wanted: &[(&str, f64)]) {
    for &(name, want) in wanted {
        let found = value(got, name);
        assert!((found - want).abs() < 1e-6, "{name}: {found} instead of {want}");
    }
}

/// Three pairs with margins 0.2, -0.1 and 0: the last one is not counted as right.
fn pairs() -> Case {
    let mut case = Case::default();
    for [chosen, rejected, ref_chosen, ref_rejected] in
        [[-1.0f32, -2.0, -2.0, -1.0], [-3.0, -1.0, -2.5, -1.5], [-0.5, -4.0, -0.5, -4.0]]
    {
        let members = [case.sequence(&[chosen], &[ref_chosen]), case.sequence(&[rejected], &[ref_rejected])];
        case.group(&members.map(|sequence| (sequence, [0.0; 2])));
    }
    case
}

#[test]
fn pairs_with_a_likelihood_beside_them() {
    let loss = Loss::with("dpo", &[("beta", 0.1), ("sft_weight", 0.5)]).unwrap();
    let got = pairs().run(&fast_device(1), &loss);
    let names: Vec<&str> = got.metrics.iter().map(|(name, _)| name.as_str()).collect();
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
        "logps/chosen_fell",
        "weights/effective_share",
    ];
    assert_eq!(names, expected);
    let pair_loss = |u: f64| (-u).exp().ln_1p();
    let dpo = (pair_loss(0.2) + pair_loss(-0.1) + LN_2) / 3.0;
    let nll = (1.0 + 3.0 + 0.5) / 3.0;
    // Slopes by the chosen log-probability: -beta sig(-u) / 3 - 0.5 / 3.
    let slopes = [0.2f64, -0.1, 0.0].map(|u| 0.1 / (1.0 + u.exp()) / 3.0 + 0.5 / 3.0);
    let effective = slopes.iter().sum::<f64>().powi(2) / (3.0 * slopes.iter().map(|s| s * s).sum::<f64>());
    assert_close(
        &got,
        &[
            ("loss", dpo + 0.5 * nll),
            ("dpo_loss", dpo),
            ("rewards/margins", 0.1 / 3.0),
            ("rewards/accuracies", 1.0 / 3.0),
            ("logps/chosen", -nll),
            ("nll_loss", nll),
            ("logps/chosen_fell", 1.0 / 3.0),
            ("weights/effective_share", effective),
        ],
    );
    let plain = pairs().run(&fast_device(1), &Loss::named("dpo").unwrap());
    assert!(plain.metrics.iter().all(|(name, _)| !name.ends_with("_loss")), "without the likelihood term");
}

/// As TRL 1.16's trainers: means over the rows of the step, not over sequences; of hits those of the chosen sides.
#[test]
fn entropy_and_hits_are_means_over_rows() {
    let mut case = Case::default();
    for [chosen, rejected] in [[3, 1], [1, 2]] {
        let rows = |count: usize| vec![-1.0f32; count];
        let members = [chosen, rejected].map(|count| (case.sequence(&rows(count), &rows(count)), [0.0; 2]));
        case.group(&members);
    }
    case.described = [vec![1.0, 2.0, 0.5, 4.0, 3.0, 0.25, 0.5], vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]];
    let entropy = (1.0 + 2.0 + 0.5 + 4.0 + 3.0 + 0.25 + 0.5) / 7.0;
    let got = case.run(&fast_device(1), &Loss::named("dpo").unwrap());
    // The chosen sides are rows 0 to 2 and 4.
    assert_close(&got, &[("entropy", entropy), ("mean_token_accuracy", 2.0 / 4.0)]);
    // The same four as the responses of two labelled rows and what they are mismatched with, which is no response.
    case.groups.values = [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]].concat();
    let got = case.run(&fast_device(1), &Loss::named("kto").unwrap());
    assert_close(&got, &[("entropy", (1.0 + 2.0 + 0.5 + 3.0) / 4.0)]);
    // And no side of them ought to be predicted.
    assert!(got.metrics.iter().all(|(name, _)| name != "mean_token_accuracy"));
}

#[test]
fn several_losses_add_up_by_their_weights() {
    let terms = warpo::loss::read(
        &["name = \"dpo\"\nweight = 2.0", "name = \"hinge\"\nweight = 0.5", "name = \"sft\"\nweight = 0.25"]
            .map(|text| text.parse().unwrap()),
        &|_| "here".into(),
    );
    let got = pairs().run(&fast_device(1), &terms.unwrap());
    let parts = |loss: &str| value(&pairs().run(&fast_device(1), &Loss::named(loss).unwrap()), "loss");
    let want = 2.0 * parts("dpo") + 0.5 * parts("hinge") + 0.25 * parts("sft");
    assert_close(
        &got,
        &[("loss", want), ("dpo_loss", parts("dpo")), ("hinge_loss", parts("hinge")), ("sft_loss", 1.5)],
    );
}

#[test]
fn lists_are_ranked() {
    let mut case = Case::default();
    // Log-ratios 2, 1, 3 for scores 3, 2, 1: of three pairs one is right.
    let members = [(-1.0f32, -3.0f32, 3.0), (-1.0, -2.0, 2.0), (-2.0, -5.0, 1.0)]
        .map(|(logp, reference, score)| (case.sequence(&[logp], &[reference]), [score, 0.0]));
    case.group(&members);
    let got = case.run(&fast_device(1), &Loss::named("tpo").unwrap());
    let discount = |place: f64| 1.0 / (place + 1.0).log2();
    let gains = [3.0, 1.0, 0.0];
    let best = gains[0] * discount(1.0) + gains[1] * discount(2.0);
    let own = gains[2] * discount(1.0) + gains[0] * discount(2.0) + gains[1] * discount(3.0);
    assert_close(
        &got,
        &[
            ("rewards/accuracies", 1.0 / 3.0),
            ("rewards/best_first", 0.0),
            ("rewards/ndcg", own / best),
            ("logps/best", -1.0),
            ("logps/best_fell", 0.0),
        ],
    );
}

#[test]
fn labelled_rows_and_their_reference_point() {
    let mut case = Case::default();
    for (logp, reference, label, other) in
        [(-1.0f32, -2.0f32, 1.0, 0.5f32), (-3.0, -1.0, 0.0, 0.25), (-1.0, -1.5, 1.0, -0.15)]
    {
        let own = case.sequence(&[logp], &[reference]);
        let mismatched = case.sequence(&[-4.0 + other], &[-4.0]);
        case.group(&[(own, [label, 0.0]), (mismatched, [0.0; 2])]);
    }
    let got = case.run(&fast_device(1), &Loss::named("kto").unwrap());
    assert_close(
        &got,
        &[
            ("kl", 0.2),
            ("rewards/chosen", 0.1 * 0.75),
            ("rewards/rejected", -0.2),
            ("rewards/margins", 0.275),
            ("count/chosen", 2.0),
            ("count/rejected", 1.0),
        ],
    );
}
