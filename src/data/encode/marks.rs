//! Where in a rendered conversation each message's words stand: found by rendering it once more with a mark in every
//! piece of text.
//!
//! A mark is one character of a private plane inside a piece, away from its ends, so that a template's own tests of a
//! text (its start, its end, its tags, blank or not) come out as before. The marked rendering counts only if it is the
//! plain one once the marks are taken out; else pieces are looked for by their text, in order.

use serde_json::Value;

/// Planes that Unicode keeps free for private use.
const PLANES: [u32; 2] = [0x10_0000, 0xf_0000];
/// Marks of a plane.
const MOST: usize = 0xffff;

/// What a piece of text is in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What the speaker says.
    Words,
    /// Reasoning: between `<think>` and `</think>`, or in a field of its own.
    Thought,
    /// The name of a function that is called, or a text among its arguments.
    Call,
}

/// A run of text in a message that a template may write as it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub message: usize,
    pub kind: Kind,
    /// Without blanks at its ends, never empty.
    pub text: String,
    /// Where in the text the mark goes, in bytes.
    mark: usize,
}

/// A rendering, and where in it the pieces are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Marked {
    pub text: String,
    /// Piece and byte of its mark, in the order of the text; a piece that the template writes twice is here twice.
    pub places: Vec<(usize, usize)>,
}

impl Piece {
    fn new(message: usize, kind: Kind, text: &str) -> Option<Self> {
        let text = text.trim();
        let mark = inside(text);
        (!text.is_empty()).then(|| Self { message, kind, text: text.to_owned(), mark })
    }
}

impl Marked {
    /// The bytes of a piece whose mark is at `at`, as far as its text stands there unchanged.
    pub fn span(&self, piece: &Piece, at: usize) -> std::ops::Range<usize> {
        let start = at.saturating_sub(piece.mark);
        let whole = self.text.get(start..start + piece.text.len()) == Some(&piece.text);
        if whole { start..start + piece.text.len() } else { at..at }
    }
}

/// All pieces of the messages, in order.
pub(super) fn pieces(messages: &[Value]) -> Vec<Piece> {
    let mut found = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        let mut copy = message.clone();
        visit(&mut copy, &mut |kind, text| found.extend(Piece::new(i, kind, text)));
    }
    found
}

/// Renders the messages with a mark in each piece; `plain` is what they give without.
pub(super) fn mark(
    messages: &[Value],
    pieces: &[Piece],
    plain: &str,
    render: impl Fn(&[Value]) -> Option<String>,
) -> Marked {
    let all = |_: &Piece| true;
    let words = |piece: &Piece| piece.kind == Kind::Words;
    let tries: [&dyn Fn(&Piece) -> bool; 2] = [&all, &words];
    let found = tries.iter().find_map(|wanted| with_marks(messages, pieces, plain, wanted, &render));
    found.unwrap_or_else(|| Marked { text: plain.to_owned(), places: search(pieces, plain) })
}

fn with_marks(
    messages: &[Value],
    pieces: &[Piece],
    plain: &str,
    wanted: &dyn Fn(&Piece) -> bool,
    render: &impl Fn(&[Value]) -> Option<String>,
) -> Option<Marked> {
    let plane = PLANES.into_iter().find(|plane| !plain.chars().any(|c| c as u32 & 0x1f_0000 == *plane))?;
    if pieces.len() >= MOST {
        return None;
    }
    let mut next = 0;
    let mut marked = messages.to_vec();
    for message in &mut marked {
        visit_mut(message, &mut |kind, text| {
            let Some(piece) = Piece::new(0, kind, text) else { return text.to_owned() };
            let index = next;
            next += 1;
            if !wanted(&piece) {
                return text.to_owned();
            }
            let at = text.len() - text.trim_start().len() + piece.mark;
            let sign = char::from_u32(plane + index as u32).unwrap_or(' ');
            format!("{}{sign}{}", &text[..at], &text[at..])
        });
    }
    let text = render(&marked)?;
    let (mut clean, mut places) = (String::with_capacity(text.len()), Vec::new());
    for c in text.chars() {
        match (c as u32).checked_sub(plane).filter(|&index| (index as usize) < pieces.len()) {
            Some(index) => places.push((index as usize, clean.len())),
            None => clean.push(c),
        }
    }
    (clean == plain).then_some(Marked { text: clean, places })
}

/// Pieces by their text, each behind the one before.
fn search(pieces: &[Piece], text: &str) -> Vec<(usize, usize)> {
    let (mut places, mut from) = (Vec::new(), 0);
    for (i, piece) in pieces.iter().enumerate() {
        if let Some(at) = text[from..].find(&piece.text) {
            places.push((i, from + at + piece.mark));
            from += at + piece.text.len();
        }
    }
    places
}

/// Between two letters near the middle of a text, so that neither its ends nor a tag in it is touched.
fn inside(text: &str) -> usize {
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let middle = chars.len() / 2;
    let is_inner = |&i: &usize| i > 0 && chars[i - 1].1.is_alphanumeric() && chars[i].1.is_alphanumeric();
    let by_distance = |&i: &usize| i.abs_diff(middle);
    let best = (0..chars.len()).filter(is_inner).min_by_key(by_distance);
    best.map_or_else(
        || chars.get(middle).map_or(0, |(at, c)| if middle > 0 { *at } else { at + c.len_utf8() }),
        |i| chars[i].0,
    )
}

fn visit(message: &mut Value, each: &mut impl FnMut(Kind, &str)) {
    visit_mut(message, &mut |kind, text| {
        each(kind, text);
        text.to_owned()
    });
}

/// Every piece of a message, each replaced by what `change` makes of it.
fn visit_mut(message: &mut Value, change: &mut impl FnMut(Kind, &str) -> String) {
    for name in ["reasoning_content", "thinking", "reasoning"] {
        if let Some(Value::String(text)) = message.get_mut(name) {
            *text = change(Kind::Thought, text);
        }
    }
    match message.get_mut("content") {
        Some(Value::String(text)) => *text = change_words(text, change),
        Some(Value::Array(parts)) => {
            for text in parts.iter_mut().filter_map(|part| part.get_mut("text")) {
                if let Value::String(text) = text {
                    *text = change_words(text, change);
                }
            }
        }
        _ => {}
    }
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let function = if call.get("function").is_some() { &mut call["function"] } else { call };
        if let Some(Value::String(name)) = function.get_mut("name") {
            *name = change(Kind::Call, name);
        }
        function.get_mut("arguments").into_iter().for_each(|arguments| change_leaves(arguments, change));
    }
}

/// The texts among the arguments of a call. Arguments that come as JSON text stay as they are: a mark could break them.
fn change_leaves(value: &mut Value, change: &mut impl FnMut(Kind, &str) -> String) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|value| change_text(value, change)),
        Value::Array(items) => items.iter_mut().for_each(|value| change_text(value, change)),
        _ => {}
    }
}

fn change_text(value: &mut Value, change: &mut impl FnMut(Kind, &str) -> String) {
    match value {
        Value::String(text) => *text = change(Kind::Call, text),
        other => change_leaves(other, change),
    }
}

/// The words of a message, cut at the tags of reasoning.
fn change_words(text: &str, change: &mut impl FnMut(Kind, &str) -> String) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    // Without an opening tag, what comes before the first closing one is reasoning: a prompt may have opened it.
    let mut kind = match (text.find("<think>"), text.find("</think>")) {
        (None, Some(_)) => Kind::Thought,
        (Some(open), Some(close)) if close < open => Kind::Thought,
        _ => Kind::Words,
    };
    loop {
        let next = ["<think>", "</think>"].into_iter().filter_map(|tag| Some((rest.find(tag)?, tag))).min();
        let Some((at, tag)) = next else { break };
        out += &change(kind, &rest[..at]);
        out += tag;
        kind = if tag == "<think>" { Kind::Thought } else { Kind::Words };
        rest = &rest[at + tag.len()..];
    }
    out += &change(kind, rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(messages: &Value, render: impl Fn(&[Value]) -> Option<String>) -> Vec<(String, String)> {
        let messages = messages.as_array().unwrap();
        let pieces = pieces(messages);
        let plain = render(messages).unwrap();
        let marked = mark(messages, &pieces, &plain, render);
        let text = |&(piece, at): &(usize, usize)| {
            (pieces[piece].text.clone(), plain[marked.span(&pieces[piece], at)].to_owned())
        };
        marked.places.iter().map(text).collect()
    }

    fn joined(messages: &[Value], content: impl Fn(&str) -> String) -> Option<String> {
        Some(messages.iter().map(|m| format!("<{}>", content(m["content"].as_str().unwrap()))).collect())
    }

    #[test]
    fn equal_texts_are_told_apart_and_trimmed_ones_found() {
        let messages = json!([{"content": " yes "}, {"content": "a"}, {"content": "yes"}]);
        let places = found(&messages, |messages| joined(messages, |text| text.trim().to_owned()));
        let texts: Vec<&str> = places.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["yes", "a", "yes"]);
    }

    #[test]
    fn reasoning_is_a_piece_of_its_own_and_may_be_left_out() {
        let messages = json!([{"content": "<think>\nwhy\n</think>\n\nso"}, {"content": "x</think>y"}]);
        let kinds: Vec<Kind> = pieces(messages.as_array().unwrap()).iter().map(|piece| piece.kind).collect();
        assert_eq!(kinds, [Kind::Thought, Kind::Words, Kind::Thought, Kind::Words]);
        let last = |text: &str| text.rsplit("</think>").next().unwrap().trim().to_owned();
        let places = found(&messages, |messages| joined(messages, last));
        assert_eq!(places, [("so".into(), "so".into()), ("y".into(), "y".into())]);
    }

    #[test]
    fn a_template_that_looks_at_every_letter_is_searched_by_text() {
        let messages = json!([{"content": "one"}, {"content": "two"}]);
        let length = |text: &str| format!("{}:{text}", text.chars().count());
        let places = found(&messages, |messages| joined(messages, length));
        assert_eq!(places, [("one".into(), "one".into()), ("two".into(), "two".into())]);
    }

    #[test]
    fn calls_give_their_name_and_the_texts_of_their_arguments() {
        let call = json!({"function": {"name": "temp", "arguments": {"town": "Ulm", "days": [1, "two"]}}});
        let messages = json!([{"content": "", "tool_calls": [call]}]);
        let texts: Vec<String> = pieces(messages.as_array().unwrap()).into_iter().map(|piece| piece.text).collect();
        assert_eq!(texts, ["temp", "Ulm", "two"]);
    }
}
