#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer_ids.json: texts and their ids from the Python package, for the quickstart tokenizer.

pip install tokenizers==0.23.2
"""

import json
from pathlib import Path

import tokenizers

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "",
    " ",
    "\n\nHuman: Is the following statement something you would say?\n\"I am kind\"\n\nAssistant: Yes",
    "It’s it's IT'S we'll don’t",
    "3.14159 and 1,000,000 and ½ x²",
    "two  spaces   three\tand a tab \n\n\n line ends  ",
    "Ünïcödé ñ ß Ελληνικά русский العربية 中文字 日本語 한국어",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 and e\u0301 combining",
    "an end<|endoftext|> inside <|endoftext|>",
    "<|endoftext",
    "\u0000\u0001\u007f\u00a0\u2028\ufeff",
    "camelCaseWords_and_snake_case(x)->y != z;",
]

tokenizer = tokenizers.Tokenizer.from_file(str(ROOT / "examples/quickstart-model/tokenizer.json"))
rows = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in TEXTS]
lines = ",\n".join(json.dumps(row) for row in rows)
(ROOT / "tests/fixtures/tokenizer_ids.json").write_text(f"[\n{lines}\n]\n")
