//! The tables of kernels/README.md are written from the sources.

use std::{env, fmt::Write as _, fs, path::Path, sync::PoisonError};

use super::signatures::{Entry, Module, Param, Type, read_folder};

const BEGIN: &str = "<!-- written by UPDATE_CATALOGUE=1 cargo test --release -- build::catalogue -->\n";
const END: &str = "<!-- end -->\n";

#[test]
fn the_catalogue_is_up_to_date() {
    let _alone = super::README.lock().unwrap_or_else(PoisonError::into_inner);
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let modules = read_folder(&kernels).unwrap();
    let path = kernels.join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once(BEGIN).expect("kernels/README.md has no beginning of the catalogue");
    let (old, tail) = rest.split_once(END).expect("kernels/README.md has no end of the catalogue");
    let tables: String = modules.iter().map(|module| table(module, &kernels)).collect();
    if env::var_os("UPDATE_CATALOGUE").is_some() {
        fs::write(&path, format!("{head}{BEGIN}{tables}{END}{tail}")).unwrap();
    } else {
        let differs = tables.lines().zip(old.lines()).find(|(new, old)| new != old);
        assert!(tables == old, "kernels/README.md differs from the sources: {differs:?}; write it by {BEGIN}");
    }
}

/// README.md's table of kernels names every file, with its number of entry points, and no other.
#[test]
fn the_readme_names_every_kernel() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, table) = readme.split_once("| kernel | entry points |").expect("README.md has no table of kernels");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let found: Vec<String> = rows.map(|row| row.split('|').take(3).collect::<Vec<_>>().join("|")).collect();
    let modules = read_folder(&root.join("kernels")).unwrap();
    let expected: Vec<String> = modules.iter().map(|m| format!("| `{}` | {} ", m.stem, m.entries.len())).collect();
    assert_eq!(found, expected, "README.md's table of kernels");
}

/// Entry points that differ in element type, head size or tile only.
struct Family<'a> {
    names: Vec<&'a str>,
    first: &'a Entry,
    /// Parameters that are bf16 in some of them and f32 in others.
    generic: Vec<&'a str>,
}

fn table(module: &Module, kernels: &Path) -> String {
    let source = fs::read_to_string(kernels.join(format!("{}.cu", module.stem))).unwrap() + &library(kernels);
    let mut text = format!("\n### {}\n\n", module.stem);
    text += "| entry points | threads | writes | reads | scalars |\n| --- | --- | --- | --- | --- |\n";
    for family in families(module) {
        let list = |wanted: &dyn Fn(&Param) -> bool| -> String {
            let params = family.first.params.iter().filter(|p| wanted(p));
            params.map(|p| describe(p, &family)).collect::<Vec<_>>().join("<br>")
        };
        let scalar = |p: &&Param| !is_memory(p);
        let scalars = || -> String {
            let names = family.first.params.iter().filter(scalar).map(|p| p.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let names: Vec<String> = family.names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            names.join("<br>"),
            resolve(&family.first.bounds, &source),
            list(&is_written),
            list(&|p| is_memory(p) && !is_written(p)),
            scalars()
        );
    }
    text
}

/// The files of `lib/`, one after the other.
fn library(kernels: &Path) -> String {
    let mut files: Vec<_> = fs::read_dir(kernels.join("lib")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

fn is_memory(param: &Param) -> bool {
    param.pointer || param.ty == Type::TensorMap
}

/// A tensor map does not tell which way it is used; its comment does.
fn is_written(param: &Param) -> bool {
    if param.ty == Type::TensorMap { param.comment.contains("written") } else { param.pointer && !param.constant }
}

fn families(module: &Module) -> Vec<Family<'_>> {
    let mut families: Vec<Family> = Vec::new();
    for entry in &module.entries {
        let same = |family: &&mut Family| shape(family.first) == shape(entry);
        match families.iter_mut().find(same) {
            Some(family) => {
                family.names.push(&entry.name);
                let differing = family.first.params.iter().zip(&entry.params).filter(|(a, b)| a.ty != b.ty);
                family.generic.extend(differing.map(|(a, _)| a.name.as_str()));
            }
            None => families.push(Family { names: vec![&entry.name], first: entry, generic: Vec::new() }),
        }
    }
    families
}

/// What the members of a family have in common.
#[derive(PartialEq)]
struct Shape<'a> {
    name: String,
    bounds: &'a str,
    /// Name, pointer or not, constant or not, comment.
    params: Vec<(&'a str, bool, bool, String)>,
}

fn shape(entry: &Entry) -> Shape<'_> {
    let params = entry.params.iter().map(|p| (p.name.as_str(), p.pointer, p.constant, comment(p, entry))).collect();
    let name = entry.name.replace("_bf16", "").replace("_f32", "");
    let name = match head_dim(&entry.name) {
        Some(head_dim) => name.replace(&format!("_hd{head_dim}"), ""),
        None => name,
    };
    let name = tile(&entry.name).map_or(name.clone(), |tile| name.replace(&format!("_{tile}"), ""));
    Shape { name, bounds: &entry.bounds, params }
}

/// The sides in `_128x256`.
fn tile(name: &str) -> Option<&str> {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    name.split('_').find(|part| part.split_once('x').is_some_and(|(m, n)| is_number(m) && is_number(n)))
}

/// The number in `_hd64`.
fn head_dim(name: &str) -> Option<&str> {
    name.split('_').find_map(|part| part.strip_prefix("hd").filter(|n| n.parse::<u32>().is_ok()))
}

fn comment(param: &Param, entry: &Entry) -> String {
    match head_dim(&entry.name) {
        // Tiles of 64 keys are counted as ceil(tokens / 64): no head size.
        Some(head_dim) => {
            let of_rows = param.comment.replace(&format!(", {head_dim})"), ", head_dim)");
            of_rows.replace(&format!(" * {head_dim})"), " * head_dim)")
        }
        None => param.comment.clone(),
    }
}

fn describe(param: &Param, family: &Family) -> String {
    let ty = if family.generic.contains(&param.name.as_str()) { "T" } else { param.ty.cuda() };
    let shape = comment(param, family.first).replace('|', "\\|");
    format!("{ty} `{}` {shape}", param.name).trim().into()
}

/// `__launch_bounds__` with the constants of the file and of `lib/` put in.
fn resolve(bounds: &str, source: &str) -> String {
    let threads = bounds.split(',').next().unwrap_or("").trim();
    let constant = format!("constexpr int {threads} = ");
    let value = source.split(&constant).nth(1).and_then(|rest| rest.split(';').next());
    value.filter(|_| !threads.is_empty()).unwrap_or(threads).into()
}
