//! Long texts: how few tokens one can have, and how one is tokenised piece by piece.
//!
//! Both only where the tokenizer's parts allow a proof: a bound that is none would refuse sound rows, a cut in a wrong
//! place would change ids. The crate keeps some 150 bytes for each byte of a text, so pieces are what bounds memory.

use serde_json::Value;
use tokenizers::{
    AddedToken, ModelWrapper, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer,
};

/// Bytes of a text from which on it counts as long; shorter ones are cheaper to tokenise than to reason about.
pub(super) const LONG: usize = 1 << 18;
/// Bytes of a piece, about.
const PIECE: usize = 1 << 17;
/// NFC makes at most three bytes one: of the three letters of a Korean syllable, or of a Greek one with its marks.
const COMPOSED: usize = 4;

/// What is known of a tokenizer.
#[derive(Debug, Default)]
pub(super) struct Long {
    /// Bytes of its longest token, if every byte of a text gets into some token.
    longest: Option<usize>,
    /// Whether a token may also take the blanks beside it.
    strips: bool,
    composes: bool,
    /// Tokens of [`CONTEXT`], where nothing is ever joined over the border between a letter and a space behind it.
    context: Option<usize>,
}

/// What a piece is tokenised behind, so that its start is treated as any other place.
pub(super) const CONTEXT: &str = "x";

impl Long {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let normalizers = parts(serde_json::to_value(tokenizer.get_normalizer()).unwrap_or_default());
        let splitters = parts(serde_json::to_value(tokenizer.get_pre_tokenizer()).unwrap_or_default());
        let byte_level = normalizers.iter().chain(&splitters).any(|part| part["type"] == "ByteLevel");
        let added = tokenizer.get_added_tokens_decoder();
        let keeps = normalizers.iter().all(keeps_length) && splitters.iter().all(keeps_all);
        let vocab = tokenizer.get_vocab(false);
        let complete = match tokenizer.get_model() {
            ModelWrapper::BPE(_) if byte_level => {
                let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
                alphabet.iter().all(|&c| vocab.contains_key(c.encode_utf8(&mut [0; 4]) as &str))
            }
            ModelWrapper::BPE(bpe) if bpe.byte_fallback => {
                (0..=255).all(|byte: u8| vocab.contains_key(&format!("<0x{byte:02X}>")))
            }
            _ => false,
        };
        let bytes = |token: &str| if byte_level { token.chars().count() } else { token.len() };
        let longest =
            vocab.keys().map(|token| bytes(token)).chain(added.values().map(|token| token.content.len())).max();
        let spaces = normalizers.iter().all(|part| part["type"] != "Replace" || part["pattern"]["String"] == " ");
        let cuts = complete && keeps && spaces && apart(added.values(), vocab.keys()) && splits_words(tokenizer);
        let context = tokenizer.encode_fast(CONTEXT, false).ok().filter(|_| cuts);
        Self {
            longest: longest.filter(|_| complete && keeps),
            strips: added.values().any(|token| token.lstrip || token.rstrip),
            composes: normalizers.iter().any(|part| part["type"] == "NFC"),
            context: context.map(|context| context.len()),
        }
    }

    /// Tokens that a text has at least; 0 where nothing is known.
    pub(super) fn at_least(&self, text: &str) -> usize {
        let Some(longest) = self.longest else { return 0 };
        let bytes = if self.strips { text.split_whitespace().map(str::len).sum() } else { text.len() };
        let composed = if self.composes && !text.is_ascii() { COMPOSED } else { 1 };
        (bytes / composed).div_ceil(longest)
    }

    /// The text in pieces, with their places. Each but the first is to be tokenised behind [`CONTEXT`]; without its
    /// tokens, those of the pieces are those of the whole.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> Vec<(usize, &'t str)> {
        let (mut pieces, mut start) = (Vec::new(), 0);
        while let Some(length) = self.border(&text[start..]) {
            pieces.push((start, &text[start..start + length]));
            start += length;
        }
        pieces.push((start, &text[start..]));
        pieces
    }

    /// Tokens of the context.
    pub(super) fn context(&self) -> usize {
        self.context.unwrap_or(0)
    }

    /// The first space between words behind a piece.
    fn border(&self, text: &str) -> Option<usize> {
        let bytes = text.as_bytes().get(PIECE..).filter(|_| self.context.is_some())?;
        let border = |window: &[u8]| matches!(window, [before, b' ', behind] if before.is_ascii_alphabetic() && behind.is_ascii_alphabetic());
        bytes.windows(3).position(border).map(|at| PIECE + at + 1)
    }
}

/// Whether no token reaches over the border between a letter and a space.
fn apart<'a>(mut added: impl Iterator<Item = &'a AddedToken>, mut vocab: impl Iterator<Item = &'a String>) -> bool {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphabetic());
    let joined = |token: &str| {
        let mut before = ' ';
        let space = |c: char| matches!(c, ' ' | 'Ġ' | '▁');
        token.chars().any(|c| std::mem::replace(&mut before, c).is_ascii_alphabetic() && space(c))
    };
    let takes = |token: &AddedToken| {
        (token.rstrip || token.single_word) && letter(token.content.chars().next_back())
            || (token.lstrip || token.single_word) && letter(token.content.chars().next())
    };
    added.all(|token| !takes(token) && !joined(&token.content)) && vocab.all(|token| !joined(token))
}

/// A normalizer or splitter, or those that a sequence is made of.
fn parts(part: Value) -> Vec<Value> {
    let inner = ["normalizers", "pretokenizers"].into_iter().find_map(|key| part.get(key)?.as_array().cloned());
    match inner {
        Some(inner) => inner.into_iter().flat_map(parts).collect(),
        None if part.is_null() => Vec::new(),
        None => vec![part],
    }
}

/// A normalizer that makes no text shorter, but for composing.
fn keeps_length(part: &Value) -> bool {
    match part["type"].as_str() {
        Some("NFC" | "ByteLevel" | "Prepend") => true,
        Some("Replace") => {
            let (from, to) = (part["pattern"]["String"].as_str(), part["content"].as_str());
            from.zip(to).is_some_and(|(from, to)| !from.is_empty() && from.len() <= to.len())
        }
        _ => false,
    }
}

/// A splitter that throws nothing away.
fn keeps_all(part: &Value) -> bool {
    match part["type"].as_str() {
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split" | "Punctuation") => part["behavior"] != "Removed",
        _ => false,
    }
}

/// Whether the splitter parts every word from the space behind it, or parts nothing.
fn splits_words(tokenizer: &Tokenizer) -> bool {
    const WORDS: &str = "one of THE few words that Are nEver said twice in a row";
    let Some(splitter) = tokenizer.get_pre_tokenizer() else { return true };
    let mut text = NormalizedString::from(WORDS);
    let normalized = tokenizer.get_normalizer().map_or(Ok(()), |normalizer| normalizer.normalize(&mut text));
    let mut text = PreTokenizedString::from(text);
    if normalized.is_err() || splitter.pre_tokenize(&mut text).is_err() {
        return false;
    }
    let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let starts: Vec<usize> = splits.iter().map(|(_, offsets, _)| offsets.0).collect();
    starts.len() == 1 || WORDS.match_indices(' ').all(|(at, _)| starts.contains(&at))
}
