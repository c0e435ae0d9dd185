//! docs/configuration.md is written from the types: the comment of a field is its text.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path};

use syn::{Attribute, Fields, Item, ItemEnum, ItemStruct, Type};

use super::{
    Config,
    names::{FAMILIES, NAMES, WITHOUT_TRL},
};

/// Above it the page is written by hand.
const LINE: &str = "\n---\n\n";
/// Files whose types the configuration is made of.
const SOURCES: [&str; 7] = [
    "src/config.rs",
    "src/config/optim.rs",
    "src/data/loader.rs",
    "src/data/long.rs",
    "src/data/mod.rs",
    "src/optim/moments.rs",
    "src/optim/schedule.rs",
];
/// What a value is, by its type. An enum lists its values, a struct of SOURCES is a table with keys of its own.
const KINDS: [(&str, &str); 11] = [
    ("PathBuf", "a path"),
    ("String", "a text"),
    ("usize", "a whole number"),
    ("u32", "a whole number"),
    ("u64", "a whole number"),
    ("f32", "a number"),
    ("f64", "a number"),
    ("bool", "true or false"),
    ("Files", "a path, or a list of paths and tables"),
    ("Table", "a table"),
    ("Columns", "a table"),
];
/// Further kinds that are written as text.
const TEXTS: [&str; 3] = ["BestMetric", "Date", "Recompute"];
/// What else an example needs.
const NEEDS: [(&str, &str); 5] = [
    ("model.older_reference", "loss.name = \"apo_accelerated\"\n"),
    ("optim.alpha", "optim.name = \"rmsprop\"\n"),
    ("optim.decay_ratio", "optim.schedule = \"warmup_stable_decay\"\n"),
    ("train.early_stop", "data.eval = \"eval.jsonl\"\ntrain.eval_every = 50\n"),
    ("train.save_best", "data.eval = \"eval.jsonl\"\ntrain.eval_every = 50\n"),
];

/// The types of the configuration, by name.
#[derive(Default)]
struct Types {
    structs: BTreeMap<String, ItemStruct>,
    enums: BTreeMap<String, ItemEnum>,
}

impl Types {
    fn add(&mut self, text: &str) {
        for item in syn::parse_file(text).expect("Rust").items {
            match item {
                Item::Struct(item) => drop(self.structs.insert(item.ident.to_string(), item)),
                Item::Enum(item) => drop(self.enums.insert(item.ident.to_string(), item)),
                _ => {}
            }
        }
    }

    /// Those of this crate.
    fn read() -> Self {
        let mut types = Self::default();
        SOURCES.iter().for_each(|name| types.add(&fs::read_to_string(root().join(name)).unwrap()));
        types
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A doc comment in one line a paragraph.
fn docs(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        let syn::Meta::NameValue(pair) = &attribute.meta else { continue };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(line), .. }) = &pair.value else { continue };
        text += line.value().trim();
        text += " ";
    }
    text.trim().to_owned()
}

/// The text behind `name = ` in a serde attribute.
fn serde(attributes: &[Attribute], name: &str) -> Option<String> {
    let mut found = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            let is_wanted = meta.path.is_ident(name);
            if let Ok(value) = meta.value().and_then(|value| value.parse::<syn::LitStr>())
                && is_wanted
            {
                found = Some(value.value());
            }
            Ok(())
        });
    }
    found
}

/// The name of a type, and whether it is in an `Option`.
fn type_name(of: &Type) -> (String, bool) {
    let Type::Path(path) = of else { panic!("a field has a type without a name") };
    let last = path.path.segments.last().unwrap();
    match &last.arguments {
        syn::PathArguments::AngleBracketed(inner) if last.ident == "Option" => {
            let Some(syn::GenericArgument::Type(inner)) = inner.args.first() else { panic!("Option of what?") };
            (type_name(inner).0, true)
        }
        _ => (last.ident.to_string(), false),
    }
}

/// `KeepEnd` as serde writes it.
fn renamed(name: &str, rule: Option<&str>) -> String {
    let snake = || {
        let parts = name.char_indices().map(|(at, c)| match c.is_uppercase() && at > 0 {
            true => format!("_{}", c.to_lowercase()),
            false => c.to_lowercase().to_string(),
        });
        parts.collect()
    };
    match rule {
        Some("lowercase") => name.to_lowercase(),
        Some("snake_case") => snake(),
        None => name.to_owned(),
        Some(rule) => panic!("{rule}: teach the page this rule of serde"),
    }
}

/// A key of the configuration, as its types tell of it.
struct Entry {
    key: String,
    text: String,
    example: String,
    kind: String,
    values: Vec<(String, String)>,
    default: String,
}

/// What there is against the types: a line each.
type Faults = Vec<String>;

fn entries(types: &Types, defaults: &toml::Table, section: &str, of: &ItemStruct, faults: &mut Faults) -> Vec<Entry> {
    let Fields::Named(fields) = &of.fields else { return Vec::new() };
    let mut found = Vec::new();
    for field in &fields.named {
        let name = field.ident.as_ref().unwrap().to_string();
        let (kind, optional) = type_name(&field.ty);
        let key = format!("{section}.{name}");
        match types.structs.get(&kind).filter(|_| !KINDS.iter().any(|(known, _)| *known == kind)) {
            Some(inner) => found.extend(entries(types, defaults, &key, inner, faults)),
            None => found.push(entry(types, defaults, key, &docs(&field.attrs), &kind, optional, faults)),
        }
    }
    found
}

fn entry(
    types: &Types,
    defaults: &toml::Table,
    key: String,
    text: &str,
    kind: &str,
    optional: bool,
    faults: &mut Faults,
) -> Entry {
    let (text, example) = match text.split_once(" Example: `") {
        Some((text, example)) => (text.to_owned(), example.trim_end_matches("`.").to_owned()),
        None => (text.to_owned(), String::new()),
    };
    let default = key.split('.').try_fold(&toml::Value::Table(defaults.clone()), |at, part| at.get(part)).cloned();
    let default = match default {
        Some(toml::Value::String(text)) if text.is_empty() => "required".to_owned(),
        Some(toml::Value::Array(list)) if list.is_empty() => "required".to_owned(),
        Some(value) => format!("`{value}` if not given"),
        None if optional || kind.ends_with("Table") || kind == "Columns" => "nothing if not given".to_owned(),
        None => String::new(),
    };
    let (kind, values) = kind_of(types, kind);
    let entry = Entry { key, text, example, kind, values, default };
    faults.extend(against(&entry));
    entry
}

/// What a value is, and an enum's values with their texts.
fn kind_of(types: &Types, name: &str) -> (String, Vec<(String, String)>) {
    if let Some(of) = types.enums.get(name) {
        let rule = serde(&of.attrs, "rename_all");
        let value = |variant: &syn::Variant| {
            let own =
                serde(&variant.attrs, "rename").unwrap_or_else(|| renamed(&variant.ident.to_string(), rule.as_deref()));
            (own, docs(&variant.attrs))
        };
        return ("one of the values below".to_owned(), of.variants.iter().map(value).collect());
    }
    let known = KINDS.iter().find(|(known, _)| *known == name).map(|(_, words)| *words);
    let text = TEXTS.contains(&name).then_some("a text");
    (known.or(text).unwrap_or_default().to_owned(), Vec::new())
}

/// What an entry lacks.
fn against(entry: &Entry) -> Faults {
    let Entry { key, text, example, kind, values, default } = entry;
    let mut faults = Vec::new();
    let mut fault = |lacks: bool, why: &str| {
        if lacks {
            faults.push(format!("{key}: {why}"))
        }
    };
    fault(text.is_empty(), "the field has no doc comment");
    fault(example.is_empty(), "the doc comment does not end in \"Example: `name = value`.\"");
    fault(default.is_empty(), "there is no default: the defaults do not write it and it is no Option");
    fault(kind.is_empty(), "its type is not known: add it to KINDS, or its file to SOURCES");
    fault(kind.ends_with("number") && !text.contains(|c: char| c.is_ascii_digit()), "the comment gives no range");
    fault(values.iter().any(|(_, text)| text.is_empty()), "one of its values has no doc comment");
    let (in_trl, without) = (!trl(key).is_empty(), WITHOUT_TRL.contains(&key.as_str()));
    fault(in_trl == without, "give TRL's name in NAMES, or write the key into WITHOUT_TRL (src/config/names.rs)");
    faults
}

/// TRL's names of a key.
fn trl(key: &str) -> Vec<&'static str> {
    let of = NAMES.iter().filter(|name| name.tools.contains('T') && name.key == Some(key));
    of.map(|name| name.name).collect()
}

fn render(entry: &Entry) -> String {
    let Entry { key, text, example, kind, values, default } = entry;
    let mut page = format!("### `{key}`\n\n{text}\n\n");
    for (value, text) in values {
        let _ = writeln!(page, "* `\"{value}\"`: {text}");
    }
    if !values.is_empty() {
        page.push('\n');
    }
    let trl: Vec<String> = trl(key).iter().map(|name| format!("`{name}`")).collect();
    let trl = if trl.is_empty() { "none".to_owned() } else { trl.join(", ") };
    let _ = writeln!(page, "{kind}; {default}. TRL: {trl}. Example: `{example}`\n");
    page
}

/// Every section's entries: name, comment, keys.
fn sections(types: &Types, faults: &mut Faults) -> Vec<(String, String, Vec<Entry>)> {
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    let Fields::Named(fields) = &types.structs["Config"].fields else { panic!("Config has no fields") };
    let section = |field: &syn::Field| {
        let (name, of) = (field.ident.as_ref().unwrap().to_string(), &types.structs[&type_name(&field.ty).0]);
        let entries = entries(types, &defaults, &name, of, faults);
        (name, docs(&of.attrs), entries)
    };
    fields.named.iter().map(section).collect()
}

/// The names of the other tools.
fn foreign() -> String {
    let mut page = "## Names of other tools\n\n| name | of | here | |\n| --- | --- | --- | --- |\n".to_owned();
    for name in NAMES {
        let key = name.key.map_or("none".to_owned(), |key| format!("`{key}`"));
        let owners = name.owners().replace("'s", "").replace(" and ", ", ");
        let _ = writeln!(page, "| `{}` | {owners} | {key} | {} |", name.name, name.words);
    }
    for (start, words) in FAMILIES {
        let _ = writeln!(page, "| `{start}...` | | none | {words} |");
    }
    page
}

#[test]
fn the_page_is_up_to_date() {
    let path = root().join("docs/configuration.md");
    let Ok(text) = fs::read_to_string(&path) else {
        println!("skipped: {} is not part of a bundle", path.display());
        return;
    };
    let (head, old) = text.split_once(LINE).expect("docs/configuration.md has no line");
    let mut faults = Vec::new();
    let mut new = String::new();
    for (_, text, entries) in sections(&Types::read(), &mut faults) {
        let (title, rest) = text.split_once(": ").expect("a section's comment begins with its name");
        let _ = writeln!(new, "## {title}\n\n{}{}\n", rest[..1].to_uppercase(), &rest[1..]);
        entries.iter().for_each(|entry| new += &render(entry));
    }
    new += &foreign();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{head}{LINE}{new}")).unwrap();
    } else {
        assert!(
            old == new,
            "docs/configuration.md differs from the types: UPDATE_DOCS=1 cargo test --release --lib config"
        );
    }
}

/// An example is accepted, and the page's whole file as well.
#[test]
fn the_examples_are_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let load = |name: &str, text: &str| {
        fs::write(&file, text).unwrap();
        Config::load(&file, &[]).unwrap_or_else(|why| panic!("{name}: {why}\n{text}"));
    };
    for (section, _, entries) in sections(&Types::read(), &mut Vec::new()) {
        for Entry { key, example, .. } in entries {
            let place = key.rsplit_once('.').unwrap().0;
            let needed = |have: &str, line: &'static str| if key == have { "" } else { line };
            let needs = NEEDS.iter().find(|(of, _)| *of == key).map_or("", |(_, needs)| *needs);
            let model = needed("model.path", "model.path = \"m\"\n");
            let train = needed("data.train", "data.train = \"t\"\n");
            load(&section, &format!("{model}{train}{needs}{place}.{example}\n"));
        }
    }
    if let Ok(page) = fs::read_to_string(root().join("docs/configuration.md")) {
        let whole = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        load("the whole file", whole);
    }
}

/// A key of every kind of fault: made up, and told of.
#[test]
fn a_key_that_lacks_something_is_told_of() {
    let mut types = Types::default();
    types.add(
        "struct Made {
            pub bare: bool,
            /// Peak rate. Example: `rate = 1`.
            pub rate: f64,
            /// A word. Example: `word = 1`.
            pub word: Option<Unheard>,
        }",
    );
    let mut faults = Vec::new();
    entries(&types, &toml::Table::new(), "made", &types.structs["Made"], &mut faults);
    let expected = [
        "made.bare: the field has no doc comment",
        "made.bare: the doc comment does not end",
        "made.bare: there is no default",
        "made.bare: give TRL's name",
        "made.rate: there is no default",
        "made.rate: the comment gives no range",
        "made.rate: give TRL's name",
        "made.word: its type is not known",
        "made.word: give TRL's name",
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:?}");
    assert!(faults.iter().zip(expected).all(|(fault, start)| fault.starts_with(start)), "{faults:?}");
}

/// A name stands once, and what it is here exists.
#[test]
fn the_table_of_names_is_sound() {
    let keys: Vec<String> =
        sections(&Types::read(), &mut Vec::new()).into_iter().flat_map(|(.., found)| found).map(|e| e.key).collect();
    for (at, name) in NAMES.iter().enumerate() {
        assert!(NAMES[..at].iter().all(|other| other.name != name.name), "{}: twice", name.name);
        assert!(name.key.is_some() || !name.words.is_empty(), "{}: neither key nor words", name.name);
        let is_there = |key: &str| key.starts_with("loss.") || keys.iter().any(|known| known == key);
        assert!(name.key.is_none_or(is_there), "{}: there is no {:?}", name.name, name.key);
    }
    let stale = WITHOUT_TRL.iter().find(|key| !keys.iter().any(|known| known == *key));
    assert_eq!(stale, None, "WITHOUT_TRL");
}
