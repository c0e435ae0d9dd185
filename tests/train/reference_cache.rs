//! Log-probabilities of the reference, kept from run to run: what is computed again, and what never is.

use std::{fs, path::PathBuf, thread};

use tempfile::TempDir;
use warpo::device::DType;
use warpo::{
    data::trees::Trees,
    forest::Tree,
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    roles::reference::{
        ReferencePass, ValueFile,
        cache::{ReferenceCache, row_key},
        compute, data_key,
    },
};

use super::fixture::Fixture;
use crate::support::fast_device;

const BUDGET: usize = 64;

struct Setting {
    fixture: Fixture,
    cache: TempDir,
}

impl Setting {
    fn new() -> Self {
        Self { fixture: Fixture::new(), cache: tempfile::tempdir().unwrap() }
    }

    fn model(&self, seed: u64) -> Model<f32> {
        let shape = ModelConfig::load(&self.fixture.path("model")).unwrap();
        let capacity = Capacity { tokens: BUDGET, rows: BUDGET, head_chunk_rows: 16 };
        let model =
            Model::new(&fast_device(1), &shape, MemoryPlan::new(&shape, DType::F32, capacity).unwrap()).unwrap();
        model.randomize(seed).unwrap();
        model
    }

    fn pass<'a>(&self, model: &'a Model<f32>, rows: &'a Rows) -> ReferencePass<'a, f32> {
        ReferencePass::new(model, BUDGET, Some(self.cache.path()), [&rows.train, &rows.eval], &rows.file).unwrap()
    }

    /// Runs to the end; the values and how many rows had to be computed.
    fn values(&self, model: &Model<f32>, trees: &[Tree]) -> (Vec<Vec<f32>>, usize) {
        let rows = Rows::new(trees);
        let mut pass = self.pass(model, &rows);
        let missing = pass.missing();
        pass.run(|_| true).unwrap().unwrap();
        assert!(pass.warnings.is_empty(), "{:?}", pass.warnings);
        (rows.values(), missing)
    }

    fn pieces(&self, model: &Model<f32>) -> Vec<PathBuf> {
        let folder = ReferenceCache::new(self.cache.path(), model).unwrap().folder().to_path_buf();
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// What a pass is over, and where its values go.
struct Rows {
    train: Trees,
    eval: Trees,
    file: ValueFile,
}

impl Rows {
    fn new(trees: &[Tree]) -> Self {
        let (train, eval): (Trees, Trees) = (trees.iter().cloned().collect(), Trees::default());
        let file = ValueFile::nameless([&train, &eval]).unwrap();
        Self { train, eval, file }
    }

    fn values(&self) -> Vec<Vec<f32>> {
        let [values, _] = self.file.values().unwrap();
        (0..self.train.len()).map(|row| values.row(row).unwrap()).collect()
    }
}

fn trees(count: u32) -> Vec<Tree> {
    let tree = |i: u32| Tree::pair(format!("t:{i}"), vec![i + 1, 7, 9], vec![20, i + 2, 3], vec![40, 41]);
    (0..count).map(tree).collect()
}

#[test]
fn a_second_pass_computes_nothing_and_has_the_same_bits() {
    let setting = Setting::new();
    let (model, trees) = (setting.model(1), trees(12));
    let (cold, computed) = setting.values(&model, &trees);
    assert_eq!(computed, 12);
    let alone = compute(&model, &trees.iter().cloned().collect(), BUDGET).unwrap();
    assert_eq!(cold, (0..trees.len()).map(|row| alone.row(row).unwrap()).collect::<Vec<_>>());
    assert!(setting.pass(&model, &Rows::new(&trees)).describe().unwrap().ends_with("all 12 rows are in the cache"));
    assert_eq!(setting.values(&model, &trees), (cold, 0));
}

#[test]
fn other_data_computes_new_rows_only() {
    let setting = Setting::new();
    let model = setting.model(1);
    setting.values(&model, &trees(12));
    let more = trees(15);
    assert_eq!(setting.values(&model, &more).1, 3);
    // Known rows in another order, one of them twice, and a new one twice.
    let mut shuffled = vec![more[3].clone(), more[0].clone(), more[3].clone()];
    shuffled.extend([trees(16)[15].clone(), trees(16)[15].clone()]);
    let (values, computed) = setting.values(&model, &shuffled);
    assert_eq!(computed, 1);
    assert_eq!(values[0], values[2]);
    assert_eq!(values[3], values[4]);
}

#[test]
fn a_stale_reference_cache_is_not_used_when_the_weights_change() {
    let setting = Setting::new();
    let trees = trees(12);
    let (first, _) = setting.values(&setting.model(1), &trees);
    let (second, computed) = setting.values(&setting.model(2), &trees);
    assert_eq!(computed, 12);
    assert_ne!(first, second);
    assert_eq!(setting.values(&setting.model(1), &trees), (first, 0));
}

#[test]
fn tree_and_mask_are_part_of_a_row() {
    let plain = trees(1).remove(0);
    let changes: [fn(&mut Tree); 5] = [
        |tree| tree.segments[2].parent = Some(1),
        |tree| tree.segments[1].scored = false,
        |tree| tree.segments[1].unscored.push(0..1),
        |tree| tree.segments[1].tokens[0] = 21,
        |tree| {
            // The same tokens in a row, cut elsewhere.
            let moved = tree.segments[1].tokens.remove(0);
            tree.segments[0].tokens.push(moved);
        },
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut other = plain.clone();
        change(&mut other);
        assert_ne!(row_key(&other), row_key(&plain), "change {i}");
        let key = |tree: &Tree| {
            let rows = [tree.clone()].into_iter().collect();
            data_key([&rows, &Trees::default()], |_| {}).unwrap()
        };
        assert_ne!(key(&other), key(&plain), "change {i}");
    }
    let mut renamed = plain.clone();
    (renamed.name, renamed.scores) = ("elsewhere:9".into(), vec![1.0, 2.0]);
    assert_eq!(row_key(&renamed), row_key(&plain));
}

#[test]
fn a_damaged_piece_is_named_and_made_again() {
    let setting = Setting::new();
    let (model, trees) = (setting.model(1), trees(12));
    let (want, _) = setting.values(&model, &trees);
    let [piece] = &setting.pieces(&model)[..] else { panic!("one piece is written at the end") };
    let mut bytes = fs::read(piece).unwrap();
    bytes[40] ^= 1;
    fs::write(piece, bytes).unwrap();
    let rows = Rows::new(&trees);
    let mut pass = setting.pass(&model, &rows);
    assert_eq!(pass.missing(), 12);
    assert_eq!(pass.warnings, [format!("{} was damaged: its rows are computed again", piece.display())]);
    pass.run(|_| true).unwrap().unwrap();
    assert_eq!(rows.values(), want);
    assert_eq!(setting.values(&model, &trees), (want, 0));
}

#[test]
fn an_interrupted_or_killed_pass_loses_nothing_that_was_kept() {
    let setting = Setting::new();
    let (model, trees) = (setting.model(1), trees(20));
    let mut done = 0;
    let stopped = setting.pass(&model, &Rows::new(&trees)).run(|count| {
        done = count.examples;
        false
    });
    assert!(stopped.unwrap().is_none());
    assert!(0 < done && done < 20, "{done} rows in the first pack");
    // What a killed writer leaves.
    fs::write(setting.pieces(&model)[0].with_file_name("1-0.part"), b"half a pie").unwrap();
    let (values, computed) = setting.values(&model, &trees);
    assert_eq!(computed, 20 - done);
    assert_eq!(setting.values(&model, &trees), (values, 0));
}

#[test]
fn writers_at_the_same_time_do_not_disturb_each_other() {
    let setting = Setting::new();
    let trees = trees(20);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|i| {
                let (setting, trees) = (&setting, &trees);
                // Each has rows of its own and rows that others have too.
                scope.spawn(move || setting.values(&setting.model(1), &trees[2 * i..2 * i + 12]))
            })
            .collect();
        writers.into_iter().for_each(|writer| drop(writer.join().unwrap()));
    });
    let (values, computed) = setting.values(&setting.model(1), &trees[..18]);
    assert_eq!(computed, 0);
    assert_eq!(setting.values(&setting.model(1), &trees[..18]), (values, 0));
}

#[test]
fn a_run_with_a_full_cache_has_the_bits_of_the_run_that_filled_it() {
    let fixture = Fixture::new();
    fixture.run("cold", &[]).unwrap();
    let output = fixture.execute("warm", &["--set", "loss.beta=0.1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("reference: all 27 rows are in the cache"), "{text}");
    fixture.assert_same_run("cold", "warm");
    let output = fixture.execute("off", &["--set", "cache.dir=off"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("reference: 27 rows to compute, "), "{text}");
    fixture.assert_same_run("cold", "off");
    let output = fixture.execute("other", &["--set", "train.seed=4"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("reference: 0 of 27 rows are in the cache; 27 rows to compute, "), "{text}");
}

#[test]
fn a_cache_that_cannot_be_written_costs_a_warning() {
    let fixture = Fixture::new();
    fs::write(fixture.path("cache"), b"a file where the folder should be").unwrap();
    let output = fixture.execute("run", &["--set", "train.steps=1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.lines().any(|line| line.starts_with("cache: ") && line.contains("log-prob")), "{text}");
}
