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
use warpo::data::{
    records::{Columns, Record},
    source,
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
    source::open(path)?
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

#[test]
fn files_cut_off_or_of_another_kind_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let parquet = folder.path().join("whole.parquet");
    write_parquet(&parquet);
    let parquet = fs::read(parquet).unwrap();
    let (gz, zst) = (gz(&jsonl()), zstd::encode_all(&jsonl()[..], 3).unwrap());
    let files: [(&str, &[u8]); 11] = [
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
