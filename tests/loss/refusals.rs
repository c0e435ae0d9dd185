//! What a loss refuses, by name and before anything is trained.

use warpo::{
    forest::{Segment, Tree},
    loss::{Loss, read},
};

use crate::model::{list, pair};

fn refusal(tables: &[&str]) -> String {
    let tables: Vec<toml::Table> = tables.iter().map(|text| text.parse().unwrap()).collect();
    read(&tables, &|key| format!("run.toml:{key}")).unwrap_err().to_string()
}

#[test]
fn names_parameters_and_combinations() {
    for (tables, want) in [
        (&["name = \"dpp\""][..], "run.toml:loss.name: `loss.name` = \"dpp\""),
        (&["beta = 0.0"], "run.toml:loss.beta: `loss.beta` = 0.0: must be above 0"),
        (&["beta = \"strong\""], "run.toml:loss.beta: `loss.beta` = \"strong\": must be above 0"),
        (&["label_smoothing = 0.5"], "`loss.label_smoothing` = 0.5: must be 0 or more and below 0.5"),
        (&["sft_weight = -1"], "`loss.sft_weight` = -1: must be 0 or more"),
        (&["weight = inf"], "`loss.weight` = inf: must be a finite number of 0 or more"),
        (&["weight = 0"], "every `weight` is 0: there is nothing to train"),
        (&["f_divergence_type = \"kl\""], "must be one of reverse_kl, js_divergence, forward_kl, alpha_divergence"),
        (&["name = \"simpo\"\ntau = 1"], "unknown key; the loss `simpo` has `name`, `weight`, `beta`, `simpo_gamma`"),
        (&["name = \"dpo\"", "beta = 1"], "a `[[loss]]` has no `name`"),
        (&["name = \"dpo\"", "name = \"tpo\""], "`dpo` learns from pairs, or trees of scored steps, `tpo` from lists"),
        (&["name = \"gpo\"", "name = \"dno\""], "another loss of the run other numbers"),
        (&["name = \"dpo\"", "name = \"control_sft\""], "changes the rows it learns from"),
    ] {
        let got = refusal(tables);
        assert!(got.contains(want), "{got} instead of {want}");
    }
    let both = ["name = \"dpo\"", "name = \"sft\"\nweight = 0.1"].map(|text| text.parse().unwrap());
    assert_eq!(read(&both, &|_| String::new()).unwrap().names(), "dpo + sft");
}

#[test]
fn rows_that_do_not_have_what_a_loss_needs() {
    let plain = pair(1, [3, 2, 2]);
    let unscored = Tree { pairs: vec![], ..list(2, 3, 3) };
    let labels = Tree { labels: vec![true, false, false], ..unscored.clone() };
    let long = Tree { scores: (0..33).map(f64::from).collect(), ..Tree { pairs: vec![], ..list(3, 3, 33) } };
    let document = Tree {
        name: "document".into(),
        segments: vec![Segment { tokens: vec![1, 2, 3], scored: true, ..Segment::default() }],
        ..Tree::default()
    };
    for (loss, tree, want) in [
        (
            "dpo",
            &unscored,
            "list 2: the row has several responses and no score of each, and the loss `dpo` learns from pairs",
        ),
        ("dpo", &document, "document: the row has no two responses of which one is better"),
        ("gpo", &plain, "pair 1: the row has no `score_chosen` and `score_rejected`"),
        ("soft_label", &plain, "the row has no `preference`, and the loss `soft_label` needs it"),
        ("rationale_dpo", &plain, "the row has no `rationale`"),
        ("tpo", &unscored, "the row has no two responses of different score or label"),
        ("exo", &labels, "the row has labels, and the loss `exo` needs scores"),
        ("tpo", &long, "a list of 33 responses: at most 32 go together"),
        ("kto", &unscored, "the row has no label, and the loss `kto` learns from completions with a label, or pairs"),
        ("sft", &unscored, "the row has several responses, or labels, and the loss `sft` learns from completions"),
        ("rwr", &document, "the row has no `score_chosen` and `score_rejected` (a single response: `score`)"),
    ] {
        let got = Loss::named(loss).unwrap().groups([tree]).unwrap_err().to_string();
        assert!(got.contains(want), "{loss}: {got} instead of {want}");
    }
    // What may look wrong and is not: labels for lists, pairs as lists and as labelled rows, the chosen side alone.
    for (loss, tree, groups) in [
        ("infonca", &labels, 1),
        ("infonca", &plain, 1),
        ("bco", &plain, 2),
        ("bco", &labels, 3),
        ("sft", &plain, 1),
        ("sft", &document, 1),
    ] {
        assert_eq!(Loss::named(loss).unwrap().groups([tree]).unwrap().len(), groups, "{loss}");
    }
}

/// Siblings are ranked by their score; visits only come along.
#[test]
fn a_tree_of_steps_gives_a_pair_for_each_set_of_siblings() {
    let mut tree = crate::model::steps(1);
    tree.pairs.clear();
    tree.scores = vec![0.1, 0.9, 0.5, 0.7, 0.2, 0.2, 0.9, 0.3];
    tree.values = vec![(warpo::forest::Value::Visits, (0..8).map(f64::from).collect())];
    let groups = Loss::named("mcts_dpo").unwrap().groups([&tree]).unwrap();
    // Siblings by parent: {0, 3, 7} of the prompt, {1, 2} of step 0, {4, 5, 6} of step 3.
    assert_eq!(groups.slots, [3, 0, 1, 2, 6, 4]);
    let visits: Vec<f64> = groups.values.chunks(2).map(|values| values[0]).collect();
    assert_eq!(visits, [3.0, 0.0, 1.0, 2.0, 6.0, 4.0]);
    let lists = Loss::named("tpo").unwrap().groups([&tree]).unwrap();
    assert_eq!(lists.slots, [0, 3, 7, 1, 2, 4, 5, 6]);
    assert_eq!(lists.starts, [0, 3, 5, 8]);
}
