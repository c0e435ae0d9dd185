"""warpo and TRL side by side on one machine: the same model, the same pairs, the same steps, one after another.

    cargo build --release
    python benches/baselines/compare.py --model DIR --train FILE --eval FILE --out results.json

Runs `warpo train` on the host device in f32 and TRL in f32 and bf16 (trl_dpo.py, same Python), each in a process of its
own, `--repeat` times in turn, on the first steps x pairs rows, and prints a table of medians. Step times are training alone: no loading, no tokenising,
no reference pass, no evaluation. Peak memory is the process's largest resident set, for warpo over the whole run, for
TRL up to the end of training. Nothing else should run on the machine.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = HERE.parent.parent / "target" / "release" / "warpo"

RUN = """
[model]
path = {model!r}
[data]
train = {train!r}
eval = {eval!r}
[loss]
name = "dpo"
beta = 0.1
[batch]
pairs = {pairs}
tokens = {tokens}
[optim]
lr = 1e-5
schedule = "constant"
[train]
steps = {steps}
seed = 1
precision = {precision!r}
threads = {threads}
"""


def run_measured(command):
    """Runs to the end; the process's own peak of resident memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return usage.ru_maxrss * 1024


def warpo(args, precision, folder):
    config = folder / "run.toml"
    absolute = {key: os.path.abspath(getattr(args, key)) for key in ("model", "train", "eval")}
    config.write_text(
        RUN.format(
            **absolute,
            pairs=args.pairs,
            tokens=args.tokens,
            steps=args.steps,
            precision=precision,
            threads=args.threads,
        ).replace("'", '"')
    )
    out = folder / "run"
    peak = run_measured([args.program, "train", config, "--device", "host", "--out", out, *args.warpo])
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "step_ms" in record]
    evals = [record for record in records if "eval_loss" in record]
    return {
        "engine": "warpo",
        "precision": precision,
        "device": "host",
        "threads": args.threads,
        "steps": args.steps,
        "pairs": args.pairs,
        "step_ms": [record["step_ms"] for record in steps],
        "train_s": sum(record["step_ms"] for record in steps) / 1e3,
        "peak_rss_bytes": peak,
        "loss": [record["loss"] for record in steps],
        "eval_accuracy": evals[-1]["eval_rewards/accuracies"],
        "eval_loss": evals[-1]["eval_loss"],
    }


def trl(args, precision, folder):
    result = folder / "trl.json"
    command = [sys.executable, HERE / "trl_dpo.py", "--precision", precision, "--out", result]
    for key in ("model", "train", "eval", "steps", "pairs", "threads"):
        command += [f"--{key}", str(getattr(args, key))]
    run_measured(command)
    return json.loads(result.read_text())


def take_rows(args, folder):
    """The rows of the steps, in a file of their own: neither engine computes reference values it does not need."""
    with open(args.train) as file:
        rows = [line for line, _ in zip(file, range(args.steps * args.pairs))]
    args.train = str(folder / "train.jsonl")
    pathlib.Path(args.train).write_text("".join(rows))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--program", default=PROGRAM)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=["warpo f32", "trl f32", "trl bf16"])
    parser.add_argument("--out", required=True)
    parser.add_argument("warpo", nargs="*", help="further arguments for `warpo train`, after --")
    args = parser.parse_args()
    engines = {"warpo": warpo, "trl": trl}
    results = {name: [] for name in args.only}
    with tempfile.TemporaryDirectory() as shared:
        take_rows(args, pathlib.Path(shared))
        for _ in range(args.repeat):
            for name, runs in results.items():
                engine, precision = name.split()
                with tempfile.TemporaryDirectory() as folder:
                    runs.append(engines[engine](args, precision, pathlib.Path(folder)))
                # After every run: one that takes too long costs itself only.
                pathlib.Path(args.out).write_text(json.dumps(results, indent=1) + "\n")
    print(f"{'engine':10} {'s a step':>9} {'all steps, s':>13} {'peak GB':>8} {'accuracy':>9} {'eval loss':>10}")
    for name, runs in results.items():
        median = lambda value: statistics.median(value(run) for run in runs)
        print(
            f"{name:10} {median(lambda r: statistics.median(r['step_ms'])) / 1e3:9.2f}"
            f" {median(lambda r: r['train_s']):13.1f} {median(lambda r: r['peak_rss_bytes']) / 1e9:8.2f}"
            f" {median(lambda r: r['eval_accuracy']):9.3f} {median(lambda r: r['eval_loss']):10.4f}"
        )


if __name__ == "__main__":
    main()
