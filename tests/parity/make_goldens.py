"""Writes tests/fixtures/parity/<family>: a random model of each family in its Hugging Face form, and what transformers
and TRL compute with it. README.md in this folder describes the files.

    pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0
    HF_HUB_OFFLINE=1 python tests/parity/make_goldens.py [FAMILY ...]

The reference is transformers' own modelling code in float64, with every narrowing to float32 inside it (norms, rotary
tables, softmax) widened, so that a difference to the engine is the engine's. The training trajectory is a plain loop
over the same code; for every family TRL's own DPOTrainer runs the same five steps, and the script stops unless both
agree to TRL_TOLERANCE.
"""

import json
import pathlib
import sys
import tempfile
import warnings

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import get_parameter_names
from trl import DPOConfig, DPOTrainer

import tiny_tokenizer

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "parity"
TOKENIZER = FIXTURES / "tokenizer"
VOCAB = 320
WINDOW = 24
STEPS = 5
BETA = 0.1
OPTIM = {"lr": 5e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.05, "max_grad_norm": 1.0}
# Prompt, chosen and rejected tokens: below and above WINDOW, within and across 64 tokens, single tokens.
LENGTHS = [(7, 3, 5), (1, 1, 2), (40, 9, 30), (12, 20, 1), (66, 34, 4), (25, 40, 41)]
# TRL's head accumulates its gradients in float32, which moves the losses after the first by up to 1e-7.
TRL_TOLERANCE = 1e-6

BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}


def family(model_type, architecture, **changes):
    merged = {"architectures": [architecture], "model_type": model_type, **BASE, **changes}
    return {key: value for key, value in merged.items() if value is not ...}


GEMMA = {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "tie_word_embeddings": ...}

# Configurations as the hub's folders write them: `rope_theta` and `rope_scaling` at the top (transformers 4) in some,
# `rope_parameters` (transformers 5) in others.
FAMILIES = {
    "llama": family("llama", "LlamaForCausalLM", rope_theta=500.0, attention_bias=False, mlp_bias=False),
    "llama-tied": family("llama", "LlamaForCausalLM", rope_theta=1e4, tie_word_embeddings=True, num_key_value_heads=2),
    "llama-llama3": family(
        "llama",
        "LlamaForCausalLM",
        rope_theta=1000.0,
        rope_scaling={
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
    ),
    "llama-linear": family(
        "llama", "LlamaForCausalLM", rope_theta=1000.0, rope_scaling={"factor": 4.0, "type": "linear"}
    ),
    "llama-yarn": family(
        "llama",
        "LlamaForCausalLM",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
        },
    ),
    "mistral": family("mistral", "MistralForCausalLM", rope_theta=1e4, sliding_window=WINDOW),
    # The window is given and off, as in every released Qwen2.
    "qwen2": family(
        "qwen2",
        "Qwen2ForCausalLM",
        rope_theta=1e4,
        tie_word_embeddings=True,
        use_sliding_window=False,
        sliding_window=WINDOW,
        max_window_layers=1,
        head_dim=...,
        hidden_size=64,
    ),
    "qwen3": family(
        "qwen3",
        "Qwen3ForCausalLM",
        rope_theta=1e6,
        attention_bias=False,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=2,
    ),
    "smollm3": family(
        "smollm3",
        "SmolLM3ForCausalLM",
        rope_theta=5e4,
        tie_word_embeddings=True,
        num_hidden_layers=3,
        no_rope_layer_interval=2,
        no_rope_layers=[1, 0, 1],
        attention_bias=False,
        mlp_bias=False,
        use_sliding_window=False,
        sliding_window=None,
        head_dim=...,
        hidden_size=64,
    ),
    "phi3": family(
        "phi3",
        "Phi3ForCausalLM",
        rope_theta=1e4,
        rope_scaling=None,
        original_max_position_embeddings=128,
        sliding_window=WINDOW,
        head_dim=...,
        hidden_size=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
    # A head of 256, as released; caps low enough to bend random scores.
    "gemma2": family(
        "gemma2",
        "Gemma2ForCausalLM",
        **GEMMA,
        head_dim=256,
        rope_theta=1e4,
        query_pre_attn_scalar=224,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
        sliding_window=WINDOW,
    ),
    "gemma3": family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        **GEMMA,
        num_hidden_layers=4,
        head_dim=64,
        query_pre_attn_scalar=96,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        sliding_window=WINDOW,
        sliding_window_pattern=3,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
    ),
    "olmo2": family("olmo2", "Olmo2ForCausalLM", rope_theta=5e5, rms_norm_eps=1e-6, head_dim=..., hidden_size=64),
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 112,
        "n_ctx": 112,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 0,
    },
}


class Wide(TorchFunctionMode):
    """Turns every float32 that Python code asks for into float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        widen = lambda value: torch.float64 if value is torch.float32 else value
        kwargs = {key: widen(value) for key, value in (kwargs or {}).items()}
        return function(*(widen(value) for value in args), **kwargs)


def load(folder, dtype):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: value for key, value in report.items() if value and key != "unexpected_keys"}
    assert not problems, f"{folder}: {problems}"
    return model.eval()


def draw(name, tensor, gemma, generator):
    """Weights under which everything matters: softmaxes far from uniform, norms away from neutral, biases not 0."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
    if name.endswith("bias"):
        return 0.2 * noise
    if tensor.ndim == 1:
        return (0.0 if gemma else 1.0) + 0.25 * noise
    if "embed_tokens" in name or "wte" in name or "wpe" in name:
        return 0.3 * noise
    return 0.18 * noise


def write_tensors(tensors, path):
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)


def make_model(name, config, folder):
    """Writes config.json and the weights as the hub's folders have them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tensors = {}
    for key, parameter in model.named_parameters():
        tensors[key] = draw(key, parameter, name.startswith("gemma"), generator).to(torch.bfloat16).contiguous()
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    if name == "gpt2":
        # Released files leave out the prefix and carry the causal mask.
        tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
        positions = config["n_positions"]
        mask = torch.ones(positions, positions, dtype=torch.bfloat16).tril()
        tensors |= {f"h.{i}.attn.bias": mask.clone()[None, None] for i in range(config["n_layer"])}
    if name == "olmo2":
        # In two files, cut in the middle of a layer.
        keys = sorted(tensors)
        parts = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
        for file, part in parts.items():
            write_tensors({key: tensors[key] for key in part}, folder / file)
        places = {key: file for file, part in parts.items() for key in part}
        total = sum(tensor.numel() * 2 for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    else:
        write_tensors(tensors, folder / "model.safetensors")


def make_pairs(name):
    generator = torch.Generator().manual_seed(1 + sum(map(ord, name)))
    tokens = lambda n: torch.randint(2, VOCAB, (n,), generator=generator).tolist()
    return [{"prompt": tokens(p), "chosen": tokens(c), "rejected": tokens(r)} for p, c, r in LENGTHS]


def token_logps(model, prompt, response):
    """Log-probability of every response token. Logits are widened to at least float32 first."""
    ids = torch.tensor([prompt + response])
    logits = model(ids, use_cache=False).logits[0]
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    rows = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logps[rows, ids[0, rows + 1]]


def sequences(pairs):
    return [(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]


@torch.no_grad()
def summed(model, pairs):
    values = [token_logps(model, *sequence).double().sum().item() for sequence in sequences(pairs)]
    return {"chosen": values[0::2], "rejected": values[1::2]}


def dpo_loss(model, pairs, reference):
    losses = []
    for i, pair in enumerate(pairs):
        chosen, rejected = (token_logps(model, pair["prompt"], pair[side]).sum() for side in ("chosen", "rejected"))
        delta = (chosen - reference["chosen"][i]) - (rejected - reference["rejected"][i])
        losses.append(-torch.nn.functional.logsigmoid(BETA * delta))
    return torch.stack(losses).mean()


def decayed_names(model):
    """The parameters transformers' Trainer decays."""
    from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS

    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    return set(get_parameter_names(model, ALL_LAYERNORM_LAYERS, forbidden))


def train(model, pairs, reference):
    """Five full-batch steps: losses before each update, and norms of the gradients before clipping."""
    named = dict(model.named_parameters())
    # A tied head is listed again under its own name.
    decayed = decayed_names(model) & set(named)
    assert decayed == {name for name, tensor in named.items() if tensor.ndim > 1}, "decay is not a matter of shape"
    groups = [
        {"params": [named[n] for n in named if n in decayed], "weight_decay": OPTIM["weight_decay"]},
        {"params": [named[n] for n in named if n not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, OPTIM["lr"], (OPTIM["beta1"], OPTIM["beta2"]), OPTIM["eps"], foreach=False)
    steps = []
    for step in range(STEPS):
        lr = OPTIM["lr"] * (1 - step / STEPS)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = dpo_loss(model, pairs, reference)
        loss.backward()
        norms = {name: tensor.grad.norm().item() for name, tensor in named.items()}
        total = torch.nn.utils.clip_grad_norm_(named.values(), OPTIM["max_grad_norm"]).item()
        steps.append({"lr": lr, "loss": loss.item(), "grad_norm": total, "grad_norms": norms})
        optimizer.step()
    with torch.no_grad():
        return steps, dpo_loss(model, pairs, reference).item()


class TokenTrainer(DPOTrainer):
    """TRL's trainer from the token ids on."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def trainer_arguments(out, rows):
    """What every trainer of TRL is told: STEPS steps of all rows, with OPTIM, silently."""
    return dict(
        output_dir=out,
        learning_rate=OPTIM["lr"],
        adam_beta1=OPTIM["beta1"],
        adam_beta2=OPTIM["beta2"],
        adam_epsilon=OPTIM["eps"],
        weight_decay=OPTIM["weight_decay"],
        max_grad_norm=OPTIM["max_grad_norm"],
        lr_scheduler_type="linear",
        warmup_steps=0,
        per_device_train_batch_size=rows,
        max_steps=STEPS,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )


def train_with_trl(folder, pairs):
    """Losses and gradient norms of the same steps by TRL."""
    rows = [{f"{key}_ids": pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    with tempfile.TemporaryDirectory() as out:
        args = DPOConfig(beta=BETA, max_length=None, **trainer_arguments(out, len(pairs)))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        trainer = TokenTrainer(
            model=load(folder, torch.float64),
            ref_model=load(folder, torch.float64),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        losses = []
        compute = trainer.compute_loss

        def recorded(*args, **kwargs):
            loss = compute(*args, **kwargs)
            losses.append(loss.item())
            return loss

        # The log rounds; the loss itself does not.
        trainer.compute_loss = recorded
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return losses, [float(entry["grad_norm"]) for entry in logs]


def make(name):
    folder = FIXTURES / name
    make_model(name, FAMILIES[name], folder)
    pairs = make_pairs(name)
    with Wide():
        model = load(folder, torch.float64)
        reference = summed(model, pairs)
        with torch.no_grad():
            per_token = token_logps(model, pairs[-1]["prompt"], pairs[-1]["chosen"]).tolist()
        steps, loss_after = train(model, pairs, reference)
        logps_after = summed(model, pairs)
        losses, norms = train_with_trl(folder, pairs)
    difference = max(abs(step["loss"] - loss) for step, loss in zip(steps, losses, strict=True))
    assert difference < TRL_TOLERANCE, f"{name}: TRL's losses {losses} differ by {difference}"
    # Trainer keeps the norm as a float32 or float64 number, depending on its version.
    worst = max(abs(step["grad_norm"] / norm - 1) for step, norm in zip(steps, norms, strict=True))
    assert worst < 1e-5, f"{name}: TRL's gradient norms {norms} differ by {worst}"
    golden = {
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}",
        "pairs": pairs,
        "logps": reference,
        "logps_f32": summed(load(folder, torch.float32), pairs),
        "logps_bf16": summed(load(folder, torch.bfloat16), pairs),
        "token_logps": {"pair": len(pairs) - 1, "side": "chosen", "values": per_token},
        "beta": BETA,
        "optim": OPTIM,
        "steps": steps,
        "loss_after": loss_after,
        "logps_after": logps_after,
    }
    text = json.dumps(golden, separators=(",", ":")).replace('},{"', '},\n{"')
    (folder / "golden.json").write_text(text + "\n")
    spread = lambda kind: max(abs(a - b) for s in reference for a, b in zip(golden[kind][s], reference[s]))
    shown = " ".join(f"{step['loss']:.4f}" for step in steps)
    print(
        f"{name:13} losses {shown} {loss_after:.4f}; clipped from {steps[0]['grad_norm']:.2f}; transformers from f64:"
        f" f32 {spread('logps_f32'):.1e}, bf16 {spread('logps_bf16'):.1e}; TRL from the loop {difference:.1e}"
    )


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    # Serves every family: it has fewer tokens than the models' tables.
    tokenizer = tiny_tokenizer.build(["<|endoftext|>", "<s>"])
    tiny_tokenizer.save(tokenizer, TOKENIZER, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    for name in sys.argv[1:] or FAMILIES:
        make(name)


if __name__ == "__main__":
    main()
