#!/usr/bin/env python3
"""Writes tests/fixtures/templates/jinja.json: what transformers' Jinja makes of many small templates, its refusals
included. `--all` compares every combination with a build of this repository instead of writing a part of them.

pip install transformers==5.24.0 jinja2==3.1.6
"""

import argparse
import collections
import copy
import json
import pathlib
import random
import re

import jinja2
import sweep_templates
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

FILE = pathlib.Path(__file__).resolve().parents[2] / "tests/fixtures/templates/jinja.json"
KEPT = {"operators": 600, "subscripts": 400, "tests": 250, "filters": 700, "methods": 500, "formats": 300}

VALUES = {
    "control": "é\u0085x\u001c", "nothing": None, "yes": True, "no": False, "zero": 0, "one": 1, "seven": 7, "minus": -3,
    "half": 1.5, "small": 1e-5, "huge": 1e16, "wide": 2**63, "words": "Hello World", "empty": "", "spaced": "  a b\t\n",
    "quotes": "it's \"q\"\\", "number": "12", "decimal": "1.5e3", "list": [1, 2, 3], "bare": [], "letters": ["b", "A", "c"],
    "mixed": [1, "a", None, True, 2.5], "nested": [[1, 2], [3]], "dict": {"a": 1, "b": "x", "items": 5}, "blank": {},
    "rows": [{"k": "b", "v": 1}, {"k": "A", "v": 2}, {"k": "b", "v": None}, {"v": 4}],
}
SPACE = "{% set space = namespace(a=1) %}"
NAMES = [*VALUES, "unknown", "dict.nope", "(1,2)", "space", "range(3)", "dict.items()", "dict.keys()", "dict.values()",
         "rows|map(attribute='v')", "'<b>'|safe"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "~", "is eq",
             "is in"]
SUBSCRIPTS = ["not %s", "-%s", "+%s", "%s[0]", "%s[-1]", "%s[1:]", "%s[::-1]", "%s[:-1]", "%s['a']", "%s[none]", "%s[1.5]",
              "%s.a", "%s.a.b", "%s['items']", "%s.append", "%s()", "%s.__class__", "%s['__class__']", "%s[true]",
              "%s.append is defined", "%s.upper is defined", "%s.0", "%s[100]", "%s[1:2:0]", "%s['x':]", "[%s]", "{1:%s}",
              "(%s,)", "%s if %s else 3", "%s if %s", "%s[%s]", "%s.count(1)", "%s.index(1)", "%s.get('a')",
              "%s.get('zz', 4)", "%s.keys()", "%s.items()|list", "%s.values()|list", "%s.copy()", "1 < %s < 3"]
TESTS = ["odd", "even", "divisibleby(2)", "defined", "undefined", "filter", "test", "none", "boolean", "false", "true",
         "integer", "float", "lower", "upper", "string", "mapping", "number", "sequence", "iterable", "callable", "escaped"]
FILTERS = ["abs", "attr('a')", "batch(2)|list", "batch(2,'x')|list", "capitalize", "center(20)", "count", "default('z')",
           "default('z',true)", "d(boolean=true)", "dictsort", "dictsort(by='value')", "dictsort(reverse=true)", "e",
           "filesizeformat", "first", "float", "float(2.5)", "forceescape", "format(1)", "format(a=1)", "groupby('k')",
           "groupby('v')", "groupby('k',default='')", "indent", "indent(2,true)", "indent('ab',blank=true)", "int", "int(5)",
           "int(base=16)", "join", "join(',')", "join(',',attribute='k')", "last", "length", "list", "lower", "items|list",
           "map('upper')|list", "map(attribute='k')|list", "map(attribute='k',default='q')|list", "map('default','z')|list",
           "map('nope')|list", "min", "max", "min(attribute='k')", "max(attribute='v')", "reject|list",
           "reject('none')|list", "rejectattr('v')|list", "rejectattr('k','equalto','b')|list", "replace('a','b')",
           "replace('l','L',1)", "replace('','-')", "reverse|list", "round", "round(1)", "round(1,'floor')",
           "round(0,'ceil')", "round(-1)", "safe", "select|list", "select('string')|list", "select('odd')|list",
           "selectattr('v')|list", "selectattr('k','equalto','b')|list", "selectattr('v','none')|list",
           "selectattr('v','>',1)|list", "slice(2)|list", "slice(2,'z')|list", "sort", "sort(reverse=true)",
           "sort(case_sensitive=true)", "sort(attribute='k')", "sort(attribute='k,v')", "string", "sum",
           "sum(attribute='v')", "sum(start=10)", "title", "trim", "trim('H')", "truncate(6)", "truncate(6,true)",
           "unique|list", "unique(true)|list", "unique(attribute='k')|list", "upper", "urlencode", "wordcount", "tojson",
           "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(separators=(',',':'))", "tojson(sort_keys=true)",
           "tojson(1,2,3,4,5)", "nope", "upper(1)", "list|length", "first|upper", "trim|length"]
TEXTS = ["", "a", "Hello World", "  a b\t\n", "aXbXc", "äÖß ǆ", "it's", "x\u001c", "\u0085y", "1²", "ΑΣ", "a\r\nb\u2028c\n",
         "-42", "+5", "<b>&", "ab ab  ab "]
METHODS = ["capitalize()", "casefold()", "center(9)", "center(10,'*')", "center(3,'ab')", "count('a')", "count('')",
           "count('a',1,3)", "endswith('b')", "endswith(('b','d'))", "endswith(['b'])", "expandtabs(4)", "find('b')",
           "find('b',2)", "rfind('b')", "index('b')", "rindex('b')", "isalnum()", "isalpha()", "isascii()", "isdecimal()",
           "isdigit()", "isidentifier()", "islower()", "isnumeric()", "isprintable()", "isspace()", "istitle()", "isupper()",
           "join(['a','b'])", "join([1])", "join(unknown)", "ljust(8)", "rjust(8,'.')", "zfill(6)", "lower()", "upper()",
           "title()", "swapcase()", "lstrip()", "rstrip()", "strip()", "strip('ab')", "lstrip('a H')", "partition('b')",
           "rpartition('b')", "partition('')", "removeprefix('a')", "removesuffix('b')", "removeprefix(1)",
           "replace('a','Z')", "replace('a','Z',1)", "replace('','-')", "replace('a')", "split()", "split('X')",
           "split(none,1)", "split('X',1)", "split(sep='X',maxsplit=1)", "split('')", "rsplit()", "rsplit('X',1)",
           "rsplit(none,1)", "splitlines()", "splitlines(true)", "startswith('a')", "startswith(('a','H'))",
           "startswith(1)", "startswith('b',1)", "nope()", "format()", "strip()|length"]
PERCENTS = ["%s", "%d", "%5d|", "%-5d|", "%05d", "%+d", "% d", "%x", "%#x", "%o", "%.2f", "%10.3f|", "%e", "%g", "%.3g", "%c",
            "%r", "%%", "%s %s", "%(a)s", "%.1s", "%5s|", "%-5s|", "%*d", "%", "%z", "no", "%.3d"]
BRACES = ["{}", "{0} {1}", "{a}", "{0[a]}", "{0[1]}", "{!r}", "{:>8}", "{:*^9}", "{:08.3f}", "{:,}", "{:+}", "{:x}", "{:#x}",
          "{:e}", "{:g}", "{:.2%}", "{:<5}|", "{:=+8}", "{:s}", "{:d}", "{{}}", "{:{}}", "{:.2}", "{x}", "{:010}"]
WRITTEN = ["5", "-12345", "1.5", "12345.678", "'ab'", "true", "none", "[1,2]", "{'a':7}", "unknown", "0.0001", "1e20"]
STATEMENTS = [
    "a\r\nb\rc\n", "a\n\n", "\r\n{% if true %}\r\n x\r\n{% endif %}\r\ny", "  {% if true %}  x {%- endif %} y",
    "a  {%- if true -%}  b  {%- endif -%}  c", "  {%+ if true %}b{% endif +%}\nc", "{# a #}\nb {#- c -#} d {# e +#}\nf",
    "{{ 1 -}}  \n x {{- 2 }}", "{% raw %} {{ a }} {% endraw %}\nb", "{%- raw -%} {{ a }} {%- endraw -%} b",
    "{% raw %}{% if %}{%endraw%}x", "x {% raw +%}", "{# open", "{{ 'open }}", "{{ 1 ", "{% if %}", "{% nope %}", "{%}", "{{%}}",
    "{{ {'a': {'b': 1}} }}", "{{ [[1], [2, [3]]][1][1][0] }}", "{{ 'a' 'b' \"c\" }}", r"{{ '\x41\u00e9\n\t\\\'\q\101' }}",
    "{{ 1_000 + 0x1F + 0b11 + 0o7 + 00 }}", "{{ 1.5e3 }} {{ 1e-7 }} {{ 2E10 }} {{ 1.0 }} {{ .5 }}", "{{ 1.0.real }}",
    "{{ 1 if false }}|{{ 1 if true }}|{{ 1 if true else 2 if false else 3 }}", "{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ -1|abs }}",
    "{{ 'a' ~ 1 + 2 ~ 'b' }}", "{{ not 1 == 2 }} {{ 1 not in [1] }} {{ 1 < 2 < 3 > 2 }}", "{{ 'x' is string and 'y' is lower }}",
    "{{ 3 is divisibleby 3 }} {{ 3 is not odd }}", "{{ list is defined is true }}", "{{ true == 1 }} {{ {1: 'a', true: 'b'} }}",
    "{% for x in list %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }} {% endfor %}",
    "{% for x in list %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.cycle('a','b') }}{{ loop.changed(x > 1) }};{% endfor %}",
    "{% for x in list if x > 1 %}{{ loop.index0 }}{{ loop.length }}{{ x }}{% else %}none{% endfor %}",
    "{% for x in list if x > 9 %}{{ x }}{% else %}none{% endfor %}", "{% for k, v in dict.items() %}{{ k }}={{ v }},{% endfor %}",
    "{% for k, v in list %}{% endfor %}", "{% for x in nothing %}{% endfor %}", "{% for x in unknown %}{% else %}e{% endfor %}",
    "{% for x in seven %}{% endfor %}", "{% for c in 'äb' %}[{{ c }}]{% endfor %}", "{% for x in list %}{% break %}{% endfor %}ok",
    "{% for x in list %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% break %}", "{% for x in list recursive %}"
    "{{ x }}{% if x == 3 %}{{ loop([7, 8]) }}{% endif %}{{ loop.depth }}{% endfor %}", "{% for loop in list %}{% endfor %}",
    "{% for x in [1] %}{% set y = 5 %}{% endfor %}{{ y }}|{{ x }}", "{% set y = 1 %}{% for x in [1,2] %}{{ y }}{% set y = y + 1 %}"
    "{{ y }}{% endfor %}{{ y }}", "{% if yes %}{% set y = 2 %}{% endif %}{{ y }}", "{% for x in list %}{% if loop.first %}"
    "{% set y = 1 %}{% endif %}{{ y }},{% endfor %}", "{% for m in list %}{{ words }}{% endfor %}{% set words = 1 %}{{ words }}",
    "{{ words }}{% set words = 2 %}{{ words }}", "{% if no %}{% set words = 2 %}{% endif %}{{ words }}",
    "{% set a, b = 1, 2 %}{{ b }}{{ a }}", "{% set a, b = 1 %}", "{% set (a, b) = [3, 4] %}{{ a + b }}", "{% set a = 1, %}{{ a }}",
    "{% set x %} a {{ 1 }} {% endset %}[{{ x }}]", "{% set x | upper | trim %} a {% set z = 1 %}{% endset %}[{{ x }}{{ z }}]",
    "{% set s = namespace(n=0, l=[]) %}{% for x in list %}{% set s.n = s.n + x %}{% set s.l = s.l + [x] %}{% endfor %}{{ s.n }}{{ s.l }}",
    "{% set dict.a = 1 %}", "{% set none = 1 %}", "{% set s = namespace(_a=1) %}", "{% set s = namespace() %}{% set s._a = 1 %}",
    "{% set s = namespace({'a': 1}, b=2) %}{{ s.a }}{{ s['b'] }}{{ s.c }}{{ s }}", "{% set s = namespace() %}{{ s.a.b }}",
    "{% macro f(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1, c=3) }}{{ f(b=4) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(z=1) }}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, z=3) }}", "{% macro f(a, a) %}{% endmacro %}",
    "{% macro f(a) %}{{ a.b.c }}{% endmacro %}{{ f() }}", "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f() %}{{ words }}{% endmacro %}{% for words in [1] %}{{ f() }}{% endfor %}", "{% macro f() %}[{{ caller() }}]{% endmacro %}"
    "{% call f() %}x{% endcall %}{% call(a) f() %}{{ a }}{% endcall %}", "{% macro f() %}[{{ caller(1) }}]{% endmacro %}"
    "{% call(a, b=2) f() %}{{ a }}{{ b }}{% endcall %}", "{% call len() %}{% endcall %}", "{% macro f() %}{% endmacro %}{{ f.name }}{{ f }}",
    "{% set y = 1 %}{% macro f() %}{% set y = 2 %}{{ y }}{% endmacro %}{{ f() }}{{ y }}", "{{ f() }}{% macro f() %}1{% endmacro %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with a = seven, b = a %}{{ b }}{% endwith %}",
    "{% filter upper %}a{{ words }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}aa{% endfilter %}",
    "{% generation %}a{% set y = 1 %}{{ y }}{% endgeneration %}{{ y }}", "{% for x in list %}{%- generation -%} {{ loop.index }} "
    "{%- endgeneration -%}{% endfor %}", "{% for x in list %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% block a %}{{ words }}{% endblock %}", "{% block a %}{% endblock %}{% block a %}{% endblock %}", "{% print 1, 2 %}",
    "{% include 'a' %}", "{% if no %}{% include 'a' %}{% endif %}x", "{% import 'a' as b %}", "{% from 'a' import b %}",
    "{% extends 'a' %}", "{{ raise_exception('no') }}", "{{ raise_exception() }}", "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__ is defined }}", "{{ list.append(1) }}", "{{ dict.pop('a') }}", "{{ dict.update({}) }}", "{{ range(3)|list }}",
    "{{ range(1, 10, 3)|list }}{{ range(5, 0, -2)|list }}", "{{ range(100001)|length }}", "{{ range(0.5) }}", "{{ range(1)[5] }}",
    "{{ dict(a=1, **{'b': 2}) }}", "{{ dict([('a', 1)]) }}{{ dict.fromkeys('ab', 1) }}", "{% set c = cycler('a', 'b') %}{{ c.next() }}"
    "{{ c.next() }}{{ c.next() }}{{ c.current }}", "{% set j = joiner('|') %}{{ j() }}{{ j() }}{{ j() }}",
    "{{ nothing.a }}|{{ nothing['a'] }}", "{{ nothing.a.b }}", "{{ unknown }}|{{ unknown|length }}|{{ unknown|list }}|{{ [unknown] }}",
    "{{ unknown.a }}", "{{ unknown[0] }}", "{{ unknown + 'a' }}", "{{ 'a' + unknown }}", "{{ 'a' ~ unknown }}", "{{ unknown == none }}",
    "{{ unknown < 1 }}", "{{ 'a' in unknown }}", "{{ unknown in 'a' }}", "{{ unknown()}}", "{{ -unknown }}", "{{ unknown|int }}",
    "{{ dict['items'] }}", "{{ nothing is iterable and nothing|length > 0 }}", "{{ 'a' + 1 }}", "{{ 'a' + nothing }}",
    "{{ [1] + 'a' }}", "{{ [1] + (2,) }}", "{{ 1 < 'a' }}", "{{ nothing > 1 }}", "{{ 'a' * 3 }}{{ [1] * 2 }}{{ 2 * 'b' }}",
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 2 ** -1 }}",
    "{{ 0.1 + 0.2 }} {{ 1e22 }} {{ 1e15 }} {{ 123456789012345680.0 }} {{ 5e-324 }} {{ -0.0 }}", "{{ 1e308 * 10 }} {{ -1e308 * 10 }}",
    "{{ (1e308 * 10) - (1e308 * 10) }}", "{{ [1e-5, 1e16, true, none, 'a\\'b', \"a'b\", 'é\\u200b\\n'] }}", "{{ 'a\\u00a0b'|trim }}",
    "{{ '<a>'|e + '<b>' }}", "{{ '<' + ('x'|safe) }}", "{{ ('<'|safe) ~ '>' }}", "{{ '<%s>'|safe % '<' }}", "{{ '{}'|safe|string }}",
    "{{ {'a': [1, {'b': none}], 'é': 'ü<>&\\''}|tojson }}", "{{ {1: 1, none: 2, true: 3, 1.5: 4}|tojson }}", "{{ {(1,): 1}|tojson }}",
    "{{ unknown|tojson }}", "{{ [unknown]|tojson }}", "{{ (1, 'a')|tojson(indent=0) }}", "{{ [[], {}]|tojson(indent=1) }}",
    "{{ '\\x7f\\x00é😀'|tojson }} {{ '\\x7f\\x00é😀'|tojson(ensure_ascii=true) }}", "{{ strftime_now() }}", "{{ strftime_now is defined }}",
    "{{ lipsum is defined }}{{ nope is defined }}{{ documents }}{{ self is defined }}", "{{ x if x is defined if yes }}", "{{ a.b.c is defined }}",
    "{{ loop }}", "{{ caller }}{{ varargs }}", "{{ words.nope() }}", "{{ words.upper() }}", "{{ words[::2] }}{{ words[-3:] }}{{ words[20] }}",
    "{{ rows|selectattr('k', 'defined')|map(attribute='v')|list }}", "{{ rows|map(attribute='k.0')|list }}", "{{ rows|groupby('k') }}",
    "{% for g in rows|selectattr('k', 'defined')|groupby('k') %}{{ g.grouper }}{{ g.list|length }}{{ g[0] }};{% endfor %}",
    "{% set g = list|map('string') %}{{ g|join }}{{ g|join }}", "{% set g = letters|select('upper') %}{{ g|first }}{{ g|list }}",
    "{{ [3, 'a']|map('upper')|first }}", "{{ [1, 'a']|sort }}", "{{ letters|sort|join(',') }} {{ letters|sort(case_sensitive=true)|join(',') }}",
]


def cases():
    def inside(text):
        return SPACE + "{{ " + text + " }}"

    yield from (("statements", text, VALUES) for text in STATEMENTS)
    for a in NAMES:
        yield from (("operators", inside(f"({a}) {op} ({b})"), VALUES) for op in OPERATORS for b in NAMES)
        yield from (("subscripts", inside(text.replace("%s", f"({a})")), VALUES) for text in SUBSCRIPTS)
        yield from (("tests", inside(f"({a}) is {no}{test}"), VALUES) for test in TESTS for no in ("", "not "))
        yield from (("filters", inside(f"({a})|{text}"), VALUES) for text in FILTERS)
    for text in TEXTS:
        for method in METHODS:
            yield "methods", "{{ [text." + method + "] }}", {"text": text}
            if "format" not in method:
                yield "methods", "{{ [(text|safe)." + method + "] }}", {"text": text}
    for value in WRITTEN:
        for text in BRACES:
            yield "formats", "{{ '%s'.format(%s) }}" % (text, value), {}
            yield "formats", "{{ '%s'.format(%s, 6) }}" % (text, value), {}
            yield "formats", "{{ '%s'.format(a=%s) }}" % (text, value), {}
        for text in PERCENTS:
            for values in (value, f"({value},)", f"({value}, 3)"):
                yield "formats", "{{ '%s' %% %s }}" % (text, values), {}


def expected(template, variables):
    """The text, or what is raised."""
    # The filter `indent` of a list changes the list.
    variables = copy.deepcopy(variables)
    try:
        compiled = _compile_jinja_template(template)
        return {"text": compiled.render(messages=[], tools=None, documents=None, add_generation_prompt=False, **variables)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def left_out(template, result):
    """Addresses in memory, which change, and sets, which have no order."""
    address = re.search(r"0x[0-9a-f]{6,}", result.get("text", "").replace("-", ""))
    of_address = "|map(attribute='v'))" in template and re.search(r"wordcount|trim|truncate|lower|upper", template)
    of_set = re.search(r"dict.(keys|items)\(\)\) (-|<=?|>=?) |(-|<=?|>=?) \(dict.(keys|items)|< \(dict.(keys|items)", template)
    return bool(address or of_address or of_set)


def compare(chosen):
    """Counts by kind, and the first that differ."""
    counts = collections.Counter()
    rows = [{"template": text, "messages": [], "tools": [], "kwargs": variables, "generation": False}
            for _, text, variables in chosen]
    for (kind, text, variables), got in zip(chosen, sweep_templates.render(rows)):
        want = expected(text, variables)
        verdict = "left out" if left_out(text, want) else sweep_templates.verdict(want, got)
        counts[kind, verdict] += 1
        if verdict == "different" and counts[kind, verdict] <= 30:
            print(f"{text!r}\n  transformers {want}\n  warpo {got}")
    for key, count in sorted(counts.items()):
        print(*key, count)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    every = list(cases())
    if parser.parse_args().all:
        return compare(every)
    random.seed(16)
    kinds = collections.defaultdict(list)
    for case in every:
        kinds[case[0]].append(case)
    chosen = [case for kind, list_ in kinds.items() for case in random.sample(list_, min(KEPT.get(kind, 10**9), len(list_)))]
    rows = []
    for kind, text, variables in chosen:
        want = expected(text, variables)
        if not left_out(text, want):
            rows.append({"template": text, "text": want.get("text"), **({} if variables is VALUES else {"variables": variables})})
    made_with = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = f'{{"made_with": {json.dumps(made_with)},\n"variables": {json.dumps(VALUES, ensure_ascii=False)},\n"cases": [\n'
    FILE.write_text(head + lines + "\n]}\n", encoding="utf-8")
    print(len(rows), "cases,", sum(row["text"] is None for row in rows), "of them raise")


if __name__ == "__main__":
    main()
