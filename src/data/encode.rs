//! From a record to its token tree: prompt, responses, their borders and the longest parts allowed.

use anyhow::{Result, bail, ensure};

use super::{
    Limits,
    records::{Body, Record, Text},
    tokenize::Tokenizer,
};
use crate::forest::Tree;

/// The tree of a record; `at` names the row.
///
/// # Errors
/// What is wrong with the row, without its place.
pub fn tree(at: &str, record: &Record, tokenizer: &Tokenizer, limits: &Limits) -> Result<Tree> {
    let (Some(Text::Plain(prompt)), Body::Pair { chosen: Text::Plain(chosen), rejected: Text::Plain(rejected) }) =
        (&record.prompt, &record.body)
    else {
        bail!("only plain-text pairs run");
    };
    let pair = tokenizer.encode_pair(prompt, chosen, rejected)?;
    let check = |part: &str, tokens: usize, key: &str, limit: usize| {
        ensure!(tokens <= limit, "{part} has {tokens} tokens, `{key}` = {limit}: shorten it or raise {key}");
        Ok(())
    };
    check("`prompt`", pair.prompt.len(), "data.max_prompt_tokens", limits.prompt)?;
    check("`chosen`", pair.chosen.len(), "data.max_response_tokens", limits.response)?;
    check("`rejected`", pair.rejected.len(), "data.max_response_tokens", limits.response)?;
    let tree = Tree::pair(at, pair.prompt, pair.chosen, pair.rejected);
    check("the tree of prompt and both responses", tree.tokens(), "batch.tokens", limits.tree)?;
    Ok(tree)
}
