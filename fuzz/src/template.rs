//! A chat template that may be anything, and messages: from where a folder keeps it, through rendering, to borders.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use warpo::data::{
    Dataset, Limits,
    encode::{EncodeOptions, Encoded, Encoder},
    records::{Columns, Record},
    template::{Templates, Variables},
};

use super::{TOKENIZER_CONFIG, Target, check_refusal, check_rows, input, remove, small_tokenizer, split, write};

const PLACES: [&str; 4] = ["chat_template.jinja", "tokenizer_config.json", "tools", "named.jinja"];
const GENERATION: u8 = 0x04;
const TOOLS: u8 = 0x08;

const RELEASED: [&str; 8] = [
    include_str!("../../tests/fixtures/templates/gemma/chat_template.jinja"),
    include_str!("../../tests/fixtures/templates/llama3/chat_template.jinja"),
    include_str!("../../tests/fixtures/templates/mistral/chat_template.jinja"),
    include_str!("../../tests/fixtures/templates/phi3/chat_template.jinja"),
    include_str!("../../tests/fixtures/templates/qwen2_5/chat_template.jinja"),
    include_str!("../../tests/fixtures/templates/qwen3/chat_template.jinja"),
    include_str!("../../tests/fixtures/templates/smollm2/chat_template.jinja"),
    include_str!("../../tests/fixtures/templates/zephyr/chat_template.jinja"),
];
/// Python's methods, filters, calls and control flow that released templates are made of.
const PIECES: [&str; 8] = [
    "{%- set ns = namespace(i=0, text='') -%}{%- for m in messages[::-1] -%}{%- set ns.text = ns.text ~ m['content'][1:-1] -%}\
     {%- endfor -%}{{ ns.text[:9] + '%s' % ns.i }}",
    "{% macro show(x, sep=', ') %}{{ caller() if caller else x | join(sep) }}{% endmacro %}{{ show(['a', 1.5e-7, none]) }}\
     {% call show([]) %}{{ messages | tojson(indent=2) }}{% endcall %}",
    "{{ bos_token }}{{ raise_exception('no ' ~ messages[0].role) if messages | length > 9 }}{{ strftime_now('%d %b %Y') }}",
    "{% for k, v in messages[0].items() %}{% if v is string and v is not none %}{{ k.upper().strip() }}={{ v.split('x', 1) | \
     last | trim }}{% elif v is mapping or v is iterable %}{{ v | length }}{% break %}{% endif %}{% else %}{% continue %}{% endfor %}",
    "{% generation %}{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | first | \
     default('-', true) | replace('a', 'b') }}{% endgeneration %}",
    "{{ messages | map('upper') | groupby('role') | dictsort | tojson }}{{ range(3, 0, -1) | list }}{{ 7 // 2 ** 3 % 5 }}",
    "{% filter indent(4, true) %}{% raw %}{{ x }}{% endraw %}{# c #}{{- \"\\u00e9\\x41\\n\" -}}{% endfilter %}{% include 'a' %}",
    "{% for m in messages recursive %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{{ loop([m]) if loop.depth < 3 }}\
     {{ m.content.rsplit(' ').__class__ }}{% endfor %}",
];

/// A template and messages.
pub struct Template {
    folder: PathBuf,
}

impl Target for Template {
    fn seeds() -> Vec<Vec<u8>> {
        let messages = Value::from(conversation()).to_string();
        let seed = |(i, text): (usize, &&str)| input((i % 16) as u8, format!("{text}\0{messages}").as_bytes());
        RELEASED.iter().chain(&PIECES).enumerate().map(seed).collect()
    }

    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn run(&self, bytes: &[u8]) {
        let [choice, bytes @ ..] = bytes else { return };
        let parts = split(bytes, b"\0");
        let text = String::from_utf8_lossy(parts[0]);
        let given = parts.get(1).and_then(|json| serde_json::from_slice::<Vec<Value>>(json).ok());
        let messages = given.filter(|messages| !messages.is_empty()).unwrap_or_else(conversation);
        let tools =
            if choice & TOOLS > 0 { vec![json!({"type": "function", "function": {"name": "f"}})] } else { vec![] };
        let templates = match self.place(PLACES[usize::from(choice & 3)], &text) {
            Ok(Some(templates)) => templates,
            Ok(None) => return,
            Err(why) => return check_refusal(&why),
        };
        let none = Map::new();
        let variables = Variables { tools: &tools, kwargs: [&none; 2] };
        if let Err(why) = templates.render(&messages, &variables, choice & GENERATION > 0) {
            check_refusal(&why);
        }
        self.encode(templates, &messages, &tools);
    }
}

impl Template {
    /// The template as a folder keeps it.
    fn place(&self, place: &str, text: &str) -> anyhow::Result<Option<Templates>> {
        remove(&self.folder, &["chat_template.jinja"]);
        let config = |template: Value| {
            let config =
                json!({"bos_token": "<s>", "eos_token": {"content": "<|endoftext|>"}, "chat_template": template});
            write(&self.folder.join("tokenizer_config.json"), config.to_string());
        };
        write(&self.folder.join("tokenizer_config.json"), TOKENIZER_CONFIG);
        let mut named = None;
        match place {
            "tokenizer_config.json" => config(text.into()),
            "tools" => config(json!([{"name": "default", "template": text}, {"name": "tool_use", "template": text}])),
            name => {
                let file = self.folder.join(name);
                write(&file, text);
                named = (name == "named.jinja").then_some(file);
            }
        }
        Templates::load(&self.folder, named.as_deref())
    }

    /// The borders of a conversation's turns and of a pair's responses under this template.
    fn encode(&self, templates: Templates, messages: &[Value], tools: &[Value]) {
        let options = EncodeOptions::new(Limits { prompt: 4096, response: 4096, tree: 8192 });
        let encoder = Encoder::new(small_tokenizer(&self.folder), Some(templates), options);
        let (last, first) = messages.split_last().expect("there are messages");
        let other = json!([{"role": "assistant", "content": "another answer"}]);
        let rows = [
            json!({"messages": messages, "tools": tools}),
            json!({"prompt": first, "chosen": [last], "rejected": other, "tools": tools}),
        ];
        for row in rows {
            let fields = row.as_object().cloned().unwrap_or_default();
            let encoded = Record::from_row(fields, &Columns::new()).and_then(|record| encoder.encode("row", &record));
            match encoded {
                Ok(Encoded::Tree { tree, .. }) => {
                    check_rows(&Dataset { trees: [tree].into_iter().collect(), ..Dataset::default() });
                }
                Ok(Encoded::Dropped(_) | Encoded::Blocks { .. }) => {}
                Err(why) => check_refusal(&why),
            }
        }
    }
}

fn conversation() -> Vec<Value> {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    vec![
        message("system", "Be brief."),
        message("user", "What is 2 + 2?"),
        message("assistant", "<think>\nsum\n</think>\n\n4"),
        message("user", "And 3 + 3?"),
        message("assistant", "<think>\nagain\n</think>\n\n6"),
    ]
}
