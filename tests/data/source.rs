//! Files of every kind give the same rows; damaged ones are named.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::Arc,
};

use flate2::{Compression, write::GzEncoder};
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::prelude::*;
use serde_json::Value;
use warpo::data::{
    records::{Columns, Record},
    source::{self, json},
};

const ROWS: [[&str; 3]; 3] = [["Q: a]b?", " [yes", " no"], ["\u{e9}\"{", " \\\"}", " ,"], ["third", " a", " b"]];

fn json(row: &[&str; 3]) -> String {
    serde_json::json!({"prompt": row[0], "chosen": row[1], "rejected": row[2]}).to_string()
}

fn jsonl() -> Vec<u8> {
    ROWS.iter().flat_map(|row| (json(row) + "\n").into_bytes()).collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn write_parquet(path: &Path) {
    let schema =
        "message m { required binary prompt (UTF8); required binary chosen (UTF8); required binary rejected (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for i in 0..3 {
        let values: Vec<ByteArray> = ROWS.iter().map(|row| ByteArray::from(row[i])).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

fn read(path: &Path) -> anyhow::Result<Vec<(String, Record)>> {
    source::open(path, source::MAX_ROW_BYTES)?
        .rows
        .map(|row| row.and_then(|row| Ok((row.place.clone(), Record::from_row(row.fields()?, &Columns::new())?))))
        .collect()
}

#[test]
fn every_kind_of_file_gives_the_same_records() {
    let folder = tempfile::tempdir().unwrap();
    let array = format!("\u{feff}\n[{}]\n", ROWS.iter().map(json).collect::<Vec<_>>().join(" ,\n "));
    let crlf = format!("\u{feff}{}", String::from_utf8(jsonl()).unwrap().replace('\n', "\r\n\r\n"));
    let files: [(&str, Vec<u8>); 6] = [
        ("a.jsonl", jsonl()),
        ("a.jsonl.gz", gz(&jsonl())),
        ("a.jsonl.zst", zstd::encode_all(&jsonl()[..], 3).unwrap()),
        ("a.json", array.clone().into_bytes()),
        ("a.json.gz", gz(array.as_bytes())),
        ("crlf.jsonl", crlf.into_bytes()),
    ];
    let expected: Vec<Record> = {
        let rows = ROWS.iter().map(|row| warpo::data::records::parse(json(row).as_bytes()).unwrap());
        rows.collect()
    };
    let mut paths = Vec::new();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
        paths.push(name);
    }
    write_parquet(&folder.path().join("a.parquet"));
    paths.push("a.parquet");
    for name in paths {
        let (places, records): (Vec<String>, Vec<Record>) =
            read(&folder.path().join(name)).unwrap().into_iter().unzip();
        assert_eq!(records, expected, "{name}");
        let places_expected = match name {
            "crlf.jsonl" => [":1", ":3", ":5"],
            _ if name.contains("jsonl") => [":1", ":2", ":3"],
            _ => [": row 1", ": row 2", ": row 3"],
        };
        assert_eq!(places, places_expected, "{name}");
    }
}

/// Written by pyarrow: `tests/parity/make_parquet_fixture.py`.
#[test]
fn nested_parquet_columns_are_the_rows_of_the_json_lines() {
    let folder = crate::support::root().join("tests/fixtures/parquet");
    for name in ["conversations", "lists", "unpaired"] {
        let records = |file: String| -> Vec<Record> {
            let rows = read(&folder.join(file)).unwrap();
            rows.into_iter().map(|(_, record)| record).collect()
        };
        let want = records(format!("{name}.jsonl"));
        assert!(want.len() >= 3);
        for codec in ["snappy", "zstd"] {
            assert_eq!(records(format!("{name}.{codec}.parquet")), want, "{name} in {codec}");
        }
    }
}

/// The rows as they are, of a file and of the JSON lines beside it.
fn raw(folder: &Path, table: &str, lines: &str) -> [Vec<serde_json::Map<String, Value>>; 2] {
    [table, lines].map(|name| {
        let rows = source::open(&folder.join(name), source::MAX_ROW_BYTES).unwrap().rows;
        rows.map(|row| row.unwrap().fields().unwrap()).collect()
    })
}

/// Written by pyarrow: a null structure is null, a field that its row did not have is not there, an empty list is empty.
#[test]
fn nested_nulls_and_lists_are_those_of_the_rows() {
    let folder = crate::support::root().join("tests/fixtures/parquet");
    let [table, lines] = raw(&folder, "nested.parquet", "nested.jsonl");
    assert_eq!(table.len(), 6);
    for (i, (row, want)) in table.iter().zip(&lines).enumerate() {
        assert_eq!(row, want, "row {i}");
    }
}

#[test]
fn every_compression_and_encoding_gives_the_same_rows() {
    let folder = crate::support::root().join("tests/fixtures/parquet");
    let codecs = ["none", "snappy", "gzip", "brotli", "lz4", "zstd"];
    for name in codecs.into_iter().chain(["large", "view", "binary", "dictionary", "delta", "pages"]) {
        let [table, lines] = raw(&folder, &format!("plain.{name}.parquet"), "plain.jsonl");
        assert_eq!(table, lines, "{name}");
    }
}

/// Columns that no row is made of are read past: dates, times, bytes, numbers that are none.
#[test]
fn columns_of_every_type_are_read_or_read_past() {
    let folder = crate::support::root().join("tests/fixtures/parquet");
    let [table, lines] = raw(&folder, "types.parquet", "types.jsonl");
    let (mut kept, mut other) = (table.clone(), table);
    kept.iter_mut().for_each(|row| row.retain(|name, _| !name.starts_with("unread")));
    other.iter_mut().for_each(|row| row.retain(|name, _| name.starts_with("unread")));
    assert_eq!(kept, lines);
    let odd = |row: usize, name: &str| json::odd(&other[row][name]);
    assert_eq!(odd(0, "unread_ns"), Some("a date or time"));
    assert_eq!(odd(0, "unread_bytes"), Some("bytes that are not UTF-8"));
    assert_eq!((odd(0, "unread_nan"), odd(1, "unread_nan")), (Some("NaN"), Some("Infinity")));
    assert_eq!((&other[2]["unread_nan"], &other[2]["unread_us"]), (&Value::from(1.0), &Value::Null));
}

#[test]
fn nan_is_read_where_nobody_looks_and_refused_where_a_number_is_needed() {
    let read = |line: &str| warpo::data::records::parse(line.as_bytes()).map_err(|why| format!("{why:#}"));
    let plain = read(r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#).unwrap();
    let seen =
        [r#""loss": NaN"#, r#""x": [Infinity, -Infinity]"#, r#""n": 123456789012345678901234567890, "y": 1e999"#];
    for more in seen {
        let found = read(&format!(r#"{{"prompt": "a", "chosen": "b", "rejected": "c", {more}}}"#)).unwrap();
        assert!(!found.notes.is_empty(), "nothing reads it, and that is said");
        assert_eq!(warpo::data::records::Record { notes: Vec::new(), ..found }, plain);
    }
    let scores =
        |scores: &str| read(&format!(r#"{{"prompt": "a", "responses": ["b", "c"], "scores": [1, {scores}]}}"#));
    assert!(scores("100000000000000000000").is_ok());
    let messages = [
        scores("NaN"),
        scores("-Infinity"),
        scores("1e999"),
        read(r#"{"prompt": NaN, "chosen": "b", "rejected": "c"}"#),
        read(r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": NaN}]}"#),
        read(
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function":
             {"name": "f", "arguments": {"x": [NaN]}}}], "content": null}]}"#,
        ),
        read(r#"{"prompt": "a", "completion": "b", "label": NaN}"#),
        read(r#"{"prompt": "\ud83d", "chosen": "b", "rejected": "c"}"#),
    ];
    insta::assert_snapshot!(messages.map(Result::unwrap_err).join("\n"));
}

/// Rows of a file of which none may have more than so many bytes: the text of each, or why it is none.
fn within(path: &Path, max: usize) -> Vec<Result<String, String>> {
    let Ok(opened) = source::open(path, max) else { panic!("{}", path.display()) };
    let text = |row: source::Row| Ok(row.fields()?["text"].as_str().unwrap().to_owned());
    opened.rows.map(|row| row.and_then(text).map_err(|why| format!("{why:#}"))).collect()
}

#[test]
fn long_rows_are_refused_and_the_others_read() {
    let folder = tempfile::tempdir().unwrap();
    let row = |text: &str| serde_json::json!({"text": text}).to_string();
    let (fits, long) = ("x".repeat(89), "y".repeat(90));
    assert_eq!(row(&fits).len(), 100);
    let rows = [row("a"), row(&fits), row(&long), row(&long.repeat(5000)), row("b"), row(&long)];
    let lines = rows.join("\n");
    let array = format!("[{}]", rows.join(" ,\n"));
    let files = [
        ("a.jsonl", lines.clone().into_bytes()),
        ("end.jsonl", (lines.clone() + "\n").into_bytes()),
        ("crlf.jsonl", lines.replace('\n', "\r\n").into_bytes()),
        ("a.jsonl.gz", gz(lines.as_bytes())),
        ("a.jsonl.zst", zstd::encode_all(lines.as_bytes(), 3).unwrap()),
        ("a.json", array.into_bytes()),
    ];
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
        let read = within(&folder.path().join(name), 100);
        let read: Vec<_> =
            read.iter().map(|row| row.as_deref().map_err(|why| why.contains("max_row_bytes` = 100 "))).collect();
        let bad = Err(true);
        assert_eq!(read, [Ok("a"), Ok(&fits[..]), bad, bad, Ok("b"), bad], "{name}");
    }
}

#[test]
fn long_values_of_a_table_are_refused_and_the_others_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path);
    let places = |max| -> Vec<bool> {
        let rows = source::open(&path, max).unwrap().rows;
        rows.map(|row| matches!(row.unwrap().raw, source::Raw::Fields(_))).collect()
    };
    assert_eq!(places(1 << 20), [true; 3]);
    // Three values of a row count eight bytes each beside their own: 39, 36 and 33.
    assert_eq!(places(38), [false, true, true]);
    assert_eq!(places(32), [false; 3]);
}

/// A page that says it takes two gigabytes is refused before anything is reserved for it.
#[test]
fn a_page_that_lies_about_its_size_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path);
    let mut bytes = fs::read(&path).unwrap();
    // The first page's header: its kind (dictionary, 2), then its size, one or two bytes.
    assert_eq!(bytes[4..7], [0x15, 4, 0x15]);
    let size = bytes[7..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    bytes.splice(7..7 + size, [0xfe, 0xff, 0xff, 0xff, 0x0f]);
    fs::write(&path, bytes).unwrap();
    let why = format!("{:#}", read(&path).unwrap_err());
    assert!(why.contains("takes 2147483647 bytes: write it with smaller pages"), "{why}");
}

/// What unpacks to gigabytes is read no further than a gigabyte beyond its rows.
#[test]
fn endless_rows_and_blanks_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.jsonl.zst");
    let mut encoder = zstd::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
    let piece = vec![b'a'; 1 << 24];
    (0..80).for_each(|_| encoder.write_all(&piece).unwrap());
    encoder.finish().unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 1 << 20);
    let rows = within(&path, 1 << 20);
    let [Err(why)] = &rows[..] else { panic!("{rows:?}") };
    assert!(why.contains("is read no further") && !why.contains('\n'), "{why}");
    for blank in [b' ', b'\n'] {
        fs::write(&path, zstd::encode_all(&vec![blank; (64 << 20) + 2][..], 1).unwrap()).unwrap();
        let why = format!("{:#}", source::open(&path, 1 << 10).map(|_| ()).unwrap_err());
        assert!(why.contains("blank bytes in one piece"), "{why}");
    }
}

/// Several streams in one file are one text, frames that say nothing are passed, what follows is named.
#[test]
fn streams_within_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, parts: &[&[u8]]| {
        let path = folder.path().join(name);
        fs::write(&path, parts.concat()).unwrap();
        let opened = source::open(&path, 1 << 20).map_err(|why| format!("{why:#}"))?;
        let rows = opened.rows.map(|row| row.map_err(|why| format!("{why:#}")));
        Ok::<_, String>(rows.collect::<Result<Vec<_>, _>>()?.len())
    };
    let (line, zst) = (&jsonl()[..], |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap());
    let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
    assert_eq!(read("two.jsonl.gz", &[&gz(line), &gz(line)]), Ok(6));
    assert_eq!(read("two.jsonl.zst", &[&zst(line), &skipped, &zst(line)]), Ok(6));
    assert_eq!(read("first.jsonl.zst", &[&skipped, &zst(line)]), Ok(3));
    for (name, parts) in [("more.jsonl.gz", [&gz(line)[..], b"more"]), ("more.jsonl.zst", [&zst(line), b"more"])] {
        let why = read(name, &parts).unwrap_err();
        assert!(why.contains("followed by other bytes") && !why.contains('\n'), "{why}");
    }
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.long_distance_matching(true).unwrap();
    wide.window_log(30).unwrap();
    wide.write_all(line).unwrap();
    let wide = wide.finish().unwrap();
    let why = read("wide.jsonl.zst", &[&wide]).unwrap_err();
    assert!(why.contains("window is above 128 MiB"), "{why}");
}

#[test]
fn files_cut_off_or_of_another_kind_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let parquet = folder.path().join("whole.parquet");
    write_parquet(&parquet);
    let parquet = fs::read(parquet).unwrap();
    let (gz, zst) = (gz(&jsonl()), zstd::encode_all(&jsonl()[..], 3).unwrap());
    let utf16: Vec<u8> = "\u{feff}{\"a\": 1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let encrypted = [b"PARE", &parquet[4..]].concat();
    let files: [(&str, &[u8]); 16] = [
        ("cut.jsonl.gz", &gz[..gz.len() - 12]),
        ("cut.jsonl.zst", &zst[..zst.len() - 5]),
        ("cut.parquet", &parquet[..parquet.len() - 9]),
        ("cut.json", b"[{\"text\": \"a\"}, {\"te"),
        ("more.json", b"[] {}"),
        ("comma.json", b"[{\"text\": \"a\"}, ]"),
        ("text.gz", b"text"),
        ("text.zst", b"text"),
        ("text.parquet", b"text"),
        ("table.csv", b"a,b"),
        ("head.parquet", b"PAR1"),
        ("utf16.jsonl", &utf16),
        ("utf16le.jsonl", &utf16[2..]),
        ("zeros.jsonl", &[0; 100]),
        ("encrypted.parquet", &encrypted),
        ("surrogate.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\\udc00\"}"),
    ];
    let mut messages = Vec::new();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
        let error = read(&folder.path().join(name)).expect_err(name);
        messages.push(format!("{error:#}").replace(&folder.path().display().to_string(), ""));
    }
    assert!(messages.iter().all(|message| !message.contains('\n')), "{messages:#?}");
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn patterns_give_sorted_files_and_at_least_one() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.jsonl", "a.jsonl", "c.txt"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let found = source::expand(&folder.path().join("*.jsonl")).unwrap();
    assert_eq!(found, ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name)));
    let none = source::expand(&folder.path().join("*.json")).unwrap_err().to_string();
    assert!(none.starts_with("no file fits `") && none.contains("*.json`"), "{none}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Heads of every kind in front of noise, so that noise gets into every reader.
    #[test]
    fn noise_never_panics(head in 0usize..5, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise");
        let head: &[u8] = [&b""[..], b"[", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"PAR1"][head];
        fs::write(&path, [head, &bytes[..]].concat()).unwrap();
        let _ = read(&path);
    }
}
