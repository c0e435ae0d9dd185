//! `train.tensorboard`: event files, read back by what shares no code with their writer.

use std::fs;

use super::fixture::{Fixture, stderr};

/// CRC-32C, bit by bit, as TFRecords mask it.
fn masked_sum(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for &byte in bytes {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    let sum = !sum;
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The data of every TFRecord, whose sums are looked at.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut found) = (bytes, Vec::new());
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(number(&rest[8..12]), masked_sum(&rest[..8]));
        let data = &rest[12..12 + length];
        assert_eq!(number(&rest[12 + length..16 + length]), masked_sum(data));
        found.push(data);
        rest = &rest[16 + length..];
    }
    found
}

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Field<'a> {
    Number(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let length = 1 + bytes.iter().position(|byte| byte & 0x80 == 0).unwrap();
    let (own, rest) = bytes.split_at(length);
    *bytes = rest;
    own.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (own, rest) = bytes.split_at(length);
    *bytes = rest;
    own
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length))
            }
            5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
            kind => panic!("kind {kind}"),
        };
        found.push((key >> 3, value));
    }
    found
}

/// What an event says.
#[derive(Debug, PartialEq)]
enum Said {
    Version(String),
    /// A session begins at a step.
    Start(u64),
    /// Values of a step.
    Values(u64, Vec<(String, f32)>),
}

fn said(event: &[u8]) -> Said {
    let (mut step, mut text, mut session, mut values) = (0, None, false, Vec::new());
    for (place, value) in fields(event) {
        match (place, value) {
            (1, Field::Double(time)) => assert!(time > 1.7e9, "{time}"),
            (2, Field::Number(number)) => step = number,
            (3, Field::Bytes(bytes)) => text = Some(String::from_utf8(bytes.to_vec()).unwrap()),
            (5, Field::Bytes(summary)) => values.extend(fields(summary).into_iter().map(|(place, value)| {
                let Field::Bytes(value) = value else { panic!("{value:?}") };
                let [(1, Field::Bytes(tag)), (2, Field::Float(number))] = fields(value)[..] else {
                    panic!("{value:?}")
                };
                assert_eq!(place, 1);
                (String::from_utf8(tag.to_vec()).unwrap(), number)
            })),
            (7, Field::Bytes(log)) => {
                assert_eq!(fields(log), [(1, Field::Number(1))]);
                session = true;
            }
            other => panic!("{other:?}"),
        }
    }
    match (text, session) {
        (Some(text), false) => Said::Version(text),
        (None, true) => Said::Start(step),
        _ => Said::Values(step, values),
    }
}

/// The events of each file of a run, oldest first.
fn events(fixture: &Fixture, out: &str) -> Vec<Vec<Said>> {
    let names = fs::read_dir(fixture.path(out)).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> =
        names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents.")).collect();
    names.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let read = |path| records(&fs::read(path).unwrap()).into_iter().map(said).collect();
    names.into_iter().map(read).collect()
}

#[test]
fn every_record_is_an_event() {
    let fixture = Fixture::new();
    assert!(fixture.execute("plain", &["--set", "train.steps=2"]).status.success());
    assert!(events(&fixture, "plain").is_empty());
    let run = fixture.execute("run", &["--set", "train.tensorboard=true"]);
    assert!(run.status.success(), "{}", stderr(&run));
    let files = events(&fixture, "run");
    let [Said::Version(version), Said::Start(0), values @ ..] = &files[0][..] else { panic!("{:?}", files[0]) };
    assert_eq!((files.len(), version.as_str()), (1, "brain.Event:2"));
    let metrics = fixture.metrics("run");
    assert_eq!(values.len(), metrics.len());
    for (event, record) in values.iter().zip(&metrics) {
        let Said::Values(step, values) = event else { panic!("{event:?}") };
        assert_eq!(*step, record["step"].as_u64().unwrap());
        let held_out = record.contains_key("eval_loss");
        let numbers = record
            .iter()
            .filter(|(name, value)| *name != "step" && value.is_number() && !(held_out && *name == "epoch"));
        let want: Vec<(String, f32)> = numbers
            .map(|(name, value)| {
                let tag = name.strip_prefix("eval_").map_or(format!("train/{name}"), |name| format!("eval/{name}"));
                (tag, value.as_f64().unwrap() as f32)
            })
            .collect();
        assert_eq!(*values, want);
    }
}

/// Events of steps that a resumed run does again no longer count: a reader drops what is of the step at which a session
/// begins, or of a later one.
#[test]
fn a_resumed_run_takes_back_what_it_does_again() {
    let fixture = Fixture::new();
    let set = ["--set", "train.tensorboard=true"];
    assert!(fixture.execute("run", &set).status.success());
    for gone in ["final", "checkpoint-6", "checkpoint-8"] {
        fs::remove_dir_all(fixture.path("run").join(gone)).unwrap();
    }
    assert!(fixture.execute("run", &["--resume", "--set", "train.steps=8", set[0], set[1]]).status.success());
    let files = events(&fixture, "run");
    assert_eq!((files.len(), &files[1][1]), (2, &Said::Start(5)));
    let mut left: Vec<&Said> = Vec::new();
    for event in files.iter().flatten() {
        match event {
            Said::Start(first) => left.retain(|event| matches!(event, Said::Values(step, _) if step < first)),
            values @ Said::Values(..) => left.push(values),
            Said::Version(_) => {}
        }
    }
    let steps = left.iter().map(|event| if let Said::Values(step, _) = event { *step } else { 0 });
    let want: Vec<u64> = fixture.metrics("run").iter().map(|record| record["step"].as_u64().unwrap()).collect();
    assert_eq!(steps.collect::<Vec<_>>(), want);
}
