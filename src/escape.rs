//! Text from files and names as a terminal may see it: whatever could move its cursor, ring its bell, turn its writing
//! around or forge a line is written out.

use std::{borrow::Cow, fmt::Write};

/// The text with every character written out (`\x1b`, `\u{202e}`) that a terminal would obey and not show. Line feed,
/// carriage return and tabulator become `\n`, `\r` and `\t`.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            c if !is_obeyed(c) => out.push(c),
            c if u32::from(c) < 0x100 => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

/// The same over several lines: line feeds stay.
pub fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// A line of JSON in which such characters are escaped as JSON escapes them. They can only stand in its strings, of which
/// every JSON writer has already escaped the line feeds.
pub fn visible_json(line: &str) -> Cow<'_, str> {
    if !line.chars().any(is_obeyed) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        match c {
            c if is_obeyed(c) => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Controls (C0, DEL, C1), marks that turn the direction of writing, line and paragraph separators, and annotations that
/// terminals hide. Joiners stay: emoji and many scripts are written with them. All lie in the basic plane.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        for (text, want) in [
            ("plain, ünïcödé, 日本, 👩\u{200d}🔬", "plain, ünïcödé, 日本, 👩\u{200d}🔬"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("a\x08\x7f\u{9b}31m", "a\\x08\\x7f\\x9b31m"),
            ("one\ntwo\r\tthree\0", "one\\ntwo\\r\\tthree\\x00"),
            ("user\u{202e}gpj.exe\u{2066}\u{feff}", "user\\u{202e}gpj.exe\\u{2066}\\u{feff}"),
            ("\u{2028}\u{85}\u{61c}", "\\u{2028}\\x85\\u{61c}"),
        ] {
            assert_eq!(visible(text), want);
        }
        assert_eq!(visible_lines("a\x1b\nb\r\n"), "a\\x1b\nb\\r\n");
    }

    /// No character of the ranges that a terminal interprets comes through, whatever stands around it.
    #[test]
    fn no_control_comes_through() {
        for code in (0..0x20).chain(0x7f..0xa0).chain(0x202a..0x202f).chain(0x2066..0x206a) {
            let c = char::from_u32(code).unwrap();
            assert!(!visible(&format!("a{c}b")).contains(c), "{code:x}");
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let line = serde_json::to_string(&serde_json::json!({"row": "a\u{9b}\u{7f}\u{202e}\x1b\n\"é日"})).unwrap();
        let shown = visible_json(&line);
        assert!(shown.chars().all(|c| !is_obeyed(c)), "{shown}");
        let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(same(&shown), same(&line));
    }
}
