"""TRL's DPOTrainer on a preference set, timed step by step: the peer of `warpo train`.

    pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0
    python benches/baselines/trl_dpo.py --model DIR --train FILE --eval FILE --precision f32 --out result.json

The trainer is set up as somebody who knows it would for speed and memory: weights loaded in the precision asked for,
reference log-probabilities computed before training, no gradient checkpointing (its default here is on and costs another
forward pass), SDPA attention, no padding to a fixed length. Writes one JSON object in the schema of README.md.
"""

import argparse
import json
import os
import resource
import tempfile
import time


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def main():
    args = arguments()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(args.threads), TOKENIZERS_PARALLELISM="false")
    # After the thread count is set: the libraries read it when they load.
    import torch
    import transformers
    import trl
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(args.threads)
    transformers.set_seed(1)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.precision]

    class Clock(TrainerCallback):
        def __init__(self):
            self.step_ms = []

        def on_step_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.step_ms.append(1e3 * (time.perf_counter() - self.started))

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        # The cache of mapped data and of reference values stays out of the timings of the next run.
        data = load_dataset("json", data_files={"train": args.train, "eval": args.eval}, cache_dir=out)
        config = trl.DPOConfig(
            output_dir=out,
            beta=args.beta,
            learning_rate=args.lr,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            weight_decay=0.0,
            per_device_train_batch_size=args.pairs,
            per_device_eval_batch_size=args.pairs,
            max_steps=args.steps,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa"),
            args=config,
            train_dataset=data["train"],
            eval_dataset=data["eval"],
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[clock],
        )
        started = time.perf_counter()
        trainer.train()
        train_s = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        evaluated = trainer.evaluate()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "engine": f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        "precision": args.precision,
        "device": "cpu",
        "threads": args.threads,
        "steps": args.steps,
        "pairs": args.pairs,
        "step_ms": clock.step_ms,
        "train_s": train_s,
        "peak_rss_bytes": peak,
        "loss": [entry["loss"] for entry in logs],
        "eval_accuracy": evaluated["eval_rewards/accuracies"],
        "eval_loss": evaluated["eval_loss"],
    }
    with open(args.out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
