//! What is done with rows whose parts are longer than the settings allow.

use serde::{Deserialize, Serialize};

/// What is done with a prompt longer than `max_prompt_tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongPrompt {
    /// The row is bad.
    #[default]
    Error,
    /// The row is left out and counted.
    Drop,
    /// The end is cut off.
    KeepStart,
    /// The start is cut off, behind a BOS.
    KeepEnd,
}

/// What is done with a response longer than `max_response_tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongResponse {
    /// The row is bad.
    #[default]
    Error,
    /// The row is left out and counted.
    Drop,
    /// The end is cut off, the EOS with it.
    KeepStart,
}

/// What is done with a plain document that is longer than a response may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongText {
    /// As with any other response: `long_response` says.
    #[default]
    Error,
    /// It is cut into blocks, each learnt by itself. A block begins with the last token of the one before, so that every
    /// token but the document's first is predicted once.
    Split,
}
