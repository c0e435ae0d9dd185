//! Tokens as a reader sees them, one by one: what each stands for, and characters that several make together.

use super::Tokenizer;

impl Tokenizer {
    /// What one id stands for: its text, with bytes that are only a part of a character as `<0xE6>`.
    pub fn piece(&self, id: u32) -> String {
        self.show(&[id]).concat()
    }

    /// What these ids stand for, one by one. Where several make one character, or characters that share tokens, their text
    /// stands with the first and the others are empty.
    pub fn show(&self, ids: &[u32]) -> Vec<String> {
        let mut found = Vec::with_capacity(ids.len());
        while let Some(&id) = ids.get(found.len()) {
            match self.made_together(&ids[found.len()..]) {
                Some((text, tokens)) => {
                    found.push(text);
                    found.extend((1..tokens).map(|_| String::new()));
                }
                None => found.push(self.alone(id)),
            }
        }
        found
    }

    /// The text that the first of these ids makes with some of the others, and how many they are, if its own bytes end within
    /// a character.
    fn made_together(&self, ids: &[u32]) -> Option<(String, usize)> {
        let mut bytes = Vec::new();
        for (at, &id) in ids.iter().enumerate() {
            bytes.extend(self.bytes(id)?);
            match str::from_utf8(&bytes) {
                Ok(_) if at == 0 => return None,
                Ok(text) => return Some((text.to_owned(), at + 1)),
                Err(why) if why.error_len().is_some() => return None,
                Err(_) => {}
            }
        }
        None
    }

    fn alone(&self, id: u32) -> String {
        match self.bytes(id) {
            Some(bytes) => text_of(&bytes),
            None => match self.decode(&[id]) {
                Ok(text) if !text.is_empty() => text,
                _ => self.inner.id_to_token(id).unwrap_or_else(|| format!("<{id}>")),
            },
        }
    }

    /// The bytes of a token, where its name says them: in a vocabulary of bytes, or as `<0xE6>` beside one of characters.
    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let name = self.inner.id_to_token(id)?;
        if self.inner.get_added_tokens_decoder().contains_key(&id) {
            return None;
        }
        match self.of_bytes {
            true => name.chars().map(byte_of).collect(),
            false => fallback(&name).map(|byte| vec![byte]),
        }
    }
}

/// Whether the vocabulary is one of bytes, each written as a character.
pub(super) fn is_of_bytes(tokenizer: &tokenizers::Tokenizer) -> bool {
    let words = |part: serde_json::Result<String>| part.is_ok_and(|text| text.contains("\"ByteLevel\""));
    words(serde_json::to_string(&tokenizer.get_pre_tokenizer()))
        || words(serde_json::to_string(&tokenizer.get_decoder()))
}

/// The byte that `<0xE6>` names.
fn fallback(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2 && !digits.starts_with('+'))
}

/// Bytes as text, and those that are no text of their own as `<0xE6>`.
fn text_of(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text += chunk.valid();
        chunk.invalid().iter().for_each(|byte| text += &format!("<0x{byte:02X}>"));
    }
    text
}

/// The byte that a character stands for in vocabularies of bytes (GPT-2's): printable Latin-1 for itself, the others in
/// order from 256 on.
fn byte_of(c: char) -> Option<u8> {
    let itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code @ 0..256 => Some(code as u8).filter(itself),
        code => (0..=255).filter(|byte| !itself(byte)).nth(code as usize - 256),
    }
}

#[cfg(test)]
mod tests {
    use super::{byte_of, fallback, text_of};

    /// As Python's `bytes_to_unicode` of GPT-2 spells them: U+65E5 is e6 97 a5, a space is U+0120, a line feed U+010A.
    #[test]
    fn names_of_a_vocabulary_of_bytes_are_bytes() {
        for (name, want) in [
            ("æĹ", "<0xE6><0x97>"),
            ("æĹ¥", "日"),
            ("Ġæ", " <0xE6>"),
            ("Ċ", "\n"),
            ("¥æĹ", "<0xA5><0xE6><0x97>"),
            ("<0xE6>", "<0xE6>"),
        ] {
            let bytes: Vec<u8> = name.chars().map(byte_of).collect::<Option<_>>().unwrap();
            assert_eq!(text_of(&bytes), want, "{name}");
        }
        assert_eq!("▁日".chars().map(byte_of).collect::<Option<Vec<_>>>(), None);
        assert_eq!(
            ["<0xE6>", "<0x0A>", "<0xZZ>", "<0x+5>", "E6"].map(fallback),
            [Some(0xe6), Some(10), None, None, None]
        );
    }
}
