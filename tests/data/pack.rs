//! Packing invariants on random trees.

use proptest::prelude::*;
use warpo::data::batches::{build, plan_all};
use warpo::data::loader::{EpochPlan, Loader, Order, StepSize};
use warpo::data::pack::{Packs, plan};
use warpo::data::trees::Trees;
use warpo::forest::{Forest, Segment, TILE_TOKENS, Tree};

/// A random tree: each later segment continues a segment on the path to the one before it, which is depth-first order.
fn tree() -> impl Strategy<Value = Tree> {
    let segment = (1usize..6, any::<prop::sample::Index>(), any::<bool>());
    (prop::collection::vec(segment, 1..7), 0u32..50, any::<prop::sample::Index>()).prop_map(|(parts, first, pick)| {
        let mut tree = Tree { name: "t".into(), ..Tree::default() };
        let mut path: Vec<usize> = Vec::new();
        for (i, (tokens, parent, scored)) in parts.into_iter().enumerate() {
            let parent = (i > 0).then(|| {
                path.truncate(parent.index(path.len()) + 1);
                path[path.len() - 1]
            });
            path.push(i);
            let tokens = (0..tokens as u32).map(|t| (first + 3 * i as u32 + t) % 50).collect();
            tree.segments.push(Segment { parent, tokens, scored, ..Segment::default() });
        }
        let scored = tree.segments.iter().filter(|s| s.scored).count();
        if scored > 1 {
            let chosen = pick.index(scored);
            tree.pairs.push([chosen, (chosen + 1) % scored]);
        }
        tree
    })
}

/// Tree, segment and depth of each token of a pack, from the trees alone.
fn places(trees: &[&Tree]) -> Vec<(usize, usize, usize)> {
    let mut places = Vec::new();
    for (t, tree) in trees.iter().enumerate() {
        let mut depth = vec![0; tree.segments.len()];
        for (s, segment) in tree.segments.iter().enumerate() {
            depth[s] = segment.parent.map_or(0, |p| depth[p] + tree.segments[p].tokens.len());
            places.extend((0..segment.tokens.len()).map(|offset| (t, s, depth[s] + offset)));
        }
    }
    places
}

fn is_ancestor_or_self(tree: &Tree, ancestor: usize, mut segment: usize) -> bool {
    while segment != ancestor {
        match tree.segments[segment].parent {
            Some(parent) => segment = parent,
            None => return false,
        }
    }
    true
}

fn check_mask(trees: &[&Tree], forest: &Forest) {
    let places = places(trees);
    assert_eq!(places.len(), forest.len());
    for (i, &(tree, segment, depth)) in places.iter().enumerate() {
        assert_eq!(forest.position[i], depth as i32, "position of token {i}");
        for (j, &(other, above, above_depth)) in places.iter().enumerate() {
            let expected = tree == other && above_depth <= depth && is_ancestor_or_self(trees[tree], above, segment);
            assert_eq!(forest.visible(i, j), expected, "token {i} sees token {j}");
        }
    }
    for (tile, ends) in forest.subtree_end.chunks(TILE_TOKENS).enumerate() {
        let (low, high) = (*ends.iter().min().unwrap(), *ends.iter().max().unwrap());
        assert_eq!(forest.tile_bounds[2 * tile..2 * tile + 2], [low, high]);
    }
}

/// Every scored segment is one sequence; its rows read the token before each target on its own path.
fn check_rows(trees: &[&Tree], forest: &Forest) {
    let places = places(trees);
    let mut sequence = 0;
    for (t, tree) in trees.iter().enumerate() {
        let first_row = forest.sequence_rows[sequence];
        assert_eq!(first_row as usize, forest.tree_rows[t]);
        for (s, segment) in tree.segments.iter().enumerate().filter(|(_, segment)| segment.scored) {
            let rows = forest.sequence_rows[sequence] as usize..forest.sequence_rows[sequence + 1] as usize;
            let targets: Vec<i32> = segment.tokens.iter().map(|&id| id as i32).collect();
            let skipped = usize::from(segment.parent.is_none());
            assert_eq!(forest.row_target[rows.clone()], targets[skipped..]);
            let depth = places.iter().find(|&&(a, b, _)| (a, b) == (t, s)).unwrap().2;
            for (offset, row) in rows.enumerate() {
                let (source_tree, above, source_depth) = places[forest.row_source[row] as usize];
                assert_eq!((source_tree, source_depth + 1), (t, depth + skipped + offset));
                assert!(is_ancestor_or_self(tree, above, s));
            }
            sequence += 1;
        }
    }
    assert_eq!(sequence, forest.sequences());
    assert_eq!(*forest.tree_rows.last().unwrap(), forest.rows());
    assert_eq!(forest.rows(), trees.iter().map(|tree| tree.rows()).sum::<usize>());
}

/// The tables are inversions of `row_source` and `tokens`, in ascending order.
fn check_tables(forest: &Forest) {
    for t in 0..forest.len() {
        let range = forest.token_row_offsets[t] as usize..forest.token_row_offsets[t + 1] as usize;
        let readers: Vec<i32> =
            (0..forest.rows() as i32).filter(|&r| forest.row_source[r as usize] == t as i32).collect();
        assert_eq!(forest.token_rows[range], readers);
    }
    assert!(forest.distinct_ids.is_sorted_by(|a, b| a < b));
    for (i, &id) in forest.distinct_ids.iter().enumerate() {
        let range = forest.distinct_offsets[i] as usize..forest.distinct_offsets[i + 1] as usize;
        let carriers: Vec<i32> = (0..forest.len() as i32).filter(|&t| forest.tokens[t as usize] == id).collect();
        assert_eq!(forest.distinct_tokens[range], carriers);
    }
    assert_eq!(forest.distinct_tokens.len(), forest.len());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn micro_batches_hold_every_tree_once_within_the_budget(trees in prop::collection::vec(tree(), 1..12), slack in 0usize..60) {
        let budget = slack + trees.iter().map(|tree| tree.tokens()).max().unwrap();
        let store: Trees = trees.iter().cloned().collect();
        let packs = plan_all(&store, budget).unwrap();
        let mut seen = packs.members().to_vec();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..trees.len() as u32).collect::<Vec<_>>());
        for pack in packs.iter() {
            let batch = build(&store, pack).unwrap();
            prop_assert!(pack.is_sorted());
            prop_assert!(batch.forest.len() <= budget);
            let members: Vec<&Tree> = pack.iter().map(|&index| &trees[index as usize]).collect();
            prop_assert!(batch.trees.iter().eq(members.iter().copied()));
            check_mask(&members, &batch.forest);
            check_rows(&members, &batch.forest);
            check_tables(&batch.forest);
        }
    }
}

#[test]
fn best_fit_takes_the_longest_first_and_the_fullest_pack_with_room() {
    // Longest first: 7, 6, 5 (beside the 6: no room beside the 7), 4 (beside the 7).
    let packs = |packs: &[&[u32]]| packs.iter().copied().collect::<Packs>();
    assert_eq!(plan(&[7, 6, 4, 5], 11).unwrap(), packs(&[&[0, 2], &[1, 3]]));
    // The 2 fits beside both and goes where it fits best; first fit would put it beside the 6.
    assert_eq!(plan(&[2, 6, 5, 8], 10).unwrap(), packs(&[&[0, 3], &[1], &[2]]));
    assert!(plan(&[], 10).unwrap().is_empty());
    assert_eq!(plan(&[3, 11], 10).unwrap_err().to_string(), "tree 1 has 11 tokens, the budget is 10");
}

/// Rows, mean and deviation of the logarithm of the tree's tokens, and the longest tree of four preference sets as a
/// 49,152-token tokenizer counts them: dialogues, instructions, worked sums and one-word answers.
const SETS: [(usize, f64, f64, usize); 4] =
    [(2033, 5.320, 0.590, 1113), (709, 5.132, 0.520, 649), (657, 5.477, 0.306, 906), (895, 3.547, 0.103, 53)];

/// Log-normal lengths of exactly that mean and deviation, cut at the longest: no set has a longer tail.
fn lengths(seed: u64, (rows, mean, deviation, longest): (usize, f64, f64, usize)) -> Vec<u32> {
    let drawn: Vec<f64> = crate::support::normal(seed, rows).into_iter().map(f64::from).collect();
    let center = drawn.iter().sum::<f64>() / rows as f64;
    let spread = (drawn.iter().map(|z| (z - center).powi(2)).sum::<f64>() / rows as f64).sqrt();
    let tokens = |z: &f64| (mean + deviation * (z - center) / spread).exp().round() as usize;
    drawn.iter().map(|z| tokens(z).clamp(1, longest) as u32).collect()
}

#[test]
fn whole_files_and_full_packs_are_filled_to_95_percent() {
    const BUDGET: usize = 4096;
    for (set, seed) in SETS.into_iter().flat_map(|set| (0..4).map(move |seed| (set, seed))) {
        let lengths = lengths(seed, set);
        let tokens: u32 = lengths.iter().sum();
        let fill = |packs: usize| f64::from(tokens) / (packs * BUDGET) as f64;
        let packs = plan(&lengths, BUDGET).unwrap().len();
        assert!(fill(packs) >= 0.95, "{set:?}: {packs} packs, {:.3} full", fill(packs));
        // An epoch as a run takes it, steps counted in packs.
        let size = StepSize::Packs(4);
        let mut loader = Loader::new(EpochPlan {
            order: Order::Random,
            seed,
            lengths: lengths.into(),
            weights: vec![],
            size,
            budget: BUDGET,
        })
        .unwrap();
        let mut taken = 0;
        while loader.position().epoch == 0 {
            taken += loader.next_step().len();
        }
        assert!(fill(taken) >= 0.95, "{set:?}: {taken} packs in an epoch, {:.3} full", fill(taken));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_holds_every_tree_once_within_the_budget(
        lengths in prop::collection::vec(0u32..300, 0..200),
        budget in 0usize..400,
    ) {
        let Ok(packs) = plan(&lengths, budget) else {
            prop_assert!(lengths.iter().any(|&tokens| tokens as usize > budget));
            return Ok(());
        };
        let mut seen = packs.members().to_vec();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
        let tokens = |pack: &[u32]| pack.iter().map(|&tree| lengths[tree as usize] as usize).sum::<usize>();
        for pack in packs.iter() {
            prop_assert!(pack.is_sorted() && tokens(pack) <= budget);
        }
        prop_assert!(packs.iter().is_sorted_by_key(|pack| pack[0]));
        // No two packs would fit into one: best fit opens a pack only when no other has room.
        let mut tokens: Vec<usize> = packs.iter().map(tokens).collect();
        tokens.sort_unstable();
        if let [least, next, ..] = tokens[..] {
            prop_assert!(least + next > budget || least == 0, "{} and {}", least, next);
        }
        prop_assert_eq!(plan(&lengths, budget).unwrap(), packs);
    }
}

#[test]
fn a_tree_over_the_budget_is_refused_by_name_and_both_numbers() {
    let tree = Tree::pair("train.jsonl:7", vec![1; 10], vec![2], vec![3]);
    let message = plan_all(&[tree].into_iter().collect(), 11).unwrap_err().to_string();
    assert_eq!(message, "train.jsonl:7: the tree has 12 tokens, `batch.tokens` = 11: shorten it or raise batch.tokens");
}

#[test]
fn unscored_tokens_of_a_response_are_read_and_not_predicted() {
    let mut tree = Tree::pair("t", vec![1, 2], vec![3, 4, 5, 6, 7], vec![8]);
    tree.segments[1].unscored = vec![1..3, 4..5];
    let forest = Forest::pack([&tree]).unwrap();
    assert_eq!(forest.tokens, [1, 2, 3, 4, 5, 6, 7, 8]);
    // Token 3 is predicted by the prompt's last token, 6 by the unscored 5; the rejected response by the prompt again.
    assert_eq!((&forest.row_source[..], &forest.row_target[..]), (&[1, 4, 1][..], &[3, 6, 8][..]));
    assert_eq!((forest.sequence_rows, tree.rows()), (vec![0, 2, 3], 3));
    for bad in [&[(2, 2)][..], &[(0, 2), (1, 3)], &[(4, 6)]] {
        tree.segments[1].unscored = bad.iter().map(|&(start, end)| start..end).collect();
        assert!(Forest::pack([&tree]).is_err());
    }
}
