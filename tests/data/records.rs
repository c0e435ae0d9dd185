//! Rows: what is refused and in which words; whole files with `stop` and `skip`.

use std::fs;

use proptest::prelude::*;
use warpo::data::records::{Body, Text, lines, parse};
use warpo::data::{
    Dataset, Limits, OnError,
    encode::{Encoder, Options},
};

use super::quickstart;

#[test]
fn refusals() {
    let rows: [&[u8]; 16] = [
        b"{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\"",
        b"{\"prompt\": \"p\", \"chosen\": \"a\" \"rejected\": \"b\"}",
        b"not json",
        b"[1, 2]",
        b"\"text\"",
        b"{\"chosen\": \"a\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"a\"}",
        b"{\"prompt\": 3, \"chosen\": \"a\", \"rejected\": \"b\"}",
        b"{\"prompt\": [{\"role\": \"user\"}], \"chosen\": \"a\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": null, \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \" \\n\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"same\", \"rejected\": \"same\"}",
        b"{\"prompt\": \"p\xff\", \"chosen\": \"a\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"\\ud800\", \"chosen\": \"a\", \"rejected\": \"b\"}",
    ];
    let messages: Vec<String> = rows.iter().map(|row| parse(row).expect_err("a bad row").to_string()).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn extra_fields_blank_lines_and_a_byte_order_mark_are_fine() {
    let file = b"\xef\xbb\xbf{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", \"score\": 3}\r\n\n \n{}";
    let found = lines(file);
    assert_eq!(found.iter().map(|&(line, _)| line).collect::<Vec<_>>(), [1, 4]);
    let record = parse(found[0].1).unwrap();
    let plain = |text: &str| Text::Plain(text.into());
    assert_eq!(record.prompt, Some(plain("p")));
    assert_eq!(record.body, Body::Pair { chosen: plain("a"), rejected: plain("b") });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, line) in lines(&bytes) {
            if let Err(error) = parse(line) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }

    /// Damaged rows get further into the parser than random bytes.
    #[test]
    fn damaged_rows_never_panic(at in 0usize..60, byte in any::<u8>(), cut in 0usize..60) {
        let mut row = b"{\"prompt\": \"a prompt\", \"chosen\": \"yes\", \"rejected\": \"no\"}".to_vec();
        let at = at % row.len();
        row[at] = byte;
        let _ = parse(&row);
        row.truncate(cut);
        let _ = parse(&row);
    }
}

const FILE: &str = concat!(
    "{\"prompt\": \"Is it so?\", \"chosen\": \" Yes\", \"rejected\": \" No\"}\n",
    "{\"prompt\": \"Is it so?\", \"chosen\": \"\", \"rejected\": \" No\"}\n",
    "\n",
    "{\"prompt\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", \"chosen\": \" Yes\", \"rejected\": \" No\"}\n",
    "{\"prompt\": \"Is it?\", \"chosen\": \" No no no no no\", \"rejected\": \" No\"}\n",
    "{\"prompt\": \"Is it not so?\", \"chosen\": \" No\", \"rejected\": \" Yes\"}\n",
);
const LIMITS: Limits = Limits { prompt: 10, response: 3, tree: 11 };

#[test]
fn skip_counts_and_lists_stop_names_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    fs::write(&file, FILE).unwrap();
    let encoder = |limits| Encoder::new(quickstart::tokenizer(), None, Options::new(limits));
    let short = |text: &str| text[text.find("rows.jsonl").expect("the file is named")..].to_owned();

    let data = Dataset::load(&file, &encoder(LIMITS), OnError::Skip).unwrap();
    let names: Vec<String> = data.trees.iter().map(|tree| short(&tree.name)).collect();
    assert_eq!(names, ["rows.jsonl:1", "rows.jsonl:6"]);
    let mut messages: Vec<String> = data.skipped.iter().map(|message| short(message)).collect();

    let stop = Dataset::load(&file, &encoder(LIMITS), OnError::Stop).unwrap_err();
    messages.push(short(&format!("{stop:#}")));
    let tight = Limits { tree: 6, ..LIMITS };
    let budget = Dataset::load(&file, &encoder(tight), OnError::Skip).unwrap_err();
    messages.push(short(&format!("{budget:#}")).replace(&folder.path().display().to_string(), ""));
    fs::write(&file, "\n\n").unwrap();
    let empty = Dataset::load(&file, &encoder(LIMITS), OnError::Stop).unwrap_err();
    messages.push(short(&format!("{empty:#}")));
    fs::remove_file(&file).unwrap();
    let missing = Dataset::load(&file, &encoder(LIMITS), OnError::Stop).unwrap_err();
    messages.push(short(&format!("{missing:#}")));
    insta::assert_snapshot!(messages.join("\n"));
}
