#!/usr/bin/env python3
"""Whether TensorBoard reads of a run's event files what its metrics.jsonl has: every number at its step, and no other.

    python tests/parity/events_in_tensorboard.py RUN...      # needs the package tensorboard

A run is made with train.tensorboard = true; one that was resumed has several files, of which later steps take back earlier ones.
"""

import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def wanted(run):
    """Steps and values by tag; of steps that were done twice metrics.jsonl has the second."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        held_out = any(name.startswith("eval_") for name in record)
        for name, value in record.items():
            if name == "step" or value is None or (held_out and name == "epoch"):
                continue
            tag = "eval/" + name[5:] if name.startswith("eval_") else "train/" + name
            # Events have single precision.
            value = struct.unpack("f", struct.pack("f", value))[0]
            found.setdefault(tag, []).append((record["step"], value))
    return found


def read(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def main():
    for run in map(Path, sys.argv[1:]):
        want, found = wanted(run), read(run)
        different = [tag for tag in sorted(want.keys() | found.keys()) if want.get(tag) != found.get(tag)]
        files, values = len(list(run.glob("events.out.tfevents.*"))), sum(map(len, found.values()))
        print(f"{run}: {files} files, {len(found)} tags, {values} values, {len(different)} tags differ {different[:5]}")
        if different or not found:
            sys.exit(1)


if __name__ == "__main__":
    main()
