//! Event files, as TensorBoard reads them.
//!
//! A file is a row of TFRecords (tensorflow/core/lib/io/record_writer.h): eight bytes of length, their masked CRC-32C, the
//! bytes, their masked CRC-32C, all little-endian. The bytes are an `Event` (tensorflow/core/util/event.proto) in the wire
//! format of protocol buffers, written by hand: of its fields `wall_time` = 1, `step` = 2, `file_version` = 3, `summary` = 5 and
//! `session_log` = 7; of a `Summary` (summary.proto) `value` = 1, in which `tag` = 1 and `simple_value` = 2; of a `SessionLog`
//! `status` = 1, where `START` is 1. The first event of a file has its version.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use crc::{CRC_32_ISCSI, Crc};
use rustix::system::uname;
use serde_json::Value;

use super::{history::HELD_OUT, metrics::MetricsRecord, records::Records};

/// How names of event files begin: so TensorBoard finds them.
pub const PREFIX: &str = "events.out.tfevents.";

const CHECK: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
const VERSION: &str = "brain.Event:2";
const START: u64 = 1;
/// Kinds of values on the wire.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// A run's event file.
pub struct Events {
    records: Records,
}

impl Events {
    /// Begins a file in a run's folder. A run that goes on after a step has events of later ones in its older files, of which
    /// TensorBoard is told that they no longer count.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn begin(folder: &Path, resumed: Option<u64>) -> Result<Self> {
        let (now, host) = (wall_time(), uname().nodename().to_string_lossy().into_owned());
        // Files are read in the order of their names; a run that is resumed within the same second has another process.
        let name = format!("{PREFIX}{:010}.{host}.{}.warpo", now as u64, std::process::id());
        let mut events = Self { records: Records::open(&folder.join(name), 0)? };
        events.records.write(&framed(&[double(1, now), text(3, VERSION)].concat()))?;
        // What is of this step or a later one goes, also that of a run that saved nothing and begins again.
        let first = resumed.map_or(0, |step| step + 1);
        events.records.write(&framed(&[double(1, now), number(2, first), bytes(7, &number(1, START))].concat()))?;
        Ok(events)
    }

    /// Appends the numbers of a record, or keeps them in memory while the disk is full: true if they are the first to wait.
    ///
    /// # Errors
    /// The file cannot be written for another reason.
    pub fn write(&mut self, record: &MetricsRecord) -> Result<bool> {
        self.records.write(&framed(&event(wall_time(), record)))
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(&mut self) -> Result<()> {
        self.records.sync()
    }
}

/// The numbers of a record at its step: `train/NAME`, and `eval/NAME` on held-out rows. Numbers that are none are left out.
fn event(now: f64, record: &MetricsRecord) -> Vec<u8> {
    let step = record.get("step").and_then(Value::as_u64).unwrap_or_default();
    let held_out = record.keys().any(|name| name.starts_with(HELD_OUT));
    let numbers = record.iter().filter(|(name, _)| *name != "step" && !(held_out && *name == "epoch"));
    let values = numbers.filter_map(|(name, value)| {
        let tag = match name.strip_prefix(HELD_OUT) {
            Some(name) => format!("eval/{name}"),
            None => format!("train/{name}"),
        };
        Some(bytes(1, &[text(1, &tag), float(2, value.as_f64()? as f32)].concat()))
    });
    let summary: Vec<u8> = values.flatten().collect();
    [double(1, now), number(2, step), bytes(5, &summary)].concat()
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A TFRecord.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let check = |bytes: &[u8]| masked(CHECK.checksum(bytes)).to_le_bytes();
    [&length[..], &check(&length), data, &check(data)].concat()
}

/// Rotated and moved, so that the sum of bytes which hold a sum is not a constant (tensorflow/core/lib/hash/crc32c.h).
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn field(place: u64, kind: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(place << 3 | kind, &mut out);
    out
}

fn number(place: u64, value: u64) -> Vec<u8> {
    let mut out = field(place, VARINT);
    varint(value, &mut out);
    out
}

fn double(place: u64, value: f64) -> Vec<u8> {
    [&field(place, EIGHT_BYTES)[..], &value.to_le_bytes()].concat()
}

fn float(place: u64, value: f32) -> Vec<u8> {
    [&field(place, FOUR_BYTES)[..], &value.to_le_bytes()].concat()
}

fn bytes(place: u64, value: &[u8]) -> Vec<u8> {
    let mut out = field(place, LENGTH);
    varint(value.len() as u64, &mut out);
    out.extend_from_slice(value);
    out
}

fn text(place: u64, value: &str) -> Vec<u8> {
    bytes(place, value.as_bytes())
}
