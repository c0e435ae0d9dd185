//! Chat templates that reach for what is not theirs, or never end.

use super::{super::scratch::Scratch, Case, LEVELS, check, data, nested, refusal, watch};

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

/// Chains that are long and not nested may also do what they say.
#[test]
fn long_chains_in_templates() {
    let long = |piece: &str| format!("{{{{ 'a'{} }}}}", piece.repeat(LEVELS));
    let chains = [
        long(" | trim"),
        long(" ~ 'a'"),
        long(".strip()"),
        long(" + 'a'"),
        long("[0]"),
        long(" and 'a'"),
        long(" if true else 'a'"),
        format!("{{{{ {}true }}}}", "not ".repeat(LEVELS)),
        format!("{{{{ {}1 }}}}", "-".repeat(LEVELS)),
        format!("{{% if false %}}{}{{% endif %}}", "{% elif false %}".repeat(LEVELS)),
        format!("{{{{ {}1 }}}}", "1 if 0 else ".repeat(LEVELS)),
        format!("{{{{ 2{} }}}}", " ** 1".repeat(LEVELS)),
        format!("{{{{ 2{} }}}}", " < 3".repeat(LEVELS)),
    ];
    for chain in chains {
        let scratch = Scratch::new();
        template(&scratch, &(chain.clone() + "{{ messages[1].content }}"));
        let seen = watch(&chain[..40], &scratch, &["data", "run.toml"]);
        if !seen.status.success() {
            refusal(&chain[..40], &seen);
        }
    }
}

const LOOPS: &[Case] = &[
    data(
        "loops in loops",
        |s| {
            let loops = "{% for i in range(99999) %}".repeat(4);
            template(s, &format!("{loops}{{{{ i }}}}{}", "{% endfor %}".repeat(4)));
        },
        &["chat template"],
    ),
    data(
        "loops that write nothing",
        |s| {
            let loops = "{% for i in range(99999) %}".repeat(4);
            template(s, &format!("{loops}{}", "{% endfor %}".repeat(4)));
        },
        &["chat template"],
    ),
    data(
        "a text that doubles",
        |s| {
            template(
                s,
                "{% set n = namespace(t='doubled ') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
            );
        },
        &["chat template"],
    ),
    data(
        "a list that doubles",
        |s| {
            template(
                s,
                "{% set n = namespace(t=[1]) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
            );
        },
        &["chat template"],
    ),
    data("a text times a billion", |s| template(s, "{{ 'abcdefgh' * 1000000000 }}"), &["chat template"]),
    data("a list times a billion", |s| template(s, "{{ [1, 2] * 1000000000 }}"), &["chat template"]),
    data("a wide indent", |s| template(s, "{{ messages | tojson(indent=2000000000) }}"), &["chat template"]),
    data("a wide centre", |s| template(s, "{{ 'a'.center(4000000000) }}"), &["chat template"]),
    data("a wide number", |s| template(s, "{{ '%4000000000d' % 1 }}"), &["chat template"]),
    data("a wide filling", |s| template(s, "{{ 'a'.zfill(4000000000) }}"), &["chat template"]),
    data(
        "a text replaced by itself",
        |s| {
            template(
                s,
                "{% set n = namespace(t='aaaaaaaaaa') %}{% for i in range(30) %}{% set n.t = n.t.replace('a', n.t) %}{% endfor %}{{ n.t }}",
            );
        },
        &["chat template"],
    ),
    data(
        "macros that call each other",
        |s| {
            let mut text = String::from("{% macro m0() %}x{% endmacro %}");
            for i in 1..60 {
                text += &format!("{{% macro m{i}() %}}{{{{ m{0}() }}}}{{{{ m{0}() }}}}{{% endmacro %}}", i - 1);
            }
            template(s, &(text + "{{ m59() }}"));
        },
        &["chat template"],
    ),
];

#[test]
fn templates_without_end() {
    check(LOOPS);
}
