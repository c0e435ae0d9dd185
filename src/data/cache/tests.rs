use std::cell::Cell;

use super::*;
use crate::{data::trees::Growing, forest::Tree};

/// Bytes of several blocks, of records and of what is copied.
const TREES: u32 = 30_000;

fn tree(name: &str, seed: u32) -> Tree {
    let mut tree = Tree::pair(name, vec![seed, 1, 300, 49_151], vec![2, u32::MAX, 5], vec![7]);
    tree.segments[1].unscored = vec![0..1, 2..3];
    if seed.is_multiple_of(2) {
        (tree.scores, tree.labels) = (vec![0.5, -1e300], vec![true, false]);
    }
    tree
}

/// A data file, a model folder and a cache, with trees of more than one block.
struct Case {
    folder: tempfile::TempDir,
    encoded: Cell<usize>,
    kind: Cell<&'static str>,
}

impl Case {
    fn new() -> Self {
        let case = Self { folder: tempfile::tempdir().unwrap(), encoded: Cell::new(0), kind: Cell::new("lines") };
        fs::create_dir(case.path("model")).unwrap();
        fs::write(case.path("model/tokenizer.json"), "tokenizer").unwrap();
        fs::write(case.path("a.jsonl"), "rows").unwrap();
        fs::write(case.path("b.jsonl"), "rows").unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self, file: &str) -> Dataset {
        let name = self.path(file).display().to_string();
        let mut trees = Growing::new(&name);
        (0..TREES).for_each(|seed| trees.push(&tree(&format!("{name}:{seed}"), seed)).unwrap());
        let mut data = Dataset { trees: trees.finish().unwrap(), ..Dataset::default() };
        data.report =
            crate::data::Report { prompts_cut: 1, responses_cut: 200, rows_dropped: 3, documents_cut: 4, blocks: 9 };
        data.skipped.extend([format!("{name}:7: nothing to learn"), "elsewhere".into()]);
        data
    }

    fn load(&self, file: &str, options: &str) -> (Dataset, Origin) {
        let cache = TokenCache::new(&self.path("cache"), &self.path("model"), options).unwrap();
        let encode = || {
            self.encoded.set(self.encoded.get() + 1);
            Ok(self.data(file))
        };
        cache.load(&self.path(file), self.kind.get(), encode).unwrap()
    }

    /// Asserts that `file` comes out as it should, and whether it came from the cache.
    fn expect(&self, file: &str, options: &str, from_cache: bool) -> Option<String> {
        let before = self.encoded.get();
        let (data, origin) = self.load(file, options);
        let want = self.data(file);
        assert!(data.skipped == want.skipped && data.report == want.report);
        assert!(data.trees.len() == want.trees.len() && data.trees.tokens() == want.trees.tokens());
        for at in [0, 1, TREES as usize / 2, TREES as usize - 1] {
            assert_eq!(data.trees.tree(at).unwrap(), want.trees.tree(at).unwrap());
        }
        assert_eq!((origin == Origin::Cache, self.encoded.get() == before), (from_cache, from_cache));
        match origin {
            Origin::Cache => None,
            Origin::Encoded { warning, .. } => warning,
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path("cache/tokens")).unwrap();
        files.map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn a_file_is_found_by_its_content_and_options_under_any_name() {
    let case = Case::new();
    assert_eq!(case.expect("a.jsonl", "1", false), None);
    assert_eq!(case.files().len(), 1);
    case.expect("a.jsonl", "1", true);
    case.expect("b.jsonl", "1", true);
    assert_eq!(case.expect("a.jsonl", "2", false), None);
    case.expect("a.jsonl", "1", true);
    // The same bytes are other rows as a table or an array.
    case.kind.set("array");
    assert_eq!(case.expect("a.jsonl", "1", false), None);
    case.kind.set("lines");
    case.expect("a.jsonl", "1", true);
    fs::write(case.path("b.jsonl"), "rowz").unwrap();
    assert_eq!(case.expect("b.jsonl", "1", false), None);
    for name in MODEL_FILES {
        fs::write(case.path("model").join(name), "another").unwrap();
        assert_eq!(case.expect("a.jsonl", "1", false), None, "{name}");
        case.expect("a.jsonl", "1", true);
    }
}

#[test]
fn damage_anywhere_is_noticed_and_repaired() {
    let case = Case::new();
    case.expect("a.jsonl", "1", false);
    let mut damaged = 0;
    for path in case.files() {
        let whole = fs::read(&path).unwrap();
        let last = whole.len() - 1;
        // Trees, index, where it begins, checksum.
        for at in [0, 1, last / 3, last / 2, last - 60, last - 39, last - 32, last - 31, last] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            for bad in [bytes, whole[..at].to_vec()] {
                fs::write(&path, bad).unwrap();
                let warning = case.expect("a.jsonl", "1", false).unwrap();
                assert!(warning.contains("was damaged") && warning.contains("tokenised again"), "{warning}");
                assert!(fs::read(&path).unwrap() == whole, "repaired");
                damaged += 1;
            }
        }
        fs::remove_file(&path).unwrap();
        case.expect("a.jsonl", "1", false);
        case.expect("a.jsonl", "1", true);
    }
    assert_eq!(damaged, 18);
}

#[test]
fn a_cache_that_cannot_be_written_costs_a_warning() {
    let case = Case::new();
    fs::write(case.path("cache"), "a file where the folder should be").unwrap();
    let warning = case.expect("a.jsonl", "1", false).unwrap();
    assert!(warning.contains("are not kept"), "{warning}");
    assert!(!warning.contains('\n'));
}

#[test]
fn the_key_names_the_versions_of_what_makes_tokens() {
    let found = crates(include_str!("../../../Cargo.lock"));
    assert_eq!(found.lines().count(), CRATES.len(), "{found}");
    for name in CRATES {
        assert!(found.contains(&format!("{name} version = \"")), "{found}");
    }
    assert_ne!(crates("name = \"tokenizers\"\nversion = \"1\"\n"), crates("name = \"tokenizers\"\nversion = \"2\"\n"));
}
