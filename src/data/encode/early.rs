//! Rows that cannot fit, known before they are tokenised: a text of so many bytes has so many tokens at least.

use std::fmt;

use anyhow::Result;

use super::Encoder;
use crate::data::long::{LongPrompt, LongResponse};

/// A part that is too long. `dropped`: the policy leaves its row out.
#[derive(Debug)]
pub(super) struct TooLong {
    why: String,
    pub(super) dropped: bool,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for TooLong {}

impl Encoder {
    /// Refuses a prompt that has more tokens than allowed, unless it would be cut.
    pub(super) fn check_prompt(&self, text: &str) -> Result<()> {
        let policy = self.options.long_prompt;
        let dropped = match policy {
            LongPrompt::Error | LongPrompt::Drop => policy == LongPrompt::Drop,
            LongPrompt::KeepStart | LongPrompt::KeepEnd => return Ok(()),
        };
        let (least, most) = (self.tokenizer.at_least(text), self.options.limits.prompt);
        refuse("`prompt`", least, "data.max_prompt_tokens", most, dropped)
    }

    /// Refuses a text that begins with a prompt of `prompt` tokens and goes on with more than a response may have, unless
    /// it would be cut. Without a prompt of its own the text may hold one of the longest.
    pub(super) fn check_response(&self, part: &str, text: &str, prompt: Option<usize>) -> Result<()> {
        let policy = self.options.long_response;
        let dropped = match policy {
            LongResponse::Error | LongResponse::Drop => policy == LongResponse::Drop,
            LongResponse::KeepStart => return Ok(()),
        };
        // What the responses begin with in common may be cut, where that is a prompt's lot.
        let as_prompt = match self.options.long_prompt {
            LongPrompt::Error => !dropped,
            LongPrompt::Drop => dropped,
            _ => false,
        };
        if prompt.is_none() && !as_prompt {
            return Ok(());
        }
        let limits = self.options.limits;
        let least = self.tokenizer.at_least(text).saturating_sub(prompt.unwrap_or(limits.prompt));
        refuse(&format!("`{part}`"), least, "data.max_response_tokens", limits.response, dropped)
    }
}

fn refuse(part: &str, least: usize, key: &str, most: usize, dropped: bool) -> Result<()> {
    if least <= most {
        return Ok(());
    }
    let why = format!("{part} has at least {least} tokens, `{key}` = {most}: shorten it or raise {key}");
    Err(TooLong { why, dropped }.into())
}
