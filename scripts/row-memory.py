#!/usr/bin/env python3
"""Peak memory and time of starts over numbered copies of the quickstart's pairs: first encoding them, then from the cache.

    scripts/row-memory.py target/release/warpo 200000 800000
    scripts/row-memory.py target/release/warpo --references 200000 800000

With `--references` the loss has a reference, and a model of one narrow layer computes its values.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAIRS = ROOT / "examples/data/persona_agreeableness/train.jsonl"
RUN = """
model = {{ path = "{folder}/model", init = "random" }}
data = {{ train = "{folder}/{rows}.jsonl", max_prompt_tokens = 128, max_response_tokens = 16 }}
loss = {{ name = "{loss}" }}
batch = {{ pairs = 16, tokens = 1024 }}
train = {{ steps = 1, track_reference = false }}
cache = {{ dir = "{folder}/cache" }}
"""


def make_model(folder: pathlib.Path, narrow: bool) -> None:
    """The quickstart's model, or one that computes a row in a millisecond."""
    shutil.copytree(ROOT / "examples/quickstart-model", folder / "model")
    if narrow:
        path = folder / "model/config.json"
        config = json.loads(path.read_text())
        config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
        config |= {"num_key_value_heads": 1, "head_dim": 32}
        path.write_text(json.dumps(config))


def start(program: str, folder: pathlib.Path, rows: int, kind: str) -> None:
    """Runs one step, and says what it took."""
    out = folder / f"{kind}-{rows}"
    began = time.time()
    args = [program, "train", str(folder / f"{rows}.toml"), "--out", str(out), "--device", "host"]
    child = subprocess.Popen(args, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, status
    seconds = f"{time.time() - began:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of the processor"
    print(f"{kind} {rows}: {used.ru_maxrss / 1000:.1f} MB, {seconds}", flush=True)


def main() -> None:
    references = "--references" in sys.argv
    program, *counts = [word for word in sys.argv[1:] if word != "--references"]
    loss = "dpo" if references else "simpo"
    pairs = [json.loads(line) for line in PAIRS.open()]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_model(folder, references)
        for rows in map(int, counts):
            with (folder / f"{rows}.jsonl").open("w") as file:
                for row in range(rows):
                    pair = pairs[row % len(pairs)]
                    file.write(json.dumps(pair | {"prompt": f"{row}: {pair['prompt']}"}) + "\n")
            (folder / f"{rows}.toml").write_text(RUN.format(folder=folder, rows=rows, loss=loss))
            for kind in ("cold", "warm"):
                start(program, folder, rows, kind)


main()
