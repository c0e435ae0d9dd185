"""Takes away and adds every optional key of every family's config.json, one at a time, and the pairs of places where one
setting can stand, and compares what warpo makes of each file with what transformers does.

    pip install torch==2.15.0 transformers==5.24.0
    HF_HUB_OFFLINE=1 python tests/parity/optional_keys.py --record [FAMILY ...]
    HF_HUB_OFFLINE=1 python tests/parity/optional_keys.py --score target/release/warpo [--every N] [FAMILY ...]

`--record` writes tests/fixtures/parity/optional_keys.json, which tests/model/optional_keys.rs reads: for each case the
sizes and switches of the model that transformers builds, or that it refuses. `--score` gives each case random weights, runs
`warpo score` in f32 and compares with transformers in float64 (every narrowing inside it widened). A case is right if
both give the same numbers to LIMIT, if warpo refuses it by a key that the case changes, or if both refuse it. Exits with 1
if one is not.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
warnings.filterwarnings("ignore")

import torch
import transformers
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "parity"
RECORD = FIXTURES / "optional_keys.json"
LIMIT = 1e-4
# What is larger is compared by its sizes and switches only.
LARGEST = 40_000_000
PROMPT = "the user asks the assistant a question about the weather and waits for the answer of the assistant"
ROWS = [(PROMPT, " and the tool is a function with parameters of type string", " no"), ("Yes", " no", " it is")]

TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
    "rope_theta": 500.0,
    "attention_dropout": 0.0,
}


def family(model_type, architecture, **changes):
    merged = {"architectures": [architecture], "model_type": model_type, **TINY, **changes}
    return {key: value for key, value in merged.items() if value is not ...}


GEMMA = {"hidden_act": ..., "hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "query_pre_attn_scalar": 24}
QWEN = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
BASES = {
    "llama": family("llama", "LlamaForCausalLM", head_dim=32, attention_bias=False, mlp_bias=False),
    "mistral": family("mistral", "MistralForCausalLM", head_dim=32, sliding_window=12),
    "qwen2": family("qwen2", "Qwen2ForCausalLM", **QWEN),
    "qwen3": family("qwen3", "Qwen3ForCausalLM", head_dim=32, attention_bias=False, **QWEN),
    "smollm3": family(
        "smollm3",
        "SmolLM3ForCausalLM",
        use_sliding_window=True,
        sliding_window=12,
        no_rope_layers=[1, 0, 1],
        no_rope_layer_interval=2,
        attention_bias=False,
        mlp_bias=False,
        pad_token_id=0,
    ),
    "phi3": family(
        "phi3", "Phi3ForCausalLM", sliding_window=12, original_max_position_embeddings=128, resid_pdrop=0.0, pad_token_id=0
    ),
    "gemma2": family(
        "gemma2",
        "Gemma2ForCausalLM",
        **GEMMA,
        sliding_window=12,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
        attention_bias=False,
    ),
    "gemma3_text": family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        **GEMMA,
        sliding_window=12,
        sliding_window_pattern=2,
        rope_local_base_freq=100.0,
        final_logit_softcapping=5.0,
        attention_bias=False,
    ),
    "olmo2": family("olmo2", "Olmo2ForCausalLM", attention_bias=False, pad_token_id=0),
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 320,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 112,
        "n_inner": 72,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-3,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    },
}

# Every key that a class of a family reads, or that other families read and somebody may write into the file.
ADDED = {
    "head_dim": [64, None],
    "num_key_value_heads": [2, None],
    "hidden_act": ["gelu", None],
    "hidden_activation": ["gelu", None],
    "activation_function": ["relu"],
    "max_position_embeddings": [128, None],
    "rms_norm_eps": [1e-2, None],
    "layer_norm_epsilon": [1e-2, None],
    "layer_norm_eps": [1e-2],
    "initializer_range": [0.5],
    "tie_word_embeddings": [True, False, None],
    "attention_bias": [True, None],
    "mlp_bias": [True],
    "attention_dropout": [0.25, None],
    "resid_pdrop": [0.25],
    "embd_pdrop": [0.25],
    "attn_pdrop": [0.25],
    "pretraining_tp": [2, None],
    "use_sliding_window": [True, False],
    "sliding_window": [7, None],
    "max_window_layers": [0, 2],
    "sliding_window_pattern": [3, None],
    "_sliding_window_pattern": [3],
    "layer_types": [
        ["sliding_attention", "full_attention", "full_attention"],
        ["sliding_attention"] * 3,
        ["full_attention"] * 3,
        ["full_attention"],
        ["full_attention", "chunked_attention", "full_attention"],
        None,
    ],
    "no_rope_layers": [[0, 1, 1], [0, 1], None],
    "no_rope_layer_interval": [3],
    "query_pre_attn_scalar": [99, None],
    "attn_logit_softcapping": [2.0, None],
    "final_logit_softcapping": [2.0, None],
    "use_bidirectional_attention": [True, False, None],
    "is_causal": [False, True],
    "is_decoder": [True],
    "is_encoder_decoder": [True, False],
    "add_cross_attention": [True, False],
    "scale_attn_weights": [False],
    "scale_attn_by_inverse_layer_idx": [True],
    "reorder_and_upcast_attn": [True],
    "summary_type": ["mean"],
    "n_inner": [88, None],
    "n_ctx": [64],
    "n_embd": [96],
    "n_positions": [96],
    "hidden_size": [96],
    "num_attention_heads": [1],
    "num_hidden_layers": [1],
    "vocab_size": [336],
    "intermediate_size": [88],
    "num_labels": [1],
    "cache_implementation": ["hybrid"],
    "use_cache": [False],
    "torch_dtype": ["float16"],
    "dtype": ["bfloat16"],
    "partial_rotary_factor": [0.5, 1.0, None],
    "rope_theta": [7000.0, None],
    "rope_local_base_freq": [7000.0],
    "default_theta": [7000.0],
    "original_max_position_embeddings": [32, None],
    "per_layer_config": [{"1": {"intermediate_size": 48}}],
    "transformers_weights": ["other.safetensors"],
    "quantization_config": [{"quant_method": "fp8"}, None],
    "compression_config": [{"quant_method": "compressed-tensors"}],
    "embedding_multiplier": [3.0],
    "logits_scaling": [3.0],
    "router_aux_loss_coef": [0.5],
    "attention_chunk_size": [8],
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "beta_fast": 4.0, "beta_slow": 0.5}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def without(table, *keys):
    return {key: value for key, value in table.items() if key not in keys}


def nested(full, sliding):
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


# Places of rotary settings, and pairs of them that differ.
ROPES = [
    {"rope_scaling": {}},
    {"rope_scaling": None},
    {"rope_parameters": {}},
    {"rope_parameters": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 3000.0}},
    {"rope_parameters": {"rope_theta": 3000.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    {"rope_parameters": {"rope_type": "default"}},
    {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 3000.0, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 3000.0, "partial_rotary_factor": 1.0}},
    {"rope_parameters": LINEAR},
    {"rope_scaling": LINEAR},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0}},
    {"rope_scaling": {"rope_type": None, "type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": None}},
    {"rope_scaling": {"rope_type": "linear"}},
    {"rope_scaling": {**LINEAR, "rope_theta": 3000.0}},
    {"rope_scaling": {**LINEAR, "partial_rotary_factor": 0.5}},
    {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0}},
    {"rope_scaling": {}, "rope_parameters": {**LINEAR, "rope_theta": 3000.0}},
    {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {**LINEAR, "rope_theta": 3000.0}},
    {"rope_scaling": LINEAR, "partial_rotary_factor": 0.5},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "proportional"}},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": without(LLAMA3, "low_freq_factor")},
    {"rope_scaling": without(LLAMA3, "original_max_position_embeddings")},
    {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 128},
    {"rope_scaling": without(LLAMA3, "original_max_position_embeddings"), "original_max_position_embeddings": 64},
    {"rope_scaling": YARN},
    {"rope_parameters": {**YARN, "rope_theta": 3000.0}},
    {"rope_scaling": {**without(YARN, "rope_type"), "type": "yarn"}},
    {"rope_scaling": without(YARN, "factor")},
    {"rope_scaling": {**YARN, "factor": None}},
    {"rope_scaling": without(YARN, "original_max_position_embeddings")},
    {"rope_scaling": {**YARN, "original_max_position_embeddings": None}},
    {"rope_scaling": YARN, "original_max_position_embeddings": 128},
    {"rope_scaling": YARN, "original_max_position_embeddings": None},
    {"rope_scaling": without(YARN, "original_max_position_embeddings"), "original_max_position_embeddings": 64},
    {"rope_scaling": {**YARN, "factor": None}, "original_max_position_embeddings": 64},
    {"rope_scaling": {**YARN, "attention_factor": 1.5}},
    {"rope_scaling": {**YARN, "attention_factor": None}},
    {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}},
    {"rope_scaling": {**YARN, "mscale": 0.7}},
    {"rope_scaling": {**YARN, "truncate": False}},
    {"rope_scaling": {**YARN, "truncate": None}},
    {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": None}},
    {"rope_scaling": {**YARN, "factor": 0.5}},
    nested({"rope_type": "default", "rope_theta": 3000.0}, {"rope_type": "default", "rope_theta": 50.0}),
    nested({"rope_type": "default"}, {"rope_type": "default"}),
    nested({**LINEAR, "rope_theta": 3000.0}, {"rope_theta": 50.0}),
    nested(None, {"rope_type": "default", "rope_theta": 50.0}),
    nested({**YARN, "rope_theta": 3000.0}, {**LINEAR, "rope_theta": 50.0}),
    nested({**YARN, "rope_theta": 3000.0, "truncate": False}, {"rope_type": "default"}),
    {**nested({**YARN, "rope_theta": 3000.0}, {"rope_type": "default"}), "original_max_position_embeddings": 64},
    {**nested({"rope_theta": 3000.0}, {"rope_theta": 50.0}), "rope_scaling": LINEAR},
    {**nested({**YARN, "rope_theta": 3000.0}, {"rope_theta": 50.0}), "rope_scaling": {"factor": 2.0}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 3000.0}}},
    {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}, "rope_scaling": LINEAR},
    {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}},
]

# Other pairs of places.
PAIRS = [
    {"use_sliding_window": False, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    {"use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 3},
    {"use_sliding_window": True, "sliding_window": None},
    {"use_sliding_window": True, "max_window_layers": 2, "layer_types": ["sliding_attention"] * 3},
    {"sliding_window_pattern": 2, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    {"sliding_window_pattern": None, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    {"sliding_window": None, "layer_types": ["full_attention"] * 3},
    {"no_rope_layers": None, "no_rope_layer_interval": 3},
    {"no_rope_layers": [0, 0, 0], "no_rope_layer_interval": 3},
    {"num_attention_heads": 4, "num_key_value_heads": 3, "hidden_size": 128},
    {"num_attention_heads": 2, "hidden_size": 72, "head_dim": 32},
    {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 64, "head_dim": 32},
    {"head_dim": 96, "hidden_size": 64},
    {"n_embd": 64, "hidden_size": 64},
    {"n_embd": 64, "hidden_size": 128},
    {"n_positions": 112, "max_position_embeddings": 96},
    {"torch_dtype": "float16", "dtype": "bfloat16"},
    {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu"},
]

# Keys of every file that say nothing about what the model computes.
DESCRIPTIONS = {"architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id"}


def cases(name):
    """Name, changed keys and config of every case. Two ways to write the same file are two cases."""
    base = BASES[name]
    yield "as it is", [], base
    for key in base:
        if key not in DESCRIPTIONS:
            yield f"without {key}", [key], without(base, key)
    for key, values in ADDED.items():
        for value in values:
            if not (key in base and base[key] == value):
                yield f"{key} = {json.dumps(value)}", [key], {**base, key: value}
    # GPT-2 has no rotary positions: a few to see that it does not mind.
    for changes in (ROPES[8:14] if name == "gpt2" else ROPES) + PAIRS:
        yield json.dumps(changes), list(changes), {**base, **changes}
        # And with nothing at the top that the table would have to win over: defaults of three kinds.
        tops = [key for key in ("rope_theta", "rope_local_base_freq") if key in base and key not in changes]
        if tops and changes in ROPES and name in ("llama", "smollm3", "gemma3_text"):
            yield f"{json.dumps(changes)} without {', '.join(tops)}", [*changes, *tops], {**without(base, *tops), **changes}


class Wide(TorchFunctionMode):
    """Turns every float32 that Python code asks for into float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        widen = lambda value: torch.float64 if value in (torch.float32, torch.float) else value
        kwargs = {key: widen(value) if isinstance(value, torch.dtype) else value for key, value in (kwargs or {}).items()}
        return function(*(widen(value) if isinstance(value, torch.dtype) else value for value in args), **kwargs)


@contextlib.contextmanager
def folder_of(config):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(config))
        yield folder


def parse(config):
    with folder_of(config) as folder:
        return AutoConfig.from_pretrained(folder)


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def switches(config):
    """What the model that transformers builds computes with."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    table = model.get_input_embeddings().weight
    layers = model.transformer.h if config.model_type == "gpt2" else model.model.layers
    found = {
        "vocab": table.shape[0],
        "hidden": table.shape[1],
        "layers": len(layers),
        "heads": config.num_attention_heads,
        "tied": model.get_output_embeddings().weight is table,
        "positions": config.max_position_embeddings,
    }
    if config.model_type == "gpt2":
        attention, mlp = layers[0].attn, layers[0].mlp
        found |= {"ffn": mlp.c_fc.nf, "kv_heads": config.n_head, "head_dim": attention.head_dim}
        found |= {"norm_eps": layers[0].ln_1.eps, "scale": attention.head_dim**-0.5, "ropes": [None] * len(layers)}
        return found | {"windows": [None] * len(layers), "attention_softcap": None, "final_softcap": None}
    attention, mlp = layers[0].self_attn, layers[0].mlp
    norm = model.model.norm
    found |= {
        "ffn": mlp.down_proj.in_features,
        "kv_heads": config.num_key_value_heads,
        "head_dim": attention.head_dim,
        "norm_eps": norm.eps if hasattr(norm, "eps") else norm.variance_epsilon,
        "scale": attention.scaling,
        # Gemma 3 reads its own and does not hand it to the attention.
        "attention_softcap": config.attn_logit_softcapping if config.model_type == "gemma2" else None,
        "final_softcap": config.final_logit_softcapping if config.model_type.startswith("gemma") else None,
    }
    kinds = getattr(config, "layer_types", None)
    # What a Mistral file with layer_types is loaded as.
    by_kind = config.model_type in ("qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "ministral")
    everywhere = config.model_type in ("mistral", "phi3")
    is_windowed = lambda i: kinds[i] == "sliding_attention" if by_kind else everywhere
    found["windows"] = [config.sliding_window if is_windowed(i) else None for i in range(len(layers))]
    with Wide():
        rotary = type(model.model.rotary_emb)(config)
    found["ropes"] = [rope_of(rotary, config, layers[i].self_attn, kinds and kinds[i]) for i in range(len(layers))]
    return found


def rope_of(rotary, config, attention, kind):
    if not getattr(attention, "use_rope", True):
        return None
    if config.model_type == "gemma3_text":
        frequencies, amplitude = getattr(rotary, f"{kind}_inv_freq"), getattr(rotary, f"{kind}_attention_scaling")
    else:
        frequencies, amplitude = rotary.inv_freq, rotary.attention_scaling
    return {"frequencies": frequencies.double().tolist(), "amplitude": float(amplitude)}


def draw(name, tensor, gemma, generator):
    """Weights under which everything matters."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
    if name.endswith("bias"):
        return 0.2 * noise
    if tensor.ndim == 1:
        return (0.0 if gemma else 1.0) + 0.25 * noise
    return (0.3 if "embed" in name or ".wte" in name or ".wpe" in name else 0.2) * noise


def fill(config, folder):
    """Weights of the model that transformers makes of the folder's config."""
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(7)
    gemma = config.model_type.startswith("gemma")
    tensors = {name: draw(name, p, gemma, generator).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def reference(folder, tokenizer):
    """Summed log-probabilities of both responses of every row, float64 throughout."""
    values = []
    with Wide():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
        )
        problems = {key: value for key, value in report.items() if value and key != "unexpected_keys"}
        assert not problems, problems
        model.eval()
        for prompt, *responses in ROWS:
            for response in responses:
                first = tokenizer(prompt)["input_ids"]
                ids = tokenizer(prompt + response)["input_ids"] + [0]
                logps = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double().log_softmax(-1)
                rows = torch.arange(len(first) - 1, len(ids) - 1)
                values.append(logps[rows, torch.tensor(ids)[rows + 1]].sum().item())
    return values


def runs(config):
    """Whether the model gives numbers: some settings fail only there."""
    with torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        return bool(torch.isfinite(model(torch.arange(2, 22)[None], use_cache=False).logits).all())


def compact(outcome):
    """Tables that several layers share stand once, in digits that f32 does not have."""
    tables = []
    for table in outcome["ropes"]:
        if table is not None and table not in tables:
            tables.append(table)
    of_layers = [table and tables.index(table) for table in outcome["ropes"]]
    short = lambda table: {
        "frequencies": [float(f"{x:.10g}") for x in table["frequencies"]],
        "amplitude": float(f"{table['amplitude']:.10g}"),
    }
    return {**outcome, "ropes": of_layers, "tables": [short(table) for table in tables]}


def record(families):
    """The cases of these families; those of the others stay."""
    bases, found = {}, []
    if RECORD.exists():
        before = json.loads(RECORD.read_text())
        bases = {name: base for name, base in before["bases"].items() if name not in families}
        found = [entry for entry in before["cases"] if entry["family"] not in families]
    for name in families:
        for case, keys, config in cases(name):
            try:
                parsed = parse(config)
                if parameters(parsed) < LARGEST and not runs(parse(config)):
                    raise ValueError("not finite")
                outcome = compact(switches(parsed))
            except Exception as why:  # whatever transformers raises
                outcome = None
                print(f"{name}: {case}: refused: {type(why).__name__}: {' '.join(str(why).split())[:100]}")
            if name not in bases:
                bases[name] = {"config": config, "outcome": outcome}
                continue
            # Of the base, only what is different.
            plain = bases[name]["outcome"]
            if outcome is not None:
                outcome = {key: value for key, value in outcome.items() if value != plain[key]}
            entry = {"family": name, "set": {key: config[key] for key in keys if key in config}}
            entry["unset"] = [key for key in keys if key not in config]
            found.append({**entry, "outcome": outcome})
    # One case a line: a diff shows which changed.
    lines = lambda entries: ",\n".join(entries)
    head = json.dumps({"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__})
    shown = lines(f"{json.dumps(name)}: {json.dumps(base)}" for name, base in bases.items())
    cases_shown = lines(map(json.dumps, found))
    RECORD.write_text(f'{{"made_with": {head}, "bases": {{\n{shown}\n}}, "cases": [\n{cases_shown}\n]}}\n')
    print(f"{len(found)} cases, {sum(entry['outcome'] is None for entry in found)} refused by transformers")


def warpo_scores(program, folder, work):
    out = work / "scores.jsonl"
    out.unlink(missing_ok=True)
    command = [program, "score", "--model", folder, "--data", work / "rows.jsonl", "--out", out]
    command += ["--device", "host", "--precision", "f32", "--set", "cache.dir=off"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return [line[f"{side}_logps"] for line in lines for side in ("chosen", "rejected")], ""


def compare(program, families, every):
    counts, wrong, worst = {}, [], 0.0
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "tokenizer")
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        rows = [dict(zip(("prompt", "chosen", "rejected"), row)) for row in ROWS]
        (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in families:
            plain = None
            for case, keys, config in itertools.islice(cases(name), 0, None, every):
                folder = work / "model"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(FIXTURES / "tokenizer", folder)
                (folder / "config.json").write_text(json.dumps(config))
                want, why = None, ""
                try:
                    parsed = AutoConfig.from_pretrained(folder)
                    if parameters(parsed) >= LARGEST:
                        counts["too large"] = counts.get("too large", 0) + 1
                        continue
                    fill(parsed, folder)
                    want = reference(folder, tokenizer)
                    if not all(map(lambda x: x == x and abs(x) < 1e30, want)):
                        want, why = None, "not finite"
                except Exception as error:
                    why = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
                    if not (folder / "model.safetensors").exists():
                        # warpo gets weights too, so that it is the config that it refuses.
                        fill(parse(BASES[name]), folder)
                plain = plain or want
                got, said = warpo_scores(program, folder, work)
                off = max(map(lambda a, b: abs(a - b), got, want)) if got and want else 0.0
                if got and want:
                    result = "equal" if off <= LIMIT else "DIFFERS"
                    worst = max(worst, off if result == "equal" else 0.0)
                    if want != plain:
                        counts["equal, and not as without the change"] = counts.get("equal, and not as without the change", 0) + 1
                elif got:
                    result = "ONLY TRANSFORMERS REFUSES"
                elif want:
                    named = any(key in said.split("config.json: ")[-1] for key in keys)
                    result = "refused by name" if named else "REFUSED WITHOUT THE NAME"
                else:
                    result = "refused by both"
                counts[result] = counts.get(result, 0) + 1
                if result.isupper():
                    wrong.append((name, case))
                    print(f"{name}: {case}: {result} {off:.1e} | warpo: {said[-160:]} | transformers: {why}", flush=True)
    print(json.dumps(counts), f"largest difference {worst:.1e}; wrong: {len(wrong)}")
    sys.exit(bool(wrong))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--score", metavar="WARPO")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="score each N-th case only")
    parser.add_argument("families", nargs="*", default=[])
    args = parser.parse_args()
    families = args.families or list(BASES)
    if args.record:
        record(families)
    if args.score:
        compare(os.path.abspath(args.score), families, args.every)


if __name__ == "__main__":
    main()
