"""Writes tests/fixtures/added_tokens.json: tokens that a model folder names beside its tokenizer.json, and transformers' ids.

    pip install transformers==5.24.0 tokenizers==0.23.2
    python tests/parity/make_added_tokens.py

Each case is a folder, file by file (tokenizer.json is one of two), texts, and what AutoTokenizer makes of them:
ids without special tokens of its own, the size of its vocabulary, its EOS.
"""

import json
import pathlib
import tempfile

from transformers import AutoTokenizer

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "added_tokens.json"
TEXTS = ["ab <x> ab", "a</s><y>b", "<z>  <w>", "<s>ab</s>", "<pad><x>\n<m>", " <tool>a<img>"]


def added(id, content, **more):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **flags, **more}


def listed(*tokens):
    return {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens}


def tokenizer(tokens):
    pieces = [*"abcdefghijklmnopqrstuvwxyz<>/|_", "Ġ", "Ċ", "ab", "</s>"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [["a", "b"]],
        },
    }


N = 35  # tokens of the model itself; 34 is `</s>`, which the second tokenizer.json does not call special
BASES = {
    "special": tokenizer([added(34, "</s>"), added(35, "<s>")]),
    "bare": tokenizer([]),
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
CASES = {
    "nothing": ("special", {"tokenizer_config.json": FAST}),
    "decoder": ("special", {"tokenizer_config.json": {
        **FAST, "added_tokens_decoder": listed(added(34, "</s>"), added(35, "<s>"), added(36, "<x>"), added(37, "<y>"))}}),
    "decoder with flags": ("special", {"tokenizer_config.json": {
        **FAST, "added_tokens_decoder": listed(
            added(36, "<x>", lstrip=True, rstrip=True), added(37, "<y>", special=False, normalized=True),
            added(38, "<z>", rstrip=True, special=False))}}),
    "decoder changes flags": ("special", {"tokenizer_config.json": {
        **FAST, "added_tokens_decoder": listed(added(34, "</s>", lstrip=True), added(35, "<s>", rstrip=True))}}),
    "named only": ("special", {"tokenizer_config.json": {
        **FAST, "pad_token": "<pad>", "bos_token": {"__type": "AddedToken", **added(0, "<s>")} | {"id": None}}}),
    "eos in the vocabulary only": ("bare", {"tokenizer_config.json": FAST}),
    "eos as an object": ("bare", {"tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False,
                      "single_word": False}}}),
    "eos in the map only": ("bare", {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": {"eos_token": {"content": "</s>", "lstrip": False, "normalized": False,
                                                  "rstrip": False, "single_word": False}, "pad_token": "<pad>"}}),
    "additional": ("special", {"tokenizer_config.json": {**FAST, "additional_special_tokens": ["<z>", "<w>"]}}),
    "extra": ("special", {"tokenizer_config.json": {**FAST, "extra_special_tokens": ["<w>", "<z>"]}}),
    "extra by name": ("special", {"tokenizer_config.json": {
        **FAST, "extra_special_tokens": {"image_token": "<img>", "tool_token": "<tool>"}}}),
    "tokens of the model": ("special", {"tokenizer_config.json": {**FAST, "image_token": "<img>", "mask_token": "<m>"}}),
    "added_tokens.json": ("special", {
        "tokenizer_config.json": FAST, "added_tokens.json": {"</s>": 34, "<s>": 35, "<x>": 36, "<pad>": 37},
        "special_tokens_map.json": {"pad_token": "<pad>", "additional_special_tokens": ["<w>"]}}),
    "map and decoder": ("special", {
        "tokenizer_config.json": {**FAST, "added_tokens_decoder": listed(added(36, "<x>"))},
        "special_tokens_map.json": {"pad_token": "<pad>"}, "added_tokens.json": {"<y>": 37}}),
    "map with more": ("special", {
        "tokenizer_config.json": {**FAST, "extra_special_tokens": ["<w>"]},
        "special_tokens_map.json": {"extra_special_tokens": ["<z>", {"content": "<y>", "lstrip": True}]}}),
    "split": ("special", {"tokenizer_config.json": {
        **FAST, "split_special_tokens": True,
        "added_tokens_decoder": listed(added(36, "<x>"), added(37, "<y>", special=False))}}),
    "other ids": ("special", {"tokenizer_config.json": {
        **FAST, "added_tokens_decoder": listed(added(40, "<x>"), added(41, "<y>"))}}),
}


def main():
    cases = []
    for name, (base, files) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in {"tokenizer.json": BASES[base], **files}.items():
                pathlib.Path(folder, file).write_text(json.dumps(content))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        case = {"name": name, "base": base, "files": files, "ids": ids, "size": len(tokenizer)}
        cases.append({**case, "eos": tokenizer.eos_token_id})
    text = ",\n".join(json.dumps(case) for case in cases)
    bases = ",\n".join(f"{json.dumps(name)}: {json.dumps(base)}" for name, base in BASES.items())
    OUT.write_text(f'{{"texts": {json.dumps(TEXTS)},\n"bases": {{\n{bases}}},\n"cases": [\n{text}]}}\n')


if __name__ == "__main__":
    main()
