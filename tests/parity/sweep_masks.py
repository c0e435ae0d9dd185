"""Whose words are learnt under released chat templates: a rule that uses none of warpo's code.

    python sweep_masks.py WARPO FOLDER_OF_TEMPLATES [MODEL_FOLDER]

Every message of every conversation holds a word that stands nowhere else. `warpo data` shows what the loss covers, and
transformers renders the conversation. Then, for each row that warpo reads:

* no word of another speaker is covered, nor one of the tools;
* each word of an assistant that the rendering shows is covered, and each that it does not show is warned of;
* what all turns of assistants end with (their end of turn) is covered behind each of them.

A row that warpo refuses and transformers renders is listed. Prints one line a fault and the figures; exit code 1 if there
is a fault. Needs transformers (5.24 was used) and no network.
"""
import collections, json, os, pathlib, re, subprocess, sys, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers.utils.chat_template_utils import render_jinja_template

SPECIAL = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
TOOLS = [{"type": "function", "function": {"name": "toolword", "description": "toolword says",
                                           "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}}]


def m(role, content, **more):
    return dict(role=role, content=content, **more)


def call(name, town):
    return m("assistant", "", tool_calls=[{"id": "abcdefgh1", "type": "function", "function": {"name": name, "arguments": {"town": town}}}])


# Name, messages, index of the first message that is learnt, tools.
TALKS = [
    ("system and two turns", [m("system", "sysalpha rule"), m("user", "askalpha now"), m("assistant", "repalpha so"),
                              m("user", "askbeta then"), m("assistant", "repbeta thus")], None),
    ("three turns", [m("user", "askalpha"), m("assistant", "repalpha"), m("user", "askbeta"), m("assistant", "repbeta"),
                     m("user", "askgamma"), m("assistant", "repgamma")], None),
    ("thoughts", [m("user", "askalpha"), m("assistant", "<think>\nrepalpha\n</think>\n\nrepbeta"), m("user", "askbeta"),
                  m("assistant", "<think>\nrepgamma\n</think>\n\nrepdelta")], None),
    ("thoughts in a field", [m("user", "askalpha"), m("assistant", "repbeta", reasoning_content="repalpha"),
                             m("user", "askbeta"), m("assistant", "repdelta", reasoning_content="repgamma")], None),
    ("blanks", [m("user", " askalpha \n"), m("assistant", "\n repalpha  "), m("user", "askbeta"), m("assistant", " repbeta\n")], None),
    ("tools", [m("user", "askalpha"), call("repalpha", "repbeta"), m("tool", "askbeta", name="repalpha", tool_call_id="abcdefgh1"),
               m("assistant", "repgamma"), m("user", "askgamma"), m("assistant", "repdelta")], TOOLS),
]
# Prompt, chosen, rejected, tools.
PAIRS = [
    ("pair of two turns", [m("system", "sysalpha"), m("user", "askalpha")],
     [m("assistant", "repalpha"), m("user", "askbeta"), m("assistant", "repbeta")],
     [m("assistant", "repgamma"), m("user", "askgamma"), m("assistant", "repdelta")], None),
    ("pair with a thought on one side", [m("user", "askalpha")], [m("assistant", "<think>\nrepalpha\n</think>\n\nrepbeta")],
     [m("assistant", "repgamma")], None),
    ("pair after a talk", [m("user", "askalpha"), m("assistant", "oldalpha"), m("user", "askbeta")], [m("assistant", "repalpha")],
     [m("assistant", "repbeta")], None),
]
WORD = re.compile(r"(?:sys|ask|rep|old)(?:alpha|beta|gamma|delta)|toolword")


def render(template, messages, tools):
    text, _ = render_jinja_template(conversations=[messages], tools=tools, chat_template=template, **SPECIAL)
    return text[0]


def rows(kind):
    if kind == "talks":
        return [dict(messages=talk, **({"tools": tools} if tools else {})) for _, talk, tools in TALKS]
    return [dict(prompt=p, chosen=c, rejected=r, **({"tools": t} if t else {})) for _, p, c, r, t in PAIRS]


def shown(warpo, model, folder, template, kind):
    """What `warpo data` prints of the rows of one kind: by row, the covered text of each part; and what it left out."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    (folder / "template.jinja").write_text(template)
    (folder / "run.toml").write_text(
        f'[model]\npath = "{model}"\ninit = "random"\n[data]\ntrain = "rows.jsonl"\ntemplate = "template.jinja"\n'
        'on_error = "skip"\nmax_prompt_tokens = 20000\nmax_response_tokens = 20000\n[batch]\ntokens = 40000\n[cache]\ndir = "off"\n')
    done = subprocess.run([warpo, "data", str(folder / "run.toml"), "--show", "99"], capture_output=True, text=True)
    covered, row = {}, None
    for line in done.stdout.splitlines():
        if head := re.match(r".*rows\.jsonl:(\d+): \d+ tokens$", line):
            row = int(head[1]) - 1
            covered[row] = {}
        elif part := re.match(r"  (prompt|chosen|rejected|response \d+)\b.*, \d+ tokens: ", line):
            name = part[1]
        elif row is not None and line.startswith("    ") and "·" in line or "⟦" in line:
            if row is not None:
                covered[row][name] = ["".join(run.split("·")) for run in re.findall("⟦([^⟧]*)⟧", line)]
        elif not line.strip():
            row = None
    left = dict((int(n) - 1, why) for n, why in re.findall(r"left out: .*?rows\.jsonl:(\d+): (.*)", done.stdout + done.stderr))
    return covered, left, done


def folder_for(template, model, folder):
    """A model folder whose tokenizer has what the template writes between brackets as special tokens."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    marks = set(re.findall(r"<[^<>{}\s'\"%]+>|\[/?[A-Z_]+\]", template)) | set(SPECIAL.values())
    known = {token["content"] for token in tokenizer["added_tokens"]} | set(tokenizer["model"]["vocab"])
    first = 1 + max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])])
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    tokenizer["added_tokens"] += [dict(id=first + i, content=mark, **plain) for i, mark in enumerate(sorted(marks - known))]
    config = json.loads((model / "config.json").read_text())
    config["vocab_size"], config["max_position_embeddings"] = first + len(marks) + 1, 40000
    target = folder / "model"
    target.mkdir(exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    (target / "config.json").write_text(json.dumps(config))
    own = json.loads((model / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**own, **SPECIAL}))
    return target


def words(text):
    return WORD.findall(text)


def check_part(template, messages, learnt, tools, runs, notes):
    """Faults of one response: its whole conversation, the messages that are learnt, and the covered runs."""
    faults, text = [], render(template, messages, tools)
    covered = "|".join(runs)
    own = [words(json.dumps(messages[i])) for i in learnt]
    foreign = set(words(json.dumps([x for i, x in enumerate(messages) if i not in learnt]))) - set(sum(own, []))
    for word in sorted(foreign | {"toolword"}):
        if word in words(covered):
            faults.append(f"`{word}` of another speaker is covered")
    for word in sum(own, []):
        if word in words(text) and word not in words(covered):
            faults.append(f"`{word}` of an assistant is shown and not covered")
        if word not in words(text) and "leaves out" not in notes:
            faults.append(f"`{word}` is not shown, and nothing says so")
    ends = []
    for group in own:
        last = max((text.rfind(word) + len(word) for word in group if word in text), default=None)
        if last is not None:
            following = WORD.search(text, last)
            ends.append(text[last:following.start() if following else len(text)])
    common = os.path.commonprefix(ends) if len(ends) > 1 else ""
    # The beginning of a mark that goes on differently is no end.
    common = re.sub(r"(<[^<>]*|\[[^\[\]]*)$", "", common).rstrip()
    flat = lambda s: re.sub(r"\s|\\[nrt]", "", s)
    for group in own:
        last = sorted((word for word in group if word in words(text)), key=text.rfind)[-1:]
        if common and last and flat(last[0] + common) not in flat(covered):
            faults.append(f"the end of turn {common!r} behind `{last[0]}` is not covered")
    return faults


def main():
    warpo, templates = sys.argv[1:3]
    model = pathlib.Path(sys.argv[3] if len(sys.argv) > 3 else pathlib.Path(__file__).parents[2] / "examples/quickstart-model").resolve()
    count, listed = collections.Counter(), []
    with tempfile.TemporaryDirectory() as temp:
        for path in sorted(pathlib.Path(templates).rglob("*.jinja")):
            template = path.read_text(encoding="utf-8", errors="surrogateescape")
            own = folder_for(template, model, pathlib.Path(temp))
            for kind in ("talks", "pairs"):
                covered, left, done = shown(warpo, own, pathlib.Path(temp), template, kind)
                for i, row in enumerate(TALKS if kind == "talks" else PAIRS):
                    if kind == "talks":
                        name, talk, tools = row
                        parts = {"response 0": (talk, [k for k, x in enumerate(talk) if x["role"] == "assistant"])}
                    else:
                        name, prompt, chosen, rejected, tools = row
                        parts = {side: (prompt + more, [len(prompt) + k for k, x in enumerate(more) if x["role"] == "assistant"])
                                 for side, more in (("chosen", chosen), ("rejected", rejected))}
                    count["rows"] += 1
                    try:
                        for messages, _ in parts.values():
                            render(template, messages, tools)
                    except Exception:
                        count["transformers raises"] += 1
                        if i in covered:
                            listed.append(f"{path.name}: {name}: transformers raises, warpo reads it")
                        continue
                    if i not in covered:
                        count["refused"] += 1
                        why = left.get(i, (done.stderr.strip().splitlines() or ["?"])[-1])
                        print(f"refused  {path.name}: {name}: {why[:150]}")
                        continue
                    count["checked"] += 1
                    for part, (messages, learnt) in parts.items():
                        faults = check_part(template, messages, learnt, tools, covered[i].get(part, []), done.stdout)
                        listed += [f"{path.name}: {name}, {part}: {fault}" for fault in faults]
    for fault in listed:
        print("FAULT  ", fault)
    print(f"{dict(count)}, {len(listed)} faults")
    sys.exit(bool(listed))


main()
