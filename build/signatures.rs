//! Reads the `extern "C" __global__` entry points of a `.cu` file: the one place where a kernel's arguments are written.

use std::{fs, path::Path};

/// One `.cu` file.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    pub folder: String,
    pub stem: String,
    pub entries: Vec<Entry>,
    pub enums: Vec<Enum>,
}

/// An enumeration that host code names as well: tables of functions, places of parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enum {
    pub name: String,
    /// `kSomeName` and its value.
    pub values: Vec<(String, i32)>,
}

/// One kernel entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// `kernels/stem.cu:line`.
    pub place: String,
    /// What stands in `__launch_bounds__(..)`.
    pub bounds: String,
    /// CTAs in a cluster: the first number of `__cluster_dims__(..)`.
    pub cluster: u32,
    pub params: Vec<Param>,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: String,
    pub ty: Type,
    pub pointer: bool,
    /// Declared `const`: the kernel only reads it.
    pub constant: bool,
    /// The comment beside it: the shape.
    pub comment: String,
}

/// Element types an entry point may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Float,
    Bf16,
    Double,
    Int,
    Unsigned,
    UnsignedChar,
    UnsignedShort,
    LongLong,
    UnsignedLongLong,
    /// `const __grid_constant__ CUtensorMap`, by value.
    TensorMap,
}

impl Type {
    /// The type's name in CUDA.
    pub fn cuda(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Bf16 => "bf16",
            Self::Double => "double",
            Self::Int => "int",
            Self::Unsigned => "unsigned",
            Self::UnsignedChar => "unsigned char",
            Self::UnsignedShort => "unsigned short",
            Self::LongLong => "long long",
            Self::UnsignedLongLong => "unsigned long long",
            Self::TensorMap => "CUtensorMap",
        }
    }

    fn read(words: &[&str]) -> Option<Self> {
        Some(match words {
            ["float"] => Self::Float,
            ["bf16"] => Self::Bf16,
            ["double"] => Self::Double,
            ["int"] => Self::Int,
            ["unsigned"] | ["unsigned", "int"] => Self::Unsigned,
            ["unsigned", "char"] => Self::UnsignedChar,
            ["unsigned", "short"] => Self::UnsignedShort,
            ["long", "long"] => Self::LongLong,
            ["unsigned", "long", "long"] => Self::UnsignedLongLong,
            ["CUtensorMap"] => Self::TensorMap,
            _ => return None,
        })
    }
}

/// Every `*.cu` file of a folder, by name.
pub fn read_folder(folder: &Path) -> Result<Vec<Module>, String> {
    let listing = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<_> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|x| x == "cu"));
    paths.sort();
    paths.iter().map(|path| read_file(path)).collect()
}

fn read_file(path: &Path) -> Result<Module, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let stem = path.file_stem().and_then(|s| s.to_str()).ok_or("kernel file without a name")?;
    let folder = path.parent().map(|p| p.display().to_string()).unwrap_or_default();
    let entries = read_text(&path.display().to_string(), &text)?;
    Ok(Module { folder, stem: stem.into(), entries, enums: read_enums(&text)? })
}

/// The entry points of one source text; `file` is for messages.
pub fn read_text(file: &str, text: &str) -> Result<Vec<Entry>, String> {
    let code = blank_comments(text);
    let mut entries = Vec::new();
    let mut from = 0;
    while let Some(found) = code[from..].find("extern \"C\"") {
        let at = from + found;
        let line = 1 + code[..at].matches('\n').count();
        let place = format!("{file}:{line}");
        let entry = read_entry(&code[at + "extern \"C\"".len()..], text, &code, at, &place)
            .map_err(|why| format!("{place}: {why}"))?;
        if let Some(entry) = entry {
            entries.push(entry);
        }
        from = at + 1;
    }
    let mut declared = code.match_indices("__global__");
    if let Some((at, _)) = declared.find(|(at, _)| !code[..*at].trim_end().ends_with("extern \"C\"")) {
        let line = 1 + code[..at].matches('\n').count();
        return Err(format!("{file}:{line}: {FORM}"));
    }
    Ok(entries)
}

/// The plain enumerations of one source text that stand at the start of a line.
pub fn read_enums(text: &str) -> Result<Vec<Enum>, String> {
    let code = blank_comments(text);
    let mut enums = Vec::new();
    for (at, _) in code.match_indices("\nenum ") {
        let rest = &code[at + "\nenum ".len()..];
        let (Some(open), Some(close)) = (rest.find('{'), rest.find('}')) else { continue };
        let name = rest[..open].trim();
        let mut next = 0;
        let mut values = Vec::new();
        for item in rest[open + 1..close].split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (item, value) = match item.split_once('=') {
                Some((item, value)) => (item.trim(), value.trim().parse().map_err(|_| format!("enum {name}: {item}"))?),
                None => (item, next),
            };
            values.push((item.to_owned(), value));
            next = value + 1;
        }
        enums.push(Enum { name: name.into(), values });
    }
    Ok(enums)
}

const FORM: &str = "write a kernel as `extern \"C\" __global__ void [__launch_bounds__(..)] name(..)`";

/// `None` if the declaration is not a kernel.
fn read_entry(rest: &str, text: &str, code: &str, at: usize, place: &str) -> Result<Option<Entry>, String> {
    let head = rest.trim_start();
    let Some(head) = head.strip_prefix("__global__") else {
        return Ok(None);
    };
    let head = head.trim_start().strip_prefix("void").ok_or("a kernel returns void")?.trim_start();
    let (head, bounds, cluster) = skip_attributes(head)?;
    let open = head.find('(').ok_or("no parameter list")?;
    let name = head[..open].trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("kernel name `{name}`"));
    }
    let close = open + closing(&head[open..]).ok_or("the parameter list does not end")?;
    // `head` is a tail of `code`, which has the byte positions of `text`.
    let list_start = code.len() - (code.len() - at - "extern \"C\"".len() - (rest.len() - head.len())) + open + 1;
    let params = read_params(&head[open + 1..close], text, list_start)?;
    Ok(Some(Entry { name: name.into(), place: place.into(), bounds, cluster, params }))
}

/// Steps over `__launch_bounds__(..)`, whose inside is kept, and `__cluster_dims__(n, 1, 1)`, of which n is.
fn skip_attributes(mut head: &str) -> Result<(&str, String, u32), String> {
    let (mut bounds, mut cluster) = (String::new(), 1);
    while head.starts_with("__") {
        let open = head.find('(').ok_or("attribute without parentheses")?;
        let close = open + closing(&head[open..]).ok_or("attribute does not end")?;
        let inside = head[open + 1..close].trim();
        match head[..open].trim() {
            "__launch_bounds__" => bounds = inside.into(),
            "__cluster_dims__" => {
                let first = inside.strip_suffix(", 1, 1").and_then(|n| n.parse().ok());
                cluster = first.ok_or_else(|| format!("__cluster_dims__({inside}): expected a number, 1, 1"))?;
            }
            _ => {}
        }
        head = head[close + 1..].trim_start();
    }
    Ok((head, bounds, cluster))
}

/// Position of the parenthesis that closes the one `text` starts with.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return Some(i),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn read_params(list: &str, text: &str, list_start: usize) -> Result<Vec<Param>, String> {
    if list.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut params = Vec::new();
    let mut start = 0;
    for part in list.split(',') {
        let end = list_start + start + part.len();
        start += part.len() + 1;
        let mut param = read_param(part)?;
        let line_end = text[end..].find('\n').map_or(text.len(), |n| end + n);
        if let Some((_, comment)) = text[end..line_end].split_once("//")
            && !text[end + 1..line_end].split("//").next().unwrap_or("").contains(|c: char| c.is_alphanumeric())
        {
            param.comment = comment.trim().into();
        }
        params.push(param);
    }
    Ok(params)
}

fn read_param(text: &str) -> Result<Param, String> {
    let spaced = text.replace('*', " * ").replace("__restrict__", " ").replace("__grid_constant__", " ");
    let constant = spaced.split_whitespace().any(|w| w == "const");
    let words: Vec<&str> = spaced.split_whitespace().filter(|w| *w != "const").collect();
    let bad = || {
        format!(
            "parameter `{}`: expected `[const] TYPE [*] name` with float, bf16, double, int, unsigned, unsigned char, unsigned short, long long, unsigned long long or CUtensorMap",
            text.trim()
        )
    };
    let (name, words) = words.split_last().ok_or_else(bad)?;
    let (pointer, words) = match words.split_last() {
        Some((&"*", rest)) => (true, rest),
        _ => (false, words),
    };
    let ty = Type::read(words).ok_or_else(bad)?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(bad());
    }
    Ok(Param { name: (*name).into(), ty, pointer, constant, comment: String::new() })
}

/// Comments become spaces; line breaks and byte positions stay.
fn blank_comments(text: &str) -> String {
    let mut code = text.as_bytes().to_vec();
    let mut i = 0;
    while i + 1 < code.len() {
        let end = match &code[i..i + 2] {
            b"//" => text[i..].find('\n').map_or(code.len(), |n| i + n),
            b"/*" => text[i..].find("*/").map_or(code.len(), |n| i + n + 2),
            _ => {
                i += 1;
                continue;
            }
        };
        code[i..end].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        i = end;
    }
    String::from_utf8(code).expect("bytes of whole characters were replaced")
}
