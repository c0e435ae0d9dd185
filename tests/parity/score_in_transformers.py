"""Compares what `warpo score` wrote with transformers in float64, row by row.

    warpo score --model DIR --data FILE --out scores.jsonl
    python tests/parity/score_in_transformers.py --model DIR --data FILE --scores scores.jsonl --rows 32

For prompt, chosen and rejected as text or as messages. Tokens are those of TRL: text is tokenised as prompt and as
prompt + response, what the second adds is the response, and a text's response ends with the EOS; messages go through the
chat template. Weights as stored, every operation in float64, one sequence at a time, no cache. Token counts must agree
exactly; exits with 1 if a sequence differs by more than --limit.
"""

import argparse
import itertools
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def ids_of(tokenizer, row, side):
    """Prompt and response as token ids."""
    prompt, response = row["prompt"], row[side]
    if isinstance(prompt, str):
        first = tokenizer(prompt)["input_ids"]
        both = tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id]
    else:
        render = lambda messages, **kwargs: tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        first = tokenizer(render(prompt, add_generation_prompt=True), add_special_tokens=False)["input_ids"]
        both = tokenizer(render(prompt + response), add_special_tokens=False)["input_ids"]
    if both[: len(first)] != first:
        # A token across the boundary: TRL tokenises the response by itself where the prefix does not hold.
        raise SystemExit(f"the prompt's tokens are no prefix: {first[-3:]} / {both[len(first) - 3 : len(first) + 1]}")
    return first, both[len(first) :]


@torch.no_grad()
def score(model, prompt, response):
    ids = torch.tensor([prompt + response])
    logps = torch.log_softmax(model(ids, use_cache=False).logits[0, :-1], -1)
    at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logps[at, ids[0, 1:][at]].sum().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--scores", required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--limit", type=float, default=5e-4)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float64, attn_implementation="eager").eval()
    worst, total, sequences, longest = 0.0, 0.0, 0, 0
    with open(args.data) as data, open(args.scores) as scores:
        for row, line in itertools.islice(zip(data, scores), args.rows):
            row, line = json.loads(row), json.loads(line)
            for side in ("chosen", "rejected"):
                prompt, response = ids_of(tokenizer, row, side)
                if len(response) != line[f"{side}_tokens"]:
                    sys.exit(f"{line['row']}: {side}: {len(response)} tokens, warpo counts {line[f'{side}_tokens']}")
                off = abs(score(model, prompt, response) - line[f"{side}_logps"])
                worst, total, sequences = max(worst, off), total + off, sequences + 1
                longest = max(longest, len(prompt) + len(response))
    print(f"{sequences} sequences of at most {longest} tokens: off by {worst:.1e} at most, {total / sequences:.1e} on average")
    sys.exit(worst > args.limit)


if __name__ == "__main__":
    main()
