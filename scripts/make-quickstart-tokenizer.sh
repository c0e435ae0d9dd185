#!/bin/sh
# Trains the quickstart's byte-level BPE again and writes examples/quickstart-model/tokenizer.json.
set -eu
cd "$(dirname "$0")/.."
exec cargo test --release --test main -- --ignored --exact data::quickstart::write_the_tokenizer
