//! Tokens that a model folder names beside its tokenizer.json, added in the order in which transformers adds them.
//!
//! The order decides about ids: a token that tokenizer.json does not have gets the next free one. Where a file says
//! another, the folder's files do not belong together, and that is refused.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Error, Result, bail, ensure};
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::read_json;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_MAP: &str = "special_tokens_map.json";
const LISTED: &str = "added_tokens.json";
/// Special tokens that every tokenizer may name, in transformers' order.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the files of a folder name beside tokenizer.json.
pub(super) struct Folder {
    /// tokenizer_config.json, and what special_tokens_map.json puts over it where it still counts.
    config: Map<String, Value>,
    /// special_tokens_map.json itself.
    map: Map<String, Value>,
    /// Tokens with an id of their own, and the file that says so.
    listed: BTreeMap<u32, AddedToken>,
    source: &'static str,
}

impl Folder {
    /// # Errors
    /// A file is broken, or a token in it is none.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let open = |name: &str| match read_json(&folder.join(name))? {
            Value::Object(fields) => Ok(fields),
            Value::Null => Ok(Map::new()),
            _ => bail!("`{}` is no JSON object: restore the file", folder.join(name).display()),
        };
        let (mut config, map, legacy) = (open(CONFIG)?, open(SPECIAL_MAP)?, open(LISTED)?);
        move_extra(&mut config);
        let mut listed = BTreeMap::new();
        let decoder = config.get("added_tokens_decoder").filter(|decoder| !decoder.is_null());
        let Some(decoder) = decoder else {
            merge(&mut config, &map);
            let named = special_texts(&config);
            for (text, id) in &legacy {
                let special = named.contains(text);
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.with_context(|| format!("`{LISTED}`: the id of `{text}` is none: restore the file"))?;
                listed.insert(id, AddedToken::from(text.clone(), special));
            }
            return Ok(Self { config, map, listed, source: LISTED });
        };
        let decoder =
            decoder.as_object().with_context(|| format!("`added_tokens_decoder` of {CONFIG} is no object"))?;
        for (id, value) in decoder {
            let token = id.parse().ok().zip(token(value, false));
            let (id, token) = token.with_context(|| {
                format!("`added_tokens_decoder` of {CONFIG}: entry `{id}` is no token: restore the file")
            })?;
            listed.insert(id, token);
        }
        Ok(Self { config, map, listed, source: "added_tokens_decoder" })
    }

    /// The text of a special token such as `eos_token`, and the file that names it.
    pub(super) fn named(&self, key: &str) -> Option<(String, &'static str)> {
        let text = |files: &Map<String, Value>| files.get(key).and_then(content).map(str::to_owned);
        // transformers forgets the map where tokenizer_config.json lists tokens; a name in it is still one.
        let from_map = || text(&self.map).map(|text| (text, SPECIAL_MAP));
        text(&self.config).map(|text| (text, CONFIG)).or_else(from_map)
    }

    /// Whether special tokens in a text are read as text.
    pub(super) fn splits(&self) -> bool {
        self.config.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Whether a token is listed with an id.
    pub(super) fn lists(&self, text: &str) -> bool {
        self.listed.values().any(|token| token.content == text)
    }

    /// Adds all tokens; gives back those that tokenizer.json did not have as they are.
    ///
    /// # Errors
    /// A token has another id than its file says.
    pub(super) fn add(&self, folder: &Path, tokenizer: &mut Tokenizer) -> Result<Vec<AddedToken>> {
        let before = tokenizer.get_added_tokens_decoder();
        let known: Vec<&AddedToken> = before.values().collect();
        // In a folder without a list of its own, tokenizer.json says what its tokens are like.
        let settled = |id: &u32| self.source == LISTED && before.contains_key(id);
        let listed = self.listed.iter().filter(|(id, token)| !settled(id) && !known.contains(token));
        let mut tokens: Vec<AddedToken> = listed.map(|(_, token)| token.clone()).collect();
        let has =
            |tokens: &[AddedToken], text: &str| known.iter().copied().chain(tokens).any(|token| token.content == text);
        for token in self.specials() {
            if !has(&tokens, &token.content) {
                tokens.push(token);
            }
        }
        for token in &mut tokens {
            token.special |= NAMED.iter().any(|key| self.config.get(*key).and_then(content) == Some(&token.content));
        }
        let lacking: Vec<(u32, &AddedToken)> = self.lacking(tokenizer);
        tokenizer.add_tokens(tokens.iter().cloned()).map_err(Error::from_boxed)?;
        for (id, token) in lacking {
            let given = tokenizer.token_to_id(&token.content);
            ensure!(
                given == Some(id),
                "model folder `{}`: {} gives token {:?} the id {id}, and behind those of tokenizer.json it comes as {}: \
                 the files do not belong together, take all from the model's folder",
                folder.display(),
                self.source,
                token.content,
                given.map_or_else(|| "none".into(), |id| id.to_string())
            );
        }
        Ok(tokens)
    }

    /// Listed tokens that the tokenizer does not have at all.
    fn lacking(&self, tokenizer: &Tokenizer) -> Vec<(u32, &AddedToken)> {
        let absent = |(_, token): &(&u32, &AddedToken)| tokenizer.token_to_id(&token.content).is_none();
        self.listed.iter().filter(absent).map(|(&id, token)| (id, token)).collect()
    }

    /// Special tokens by name, then those without one, in transformers' order and with their flags.
    fn specials(&self) -> Vec<AddedToken> {
        let listed = |text: &str| self.listed.values().find(|token| token.content == text).cloned();
        let of = |value: &Value| token(value, true);
        let named = NAMED.iter().filter_map(|key| self.config.get(*key).and_then(of));
        let named = named.map(|token| listed(&token.content).unwrap_or(token));
        let own = |(key, value): &(&String, &Value)| {
            key.ends_with("_token") && value.is_string() && !NAMED.contains(&key.as_str())
        };
        let model = self.config.iter().filter(own).filter_map(|(_, value)| of(value));
        let extra: Vec<&Value> = match self.config.get("extra_special_tokens") {
            Some(Value::Object(extra)) => extra.values().collect(),
            Some(Value::Array(extra)) => extra.iter().collect(),
            _ => Vec::new(),
        };
        named.chain(model).chain(extra.into_iter().filter_map(of)).filter(|token| !token.content.is_empty()).collect()
    }
}

/// The older name of `extra_special_tokens`, where that has nothing.
fn move_extra(config: &mut Map<String, Value>) {
    let empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        value => value.is_null(),
    };
    if config.get("extra_special_tokens").is_none_or(empty)
        && let Some(extra) = config.remove("additional_special_tokens")
    {
        config.insert("extra_special_tokens".into(), extra);
    }
}

/// Puts special_tokens_map.json over tokenizer_config.json; lists of further tokens are joined.
fn merge(config: &mut Map<String, Value>, map: &Map<String, Value>) {
    for (key, value) in map {
        let list = config.get_mut(key).and_then(Value::as_array_mut);
        match (key.as_str(), list, value) {
            ("extra_special_tokens", Some(list), Value::Array(more)) => {
                let more: Vec<_> = more.iter().filter(|value| !list.contains(value)).cloned().collect();
                list.extend(more);
            }
            _ => drop(config.insert(key.clone(), value.clone())),
        }
    }
    if !config.contains_key("extra_special_tokens") {
        move_extra(config);
    }
}

/// Texts of the special tokens that are named, or further ones.
fn special_texts(config: &Map<String, Value>) -> Vec<String> {
    let extra = config.get("extra_special_tokens").and_then(Value::as_array);
    let named = NAMED.iter().filter_map(|key| config.get(*key));
    named.chain(extra.into_iter().flatten()).filter_map(content).map(str::to_owned).collect()
}

fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// A token as a file writes it: its text, or an object with flags; `special` where the object does not say.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str| value[key].as_bool();
    let mut token = AddedToken::from(content(value)?, flag("special").unwrap_or(special));
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.single_word = flag("single_word").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(token.normalized);
    Some(token)
}
