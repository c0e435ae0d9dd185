"""Loads a folder saved by warpo into transformers and scores preference pairs with it in float64.

    pip install torch transformers
    python tests/parity/load_in_transformers.py RUN/final examples/data/persona_agreeableness/eval.jsonl [RUN/metrics.jsonl]

Prints the means of the summed log-probabilities; given the run's metrics.jsonl, compares them with the last
`eval_logps/chosen` and `eval_logps/rejected` and exits 1 if they differ by more than 1e-4.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4  # nats per sequence: f32 rounding of a few hundred additions of magnitude 10


def summed_logps(model, prompt_ids, response_ids):
    ids = torch.tensor([prompt_ids + response_ids])
    logps = model(ids).logits[0].log_softmax(-1)
    rows = range(len(prompt_ids) - 1, len(prompt_ids) + len(response_ids) - 1)
    return sum(logps[row, ids[0, row + 1]] for row in rows).item()


def encode(tokenizer, prompt, response):
    prompt_ids = tokenizer(prompt)["input_ids"]
    joint = tokenizer(prompt + response)["input_ids"]
    assert joint[: len(prompt_ids)] == prompt_ids, "a token crosses the border between prompt and response"
    response_ids = joint[len(prompt_ids) :]
    if response_ids[-1] != tokenizer.eos_token_id:
        response_ids = response_ids + [tokenizer.eos_token_id]
    return prompt_ids, response_ids


def main():
    folder, data = sys.argv[1:3]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    problems = {key: value for key, value in report.items() if value}
    assert not problems, f"loading report: {problems}"
    totals = {"chosen": 0.0, "rejected": 0.0}
    rows = [json.loads(line) for line in open(data, encoding="utf-8")]
    with torch.no_grad():
        for row in rows:
            for side in totals:
                totals[side] += summed_logps(model, *encode(tokenizer, row["prompt"], row[side]))
    means = {side: total / len(rows) for side, total in totals.items()}
    print(f"{len(rows)} pairs: " + ", ".join(f"logps/{side} {mean:.6f}" for side, mean in means.items()))
    if len(sys.argv) > 3:
        records = [json.loads(line) for line in open(sys.argv[3], encoding="utf-8")]
        last = [r for r in records if "eval_logps/chosen" in r][-1]
        worst = max(abs(last[f"eval_logps/{side}"] - mean) for side, mean in means.items())
        print(f"largest difference to the run's own evaluation: {worst:.2e} (limit {TOLERANCE:.0e})")
        sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
