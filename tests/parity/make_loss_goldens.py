"""Writes tests/fixtures/parity/losses.json: losses, gradient norms and what is said of rows in five steps by TRL's trainers for every loss they
offer, on the model and the pairs of tests/fixtures/parity/llama. README.md in this folder describes the file.

    pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0
    HF_HUB_OFFLINE=1 python tests/parity/make_loss_goldens.py

As in make_goldens.py the arithmetic is float64, every narrowing inside transformers widened.
"""

import json
import os
import tempfile
import warnings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from make_goldens import FIXTURES, OPTIM, STEPS, TOKENIZER, TokenTrainer, Wide, load, trainer_arguments

# Ours with its parameters; TRL's trainer and its options.
LOSSES = [
    ("dpo", {"beta": 0.1}, "dpo", {"loss_type": "sigmoid", "beta": 0.1}),
    ("hinge", {"beta": 0.1}, "dpo", {"loss_type": "hinge", "beta": 0.1}),
    ("ipo", {"tau": 0.1}, "dpo", {"loss_type": "ipo", "beta": 0.1}),
    ("exo_pair", {"beta": 0.1, "label_smoothing": 1e-3}, "dpo", {"loss_type": "exo_pair", "beta": 0.1, "label_smoothing": 1e-3}),
    ("nca_pair", {"beta": 0.1}, "dpo", {"loss_type": "nca_pair", "beta": 0.1}),
    ("rdpo", {"beta": 0.1, "label_smoothing": 0.1}, "dpo", {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.1}),
    ("bco_pair", {"beta": 0.1}, "dpo", {"loss_type": "bco_pair", "beta": 0.1}),
    ("sppo_hard", {"beta": 0.05}, "dpo", {"loss_type": "sppo_hard", "beta": 0.05}),
    ("aot", {"beta": 0.1}, "dpo", {"loss_type": "aot", "beta": 0.1}),
    ("aot_unpaired", {"beta": 0.1, "label_smoothing": 0.1}, "dpo", {"loss_type": "aot_unpaired", "beta": 0.1, "label_smoothing": 0.1}),
    ("apo_zero", {"beta": 0.1}, "dpo", {"loss_type": "apo_zero", "beta": 0.1}),
    ("apo_down", {"beta": 0.1}, "dpo", {"loss_type": "apo_down", "beta": 0.1}),
    ("discopop", {"beta": 0.05, "discopop_tau": 0.05}, "dpo", {"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.05}),
    ("sft", {}, "dpo", {"loss_type": "sft"}),
    ("ln_dpo", {"beta": 2.0}, "dpo", {"loss_type": "sigmoid_norm", "beta": 2.0}),
    ("wpo", {"beta": 0.1}, "dpo", {"loss_type": "sigmoid", "beta": 0.1, "use_weighting": True}),
    ("ld_dpo", {"beta": 0.1, "ld_alpha": 0.5}, "dpo", {"loss_type": "sigmoid", "beta": 0.1, "ld_alpha": 0.5}),
    ("dpo js_divergence", {"beta": 0.1}, "dpo", {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "js_divergence"}),
    ("dpo forward_kl", {"beta": 0.1}, "dpo", {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "forward_kl"}),
    ("kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.25}, "kto",
     {"loss_type": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.25}),
    ("apo_zero_unpaired", {"beta": 0.1}, "kto", {"loss_type": "apo_zero_unpaired", "beta": 0.1}),
    ("cpo", {"beta": 0.1, "cpo_alpha": 1.0}, "cpo", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}),
    ("simpo", {"beta": 2.0, "simpo_gamma": 0.5}, "cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}),
    ("alpha_po", {"beta": 2.0, "simpo_gamma": 0.5, "alpha": 0.25}, "cpo",
     {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "alpha": 0.25}),
    ("tr_dpo", {"beta": 0.1}, "dpo",
     {"loss_type": "sigmoid", "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}),
]


def arguments(kind, out, size, options):
    config = {"dpo": DPOConfig, "kto": KTOConfig, "cpo": CPOConfig}[kind]
    common = trainer_arguments(out, size)
    if kind == "cpo":
        common |= {"max_length": 256, "remove_unused_columns": False, "disable_dropout": True}
    else:
        common |= {"max_length": None}
    if kind == "kto":
        common |= {"train_sampling_strategy": "sequential"}
    return config(**common, **options)


class TokenKTOTrainer(KTOTrainer):
    """TRL's trainer from the token ids on."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class TokenCPOTrainer(CPOTrainer):
    """TRL's trainer from the token ids on."""

    def tokenize_row(self, feature, model=None):
        row = {"prompt_input_ids": feature["prompt_ids"], "prompt_attention_mask": [1] * len(feature["prompt_ids"])}
        for side in ("chosen", "rejected"):
            ids = feature["prompt_ids"] + feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = ids
            row[f"{side}_attention_mask"] = [1] * len(ids)
            row[f"{side}_labels"] = [-100] * len(feature["prompt_ids"]) + feature[f"{side}_ids"]
        return row


def rows(kind, pairs):
    ids = [{f"{key}_ids": pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    if kind == "dpo":
        return ids
    if kind == "cpo":
        return [row | {"prompt": "p", "chosen": "c", "rejected": "r"} for row in ids]
    single = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row[f"{side}_ids"], "label": side == "chosen"}
        for row in ids
        for side in ("chosen", "rejected")
    ]
    for i, row in enumerate(single):
        row["KL_completion_ids"] = single[i - 1]["completion_ids"]
    return single


def run(folder, pairs, kind, options):
    examples = rows(kind, pairs)
    with tempfile.TemporaryDirectory() as out:
        shared = dict(
            model=load(folder, torch.float64),
            args=arguments(kind, out, len(examples), options),
            train_dataset=Dataset.from_list(examples),
            processing_class=PreTrainedTokenizerFast.from_pretrained(TOKENIZER),
        )
        if kind != "cpo":
            shared["ref_model"] = load(folder, torch.float64)
        trainer = {"dpo": TokenTrainer, "kto": TokenKTOTrainer, "cpo": TokenCPOTrainer}[kind](**shared)
        trainer.remove_callback(transformers.PrinterCallback)
        losses = []
        compute = trainer.compute_loss

        def recorded(*args, **kwargs):
            loss = compute(*args, **kwargs)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

        trainer.compute_loss = recorded
        trainer.train()
    norms = [float(entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(losses) == len(norms) == STEPS, (losses, norms)
    said = {
        name: [float(entry[name]) for entry in trainer.state.log_history if name in entry and "grad_norm" in entry]
        for name in ("entropy", "mean_token_accuracy")
    }
    return {"losses": losses, "grad_norms": norms} | {name: values for name, values in said.items() if values}


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    folder = FIXTURES / "llama"
    pairs = json.loads((folder / "golden.json").read_text())["pairs"]
    found = {}
    for name, parameters, kind, options in LOSSES:
        with Wide():
            found[name] = {"parameters": parameters, "trl": {"trainer": kind, **options}, **run(folder, pairs, kind, options)}
        print(f"{name:22} losses", " ".join(f"{loss:.6f}" for loss in found[name]["losses"]))
    golden = {
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}",
        "optim": OPTIM,
        "losses": found,
    }
    text = json.dumps(golden, separators=(",", ":")).replace('},"', '},\n"')
    (FIXTURES / "losses.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
