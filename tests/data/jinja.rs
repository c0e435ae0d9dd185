//! The template language: texts and refusals of `transformers`, hostile templates, and the entry of the sweep.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use warpo::data::template::{Date, Templates, Variables};

const DAY: &str = "2024-03-05";

/// A template in a folder of its own.
fn compiled(text: &str, special: &Value) -> anyhow::Result<Templates> {
    let folder = TempDir::new()?;
    fs::write(folder.path().join("chat_template.jinja"), text)?;
    fs::write(folder.path().join("tokenizer_config.json"), special.to_string())?;
    Ok(Templates::load(folder.path(), None)?.unwrap().on(Date::parse(DAY)?))
}

fn rendered(text: &str, variables: &Map<String, Value>) -> anyhow::Result<String> {
    let variables = Variables { tools: &[], kwargs: [&Map::new(), variables] };
    compiled(text, &json!({}))?.render(&[], &variables, false)
}

fn refusal(text: &str) -> String {
    rendered(text, &Map::new()).unwrap_err().root_cause().to_string()
}

/// `tests/parity/make_jinja_goldens.py` made the goldens.
#[test]
fn small_templates_render_and_raise_as_in_transformers() {
    let file = crate::support::root().join("tests/fixtures/templates/jinja.json");
    let golden: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let variables = case.get("variables").unwrap_or(&golden["variables"]).as_object().unwrap();
        let got = rendered(case["template"].as_str().unwrap(), variables);
        if got.as_ref().ok().map(String::as_str) != case["text"].as_str() {
            wrong.push(format!("{case}\n  {:?}", got.map_err(|error| error.to_string())));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Each would run for hours or take gigabytes.
#[test]
fn hostile_templates_are_refused_in_seconds() {
    let deep = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
    let doubled = "{% set s = namespace(x='ab') %}{% for i in range(90) %}{% set s.x = s.x ~ s.x %}{% endfor %}";
    let templates = [
        "{% for a in range(10**9) %}{% endfor %}".into(),
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into(),
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}".into(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{% macro f(n) %}{{ f(n + 1) ~ f(n + 1) }}{% endmacro %}{{ f(0) }}".into(),
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}".into(),
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(),
        doubled.into(),
        doubled.replace("'ab'", "[1, 2]").replace('~', "+"),
        doubled.replace("'ab'", "[1, 2]").replace("s.x ~ s.x", "[s.x, s.x]") + "{{ s.x }}",
        doubled.replace("'ab'", "[1, 2]").replace("s.x ~ s.x", "[s.x, s.x]") + "{{ s.x == s.x|list }}{{ s.x|tojson }}",
        doubled.replace("'ab'", "(1, 2)").replace("s.x ~ s.x", "(s.x, s.x)") + "{{ {s.x: 1} }}",
        doubled.replace("range(90)", "range(99999)").replace("s.x ~ s.x", "[s.x]"),
        "{% set s = namespace() %}{% set s.a = [s] %}{{ s }}".into(),
        "{% set s = namespace(x=none) %}{% for i in range(99999) %}{% set s.x = namespace(x=s.x) %}{% endfor %}{{ s }}".into(),
        "{% set s = namespace(x=[]) %}{% for i in range(9999) %}{% set s.x = s.x|map('upper') %}{% endfor %}{{ s.x|list }}".into(),
        "{{ 'a' * 10**12 }}".into(),
        "{{ [1] * 10**12 }}".into(),
        "{{ 'a'.center(10**12) }}{{ 'a'.zfill(10**12) }}".into(),
        "{{ 'a'.zfill(10**12) }}".into(),
        "{{ '%999999999999d' % 1 }}".into(),
        "{{ '%*d' % (10**12, 1) }}".into(),
        "{{ '{:999999999999}'.format(1) }}".into(),
        "{{ 1|round(10**9) }}{{ '%.999999999f' % 1.5 }}".into(),
        "{{ 'a\n'|indent(10**12) }}".into(),
        "{{ [1]|tojson(indent=10**12) }}".into(),
        "{{ '\t'.expandtabs(10**12) }}".into(),
        "{% set a = 'a' * 10**6 %}{{ a.replace('a', a) }}".into(),
        "{% set a = 'a' * 10**6 %}{{ a|replace('', a) }}".into(),
        "{% set a = 'a' * 10**6 %}{{ a.join(a) }}".into(),
        "{% set a = 'a' * 10**6 %}{% for i in range(99999) %}{% if a.upper() == 'b' %}{% endif %}{% endfor %}".into(),
        "{% set a = 'a' * 10**6 %}{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}".into(),
        "{{ range(99999)|batch(1, 1)|list|map('list')|list * 99 }}".into(),
        "{{ [1]|batch(10**12, 1)|list }}".into(),
        "{{ [1]|slice(10**12)|list }}".into(),
        "{{ 2 ** (10**12) }}".into(),
        // As deep as everything may nest at once, on a thread with a small stack.
        format!("{{% macro f() %}}{{{{ {}f(){} }}}}{{% endmacro %}}{{{{ f() }}}}", "[".repeat(80), "]|list".repeat(80)),
        format!(
            "{{% macro f() %}}{}{{{{ f() }}}}{}{{% endmacro %}}{{{{ f() }}}}",
            "{% for a in [1] if true %}{% if true %}".repeat(40),
            "{% endif %}{% endfor %}".repeat(40)
        ),
        format!(
            "{{% macro g() %}}{{{{ caller() }}}}{{% endmacro %}}{{% macro f() %}}{}{}{{% endmacro %}}{{{{ f() }}}}",
            "{% call g() %}{% filter upper %}".repeat(40) + "{{ f() }}",
            "{% endfilter %}{% endcall %}".repeat(40)
        ),
        "{% set s = namespace(x=[[]]) %}{% for i in range(190) %}{% set s.x = s.x|map('list')|select %}{% endfor %}\
         {{ s.x|list }}{{ 1 + 'a' }}"
            .into(),
        format!("{{{{ {deep} }}}}"),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(100_000)),
        format!("{{{{ a{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ a{} }}}}", "|list".repeat(100_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(100_000), "]".repeat(100_000)),
        "{% if a %}".repeat(100_000),
        "{% for a in b %}".repeat(100_000),
    ];
    for text in templates {
        let begin = Instant::now();
        let refused = refusal(&text);
        let shown: String = text.chars().take(80).collect();
        assert!(!refused.contains('\n') && refused.len() < 400, "{shown}: {refused}");
        assert!(begin.elapsed() < Duration::from_secs(20), "{shown}: {refused} after {:?}", begin.elapsed());
    }
}

#[test]
fn a_template_reaches_nothing_outside_of_its_conversation() {
    for text in ["{% include '/etc/passwd' %}", "{% import 'a' as b %}", "{% from 'a' import b %}", "{% extends 'a' %}"]
    {
        assert!(refusal(text).contains("no other templates"), "{text}");
    }
    for text in ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"] {
        assert!(refusal(text).contains("is not allowed"), "{text}: {}", refusal(text));
    }
    assert_eq!(rendered("{{ ''.__class__ }}{{ [].append }}", &Map::new()).unwrap(), "");
}

#[test]
fn refusals_name_line_and_reason() {
    let refusals = [
        "a\n{{ x.y }}",
        "{% for m in [1] %}\n\n{{ m + 'a' }}{% endfor %}",
        "{% if true %}",
        "\n{{ 'a' | nope }}",
        "\n\n{% nope %}",
        "{{ raise_exception('roles\nmust alternate') }}",
        "{% macro f(a) %}{{ a.b }}{% endmacro %}\n{{ f() }}",
        "{{ [1] | map('upper') }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ];
    insta::assert_snapshot!(refusals.map(refusal).join("\n"));
}

/// The sweep's side of this repository: a case a line of `TEMPLATE_CASES`, its text a line of `TEMPLATE_TEXTS`.
#[test]
#[ignore = "tests/parity/sweep_templates.py runs it"]
fn renders_the_cases_of_a_file() {
    let path = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} names no file"));
    let cases = fs::read_to_string(path("TEMPLATE_CASES")).unwrap();
    let mut out = fs::File::create(path("TEMPLATE_TEXTS")).unwrap();
    let mut known = HashMap::new();
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let text = case["template"].as_str().unwrap().to_owned();
        let templates = known.entry(text).or_insert_with_key(|text| compiled(text, &case["special"]));
        let list = |name: &str| case[name].as_array().unwrap().clone();
        let (messages, tools) = (list("messages"), list("tools"));
        let kwargs = [&Map::new(), case["kwargs"].as_object().unwrap()];
        let variables = Variables { tools: &tools, kwargs };
        let generation = case["generation"].as_bool().unwrap();
        let result = templates.as_ref().map_err(|error| format!("{error:#}")).and_then(|templates| {
            templates.render_counted(&messages, &variables, generation).map_err(|error| format!("{error:#}"))
        });
        let line = match result {
            Ok((text, used)) => json!({"text": text, "steps": used.steps, "bytes": used.bytes}),
            Err(error) => json!({"error": error}),
        };
        writeln!(out, "{line}").unwrap();
    }
}

fn choices(folder: &Path) -> [String; 2] {
    let templates = Templates::load(folder, None).unwrap().unwrap();
    let render = |tools: &[Value]| {
        let variables = Variables { tools, kwargs: [&Map::new(), &Map::new()] };
        templates.render(&[], &variables, false).unwrap_or_else(|error| error.to_string())
    };
    [render(&[]), render(&[json!({"type": "function"})])]
}

#[test]
fn rows_with_tools_take_the_folders_template_for_them() {
    let list = r#"{"chat_template": [{"name": "default", "template": "L"}, {"name": "tool_use", "template": "LT"}]}"#;
    let file = ("chat_template.jinja", "F");
    let tool = ("additional_chat_templates/tool_use.jinja", "FT");
    let rag = ("additional_chat_templates/rag.jinja", "R");
    let json = ("tokenizer_config.json", list);
    assert_eq!(choices(crate::support::folder_with(&[file, tool, rag]).path()), ["F", "FT"]);
    assert_eq!(choices(crate::support::folder_with(&[file, rag]).path()), ["F", "F"]);
    assert_eq!(choices(crate::support::folder_with(&[json]).path()), ["L", "LT"]);
    assert_eq!(choices(crate::support::folder_with(&[json, file]).path()), ["F", "F"], "files come before JSON");
    let [without, with] = choices(crate::support::folder_with(&[json, tool]).path());
    assert!(without.contains("tools alone") && with == "FT", "{without}");
    let folder = crate::support::folder_with(&[rag]);
    let alone = format!("{:#}", Templates::load(folder.path(), None).unwrap_err());
    assert!(alone.contains("no template is named `default`"), "{alone}");
    let file = folder.path().join(rag.0);
    assert!(Templates::load(folder.path(), Some(&file)).unwrap().is_some());
}

#[test]
fn the_key_follows_every_template_of_the_folder_and_the_date_where_it_is_written() {
    let key = |files: &[(&str, &str)], day: &str| {
        let templates = Templates::load(crate::support::folder_with(files).path(), None).unwrap().unwrap();
        templates.on(Date::parse(day).unwrap()).fingerprint()
    };
    let file = ("chat_template.jinja", "F");
    let dated = ("chat_template.jinja", "{{ strftime_now('%d') }}");
    let tool = |text| ("additional_chat_templates/tool_use.jinja", text);
    assert_ne!(key(&[file, tool("A")], DAY), key(&[file, tool("B")], DAY));
    assert_ne!(key(&[file], DAY), key(&[file, tool("A")], DAY));
    assert_eq!(key(&[file], DAY), key(&[file], "2024-03-06"));
    assert_ne!(key(&[dated], DAY), key(&[dated], "2024-03-06"));
}

#[test]
fn reasoning_has_all_its_names_and_nulls_are_not_there() {
    let templates = compiled("{{ messages }}|{{ documents }}", &json!({})).unwrap();
    let variables = Variables { tools: &[], kwargs: [&Map::new(), &Map::new()] };
    let messages = [
        json!({"role": "assistant", "content": null, "reasoning": "r", "tool_calls": null}),
        json!({"role": "assistant", "thinking": "t", "reasoning_content": "c"}),
    ];
    assert_eq!(
        templates.render(&messages, &variables, false).unwrap(),
        "[{'thinking': 'r', 'role': 'assistant', 'reasoning': 'r', 'reasoning_content': 'r'}, {'thinking': 't', 'role': \
         'assistant', 'reasoning_content': 'c'}]|None"
    );
}
