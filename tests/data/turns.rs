//! Whose words are learnt: turns in templates that rewrite, move and leave out, and what is said about it.

use std::fs;

use serde_json::{Value, json};
use warpo::data::{
    Limits,
    encode::{EncodeOptions, Encoded, Encoder},
    notes::Note,
    records::{Columns, Record},
    template::Templates,
    tokenize::Tokenizer,
};
use warpo::forest::{Segment, Tree};

const LIMITS: Limits = Limits { prompt: 2000, response: 2000, tree: 8000 };

/// A template that writes the system text, and the tools, into the last message of the user.
const LAST_USER: &str = "{% set ns = namespace(sys='', last=0) %}{% for m in messages %}{% if m.role == 'system' %}\
    {% set ns.sys = m.content %}{% elif m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{{ '<s>' }}\
    {% for m in messages %}{% if m.role == 'user' %}{% if loop.index0 == ns.last and tools %}\
    {{ '[TOOLS]' }}{{ tools | tojson }}{{ '[/TOOLS]' }}{% endif %}{{ '[INST] ' }}{% if loop.index0 == ns.last %}\
    {{ ns.sys }}{{ '\\n\\n' }}{% endif %}{{ m.content }}{{ ' [/INST]' }}{% elif m.role == 'assistant' %}\
    {{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}";
/// Thoughts stay in the last turn only, where an empty one is written if there is none.
const HISTORY: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}\
    {% set words = m.content.split('</think>')[-1].strip() %}{% if loop.last %}{% if '</think>' in m.content %}\
    {{ m.content.split('</think>')[0] + '</think>\\n\\n' }}{% else %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}{{ words }}\
    {% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// Opens a thought in the generation prompt and writes it where the message has one.
const OPENS: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}";
/// Text alone.
const PLAIN: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content }}{{ '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
/// Calls, thoughts in a field of their own and parts of content.
const WHOLE: &str = "{% if tools %}{{ tools | tojson }}{{ '\\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}\
    {% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}\
    {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\
    {% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name }}{{ c.function.arguments | tojson }}{{ '</call>' }}{% endfor %}\
    {{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn encoder(template: &str) -> Encoder {
    let folder = tempfile::tempdir().unwrap();
    let fixture = crate::support::root().join("tests/fixtures/templates/smollm2");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let templates = Templates::load(folder.path(), None).unwrap();
    Encoder::new(Tokenizer::load(folder.path(), 400).unwrap(), templates, EncodeOptions::new(LIMITS))
}

fn read(row: Value) -> Record {
    let Value::Object(fields) = row else { panic!("{row}") };
    Record::from_row(fields, &Columns::new()).unwrap()
}

/// The tree of a row, and the notes on it.
fn tree(encoder: &Encoder, row: Value) -> (Tree, Vec<Note>) {
    let shown = row.to_string();
    match encoder.encode("row", &read(row)) {
        Ok(Encoded::Tree { tree, notes, .. }) => (tree, notes),
        other => panic!("{shown}: {other:?}"),
    }
}

fn refusal(encoder: &Encoder, row: Value) -> String {
    format!("{:#}", encoder.encode("row", &read(row)).unwrap_err())
}

/// Runs of a segment's tokens that are learnt, as text.
fn learnt(encoder: &Encoder, segment: &Segment) -> Vec<String> {
    let mut runs: Vec<Vec<u32>> = Vec::new();
    let mut open = false;
    for (i, &token) in segment.tokens.iter().enumerate() {
        let counts = segment.scored && !segment.unscored.iter().any(|range| range.contains(&i));
        if counts && !open {
            runs.push(Vec::new());
        }
        runs.last_mut().into_iter().filter(|_| counts).for_each(|run| run.push(token));
        open = counts;
    }
    runs.iter().map(|run| encoder.tokenizer().decode(run).unwrap()).collect()
}

fn prompt(encoder: &Encoder, tree: &Tree) -> String {
    encoder.tokenizer().decode(&tree.segments[0].tokens).unwrap()
}

fn says(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn talk() -> Vec<Value> {
    [
        ("system", "be brief"),
        ("user", "first ask"),
        ("assistant", "first word"),
        ("user", "second ask"),
        ("assistant", "last word"),
    ]
    .map(|(role, content)| says(role, content))
    .into()
}

#[test]
fn what_a_template_moves_into_the_last_turn_of_the_user_is_not_learnt() {
    let encoder = encoder(LAST_USER);
    let (whole, notes) = tree(&encoder, json!({"messages": talk()}));
    assert_eq!(learnt(&encoder, &whole.segments[1]), [" first word</s>", " last word</s>"]);
    let foreign = "ends a turn without an EOS token of the model folder, such as \"<|im_end|>\"";
    assert_eq!(notes, [Note::Template(foreign.into())]);
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let (whole, _) = tree(&encoder, json!({"messages": talk(), "tools": tools}));
    assert_eq!(learnt(&encoder, &whole.segments[1]), [" first word</s>", " last word</s>"]);
    // Both sides of a pair go on with a question: what they share before they answer is the prompt.
    let [.., last] = &talk()[..] else { unreachable!() };
    let other = [&talk()[2..4], &[says("assistant", "worst word")]].concat();
    let row = json!({"prompt": talk()[..2], "chosen": [talk()[2], talk()[3], last], "rejected": other});
    let (pair, _) = tree(&encoder, row);
    assert_eq!(prompt(&encoder, &pair), "<s>[INST] first ask [/INST]");
    assert_eq!(learnt(&encoder, &pair.segments[1]), [" first word</s>", " last word</s>"]);
    assert_eq!(learnt(&encoder, &pair.segments[2]), [" first word</s>", " worst word</s>"]);
}

/// The folder's EOS is `<|endoftext|>` in one and `<|im_end|>` in the other: borders do not come from it.
#[test]
fn turns_that_a_template_rewrites_are_found_with_any_eos() {
    for eos in ["<|im_end|>", "<|endoftext|>"] {
        let folder = tempfile::tempdir().unwrap();
        let fixture = crate::support::root().join("tests/fixtures/templates/smollm2");
        fs::copy(fixture.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        let config = json!({"eos_token": eos, "chat_template": HISTORY});
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let templates = Templates::load(folder.path(), None).unwrap();
        let encoder = Encoder::new(Tokenizer::load(folder.path(), 400).unwrap(), templates, EncodeOptions::new(LIMITS));
        let mut talk = talk();
        talk[2]["content"] = "<think>\nwhy\n</think>\n\nfirst word".into();
        let (whole, notes) = tree(&encoder, json!({"messages": talk}));
        let want = ["first word<|im_end|>\n", "<think>\n\n</think>\n\nlast word<|im_end|>\n"];
        assert_eq!(learnt(&encoder, &whole.segments[1]), want, "{eos}");
        let mut wanted = vec![Note::Template("leaves out the assistant's reasoning".into())];
        if eos != "<|im_end|>" {
            let foreign = "ends a turn without an EOS token of the model folder, such as \"<|endoftext|>\"";
            wanted.push(Note::Template(foreign.into()));
        }
        assert_eq!(notes, wanted, "{eos}");
    }
}

#[test]
fn what_a_generation_prompt_opens_is_in_the_prompt_of_both_sides_or_of_neither() {
    let encoder = encoder(OPENS);
    let ask = json!([says("user", "ask")]);
    let row = |chosen: &str, rejected: &str| json!({"prompt": ask, "chosen": [says("assistant", chosen)], "rejected": [says("assistant", rejected)]});
    let (both, _) = tree(&encoder, row("<think>\nso\n</think>\nyes", "<think>\nno\n</think>\nnever"));
    assert!(prompt(&encoder, &both).ends_with("assistant\n<think>\n"));
    assert_eq!(learnt(&encoder, &both.segments[1]), ["so\n</think>\nyes<|im_end|>\n"]);
    for (chosen, rejected) in [("<think>\nso\n</think>\nyes", "never"), ("never", "<think>\nso\n</think>\nyes")] {
        let (one, _) = tree(&encoder, row(chosen, rejected));
        assert!(prompt(&encoder, &one).ends_with("assistant\n"), "{}", prompt(&encoder, &one));
        let sides = [1, 2].map(|side| learnt(&encoder, &one.segments[side]).concat());
        assert_eq!(sides, [chosen, rejected].map(|text| format!("{text}<|im_end|>\n")));
    }
}

#[test]
fn a_turn_of_weight_0_is_read_and_not_learnt() {
    let encoder = encoder(PLAIN);
    let mut talk = talk();
    (talk[2]["weight"], talk[4]["weight"]) = (json!(0), json!(1));
    let (whole, notes) = tree(&encoder, json!({"messages": talk}));
    assert_eq!(learnt(&encoder, &whole.segments[1]), ["last word<|im_end|>\n"]);
    assert_eq!(notes, []);
    talk[4]["weight"] = json!(0.5);
    assert!(
        refusal(&encoder, json!({"messages": talk})).contains("message 5: `weight` is the number 0.5: give 0 or 1")
    );
    talk[4]["weight"] = json!(0);
    assert!(refusal(&encoder, json!({"messages": talk})).contains("to learn from"));
}

#[test]
fn what_a_template_leaves_out_is_said_and_an_empty_response_refused() {
    let encoder = encoder(PLAIN);
    let ask = says("user", "ask");
    let call = json!({"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}});
    let calls = json!({"role": "assistant", "content": "", "tool_calls": [call]});
    let no = says("assistant", "no");
    let row = json!({"prompt": [ask], "chosen": [calls], "rejected": [no]});
    let why = refusal(&encoder, row);
    assert!(why.starts_with("`chosen`: the chat template leaves out the assistant's tool call (\"weather\")"), "{why}");
    let both = json!({"role": "assistant", "content": "I look", "tool_calls": [call], "reasoning_content": "hm"});
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let kwargs = json!({"thinking_budget": 3});
    let row =
        json!({"prompt": [ask], "chosen": [both], "rejected": [no], "tools": tools, "chat_template_kwargs": kwargs});
    let (_, mut notes) = tree(&encoder, row);
    notes.sort();
    let template = |what: &str| Note::Template(what.into());
    let want = [
        Note::Unread("`chat_template_kwargs.thinking_budget`".into()),
        template("leaves out or rewrites tool calls of the assistant"),
        template("leaves out the assistant's reasoning"),
        template("leaves out the tools"),
    ];
    assert_eq!(notes, want);
    // A call that is left out in the middle of a response leaves an empty turn, which nobody said.
    let found = json!({"role": "tool", "content": "cold"});
    let row = json!({"messages": [ask, calls, found, says("assistant", "it is cold")]});
    let (whole, notes) = tree(&encoder, row);
    assert_eq!(learnt(&encoder, &whole.segments[1]), ["it is cold<|im_end|>\n"]);
    let nothing = template("shows nothing of a turn of the assistant, which is read and not learnt");
    assert!(notes.contains(&nothing), "{notes:?}");
    // The same row under a template that writes all of it.
    let whole = self::encoder(WHOLE);
    let row = json!({"prompt": [ask], "chosen": [both], "rejected": [no], "tools": tools});
    let (pair, notes) = tree(&whole, row);
    assert_eq!(notes, []);
    let want = "<think>hm</think>I look<call>weather{\"town\": \"Ulm\"}</call><|im_end|>\n";
    assert_eq!(learnt(&whole, &pair.segments[1]), [want]);
    // A system text, a role and a key that nothing reads.
    let silent = self::encoder(
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{{ '<|im_end|>' }}{% endif %}{% endfor %}",
    );
    let mut odd = talk();
    odd[1]["mood"] = "glad".into();
    odd[3]["role"] = "human".into();
    let (_, mut notes) = tree(&silent, json!({"messages": odd}));
    notes.sort();
    let want = [
        Note::Unread("`mood` of messages".into()),
        template("does not know the role `human` of a message"),
        template("leaves out text of a message from `system`"),
    ];
    assert_eq!(notes, want);
}

#[test]
fn arguments_that_are_json_text_and_parts_of_content_are_brought_into_the_templates_form() {
    let encoder = encoder(WHOLE);
    let call = json!({"function": {"name": "weather", "arguments": "{\"town\": \"Ulm\"}"}});
    let row = json!({"prompt": [says("user", "ask")], "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        "rejected": [says("assistant", "no")]});
    let (pair, notes) = tree(&encoder, row);
    assert_eq!(learnt(&encoder, &pair.segments[1]), ["<call>weather{\"town\": \"Ulm\"}</call><|im_end|>\n"]);
    assert_eq!(notes, []);
    let parts = |text: &str| json!([{"type": "text", "text": text}, {"type": "text", "text": "!"}]);
    let row = |answer: Value| {
        json!({"prompt": [{"role": "user", "content": parts("ask")}],
        "chosen": [{"role": "assistant", "content": answer}], "rejected": [says("assistant", "no")]})
    };
    for template in [WHOLE, PLAIN] {
        let encoder = self::encoder(template);
        let (pair, notes) = tree(&encoder, row(parts("yes")));
        assert_eq!(learnt(&encoder, &pair.segments[1]), ["yes!<|im_end|>\n"]);
        assert!(prompt(&encoder, &pair).contains("ask!<|im_end|>"), "{}", prompt(&encoder, &pair));
        assert_eq!(notes, []);
    }
    let image = json!([{"type": "image_url", "image_url": "x.png"}]);
    assert!(refusal(&encoder, row(image)).contains("of type \"image_url\": only text is read"));
}

/// Turns of one text, a question that stands in an answer, a template that writes an answer twice.
#[test]
fn equal_texts_do_not_confuse_turns() {
    let encoder = encoder(PLAIN);
    let same: Vec<Value> =
        ["user", "assistant", "user", "assistant", "user", "assistant"].map(|role| says(role, "same")).into();
    let (whole, _) = tree(&encoder, json!({"messages": same}));
    assert_eq!(learnt(&encoder, &whole.segments[1]), ["same<|im_end|>\n"; 3]);
    let twice = self::encoder(
        "{{ messages[1:2] | map(attribute='content') | join + '|' }}{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}",
    );
    let (whole, _) = tree(&twice, json!({"messages": talk()[1..]}));
    assert_eq!(learnt(&twice, &whole.segments[1]).len(), 2);
    // One that writes the question into the answer's turn cannot be learnt from.
    let mixed = self::encoder(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{{ 'so: ' }}\
         {{ m.content }}{{ ' to ' }}{{ messages[loop.index0 - 1].content }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}",
    );
    let why = refusal(&mixed, json!({"messages": talk()}));
    assert!(why.contains("writes text of message") && why.contains("from `user`"), "{why}");
}
