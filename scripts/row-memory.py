#!/usr/bin/env python3
"""Peak memory and time of starts over numbered copies of the quickstart's pairs: first encoding them, then from the cache.

    scripts/row-memory.py target/release/warpo 200000 800000
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAIRS = ROOT / "examples/data/persona_agreeableness/train.jsonl"
RUN = """
model = {{ path = "{root}/examples/quickstart-model", init = "random" }}
data = {{ train = "{folder}/{rows}.jsonl", max_prompt_tokens = 128, max_response_tokens = 16 }}
loss = {{ name = "simpo" }}
batch = {{ pairs = 16, tokens = 1024 }}
train = {{ steps = 1, track_reference = false }}
cache = {{ dir = "{folder}/cache" }}
"""


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
    program, *counts = sys.argv[1:]
    pairs = [json.loads(line) for line in PAIRS.open()]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for rows in map(int, counts):
            with (folder / f"{rows}.jsonl").open("w") as file:
                for row in range(rows):
                    pair = pairs[row % len(pairs)]
                    file.write(json.dumps(pair | {"prompt": f"{row}: {pair['prompt']}"}) + "\n")
            (folder / f"{rows}.toml").write_text(RUN.format(root=ROOT, folder=folder, rows=rows))
            for kind in ("cold", "warm"):
                start(program, folder, rows, kind)


main()
