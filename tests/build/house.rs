//! Who may know whom: the `use` lines of `src/`, against the table of rooms. An arrow that runs up fails, and so does a
//! circle between files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::support::root;

/// What anything may know.
const LEAVES: &str = "cache error escape files forest rng spelling stop units versions";

/// A room, and which rooms it may know besides itself and the leaves.
const ROOMS: [(&str, &str); 16] = [
    ("device", ""),
    ("ops", "device"),
    ("model", "device ops"),
    ("optim", "device ops model"),
    ("data", ""),
    ("loss", "device ops model data"),
    ("roles", "device ops model optim data loss"),
    ("feed", "device model data loss roles"),
    ("config", "device model optim data loss"),
    ("report", "loss"),
    ("eval", "device ops model data loss roles feed config report"),
    ("train", "device ops model optim data loss roles feed config report"),
    ("bench", "device ops model optim data loss roles feed train"),
    ("cli", "device ops model optim data loss roles feed config report eval train bench"),
    ("main", "cli"),
    // The front page names what there is.
    ("lib", "device ops model optim data loss roles feed config report eval train bench cli"),
];

/// Files that call each other, and why.
const CIRCLES: [(&str, &str); 1] =
    [("data/template/jinja", "values call the language's functions, which evaluate expressions, which make values")];

/// A file by its module path, and the module paths that its `use` lines and paths name.
struct File {
    path: PathBuf,
    module: Vec<String>,
    names: BTreeSet<Vec<String>>,
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") => found.push(path),
            false => {}
        }
    }
}

fn module(path: &Path, source: &Path) -> Vec<String> {
    let name = path.strip_prefix(source).unwrap().with_extension("");
    let mut parts: Vec<String> = name.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    parts.pop_if(|last| last == "mod");
    parts
}

/// The paths of a tree such as `a::{b, c::{d, e}}`.
fn expand(tree: &str) -> Vec<String> {
    let Some((before, inside)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inside = inside.trim_end().strip_suffix('}').unwrap_or(inside);
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, letter) in inside.char_indices().chain([(inside.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inside[start..at].trim();
                found.extend(
                    expand(part).into_iter().filter(|part| !part.is_empty()).map(|part| format!("{before}{part}")),
                );
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// A path as written, from the crate's root; `None` if it leads out of the crate.
fn resolve(path: &str, module: &[String]) -> Option<Vec<String>> {
    let parts: Vec<&str> = path.split("::").map(|part| part.split(" as ").next().unwrap().trim()).collect();
    let own = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    match parts[0] {
        "crate" => Some(own(&parts[1..])),
        "self" => Some([module, &own(&parts[1..])].concat()),
        "super" => {
            let up = parts.iter().take_while(|part| **part == "super").count();
            Some([&module[..module.len() - up], &own(&parts[up..])].concat())
        }
        _ => Some([module, &own(&parts)].concat()),
    }
}

fn read(path: &Path, source: &Path) -> File {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: String = text.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect();
    let module = module(path, source);
    let uses = code.split("use ").skip(1).filter_map(|rest| rest.split(';').next());
    let uses = uses.flat_map(|tree| expand(&tree.split_whitespace().collect::<Vec<_>>().join(" ")));
    let inline = code.match_indices("crate::").map(|(at, _)| {
        let rest = &code[at..];
        let end = rest.find(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == ':'));
        rest[..end.unwrap_or(rest.len())].trim_end_matches(':').to_owned()
    });
    let names = uses.chain(inline).filter_map(|path| resolve(&path, &module)).collect();
    File { path: path.to_owned(), module, names }
}

fn house() -> Vec<File> {
    let source = root().join("src");
    let mut found = Vec::new();
    files(&source, &mut found);
    found.iter().map(|path| read(path, &source)).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

/// The arrows that the table has not, as lines.
fn wrong_arrows(house: &[File]) -> Vec<String> {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ROOMS.into_iter().map(|(room, knows)| (room, words(knows).chain(words(LEAVES)).collect())).collect();
    let all: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).chain(words(LEAVES)).collect();
    let mut wrong = Vec::new();
    for File { path, module, names } in house {
        let own = module[0].as_str();
        if !all.contains(own) {
            wrong.push(format!("{}: the room `{own}` is not in the table", path.display()));
        }
        let rooms: BTreeSet<&str> = names.iter().filter_map(|name| name.first()).map(String::as_str).collect();
        for room in rooms {
            let may =
                allowed.get(own).map_or_else(|| words(LEAVES).any(|leaf| leaf == room), |knows| knows.contains(room));
            if all.contains(room) && room != own && !may {
                wrong.push(format!("{}: `{own}` must not know `{room}`", path.display()));
            }
        }
    }
    wrong
}

/// The module that a name is in: the longest that is a file.
fn target(name: &[String], modules: &BTreeMap<&[String], usize>) -> Option<usize> {
    (1..=name.len()).rev().find_map(|length| modules.get(&name[..length]).copied())
}

/// Files that reach themselves over others. A folder's facade and what is in the folder are one.
fn circles(house: &[File]) -> Vec<String> {
    let modules: BTreeMap<&[String], usize> = house.iter().enumerate().map(|(i, file)| (&file.module[..], i)).collect();
    let kin = |a: usize, b: usize| {
        let [a, b] = [a, b].map(|file| &house[file].module);
        a.starts_with(b) || b.starts_with(a)
    };
    let excused =
        |file: &File| CIRCLES.iter().any(|(folder, _)| file.path.starts_with(root().join("src").join(folder)));
    let next = |from: usize| -> BTreeSet<usize> {
        let targets = house[from].names.iter().filter_map(|name| target(name, &modules));
        targets.filter(|&to| to != from && !kin(from, to)).collect()
    };
    let arrows: Vec<BTreeSet<usize>> = (0..house.len()).map(next).collect();
    let reaches_itself = |start: &usize| {
        let (mut seen, mut open) = (BTreeSet::new(), arrows[*start].iter().copied().collect::<Vec<_>>());
        while let Some(file) = open.pop() {
            if seen.insert(file) {
                open.extend(&arrows[file]);
            }
        }
        seen.contains(start)
    };
    let found = (0..house.len()).filter(|&file| !excused(&house[file])).filter(reaches_itself);
    found.map(|file| format!("{}: knows a file that knows it", house[file].path.display())).collect()
}

#[test]
fn no_arrow_runs_up() {
    let wrong = wrong_arrows(&house());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_know_each_other() {
    let wrong = circles(&house());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The tests above see what they are for: an arrow turned round, written in any way, and a circle.
#[test]
fn a_turned_arrow_is_seen() {
    let file = |path: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        read(&path, folder.path())
    };
    for text in [
        "use crate::train::Options;",
        "use crate::{\n    device::Device,\n    train::{self, Options},\n};",
        "fn f() -> crate::train::Options {}",
        "pub use super::super::train::Options;",
    ] {
        let wrong = wrong_arrows(&[file("ops/gemm.rs", text)]);
        assert_eq!(wrong.len(), 1, "{text}: {wrong:?}");
        assert!(wrong[0].contains("`ops` must not know `train`"), "{wrong:?}");
    }
    assert!(wrong_arrows(&[file("train/a.rs", "use crate::ops::gemm;\nuse std::fs;\n")]).is_empty());
    let pair = [file("data/a.rs", "use super::b::B;"), file("data/b.rs", "use super::a;")];
    assert_eq!(circles(&pair).len(), 2);
    assert!(circles(&pair[..1]).is_empty());
}
