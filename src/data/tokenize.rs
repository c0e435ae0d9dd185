//! Text to token ids with a Hugging Face `tokenizer.json`: the border between prompt and response, BOS and EOS.
//!
//! The only file that knows the `tokenizers` crate. BOS is what the tokenizer's own post-processor puts in front,
//! never more; a response ends with exactly one EOS.

mod added;
mod long;
mod shown;

use std::{path::Path, sync::OnceLock};

use anyhow::{Context, Error, Result, bail, ensure};
use rayon::prelude::*;
use serde_json::Value;
use tokenizers::models::ModelWrapper;

use super::records::excerpt;
use crate::cache::KeyBuilder;
use crate::files::{LARGEST_TEXT, LARGEST_TOKENIZER, read_regular};
use added::Folder;
use long::{CONTEXT, LONG, Long};

/// Where a token lies in its text, in bytes.
pub type Place = (usize, usize);

/// A tokenizer with the special tokens of its model folder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab: usize,
    /// What the post-processor puts in front of a text: nothing or a BOS, rarely more.
    leading: Vec<u32>,
    bos: Option<u32>,
    /// Appended to a response that does not end in one of `ends`.
    eos: u32,
    ends: Vec<u32>,
    fingerprint: Vec<u8>,
    long: OnceLock<Long>,
    /// Whether a name of the vocabulary spells bytes.
    of_bytes: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, the tokens that `tokenizer_config.json`, `special_tokens_map.json` and
    /// `added_tokens.json` name beside it, and the special ones of `generation_config.json` and `config.json` of a model
    /// folder; `vocab` is the height of the model's embedding table.
    ///
    /// # Errors
    /// A missing or broken file, no EOS token, one that there is not or outside the model's vocabulary, a token that has
    /// another id than its file says.
    pub fn load(folder: &Path, vocab: usize) -> Result<Self> {
        let file = folder.join("tokenizer.json");
        let name = file.display();
        let remedy = "the model folder needs the tokenizer.json of its model";
        let bytes = read_regular(&file, LARGEST_TOKENIZER)?
            .with_context(|| format!("tokenizer `{name}` cannot be read: there is no such file: {remedy}"))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| Error::msg(one_line(&error.to_string())))
            .with_context(|| format!("tokenizer `{name}` is not a Hugging Face tokenizer: {remedy}"))?;
        // Files saved after some training or inference runs carry these; each would change the ids of a row.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(Error::from_boxed)?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }

        let beside = Folder::read(folder)?;
        check_eos(folder, &beside, &inner)?;
        let added = beside.add(folder, &mut inner)?;
        inner.set_encode_special_tokens(beside.splits());
        let special = Specials::read(folder, &beside, &inner)?;
        let leading = leading(&inner)?;
        let Some(&eos) = special.ends.first() else {
            bail!("model folder `{}` names no EOS token: set `eos_token_id` in config.json", folder.display());
        };
        let bos = special.bos.or(leading.first().copied());
        ensure!(
            (eos as usize) < vocab,
            "model folder `{}`: EOS token {eos} is outside the vocabulary of {vocab} tokens: \
             tokenizer.json and config.json do not belong together",
            folder.display()
        );
        let mut key = KeyBuilder::new("tokenizer 2");
        key.part("added", format!("{added:?} {}", beside.splits()).as_bytes());
        key.part("file", &bytes).part("special", format!("{vocab} {leading:?} {bos:?} {:?}", special.ends).as_bytes());
        let fingerprint = key.finish().0.to_vec();
        let of_bytes = shown::is_of_bytes(&inner);
        Ok(Self { inner, vocab, leading, bos, eos, ends: special.ends, fingerprint, long: OnceLock::new(), of_bytes })
    }

    /// The token that ends a response.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The token in front of every text, where the tokenizer puts one there.
    pub fn leading_bos(&self) -> Option<u32> {
        self.leading.first().copied()
    }

    /// Ids of a text, with the leading BOS if the tokenizer wants one and the text does not begin with it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_rendered(text)?;
        if ids.starts_with(&self.leading) { Ok(ids) } else { Ok([&self.leading[..], &ids].concat()) }
    }

    /// The same of a text that begins with another, whose ids are known: of a long one only the last piece is tokenised
    /// again.
    pub fn encode_behind(&self, text: &str, before: &str, known: &[u32]) -> Result<Vec<u32>> {
        self.behind(text, before, known)?.map_or_else(|| self.encode(text), Ok)
    }

    /// As [`encode_rendered`](Self::encode_rendered), of a text that begins with another.
    pub fn rendered_behind(&self, text: &str, before: &str, known: &[u32]) -> Result<Vec<u32>> {
        self.behind(text, before, known)?.map_or_else(|| self.encode_rendered(text), Ok)
    }

    fn behind(&self, text: &str, before: &str, known: &[u32]) -> Result<Option<Vec<u32>>> {
        let pieces = self.pieces(before);
        let Some(last) = pieces.last().filter(|(start, _)| *start > 0 && text.starts_with(before)) else {
            return Ok(None);
        };
        let kept = known.len() - self.piece_tokens(last, false)?.0.len();
        let rest = self.long().pieces(&text[last.0..]).into_iter().map(|(start, piece)| (last.0 + start, piece));
        let ids = rest.map(|piece| Ok(self.piece_tokens(&piece, false)?.0)).collect::<Result<Vec<_>>>()?;
        Ok(Some([&known[..kept], &ids.concat()].concat()))
    }

    /// The text of these ids, special tokens written out.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(Error::from_boxed).context("the tokenizer failed")
    }

    /// Ids of what a chat template has rendered: the template writes every special token, none is added.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        let ids = |piece: &(usize, &str)| Ok(self.piece_tokens(piece, false)?.0);
        Ok(self.pieces(text).par_iter().map(ids).collect::<Result<Vec<_>>>()?.concat())
    }

    /// How many tokens it knows, those of the folder's other files counted in.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of `encode_rendered`, and where in the text each token lies, in bytes.
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Place>)> {
        let pieces = self.pieces(text);
        let found = pieces.par_iter().map(|piece| self.piece_tokens(piece, true)).collect::<Result<Vec<_>>>()?;
        let (ids, offsets): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        Ok((ids.concat(), offsets.concat()))
    }

    /// Ids of a piece of a text and, if asked for, where in the text they lie.
    fn piece_tokens(&self, &(start, piece): &(usize, &str), places: bool) -> Result<(Vec<u32>, Vec<Place>)> {
        let encode = |text: &str| match places {
            true => self.inner.encode(text, false),
            false => self.inner.encode_fast(text, false),
        };
        let (encoding, context) = match start {
            0 => (encode(piece), 0),
            _ => (encode(&format!("{CONTEXT}{piece}")), self.long().context()),
        };
        let encoding = encoding.map_err(Error::from_boxed).context("the tokenizer failed")?;
        let shift = |at: usize| start + at - if start == 0 { 0 } else { CONTEXT.len() };
        let offsets = encoding.get_offsets().iter().skip(context);
        let places = offsets.filter(|_| places).map(|&(from, to)| (shift(from), shift(to))).collect();
        Ok((encoding.get_ids()[context..].to_vec(), places))
    }

    /// Tokens that a text has at least, known without tokenising it; 0 for a short text and where nothing is known.
    pub fn at_least(&self, text: &str) -> usize {
        if text.len() < LONG { 0 } else { self.long().at_least(text) }
    }

    /// A text in the pieces, with their places, that are tokenised one by one: one piece, where it is short or nothing is
    /// known of where it may be cut.
    pub fn pieces<'t>(&self, text: &'t str) -> Vec<(usize, &'t str)> {
        if text.len() < LONG { vec![(0, text)] } else { self.long().pieces(text) }
    }

    fn long(&self) -> &Long {
        self.long.get_or_init(|| Long::of(&self.inner))
    }

    /// The token that begins a text, where the model folder names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the token ends a generation.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The tokens that end a generation.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Ends a response with EOS if it does not end by itself.
    pub fn end(&self, ids: &mut Vec<u32>) {
        if !ids.last().is_some_and(|&id| self.is_end(id)) {
            ids.push(self.eos);
        }
    }

    /// The last end token, if it stands twice.
    pub fn doubled_end(&self, ids: &[u32]) -> Option<u32> {
        let last = ids.iter().rposition(|&id| self.is_end(id))?;
        (last > 0 && ids[last - 1] == ids[last]).then_some(ids[last])
    }

    /// Everything that determines the ids of a text, hashed.
    pub fn fingerprint(&self) -> &[u8] {
        &self.fingerprint
    }

    /// Refuses ids that the model has no embedding for.
    ///
    /// # Errors
    /// The first such id of `part`.
    pub fn check_ids(&self, part: &str, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            None => Ok(()),
            Some(&id) => bail!(
                "`{part}` holds token {id} ({}), the model's vocab_size = {}: use the tokenizer.json of the model",
                excerpt(&self.inner.id_to_token(id).unwrap_or_default()),
                self.vocab
            ),
        }
    }
}

/// BOS and EOS as the files of a model folder name them.
struct Specials {
    bos: Option<u32>,
    /// The tokenizer's own EOS first, then every other id that ends a generation.
    ends: Vec<u32>,
}

impl Specials {
    fn read(folder: &Path, beside: &Folder, tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let named = |key: &str| beside.named(key).and_then(|(text, _)| tokenizer.token_to_id(&text));
        let mut special = Self { bos: named("bos_token"), ends: named("eos_token").into_iter().collect() };
        for file in ["config.json", "generation_config.json"] {
            let config = read_json(&folder.join(file))?;
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            special.bos = special.bos.or_else(|| id(&config["bos_token_id"]));
            let eos = &config["eos_token_id"];
            let listed = eos.as_array().map_or(std::slice::from_ref(eos), Vec::as_slice);
            for id in listed.iter().filter_map(id) {
                if !special.ends.contains(&id) {
                    special.ends.push(id);
                }
            }
        }
        Ok(special)
    }
}

/// Refuses an EOS by name that is no token: added behind the others, it would have an id that the model never learnt.
fn check_eos(folder: &Path, beside: &Folder, tokenizer: &tokenizers::Tokenizer) -> Result<()> {
    let Some((text, file)) = beside.named("eos_token") else { return Ok(()) };
    ensure!(
        tokenizer.token_to_id(&text).is_some() || beside.lists(&text),
        "model folder `{}`: {file} names {} as `eos_token`, and neither tokenizer.json nor `added_tokens_decoder` has that \
         token: take the files of one model, or correct `eos_token`",
        folder.display(),
        excerpt(&text)
    );
    Ok(())
}

/// A file that is not there counts as an empty object.
fn read_json(file: &Path) -> Result<Value> {
    let Some(bytes) = read_regular(file, LARGEST_TEXT)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes).with_context(|| format!("`{}` is broken JSON: restore the file", file.display()))
}

fn encode_plain(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(Error::from_boxed).context("the tokenizer failed")?;
    Ok(encoding.get_ids().to_vec())
}

/// What the post-processor puts in front of a text, found by encoding a text with and without it.
fn leading(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>> {
    let plain = encode_plain(tokenizer, "a")?;
    let framed = tokenizer.encode_fast("a", true).map_err(Error::from_boxed).context("the tokenizer failed")?;
    let framed = framed.get_ids();
    let start = framed.windows(plain.len().max(1)).position(|window| window == plain);
    Ok(framed[..start.unwrap_or(0)].to_vec())
}

/// Tokens at the start that are the same in both.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
