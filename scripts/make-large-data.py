#!/usr/bin/env python3
"""Rows for trying warpo on a large file: `make-large-data.py ROWS WORDS < TEXT > FILE.jsonl`.

Takes the words of TEXT in a fixed random order and writes ROWS plain-text pairs of about WORDS words each: half of them
prompt, a quarter each response. The same bytes on every run.
"""

import json
import random
import sys


def main() -> None:
    rows, length = int(sys.argv[1]), int(sys.argv[2])
    words = sys.stdin.read().split()
    source = random.Random(1)

    def text(count: int) -> str:
        """Runs of consecutive words, so that the text has the word pairs of real text."""
        parts: list[str] = []
        while len(parts) < count:
            start = source.randrange(len(words))
            parts += words[start : start + source.randint(5, 40)]
        return " ".join(parts[:count])

    def about(count: float) -> int:
        """A count that varies as lengths of real rows do."""
        return max(4, round(count * source.lognormvariate(-0.08, 0.4)))

    for _ in range(rows):
        prompt, chosen, rejected = (text(about(length * share)) for share in (0.5, 0.25, 0.25))
        row = {"prompt": f"Human: {prompt}\n\nAssistant:", "chosen": f" {chosen}", "rejected": f" {rejected}"}
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
