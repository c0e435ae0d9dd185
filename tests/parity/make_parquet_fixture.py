"""Writes tests/fixtures/parquet: the same rows as Parquet, the way datasets are published, and as JSON lines.

    pip install pyarrow==26.0.1
    python tests/parity/make_parquet_fixture.py

Conversations are list<struct<role, content>>; tools and template variables are structs; a column that a row has no value
in is null. Two row groups, so that reading crosses from one to the next.
"""

import json
import pathlib

import pyarrow
import pyarrow.parquet

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "parquet"


def says(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    {
        "prompt": [says("system", "Be brief."), says("user", f"Question {i}: é \"quoted\"\n?")],
        "chosen": [says("assistant", f"Answer {i}")],
        "rejected": [says("assistant", "Hm"), says("user", "What?"), says("assistant", f"No {i}")],
    }
    for i in range(5)
]
LISTS = [
    {"prompt": f"Q{i}", "responses": [f" a{i}", " b", " c"][: 2 + i % 2], "scores": [0.5, -1.0, 3.25][: 2 + i % 2]}
    for i in range(4)
]
UNPAIRED = [{"prompt": "Q", "completion": f" c{i}", "label": i % 2 == 0} for i in range(3)]


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, rows in [("conversations", CONVERSATIONS), ("lists", LISTS), ("unpaired", UNPAIRED)]:
        for codec in ["snappy", "zstd"]:
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, FOLDER / f"{name}.{codec}.parquet", compression=codec, row_group_size=2)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(text)


if __name__ == "__main__":
    main()
