//! docs/losses.md is written from the code.

use std::{env, fs};

use warpo::loss::{all, find, page};

use crate::support::root;

const LINE: &str = "\n---\n\n";

#[test]
fn the_page_is_up_to_date() {
    let path = root().join("docs/losses.md");
    let Ok(text) = fs::read_to_string(&path) else {
        println!("skipped: {} is not part of a bundle", path.display());
        return;
    };
    let (head, old) = text.split_once(LINE).expect("docs/losses.md has no line");
    let new = page::page();
    if env::var_os("UPDATE_CATALOGUE").is_some() {
        fs::write(&path, format!("{head}{LINE}{new}")).unwrap();
    } else {
        assert!(
            old == new,
            "docs/losses.md differs from the code: write it by UPDATE_CATALOGUE=1 cargo test --release -- page"
        );
    }
}

/// Every entry says what it must, and no two losses share a name.
#[test]
fn every_loss_says_what_it_is() {
    let mut names: Vec<&str> = Vec::new();
    for loss in all() {
        for (what, text) in [("formula", loss.formula), ("gradient", loss.gradient), ("source", loss.source)] {
            assert!(!text.is_empty(), "{}: no {what}", loss.name);
        }
        let source = loss.source;
        let known = ["arXiv", "reconstructed", "Mitchell", "negative log-likelihood", "control-token SFT"];
        assert!(known.iter().any(|word| source.contains(word)), "{}: {source}", loss.name);
        names.extend(loss.aliases.iter().chain([&loss.name]));
        assert_eq!(find(loss.name).unwrap().name, loss.name);
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two losses share a name");
}
