"""Writes tests/fixtures/tiny-llama: a random Llama in transformers' own format, and what transformers computes with it.

    pip install torch==2.15.0 transformers==5.23.0
    python tests/parity/make_golden.py

golden.json holds, in float64: the summed log-probability of every response, the DPO loss with label smoothing plus the
likelihood of the chosen responses, and the norm of every parameter's gradient. Weights are stored in bfloat16, so that
every precision loads the same numbers. transformers rounds norms and rotary tables to float32 even in a float64 model,
so agreement ends near 1e-6.
"""

import json
import pathlib

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "tiny-llama"
BETA, LABEL_SMOOTHING, SFT_WEIGHT = 0.5, 0.1, 0.2
CONFIG = LlamaConfig(
    vocab_size=104,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    initializer_range=0.2,
    bos_token_id=None,
    eos_token_id=0,
)


def pairs(count=5):
    generator = torch.Generator().manual_seed(1)
    tokens = lambda n: torch.randint(1, CONFIG.vocab_size, (n,), generator=generator).tolist()
    lengths = [(7, 3, 5), (1, 1, 2), (40, 9, 30), (12, 20, 1), (66, 4, 4)]
    return [
        {
            "prompt": tokens(p),
            "chosen": tokens(c),
            "rejected": tokens(r),
            # Reference values near the policy's, as in training: log-probabilities of about -5 a token.
            "ref_chosen": -5.0 * c + 0.3,
            "ref_rejected": -5.0 * r - 0.4,
        }
        for p, c, r in lengths[:count]
    ]


def summed_logps(model, prompt, response):
    ids = torch.tensor([prompt + response])
    logps = model(ids).logits[0].log_softmax(-1)
    rows = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logps[rows, ids[0, rows + 1]].sum()


def main():
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    # Norm weights away from 1, so that their use is seen.
    for name, tensor in model.named_parameters():
        if "norm" in name:
            tensor.data += 0.1 * torch.randn(tensor.shape).to(torch.bfloat16)
    model.save_pretrained(FOLDER)
    # Loaded again: converting the model itself to bfloat16 has rounded its rotary frequencies too, loading does not.
    model = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float64)
    examples = pairs()
    losses, chosen_logps, chosen_tokens = [], [], 0
    for example in examples:
        chosen = summed_logps(model, example["prompt"], example["chosen"])
        rejected = summed_logps(model, example["prompt"], example["rejected"])
        example["logps_chosen"], example["logps_rejected"] = chosen.item(), rejected.item()
        u = BETA * ((chosen - example["ref_chosen"]) - (rejected - example["ref_rejected"]))
        smooth = torch.nn.functional.softplus
        losses.append((1 - LABEL_SMOOTHING) * smooth(-u) + LABEL_SMOOTHING * smooth(u))
        chosen_logps.append(chosen)
        chosen_tokens += len(example["chosen"])
    nll = -torch.stack(chosen_logps).sum() / chosen_tokens
    loss = torch.stack(losses).mean() + SFT_WEIGHT * nll
    loss.backward()
    golden = {
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "beta": BETA,
        "label_smoothing": LABEL_SMOOTHING,
        "sft_weight": SFT_WEIGHT,
        "pairs": examples,
        "nll_loss": nll.item(),
        "loss": loss.item(),
        "grad_norms": {name: tensor.grad.norm().item() for name, tensor in model.named_parameters()},
    }
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
