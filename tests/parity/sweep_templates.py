#!/usr/bin/env python3
"""Renders released chat templates with transformers and with a build of this repository, and counts where text or
refusal differ. `docs/checks.md` keeps the figures; the templates themselves belong to their owners.

pip install transformers==5.24.0 jinja2==3.1.6
python tests/parity/sweep_templates.py FOLDER   # of *.jinja
"""

import argparse
import collections
import copy
import json
import os
import pathlib
import subprocess
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TEST = "data::jinja::renders_the_cases_of_a_file"
DATE = "2024-03-05"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

TOOL = {"type": "function", "function": {
    "name": "weather", "description": "The weather of a <town> & more: é, it's \"here\"",
    "parameters": {"type": "object", "required": ["town"], "properties": {
        "town": {"type": "string", "description": "Name of the town"},
        "days": {"type": ["integer", "null"], "default": 1.0, "minimum": 1e-05},
        "unit": {"type": "string", "enum": ["c", "f"]},
        "spots": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}}}}}}
BARE_TOOL = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def conversations():
    """Name, messages, and what goes with them."""
    user, answer = say("user", "How warm is it in Ulm?"), say("assistant", "It is warm.")
    called = say("assistant", "", tool_calls=[call("weather", {"town": "Ulm", "days": 2, "deep": [1.5, None, True]}, id="call00001")])
    result = say("tool", '{"t": 21}', name="weather", tool_call_id="call00001")
    two = [user, answer, say("user", "And tomorrow?"), say("assistant", "Warmer.")]
    parts = [{"type": "text", "text": "What is this?"}, {"type": "text", "text": " And this?"}]
    yield "one turn", [user], {}
    yield "answered", [user, answer], {}
    yield "system", [say("system", "Be short."), user, answer], {}
    yield "developer", [say("developer", "Be short."), user, answer], {}
    yield "system alone", [say("system", "Be short.")], {}
    yield "two turns", two, {}
    yield "two turns, system", [say("system", "Be short."), *two], {}
    yield "system in the middle", [user, answer, say("system", "Be long."), *two], {}
    yield "tools, not called", [user, answer], {"tools": [TOOL, BARE_TOOL]}
    yield "tools, system", [say("system", "Be short."), user, answer], {"tools": [TOOL]}
    yield "called", [user, called, result, answer], {"tools": [TOOL]}
    yield "called without tools", [user, called, result, answer], {}
    yield "called, no content", [user, {k: v for k, v in called.items() if k != "content"}, result, answer], {"tools": [TOOL]}
    yield "called, content none", [user, {**called, "content": None}, result], {"tools": [TOOL]}
    yield "called twice", [user, say("assistant", "Wait.", tool_calls=called["tool_calls"] * 2), result, result, answer], {"tools": [TOOL]}
    yield "arguments as text", [user, say("assistant", "", tool_calls=[call("weather", '{"town": "Ulm"}', id="call00002")]), result], {"tools": [TOOL]}
    yield "call without its function", [user, say("assistant", "", tool_calls=[{"name": "now", "arguments": {}}])], {"tools": [BARE_TOOL]}
    yield "ends with a result", [user, called, result], {"tools": [TOOL]}
    yield "result as parts", [user, called, say("tool", [{"type": "text", "text": "21"}], tool_call_id="call00001"), answer], {"tools": [TOOL]}
    yield "reasoning", [user, say("assistant", "Warm.", reasoning_content="I look.\nIt is 21.")], {}
    yield "reasoning of two turns", [user, say("assistant", "Warm.", thinking="Hm."), say("user", "Sure?"), say("assistant", "Yes.", reasoning="Hm?")], {}
    yield "thoughts in the text", [user, say("assistant", "<think>\nHm.\n</think>\n\nWarm."), say("user", "Sure?"), say("assistant", "<think></think>Yes.")], {}
    yield "no thinking", [user, answer], {"kwargs": {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}}
    yield "thinking", [user], {"kwargs": {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}}
    yield "parts", [say("user", parts), say("assistant", [{"type": "text", "text": "A cat."}])], {}
    yield "system as parts", [say("system", [{"type": "text", "text": "Be short."}]), say("user", parts), answer], {}
    yield "image", [say("user", [{"type": "image"}, {"type": "text", "text": "What is this?"}]), answer], {}
    yield "unknown part", [say("user", [{"type": "sound", "sound": "a.wav"}]), answer], {}
    yield "white space", [say("user", "\n\t  a \u2003b\r\n \n"), say("assistant", "  \n x\u001c\u0085 \n")], {}
    yield "scripts", [say("user", "日本語 😀 é\u0301 \u200b\u202e {{ x }} {% y %}"), say("assistant", "<|im_end|></s>[INST]")], {}
    yield "no text", [say("user", ""), say("assistant", "")], {}
    yield "no content", [{"role": "user"}, answer], {}
    yield "content none", [say("user", None), answer], {}
    yield "content a number", [say("user", 5), answer], {}
    yield "no role", [{"content": "a"}, answer], {}
    yield "unknown role", [say("critic", "a"), answer], {}
    yield "assistant first", [answer, user], {}
    yield "two users", [user, user, answer], {}
    yield "nobody", [], {}
    yield "names", [say("user", "a", name="Ada"), say("assistant", "b", name="Bob")], {}


def rows(template):
    for name, messages, more in conversations():
        for generation in (False, True):
            yield {"name": name, "template": template, "messages": messages, "tools": more.get("tools", []),
                   "kwargs": more.get("kwargs", {}), "generation": generation}


def render(cases):
    """What this repository makes of the cases."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "cases.jsonl"), pathlib.Path(folder, "texts.jsonl")
        lines = [json.dumps({**case, "special": SPECIAL, "date": DATE}, ensure_ascii=False) for case in cases]
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["cargo", "test", "--release", "--locked", "--test", "main", "--", "--ignored", "--exact", TEST]
        variables = {**os.environ, "TEMPLATE_CASES": str(source), "TEMPLATE_TEXTS": str(target)}
        subprocess.run(command, cwd=REPOSITORY, env=variables, check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]


def reference(case):
    """What transformers makes of a case."""
    from transformers.utils import chat_template_utils

    messages = chat_template_utils._normalize_chat_messages(copy.deepcopy(case["messages"]))
    variables = {**SPECIAL, **case["kwargs"]}
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [messages], tools=case["tools"] or None, chat_template=case["template"],
            add_generation_prompt=case["generation"], **variables)
        return {"text": texts[0]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def verdict(want, got):
    if "error" in want and "error" in got:
        return "both raise"
    return "equal" if "text" in want and want["text"] == got.get("text") else "different"


def fix_date():
    """strftime_now writes one day in both."""
    import datetime

    from transformers.utils import chat_template_utils

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(DATE)

    chat_template_utils.datetime = Day


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    files = sorted(parser.parse_args().folder.glob("*.jinja"))
    fix_date()
    # As transformers reads them: newlines become \n.
    cases = [dict(case, file=file.name) for file in files for case in rows(file.read_text(encoding="utf-8"))]
    counts, steps, held = collections.Counter(), 0, 0
    for case, got in zip(cases, render(cases)):
        want = reference(case)
        found = verdict(want, got)
        counts[found] += 1
        if found == "different":
            print(f"{case['file']}: {case['name']}, generation {case['generation']}\n  transformers {want}\n  warpo {got}")
        if "steps" in got:
            steps, held = max(steps, got["steps"]), max(held, got["bytes"])
    print(f"{len(files)} templates, {len(cases)} renderings: {dict(counts)}; at most {steps} steps and {held} bytes")


if __name__ == "__main__":
    main()
