//! Safetensors files and indices whose numbers and names lie.

use std::fs;

use super::{super::scratch::Scratch, Case, check, train};

/// Weights whose header is this, with so many bytes behind it.
pub(super) fn header(scratch: &Scratch, json: &str, bytes: usize) {
    let length = (json.len() as u64).to_le_bytes();
    scratch.write("model/model.safetensors", [&length, json.as_bytes(), &vec![0; bytes]].concat());
}

fn offsets(scratch: &Scratch, a: [u64; 2], b: [u64; 2], bytes: usize) {
    let tensor = |[start, end]: [u64; 2]| {
        format!(r#"{{"dtype": "F32", "shape": [{}], "data_offsets": [{start}, {end}]}}"#, end.saturating_sub(start) / 4)
    };
    header(scratch, &format!(r#"{{"a": {}, "b": {}}}"#, tensor(a), tensor(b)), bytes);
}

fn length(scratch: &Scratch, length: u64) {
    let file = scratch.path("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

/// Changes the header and its length.
pub(super) fn edit_header(scratch: &Scratch, from: &str, to: &str) {
    let file = scratch.path("model/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json = String::from_utf8(bytes[8..end].to_vec()).unwrap();
    assert!(json.contains(from), "{json}");
    let json = json.replacen(from, to, 1);
    fs::write(file, [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &bytes[end..]].concat()).unwrap();
}

const AGAIN: &[&str] = &["model/model.safetensors: ", "copy the file again"];

const WEIGHTS: &[Case] = &[
    train("no byte", |s| s.write("model/model.safetensors", ""), AGAIN),
    train("seven bytes", |s| s.write("model/model.safetensors", [0; 7]), AGAIN),
    train("a header of no byte", |s| s.write("model/model.safetensors", [0; 8]), AGAIN),
    train("zeros alone", |s| s.write("model/model.safetensors", [0; 4096]), AGAIN),
    train("a header of 2^63 bytes", |s| length(s, 1 << 63), AGAIN),
    train("a header of 2^64 - 1 bytes", |s| length(s, u64::MAX), AGAIN),
    train("a header longer than the file", |s| length(s, 1 << 40), AGAIN),
    train("a header cut short", |s| length(s, 100), AGAIN),
    train("a header that is not JSON", |s| header(s, "not JSON", 8), AGAIN),
    train(
        "a header that is not text",
        |s| s.write("model/model.safetensors", b"\x04\0\0\0\0\0\0\0\xff\xfe\xfd\xfc"),
        AGAIN,
    ),
    train("a header that is a list", |s| header(s, "[1, 2]", 8), AGAIN),
    train("an unknown element type", |s| edit_header(s, "\"F32\"", "\"F3\""), AGAIN),
    train("an element type of another size", |s| edit_header(s, "\"F32\"", "\"F64\""), AGAIN),
    train("an element type that does not run", |s| edit_header(s, "\"F32\"", "\"I32\""), &["model.safetensors", "I32"]),
    train("tensors one over the other", |s| offsets(s, [0, 8], [4, 12], 12), AGAIN),
    train("a hole between tensors", |s| offsets(s, [0, 8], [16, 24], 24), AGAIN),
    train("a tensor behind the end", |s| offsets(s, [0, 8], [8, 16], 8), AGAIN),
    train("a tensor 2^62 bytes on", |s| offsets(s, [0, 8], [8, 1 << 62], 8), AGAIN),
    train("a tensor that ends before it begins", |s| offsets(s, [8, 0], [0, 8], 8), AGAIN),
    train("bytes behind the last tensor", |s| offsets(s, [0, 8], [8, 16], 32), AGAIN),
    train(
        "a shape of 2^128 elements",
        |s| {
            header(
                s,
                r#"{"a": {"dtype": "F32", "shape": [18446744073709551615, 18446744073709551615], "data_offsets": [0, 8]}}"#,
                8,
            )
        },
        AGAIN,
    ),
    train("a negative offset", |s| edit_header(s, "[0,", "[-1,"), AGAIN),
    train("a shape of another size", |s| edit_header(s, "[1024,32]", "[1024,31]"), AGAIN),
    train(
        "a transposed shape",
        |s| edit_header(s, "[1024,32]", "[32,1024]"),
        &["model.safetensors", "`model.embed_tokens.weight`", "expected [1024, 32], found [32, 1024]"],
    ),
    train(
        "another name",
        |s| edit_header(s, "model.norm.weight", "model.form.weight"),
        &["model.safetensors", "missing tensor `model.norm.weight`"],
    ),
    train("no tensor", |s| header(s, "{}", 0), &["model.safetensors", "missing tensors"]),
];

pub(super) fn index(scratch: &Scratch, file: &str) {
    scratch.remove("model/model.safetensors");
    let index = serde_json::json!({"metadata": {}, "weight_map": {"model.norm.weight": file}});
    scratch.write("model/model.safetensors.index.json", index.to_string());
}

const NAME: &[&str] = &["model.safetensors.index.json", "is not a file name"];

const INDICES: &[Case] = &[
    train("a path upwards", |s| index(s, "../../etc/passwd"), NAME),
    train("an absolute path", |s| index(s, "/etc/passwd"), NAME),
    train("a path into a folder", |s| index(s, "deeper/model.safetensors"), NAME),
    train("a path that ends in a slash", |s| index(s, "model.safetensors/"), NAME),
    train("no path", |s| index(s, ""), NAME),
    train("the folder itself", |s| index(s, "."), NAME),
    train("the folder above", |s| index(s, ".."), NAME),
    train("a name of 5000 letters", |s| index(s, &"a".repeat(5000)), &["model.safetensors.index.json"]),
    train(
        "a file that is not there",
        |s| index(s, "a.safetensors"),
        &["model.safetensors.index.json", "a.safetensors"],
    ),
    train("the index itself", |s| index(s, "model.safetensors.index.json"), &["model.safetensors.index.json", "copy"]),
    train(
        "a number for a name",
        |s| {
            s.remove("model/model.safetensors");
            s.write("model/model.safetensors.index.json", r#"{"weight_map": {"a": 1}}"#);
        },
        &["model.safetensors.index.json", "broken index"],
    ),
];

#[test]
fn weights_that_lie() {
    check(WEIGHTS);
}

#[test]
fn indices_that_lead_elsewhere() {
    check(INDICES);
}
