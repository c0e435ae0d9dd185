//! Long texts: how few tokens one can have, and how one is tokenised piece by piece.
//!
//! Both only where the tokenizer's parts allow a proof: a bound that is none would refuse sound rows, a cut in a wrong
//! place would change ids. The crate keeps some 150 bytes for each byte of a text, so pieces are what bounds memory.

use serde_json::Value;
use tokenizers::{ModelWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

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
    /// Whether nothing is ever joined over the border between a letter and a space.
    cuts: bool,
}

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
        let strips = added.values().any(|token| token.lstrip || token.rstrip);
        let joined = |token: &str, space: char| {
            let mut before = ' ';
            token.chars().any(|c| std::mem::replace(&mut before, c).is_ascii_alphabetic() && c == space)
        };
        let plain = added.values().all(|token| !token.single_word && !joined(&token.content, ' '));
        let apart = vocab.keys().all(|token| !joined(token, 'Ġ') && !joined(token, '▁') && !joined(token, ' '));
        Self {
            longest: longest.filter(|_| complete && keeps),
            strips,
            composes: normalizers.iter().any(|part| part["type"] == "NFC"),
            cuts: complete
                && keeps
                && plain
                && apart
                && !strips
                && splits_words(tokenizer)
                && starts_alike(&normalizers, &splitters),
        }
    }

    /// Tokens that a text has at least; 0 where nothing is known.
    pub(super) fn at_least(&self, text: &str) -> usize {
        let Some(longest) = self.longest else { return 0 };
        let bytes = if self.strips { text.split_whitespace().map(str::len).sum() } else { text.len() };
        let composed = if self.composes && !text.is_ascii() { COMPOSED } else { 1 };
        (bytes / composed).div_ceil(longest)
    }

    /// The text in pieces whose tokens are those of the whole.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = self.border(rest) {
            let (piece, behind) = rest.split_at(at);
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        pieces
    }

    /// The first border between words behind a piece.
    fn border(&self, text: &str) -> Option<usize> {
        let bytes = text.as_bytes().get(PIECE..).filter(|_| self.cuts)?;
        let border = |window: &[u8]| matches!(window, [before, b' ', behind] if before.is_ascii_alphabetic() && behind.is_ascii_alphabetic());
        bytes.windows(3).position(border).map(|at| PIECE + at + 1)
    }
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

/// Whether the start of a text is treated as any other place that a space stands at.
fn starts_alike(normalizers: &[Value], splitters: &[Value]) -> bool {
    let alike = |part: &Value| match part["type"].as_str() {
        Some("Prepend" | "Metaspace") => false,
        Some("Replace") => part["pattern"]["String"] == " ",
        _ => true,
    };
    normalizers.iter().chain(splitters).all(alike)
}

/// Whether the splitter, if there is one, parts every word from the space behind it.
fn splits_words(tokenizer: &Tokenizer) -> bool {
    const WORDS: &str = "one of THE few words that Are nEver said twice in a row";
    let Some(splitter) = tokenizer.get_pre_tokenizer() else { return true };
    let mut text = PreTokenizedString::from(WORDS);
    if splitter.pre_tokenize(&mut text).is_err() {
        return false;
    }
    let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let starts: Vec<usize> = splits.iter().map(|(_, offsets, _)| offsets.0).collect();
    WORDS.match_indices(' ').all(|(at, _)| starts.contains(&at))
}
