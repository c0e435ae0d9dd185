use proptest::prelude::*;

use super::*;
use crate::{
    data::reshape::Reshaper,
    forest::{Role, Segment, Value},
};

/// Any tree, most of them none that a loss would take.
fn any_tree() -> impl Strategy<Value = Tree> {
    let tokens = prop::collection::vec(any::<u32>(), 0..200);
    let segment =
        (tokens, any::<prop::sample::Index>(), any::<bool>(), 0usize..3, prop::collection::vec(0usize..9, 0..3));
    let numbers = || prop::collection::vec(any::<f64>(), 0..4);
    let segments = prop::collection::vec(segment, 0..6);
    (segments, "[a-z:0-9]{0,12}", numbers(), prop::collection::vec(any::<bool>(), 0..4), numbers()).prop_map(
        |(parts, name, scores, labels, margins)| {
            let mut tree = Tree { name: format!("file{name}"), scores, labels, ..Tree::default() };
            for (i, (tokens, parent, scored, role, masks)) in parts.into_iter().enumerate() {
                let parent = (i > 0).then(|| parent.index(i));
                let role = [Role::Response, Role::Rationale, Role::Mismatched][role];
                let unscored = masks.into_iter().map(|start| start..start + 1).collect();
                tree.segments.push(Segment { parent, tokens, scored, unscored, role });
            }
            tree.pairs = vec![[0, 1]; tree.labels.len()];
            tree.values = vec![(Value::Margin, margins), (Value::Group, vec![3.0])];
            tree
        },
    )
}

fn growing(name: &str, trees: &[Tree]) -> Trees {
    let mut growing = Growing::new(name);
    trees.iter().for_each(|tree| growing.push(tree).unwrap());
    growing.finish().unwrap()
}

/// Asserts that a store has these trees, by number, in order and in blocks, and their sizes.
fn check(store: &Trees, want: &[Tree]) {
    // Bits, for a NaN is not itself.
    let same = |a: &Tree, b: &Tree| assert_eq!(format!("{a:?}"), format!("{b:?}"));
    assert_eq!(store.len(), want.len());
    store.iter().zip(want).for_each(|(found, want)| same(&found.unwrap(), want));
    let mut all = want.iter();
    let take = |tree: &Tree, size| {
        let want = all.next().unwrap();
        same(tree, want);
        assert_eq!(size, Size::of(want));
        Ok(())
    };
    store.visit(Size::of, take).unwrap();
    assert!(all.next().is_none());
    let sizes: Vec<Size> = want.iter().map(Size::of).collect();
    assert!(store.tokens().iter().zip(&sizes).all(|(&tokens, size)| tokens as usize == size.tokens));
    assert!(store.rows().iter().zip(&sizes).all(|(&rows, size)| rows as usize == size.rows));
    assert_eq!(store.unshared_tokens(), sizes.iter().map(|size| size.unshared).sum::<usize>());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn trees_come_back_as_they_were(trees in prop::collection::vec(any_tree(), 1..40), cut in any::<prop::sample::Index>()) {
        check(&trees.iter().cloned().collect(), &trees);
        check(&growing("file", &trees), &trees);
        let (first, second) = trees.split_at(cut.index(trees.len()));
        let mut both = growing("file", first);
        both.append(growing("other", second)).unwrap();
        check(&both, &trees);
        // Found again in their bytes alone.
        let Blob::Memory(bytes) = growing("file", &trees).blob().map(clone).unwrap() else { panic!("few bytes") };
        check(&Trees::open("file", Blob::Memory(bytes), trees.len()).unwrap(), &trees);
        let out: Vec<usize> = (0..trees.len()).filter(|row| row % 3 == cut.index(3)).collect();
        both.leave_out(&out).unwrap();
        let left: Vec<Tree> = trees.iter().enumerate().filter(|(row, _)| !out.contains(row)).map(|(_, tree)| tree.clone()).collect();
        check(&both, &left);
    }
}

fn clone(blob: &Blob) -> Blob {
    let mut bytes = vec![0; blob.len() as usize];
    blob.read_at(&mut bytes, 0).unwrap();
    Blob::Memory(bytes)
}

fn tree(seed: u32) -> Tree {
    let mut tree = Tree::pair(format!("t:{seed}"), vec![seed, 1, 300, 49_151], vec![2, u32::MAX, 5], vec![7]);
    tree.segments[1].unscored = vec![0..1, 2..3];
    if seed.is_multiple_of(2) {
        (tree.scores, tree.labels) = (vec![0.5, -1e300], vec![true, false]);
    }
    tree
}

/// Blocks of rows and of bytes, in a file without a name, and a row that is longer than a block.
#[test]
fn many_trees_come_back() {
    let mut trees: Vec<Tree> = (0..50_000).map(tree).collect();
    trees[10_000].segments[1].tokens = vec![70_000; 400_000];
    let store = growing("t", &trees);
    assert!(matches!(store.blob(), Some(Blob::File { .. })));
    check(&store, &trees);
    let reopened = Trees::open("t", clone(store.blob().unwrap()), 0).unwrap();
    check(&reopened, &trees);
}

/// Every change by the rows alone, in blocks and in any order.
#[test]
fn a_changed_row_is_the_same_however_it_is_read() {
    let trees: Trees = (0..10_000).map(tree).collect();
    let changes = [
        Reshaper::Mismatch,
        Reshaper::Control([vec![1], vec![2, 3]]),
        Reshaper::Chosen,
        Reshaper::Hindsight { markers: [vec![4], vec![5, 6]], ends: vec![7] },
    ];
    for change in changes {
        let changed = trees.changed(Arc::new(change.clone())).unwrap();
        let want: Vec<Tree> = (0..trees.len())
            .map(|row| {
                let before = trees.tree((row + trees.len() - 1) % trees.len()).unwrap();
                change.apply(trees.tree(row).unwrap(), Some(&before)).unwrap()
            })
            .collect();
        check(&changed, &want);
    }
}

#[test]
fn bytes_that_are_no_trees_are_an_error() {
    let whole: Trees = (0..2).map(tree).collect();
    let Blob::Memory(bytes) = clone(whole.blob().unwrap()) else { panic!("few bytes") };
    let read = |bytes: Vec<u8>| {
        Trees::open("", Blob::Memory(bytes), 2).and_then(|trees| trees.iter().collect::<Result<Vec<_>>>())
    };
    assert_eq!(read(bytes.clone()).unwrap(), [tree(0), tree(1)]);
    for end in 0..bytes.len() {
        assert!(
            read(bytes[..end].to_vec()).is_ok_and(|trees| trees.len() < 2) || read(bytes[..end].to_vec()).is_err(),
            "{end}"
        );
    }
    // Every byte in turn takes every value: an error or other trees, never a panic.
    for at in 0..bytes.len() {
        for value in 0..=255 {
            let mut bad = bytes.clone();
            bad[at] = value;
            let _ = read(bad);
        }
    }
}
