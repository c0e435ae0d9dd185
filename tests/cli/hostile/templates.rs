//! Chat templates that reach for what is not theirs, or never end.

use super::{super::scratch::Scratch, Case, LEVELS, check, data, nested};

const CHAT: &str = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;

/// A conversation under this template.
pub(super) fn template(scratch: &Scratch, text: &str) {
    scratch.write("train.jsonl", CHAT);
    scratch.replace("run.toml", "eval = \"eval.jsonl\"", "");
    scratch.write("model/chat_template.jinja", text);
}

const TEMPLATES: &[Case] = &[
    data("an include", |s| template(s, "{% include '/etc/passwd' %}"), &["chat template"]),
    data("an include upwards", |s| template(s, "{% include '../../../../etc/passwd' %}"), &["chat template"]),
    data("an include of itself", |s| template(s, "{% include 'chat template' %}"), &["chat template"]),
    data("an import", |s| template(s, "{% import '/etc/passwd' as x %}"), &["chat template"]),
    data("names from elsewhere", |s| template(s, "{% from '/etc/passwd' import root %}"), &["chat template"]),
    data("a parent", |s| template(s, "{% extends '/etc/passwd' %}"), &["chat template"]),
    data("classes of a text", |s| template(s, "{{ ''.__class__.__mro__[1].__subclasses__() }}"), &["chat template"]),
    data("classes of messages", |s| template(s, "{{ messages.__class__.__base__ }}"), &["chat template"]),
    data("globals", |s| template(s, "{{ cycler.__init__.__globals__.os.popen('id').read() }}"), &["chat template"]),
    data("its own self", |s| template(s, "{{ self.__init__.__globals__ }}"), &["chat template"]),
    data("a macro without end", |s| template(s, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), &["chat template"]),
    data(
        "a loop into itself",
        |s| template(s, "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}"),
        &["chat template"],
    ),
    data("deep brackets", |s| template(s, &format!("{{{{ {} }}}}", nested())), &["chat template"]),
    data("deep parentheses", |s| template(s, &format!("{{{{ {}", "(".repeat(LEVELS))), &["chat template"]),
    data("deep conditions", |s| template(s, &"{% if true %}".repeat(LEVELS)), &["chat template"]),
    data("deep loops", |s| template(s, &"{% for x in messages %}".repeat(LEVELS)), &["chat template"]),
    data("half a tag", |s| template(s, "{% for"), &["chat template"]),
    data(
        "no UTF-8",
        |s| {
            template(s, "");
            s.write("model/chat_template.jinja", b"\xff\xfe");
        },
        &["chat_template.jinja", "UTF-8"],
    ),
];

#[test]
fn templates_that_reach_out() {
    check(TEMPLATES);
}
