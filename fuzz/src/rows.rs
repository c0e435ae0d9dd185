//! A data file's bytes, under one of its names, through reading, records and encoding.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use warpo::{
    config::{LongPrompt, LongResponse, LongText},
    data::{
        Dataset, Limits, OnError,
        encode::{EncodeOptions, Encoder},
        records::{Column, Columns},
        source,
        template::Templates,
    },
};

use super::{Target, check_refusal, check_rows, input, small_tokenizer, write};

/// By the first byte's low bits: what the file is called.
const NAMES: [&str; 8] =
    ["rows.jsonl", "rows.json", "rows.parquet", "rows", "rows.jsonl.gz", "rows.json.gz", "rows.jsonl.zst", "rows.zst"];
const CUT: u8 = 0x08;
const REWRITES: u8 = 0x10;
const STOP: u8 = 0x20;
const RENAMED: u8 = 0x40;
/// No row may be longer than a line of text.
const SHORT: u8 = 0x80;

const CHATML: &str = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for message in messages %}\
    <|{{ message.role }}|>{{ message.content }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}\
    <|endoftext|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
/// Leaves reasoning out of all but the last turn, and writes the system text into the last turn of the user.
const REWRITER: &str = "{% for m in messages %}{% if m.role == 'user' %}[{% if loop.index0 >= messages | length - 2 and \
    messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}{{ m.content }}]{% elif m.role == 'assistant' %}\
    {% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|endoftext|>{% endif %}\
    {% endfor %}{% if add_generation_prompt %}<think>{% endif %}";

const ROWS: [&str; 9] = [
    r#"{"prompt": "Is it late?", "chosen": " Yes.", "rejected": " No.", "score_chosen": 2.0, "score_rejected": -1}"#,
    r#"{"prompt": "Q", "responses": [" a", " b", " c"], "scores": [0.5, -1e3, 7]}"#,
    r#"{"prompt": "Q", "completions": [" a", " b"], "labels": [true, 0]}"#,
    r#"{"prompt": "Q", "completion": " c", "label": false}"#,
    r#"{"text": "A whole document, é ü 東, and its end.\n"}"#,
    r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>t</think>a", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1.5e-7}}}]}, {"role": "tool", "content": "r"}, {"role": "assistant", "content": "done"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}"#,
    r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "y"}], "rejected": [{"role": "assistant", "content": "n"}, {"role": "user", "content": "?"}, {"role": "assistant", "content": "n"}], "chat_template_kwargs": {"enable_thinking": false}}"#,
    r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "n"}], "id": "𝄞\u0000"}"#,
    r#"{"prompt": "Q", "nodes": [{"parent": null, "text": " 1", "score": 1, "visits": 3}, {"parent": 0, "text": " 2", "score": 0}, {"parent": 0, "text": " 3", "score": 2}]}"#,
];

/// Files of rows.
pub struct Rows {
    folder: PathBuf,
    /// A template that is plain about its turns, then one that rewrites them.
    encoders: [Encoder; 2],
    cutting: Encoder,
}

impl Target for Rows {
    fn seeds() -> Vec<Vec<u8>> {
        let mut seeds: Vec<Vec<u8>> = Vec::new();
        for (i, row) in ROWS.iter().enumerate() {
            let lines = format!("{row}\n\n{row}\n").replace("Is it", "Was it");
            let flags = if i % 2 == 0 { 0 } else { CUT } | if i % 3 == 0 { REWRITES } else { 0 };
            seeds.push(input(flags, lines.as_bytes()));
            seeds.push(input(1 | STOP | REWRITES, format!("\u{feff} [{row}, {row}]\n").as_bytes()));
        }
        let all = ROWS.join("\n");
        seeds.push(input(RENAMED, ROWS[0].replace("prompt", "question").as_bytes()));
        seeds.push(input(4, &gzip(all.as_bytes())));
        seeds.push(input(SHORT, all.as_bytes()));
        seeds.push(input(5 | STOP, &gzip(format!("[{}]", ROWS.join(",")).as_bytes())));
        seeds.push(input(6, &zstd::encode_all(all.as_bytes(), 3).expect("text is compressed")));
        let tables: [&[u8]; 12] = [
            include_bytes!("../../tests/fixtures/parquet/plain.brotli.parquet"),
            include_bytes!("../../tests/fixtures/parquet/plain.gzip.parquet"),
            include_bytes!("../../tests/fixtures/parquet/plain.lz4.parquet"),
            include_bytes!("../../tests/fixtures/parquet/plain.delta.parquet"),
            include_bytes!("../../tests/fixtures/parquet/plain.pages.parquet"),
            include_bytes!("../../tests/fixtures/parquet/plain.binary.parquet"),
            include_bytes!("../../tests/fixtures/parquet/nested.parquet"),
            include_bytes!("../../tests/fixtures/parquet/types.parquet"),
            include_bytes!("../../tests/fixtures/parquet/lists.snappy.parquet"),
            include_bytes!("../../tests/fixtures/parquet/unpaired.zstd.parquet"),
            include_bytes!("../../tests/fixtures/parquet/conversations.zstd.parquet"),
            include_bytes!("../../tests/fixtures/parquet/conversations.snappy.parquet"),
        ];
        seeds.extend(tables.map(|table| input(2, table)));
        seeds
    }

    fn new(folder: &Path) -> Self {
        let encoder = |template: &str, options: EncodeOptions| {
            write(&folder.join("chat_template.jinja"), template);
            let templates = Templates::load(folder, None).expect("the template is Jinja");
            Encoder::new(small_tokenizer(folder), templates, options)
        };
        let whole = || EncodeOptions::new(Limits { prompt: 4096, response: 4096, tree: 8192 });
        let cutting = EncodeOptions {
            long_prompt: LongPrompt::KeepEnd,
            long_response: LongResponse::KeepStart,
            long_text: LongText::Split,
            ..EncodeOptions::new(Limits { prompt: 6, response: 3, tree: 64 })
        };
        Self {
            folder: folder.to_owned(),
            encoders: [CHATML, REWRITER].map(|template| encoder(template, whole())),
            cutting: encoder(CHATML, cutting),
        }
    }

    fn run(&self, bytes: &[u8]) {
        let [choice, bytes @ ..] = bytes else { return };
        let file = self.folder.join(NAMES[usize::from(choice & 7)]);
        write(&file, bytes);
        let encoder = if choice & CUT > 0 { &self.cutting } else { &self.encoders[usize::from(choice & REWRITES > 0)] };
        let columns = if choice & RENAMED > 0 {
            Columns::from([(Column::Prompt, "question".to_owned())])
        } else {
            Columns::new()
        };
        let on_error = if choice & STOP > 0 { OnError::Stop } else { OnError::Skip };
        let longest = if choice & SHORT > 0 { 256 } else { source::MAX_ROW_BYTES };
        let rows = source::open(&file, longest);
        match rows.and_then(|rows| Dataset::load_counting(rows, &columns, encoder, on_error, |_| ())) {
            Ok(data) => check_rows(&data),
            Err(why) => check_refusal(&why),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("text is compressed")
}
