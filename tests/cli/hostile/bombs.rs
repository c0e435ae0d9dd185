//! Small files that unpack to gigabytes.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

use super::{super::scratch::Scratch, Case, check, data, skip};

/// As many pieces, each compressed on its own: what is written is small and what is read is large.
fn pieces(scratch: &Scratch, name: &str, piece: &[u8], count: usize) {
    let packed = if name.ends_with(".gz") {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(piece).unwrap();
        encoder.finish().unwrap()
    } else {
        zstd::encode_all(piece, 3).unwrap()
    };
    let packed = packed.repeat(count);
    assert!(packed.len() < 4 << 20, "{} bytes are no bomb", packed.len());
    scratch.write(name, packed);
    scratch.replace("run.toml", "train.jsonl", name);
}

const PIECE: usize = 16 << 20;

/// 4 GiB of one line.
fn one_line(scratch: &Scratch, name: &str, start: &[u8]) {
    pieces(scratch, name, &[start, &vec![b'a'; PIECE - start.len()]].concat(), 256);
}

/// So many times 16 MiB of lines.
fn lines(scratch: &Scratch, name: &str, line: &str, count: usize) {
    pieces(scratch, name, line.repeat(PIECE / line.len()).as_bytes(), count);
}

const BOMBS: &[Case] = &[
    data(
        "one line of gzip",
        |s| one_line(s, "rows.jsonl.gz", b"{\"prompt\": \""),
        &["rows.jsonl.gz", "data.max_row_bytes"],
    ),
    data(
        "one line of zstd",
        |s| one_line(s, "rows.jsonl.zst", b"{\"prompt\": \""),
        &["rows.jsonl.zst", "data.max_row_bytes"],
    ),
    data("one element of gzip", |s| one_line(s, "rows.json.gz", b"[\""), &["rows.json.gz", "data.max_row_bytes"]),
    data("one element of zstd", |s| one_line(s, "rows.json.zst", b"[\""), &["rows.json.zst", "data.max_row_bytes"]),
    data("zeros of gzip", |s| pieces(s, "rows.jsonl.gz", &vec![0; PIECE], 256), &["rows.jsonl.gz", "zero byte"]),
    data(
        "long lines of gzip",
        |s| lines(s, "rows.jsonl.gz", &("x".repeat(999) + "\n"), 64),
        &["rows.jsonl.gz:1:", "broken JSON", "rows are bad"],
    ),
    data("short lines of zstd", |s| lines(s, "rows.jsonl.zst", "x\n", 128), &["rows.jsonl.zst:1:", "rows are bad"]),
    skip(
        "short lines that are left out",
        |s| lines(s, "rows.jsonl.zst", "x\n", 128),
        &["rows.jsonl.zst: no usable row"],
    ),
    data("empty lines of zstd", |s| lines(s, "rows.jsonl.zst", "\n", 128), &["rows.jsonl.zst"]),
    data("blanks of zstd", |s| lines(s, "rows.jsonl.zst", " ", 128), &["rows.jsonl.zst"]),
    data("blanks of an array", |s| lines(s, "rows.json.zst", "[ ", 128), &["rows.json.zst"]),
];

#[test]
fn bombs() {
    check(BOMBS);
}
