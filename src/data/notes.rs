//! What rows say that nothing reads, and what their template leaves out: counted, with the first row of each.

use std::collections::BTreeMap;

/// Something that was given and has no effect, or another than it says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// A field or key that nothing reads, in words: "`id`", "`name` of messages".
    Unread(String),
    /// What the chat template does, as a verb and its objects: "leaves out the tools".
    Template(String),
    /// How a row was read where it could be read otherwise, in a whole sentence.
    Reading(String),
}

/// How many rows a note is about, and where the first is: `:3` or `: row 3`, as [`super::source::Row`] has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many rows it holds of.
    pub rows: usize,
    /// The place of the first.
    pub first: String,
}

/// The notes on a file's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes(pub BTreeMap<Note, Seen>);

/// Names of one line at most.
const NAMED: usize = 20;

impl Notes {
    /// Takes in the notes on one row; the same note twice counts once.
    pub fn add(&mut self, place: &str, mut notes: Vec<Note>) {
        notes.sort();
        notes.dedup();
        for note in notes {
            let seen = self.0.entry(note).or_insert_with(|| Seen { rows: 0, first: place.to_owned() });
            seen.rows += 1;
        }
    }

    /// One line each, for a file of this name; what nothing reads is one line together.
    pub fn lines(&self, file: &str) -> Vec<String> {
        let unread: Vec<&str> = self
            .0
            .keys()
            .filter_map(|note| if let Note::Unread(name) = note { Some(name.as_str()) } else { None })
            .collect();
        let mut lines = Vec::new();
        if !unread.is_empty() {
            let more = unread.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let names = unread[..unread.len().min(NAMED)].join(", ");
            lines.push(format!("note: {file} gives what nothing reads: {names}{more}"));
        }
        for (note, Seen { rows, first }) in &self.0 {
            let what = match note {
                Note::Unread(_) => continue,
                Note::Template(what) => format!("the chat template {what}"),
                Note::Reading(what) => what.clone(),
            };
            let place = first.trim_start_matches([':', ' ']);
            let place = if place.starts_with("row") { place.to_owned() } else { format!("line {place}") };
            let rows = if *rows == 1 { "1 row".into() } else { format!("{rows} rows") };
            lines.push(format!("note: {what}: {rows} of {file}, the first is {place}"));
        }
        lines
    }
}
