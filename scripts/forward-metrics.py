#!/usr/bin/env python3
"""Sends the metrics of a run, live or finished, to wandb, trackio or MLflow.

    scripts/forward-metrics.py runs/quickstart --to wandb

follows the run's metrics.jsonl until its final model is there. `train/NAME` and, on held-out rows, `eval/NAME` are sent with
their step; numbers that are none are left out. When the run is resumed and its records are cut back to a checkpoint, what it
then writes is sent again from there. Needs the library that is named by --to, and nothing else; `--to print` shows what
would be sent.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path


class Print:
    """What would be sent, a line of JSON each."""

    def begin(self, args, config):
        print(json.dumps({"project": args.project, "name": args.name, "config": config}), flush=True)

    def log(self, step, values):
        print(json.dumps({"step": step, **values}), flush=True)

    def end(self):
        pass


class Wandb:
    def begin(self, args, config):
        wandb = library("wandb")
        self.run = wandb.init(
            project=args.project, name=args.name, config=config, id=args.id, resume="allow" if args.id else None
        )
        # The steps of a run that was cut back come a second time, which wandb's own count does not allow.
        for side in ("train/*", "eval/*"):
            self.run.define_metric(side, step_metric="step")
        say(f"wandb run {self.run.id}")

    def log(self, step, values):
        self.run.log({"step": step, **values})

    def end(self):
        self.run.finish()


class Trackio:
    def begin(self, args, config):
        self.trackio = library("trackio")
        self.trackio.init(project=args.project, name=args.name, config=config, resume="allow" if args.id else "never")

    def log(self, step, values):
        self.trackio.log(values, step=step)

    def end(self):
        self.trackio.finish()


class Mlflow:
    def begin(self, args, config):
        self.mlflow = library("mlflow")
        self.mlflow.set_experiment(args.project)
        run = self.mlflow.start_run(run_id=args.id, run_name=args.name)
        say(f"MLflow run {run.info.run_id}")
        keys = sorted(config)
        for first in range(0, len(keys) if not args.id else 0, 100):
            self.mlflow.log_params({key: config[key] for key in keys[first : first + 100]})

    def log(self, step, values):
        self.mlflow.log_metrics(values, step=step)

    def end(self):
        self.mlflow.end_run()


TARGETS = {"wandb": Wandb, "trackio": Trackio, "mlflow": Mlflow, "print": Print}


def say(line):
    print(line, file=sys.stderr, flush=True)


def library(name):
    try:
        return importlib.import_module(name)
    except ImportError as why:
        sys.exit(f"error: --to {name}: {why}: pip install {name}")


def read_config(path):
    """Dotted keys and values of a run's config.toml, which has a key a line. (tomllib is younger than Python 3.9.)"""
    found, section, tables = {}, "", {}
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("[["):
            name = line.strip("[]")
            tables[name] = tables.get(name, -1) + 1
            section = f"{name}.{tables[name]}."
        elif line.startswith("["):
            section = line.strip("[]") + "."
        elif " = " in line:
            key, value = line.split(" = ", 1)
            try:
                found[section + key] = json.loads(value)
            except ValueError:
                found[section + key] = value
    return found


def numbers(record):
    """A record's step and its finite numbers by the names they are sent under."""
    held_out = any(name.startswith("eval_") for name in record)
    values = {}
    for name, value in record.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name == "step" or not is_number or (held_out and not name.startswith("eval_")):
            continue
        values["eval/" + name[len("eval_") :] if held_out else "train/" + name] = float(value)
    return record["step"], values


class Records:
    """Records of a file that grows, and is replaced by its first part when its run is resumed."""

    def __init__(self, path):
        self.path, self.file, self.inode, self.rest = path, None, None, b""
        # Of every whole line that was read, and how many of them the file at hand is known to have.
        self.seen, self.place = [], 0

    def read(self):
        """Records that were not read before."""
        while self.opened():
            piece = self.file.read(1 << 20)
            if not piece:
                return
            *lines, self.rest = (self.rest + piece).split(b"\n")
            for line in lines:
                self.place += 1
                if self.place <= len(self.seen) and self.seen[self.place - 1] == hash(line):
                    continue
                if self.place <= len(self.seen):
                    say(f"{self.path}: the run was resumed: sending goes on at line {self.place}")
                    del self.seen[self.place - 1 :]
                self.seen.append(hash(line))
                record = self.parse(line)
                if record is not None:
                    yield record

    def opened(self):
        """Opens the file if it is there, and again if it is another one than before."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        if self.file and (there.st_ino != self.inode or there.st_size < self.file.tell()):
            self.file.close()
            self.file = None
        if not self.file:
            self.file, self.rest, self.place = self.path.open("rb"), b"", 0
            self.inode = os.fstat(self.file.fileno()).st_ino
        return True

    def parse(self, line):
        try:
            record = json.loads(line)
            if isinstance(record["step"], int):
                return record
        except (ValueError, KeyError, TypeError):
            pass
        say(f"{self.path}:{self.place}: no record, left out")
        return None


def follow(args, target):
    records, sent = Records(args.run / "metrics.jsonl"), 0
    while True:
        # Looked for first: what is written before it is read afterwards.
        done = args.once or (args.run / "final").is_dir()
        for record in records.read():
            step, values = numbers(record)
            if step > args.after and values:
                target.log(step, values)
                sent += 1
        if done:
            return sent
        time.sleep(args.every)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--project", default="warpo", help="project, or MLflow's experiment")
    parser.add_argument("--name", help="name of the run there; the folder's name if not given")
    parser.add_argument("--id", help="goes on with this run there (trackio knows runs by name: give any)")
    parser.add_argument("--after", type=int, default=-1, metavar="STEP", help="sends later steps only")
    parser.add_argument("--once", action="store_true", help="sends what is there and ends")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="pause between two looks at the file")
    args = parser.parse_args()
    args.name = args.name or args.run.resolve().name
    if not (args.run / "config.toml").is_file():
        sys.exit(f"error: {args.run}: holds no run: config.toml is missing: name what `warpo train` wrote to")
    return args


def main():
    args = arguments()
    target = TARGETS[args.to]()
    target.begin(args, read_config(args.run / "config.toml"))
    try:
        sent = follow(args, target)
        say(f"{sent} records were sent")
    except KeyboardInterrupt:
        say("stopped")
    except BrokenPipeError:
        # Whoever read has seen enough; Python would complain at its end once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        target.end()


if __name__ == "__main__":
    main()
