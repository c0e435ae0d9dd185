//! What the crate's edge fails with: kinds that a caller can tell apart, each with the one line that people read.
//!
//! Inside, errors are `anyhow`'s; where a kind matters, one of these is among the causes. [`Error::from`] finds it.

use std::{fmt, path::PathBuf};

/// Why a command of the crate failed. It shows as one line with place, value and remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A setting: a key there is not, a value out of range, two that contradict each other.
    Config {
        /// What people read.
        line: String,
    },
    /// A row of a data file, by file and place in it, such as `:12`.
    Row {
        /// As the configuration names it.
        file: String,
        /// The place in it, such as `:12`.
        place: String,
        /// What people read.
        line: String,
    },
    /// A device: none where one was asked for, or one that refuses.
    Device {
        /// What people read.
        line: String,
    },
    /// Bytes of device memory that are wanted, and that are free.
    OutOfMemory {
        /// Bytes.
        wanted: usize,
        /// Bytes.
        free: usize,
        /// What people read.
        line: String,
    },
    /// A run folder that the run cannot go on in.
    Resume {
        /// The run folder.
        folder: PathBuf,
        /// What people read.
        line: String,
    },
    /// Anything else.
    Other {
        /// What people read.
        line: String,
    },
}

impl Error {
    /// The line that people read.
    pub fn line(&self) -> &str {
        match self {
            Self::Config { line }
            | Self::Row { line, .. }
            | Self::Device { line }
            | Self::OutOfMemory { line, .. }
            | Self::Resume { line, .. }
            | Self::Other { line } => line,
        }
    }

    /// The same kind of error under another line.
    #[must_use]
    pub fn saying(mut self, text: String) -> Self {
        match &mut self {
            Self::Config { line }
            | Self::Row { line, .. }
            | Self::Device { line }
            | Self::OutOfMemory { line, .. }
            | Self::Resume { line, .. }
            | Self::Other { line } => *line = text,
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line())
    }
}

impl std::error::Error for Error {}

impl From<anyhow::Error> for Error {
    /// The kind of the first cause that has one, under the line of all causes.
    fn from(why: anyhow::Error) -> Self {
        let kind = why.chain().find_map(|cause| cause.downcast_ref::<Self>()).cloned();
        kind.unwrap_or(Self::Other { line: String::new() }).saying(format!("{why:#}"))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_kind_is_found_below_any_context() {
        let row = Error::Row { file: "rows.jsonl".into(), place: ":3".into(), line: "rows.jsonl:3: no prompt".into() };
        let wrapped = Err::<(), _>(row).context("`data.train`").context("the run").unwrap_err();
        let found = Error::from(wrapped);
        assert_eq!(found.to_string(), "the run: `data.train`: rows.jsonl:3: no prompt");
        assert!(matches!(found, Error::Row { file, place, .. } if file == "rows.jsonl" && place == ":3"));
        let other = Error::from(anyhow!("a file").context("cannot be read"));
        assert_eq!(other, Error::Other { line: "cannot be read: a file".into() });
    }
}
