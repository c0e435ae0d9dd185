"""Writes tests/fixtures/parquet: the same rows as Parquet, the way datasets are published, and as JSON lines.

    pip install pyarrow==26.0.1
    python tests/parity/make_parquet_fixture.py

Conversations are list<struct<role, content>>; tools and template variables are structs; a column that a row has no value
in is null. Two row groups, so that reading crosses from one to the next.

`nested` has what a table makes of rows that differ in shape: every structure has the fields of all, null where its row had
none. Its JSON lines are the rows as they were. `types` has a column of every type that no row is made of; its JSON lines
are what pyarrow reads back, without them.
"""

import datetime
import decimal
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

CALL = {"type": "function", "function": {"name": "find", "arguments": {"town": "Ulm", "deep": {"a": [1, None], "b": []}}}}
NESTED = [
    {"messages": [says("user", "Where?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}], "more": None},
    {"messages": [{"role": "assistant", "content": "", "tool_calls": []}, says("user", "é")], "more": {}},
    {"messages": [says("user", ""), {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
    {"messages": [], "more": {"flag": True, "list": [{"n": 1}, None, {"m": 2.5}], "map": [["a"], [], ["b", "c"]]}},
    {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}, CALL]}], "more": None},
    {"more": {"list": []}},
]
PLAIN = [{"prompt": f"Q{i % 2}", "chosen": f" yes {i} é", "rejected": " no" if i else ""} for i in range(9)]


def without_absent(value, top=True):
    """What a table can tell: a field that is null is one that is not there, but for `content` and the columns."""
    if isinstance(value, list):
        return [without_absent(item, False) for item in value]
    if isinstance(value, dict):
        kept = {key: without_absent(item, False) for key, item in value.items()}
        return {key: item for key, item in kept.items() if top or key == "content" or item is not None}
    return value


def write_lines(name, rows):
    (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_nested():
    table = pyarrow.Table.from_pylist(NESTED)
    table = table.append_column("pairs", pyarrow.array(
        [[("a", 1), ("b", None)], [], None, [("c", 3)], [], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())))
    pyarrow.parquet.write_table(table, FOLDER / "nested.parquet", row_group_size=4)
    rows = table.to_pylist()
    for row in rows:
        row["pairs"] = None if row["pairs"] is None else dict(row["pairs"])
    lines = [without_absent({k: v for k, v in row.items() if k != "pairs"}) | {"pairs": row["pairs"]} for row in rows]
    for given, line in zip(NESTED, lines):
        assert all(line[key] == value for key, value in given.items() if key != "messages"), (given, line)
    write_lines("nested", lines)


def write_encodings():
    plain = pyarrow.Table.from_pylist(PLAIN)
    text = {name: plain.column(name).to_pylist() for name in plain.column_names}
    of = lambda kind: pyarrow.table({name: pyarrow.array(values, kind) for name, values in text.items()})
    dictionary = pyarrow.table({name: plain.column(name).dictionary_encode() for name in plain.column_names})
    write = lambda name, table, **options: pyarrow.parquet.write_table(table, FOLDER / f"plain.{name}.parquet", **options)
    for codec in ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]:
        write(codec, plain, compression=codec)
    write("large", of(pyarrow.large_string()))
    write("view", of(pyarrow.string_view()))
    write("binary", of(pyarrow.binary()))
    write("dictionary", dictionary)
    write("delta", plain, use_dictionary=False, column_encoding={
        "prompt": "DELTA_BYTE_ARRAY", "chosen": "DELTA_LENGTH_BYTE_ARRAY", "rejected": "PLAIN"})
    write("pages", plain, data_page_version="2.0", row_group_size=4, compression="gzip")
    write_lines("plain", PLAIN)


def write_types():
    when = datetime.datetime(2024, 5, 6, 7, 8, 9)
    number = decimal.Decimal
    table = pyarrow.table({
        "text": ["a", "b", None],
        "small": pyarrow.array([1, 255, None], pyarrow.uint8()),
        "large": pyarrow.array([2**63, 1, None], pyarrow.uint64()),
        "half": pyarrow.array([0.5, -2.0, None], pyarrow.float16()),
        "decimal": pyarrow.array([number("1.25"), number("-0.01"), None], pyarrow.decimal128(9, 2)),
        "wide": pyarrow.array([number("123456789012345678.5"), number("0"), None], pyarrow.decimal128(38, 1)),
        "flag": [True, False, None],
        "none": pyarrow.nulls(3),
        **{f"unread_{unit}": pyarrow.array([when, when, None], pyarrow.timestamp(unit)) for unit in ["s", "ms", "us", "ns"]},
        "unread_date": pyarrow.array([when.date()] * 3),
        "unread_time": pyarrow.array([when.time()] * 3),
        "unread_span": pyarrow.array([1, 2, 3], pyarrow.duration("ms")),
        "unread_bytes": [b"\xff\xfe", b"\x80", None],
        "unread_fixed": pyarrow.array([b"\xff" * 16] * 3, pyarrow.binary(16)),
        "unread_nan": [float("nan"), float("inf"), 1.0],
    })
    pyarrow.parquet.write_table(table, FOLDER / "types.parquet")
    rows = [{key: value for key, value in row.items() if not key.startswith("unread")} for row in table.to_pylist()]
    write_lines("types", [{k: float(v) if isinstance(v, number) else v for k, v in row.items()} for row in rows])


def main():
    FOLDER.mkdir(exist_ok=True)
    write_nested()
    write_encodings()
    write_types()
    for name, rows in [("conversations", CONVERSATIONS), ("lists", LISTS), ("unpaired", UNPAIRED)]:
        for codec in ["snappy", "zstd"]:
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, FOLDER / f"{name}.{codec}.parquet", compression=codec, row_group_size=2)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(text)


if __name__ == "__main__":
    main()
