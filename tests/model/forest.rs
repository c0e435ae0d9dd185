use warpo::{
    device::Device,
    forest::{Forest, Segment, Tree},
    model::{Model, ModelConfig, Slopes},
};

use super::{document, fast_devices, list, model_for, named, pair, steps, tiny_config, tokens};
use crate::{
    oracles::model::paths,
    support::{normal, relative_error},
};

/// Packs of every kind: pairs, a list of 8, two-level trees, and several trees.
fn packs() -> Vec<(&'static str, Vec<Tree>)> {
    vec![
        ("pair", vec![pair(1, [20, 9, 14])]),
        ("long pair", vec![pair(2, [70, 55, 3])]),
        ("list of 8", vec![list(3, 15, 8)]),
        ("two levels", vec![steps(4)]),
        ("several", vec![pair(5, [7, 3, 3]), steps(6), document(7, 30), list(8, 1, 8), pair(9, [1, 1, 1])]),
    ]
}

/// Log-probabilities and, for these slopes, gradients.
fn run(model: &Model<f32>, forest: &Forest, coefficients: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let device = model.device();
    model.zero_grads().unwrap();
    let logps = add(model, forest, coefficients);
    (logps, device.download(model.params().grads()).unwrap())
}

fn add(model: &Model<f32>, forest: &Forest, coefficients: &[f32]) -> Vec<f32> {
    let device = model.device();
    let batch = model.upload(forest).unwrap();
    model.forward(&batch).unwrap();
    let logps = device.download(&model.logps(&batch).unwrap()).unwrap();
    model.backward(&batch, &Slopes::by_logps(&device.upload(coefficients).unwrap())).unwrap();
    logps
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn packed_trees_equal_separate_sequences() {
    for (device, on) in fast_devices() {
        for (name, trees) in packs() {
            let config = tiny_config(name.len() % 2 == 0, 2);
            packed_equals_separate(&device, &config, &trees, &format!("{name}, {on}"));
        }
    }
}

/// To 1e-6 of the norm in f32: the same products summed in another order.
fn packed_equals_separate(device: &Device, config: &ModelConfig, trees: &[Tree], what: &str) {
    let forest = Forest::pack(trees).unwrap();
    let coefficients = normal(50, forest.rows());
    let model = model_for::<f32>(device, config, &forest);
    let (packed_logps, packed) = run(&model, &forest, &coefficients);

    model.zero_grads().unwrap();
    let mut logps = Vec::new();
    for (path, scored) in trees.iter().flat_map(paths) {
        let forest = Forest::pack([&alone(&path, scored.start)]).unwrap();
        let own = &coefficients[logps.len()..logps.len() + forest.rows()];
        logps.extend(add(&model, &forest, own));
    }
    let separate = device.download(model.params().grads()).unwrap();
    let error = relative_error(&widen(&packed_logps), &widen(&logps));
    assert!(error <= 1e-6, "{what}: log-probabilities: {error:.2e}");
    let (packed, separate) = (named(config, &packed), named(config, &separate));
    let mut worst = 0.0f64;
    for (name, separate) in &separate {
        let error = relative_error(&packed[name], separate);
        assert!(error <= 1e-6, "{what}: {name}: {error:.2e}");
        worst = worst.max(error);
    }
    println!("{what}: log-probabilities {error:.1e}, gradients at most {worst:.1e}");
}

/// A sequence whose tokens from `scored` on are predicted.
fn alone(path: &[u32], scored: usize) -> Tree {
    let (before, own) = path.split_at(scored);
    let mut segments = vec![Segment { parent: None, tokens: before.to_vec(), scored: false, ..Segment::default() }];
    if before.is_empty() {
        segments.clear();
    }
    segments.push(Segment {
        parent: (!before.is_empty()).then_some(0),
        tokens: own.to_vec(),
        scored: true,
        ..Segment::default()
    });
    Tree { name: "alone".to_owned(), segments, ..Tree::default() }
}

/// Changing the tokens of one segment changes no bit of what does not see it, forwards or backwards.
#[test]
fn tokens_outside_a_subtree_change_nothing_in_it() {
    for (device, on) in fast_devices() {
        for (name, trees) in packs() {
            let config = tiny_config(true, 2);
            let forest = Forest::pack(&trees).unwrap();
            let model = model_for::<f32>(&device, &config, &forest);
            // The first scored segment with others beside it, in the first tree and in the last.
            for tree in [0, trees.len() - 1] {
                let segment = trees[tree].segments.iter().position(|s| s.scored).unwrap();
                let what = format!("{name}, tree {tree}, {on}");
                unseen_changes_nothing(&model, &trees, tree, segment, &what);
            }
        }
    }
}

fn unseen_changes_nothing(model: &Model<f32>, trees: &[Tree], tree: usize, segment: usize, what: &str) {
    let mut changed = trees.to_vec();
    let len = trees[tree].segments[segment].tokens.len();
    changed[tree].segments[segment].tokens = tokens(4321, len);
    let (before, after) = (Forest::pack(trees).unwrap(), Forest::pack(&changed).unwrap());
    // The segment's first token: what sees it is its subtree.
    let start: usize = trees[..tree].iter().map(Tree::tokens).sum::<usize>()
        + trees[tree].segments[..segment].iter().map(|s| s.tokens.len()).sum::<usize>();
    let inside = start..before.subtree_end[start] as usize;
    // Rows that read the subtree or predict the segment are its own: their slopes are 0, all others keep theirs.
    let touched = |row: usize| {
        inside.contains(&(before.row_source[row] as usize)) || before.row_target[row] != after.row_target[row]
    };
    let coefficients: Vec<f32> =
        normal(51, before.rows()).into_iter().enumerate().map(|(r, c)| if touched(r) { 0.0 } else { c }).collect();

    let (logps, grads) = run(model, &before, &coefficients);
    let (logps_after, grads_after) = run(model, &after, &coefficients);
    let mut outside = 0;
    for row in (0..before.rows()).filter(|&row| !touched(row)) {
        assert_eq!(logps[row].to_bits(), logps_after[row].to_bits(), "{what}: row {row}");
        outside += 1;
    }
    assert!(logps != logps_after, "{what}: the change has no effect at all");
    assert_eq!(outside == 0, trees.len() == 1 && trees[0].segments.len() == 1, "{what}");
    // Zeros may differ in sign where a product with a changed value was added.
    let differs = grads.iter().zip(&grads_after).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: gradient element");
}
