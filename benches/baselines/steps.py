"""Python peers of `cargo bench --bench step` on the same shapes with random weights.

    pip install torch==2.11.0 transformers==5.17.0 trl==1.16.0 datasets==5.2.0 liger-kernel==0.8.5
    python benches/baselines/steps.py --engine transformers|trl|trl-liger --model llama-3.2-1b --out result.json

`transformers` is the least a DPO step can be in PyTorch: one forward and backward pass over chosen and rejected sequences
side by side, log-probabilities by log_softmax, a fused AdamW; reference log-probabilities are given. `trl` is DPOTrainer with
reference values computed before training, `trl-liger` the same with Liger's kernels in the layers (TRL 1.16 uses no loss of
Liger's for DPO). All train bf16 weights with bf16 optimizer state, where warpo keeps f32 master weights and moments;
attention is SDPA; `--compile` adds torch.compile. No padding: all sequences have one length. The micro-batch is halved until
it fits.

Shapes come from benches/shapes.json. Writes one JSON object in the schema of README.md.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

SHAPES = pathlib.Path(__file__).resolve().parent.parent / "shapes.json"
UNTIMED = 2
BETA = 0.1


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=["transformers", "trl", "trl-liger"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--response", type=int, default=512)
    parser.add_argument("--micro", type=int, default=16, help="pairs of the first micro-batch that is tried")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def build(name, device):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = dict(json.loads(SHAPES.read_text())[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.train(), config.vocab_size


def synchronize(device):
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


class Clock:
    """Milliseconds of steps, the first few left out."""

    def __init__(self, device):
        self.device, self.times = device, []

    def begin(self):
        synchronize(self.device)
        self.started = time.perf_counter()

    def end(self):
        synchronize(self.device)
        self.times.append(1e3 * (time.perf_counter() - self.started))

    def step_ms(self):
        return self.times[UNTIMED:]


def bare(args, micro, device):
    import torch
    import torch.nn.functional as F

    model, vocab = build(args.model, device)
    run = torch.compile(model) if args.compile else model
    fused = device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=fused)
    length = args.prompt + args.response
    ids = torch.randint(vocab, (2, args.pairs, length), device=device)
    ids[1, :, : args.prompt] = ids[0, :, : args.prompt]
    reference = torch.full((2, args.pairs), -10.0 * args.response, device=device)
    clock = Clock(device)
    for _ in range(UNTIMED + args.steps):
        clock.begin()
        optimizer.zero_grad(set_to_none=True)
        for start in range(0, args.pairs, micro):
            part = ids[:, start : start + micro].reshape(-1, length)
            # Logits of the responses only, as TRL and warpo have it.
            logits = run(input_ids=part, use_cache=False, logits_to_keep=args.response + 1).logits[:, :-1]
            targets = part[:, -args.response :]
            logps = -F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            logps = logps.view(2, -1, args.response).sum(-1)
            rho = logps - reference[:, start : start + micro]
            loss = -F.logsigmoid(BETA * (rho[0] - rho[1])).sum() / args.pairs
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clock.end()
    return clock.step_ms()


def trainer(args, micro, device, liger):
    import torch
    import trl
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from tokenizers import Tokenizer, models

    class Pretokenized(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    class Timer(TrainerCallback):
        def on_step_begin(self, *_, **__):
            clock.begin()

        def on_step_end(self, *_, **__):
            clock.end()

    clock = Clock(device)
    model, vocab = build(args.model, device)
    rows = args.pairs * (UNTIMED + args.steps)
    ids = lambda count: torch.randint(vocab, (rows, count)).tolist()
    data = Dataset.from_dict(
        {"prompt_ids": ids(args.prompt), "chosen_ids": ids(args.response), "rejected_ids": ids(args.response)}
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<eos>", pad_token="<pad>")
    with tempfile.TemporaryDirectory() as out:
        config = trl.DPOConfig(
            output_dir=out,
            beta=BETA,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            max_length=None,
            max_grad_norm=1.0,
            weight_decay=0.0,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=args.pairs // micro,
            max_steps=UNTIMED + args.steps,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=micro,
            gradient_checkpointing=False,
            use_liger_kernel=liger,
            torch_compile=args.compile,
            bf16=device == "cuda",
            use_cpu=device != "cuda",
            optim="adamw_torch_fused" if device == "cuda" else "adamw_torch",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        peer = Pretokenized(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Timer()])
        peer.train()
    return clock.step_ms()


def main():
    args = arguments()
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    micro, times = min(args.micro, args.pairs), None
    while times is None:
        try:
            if args.engine == "transformers":
                times = bare(args, micro, device)
            else:
                times = trainer(args, micro, device, args.engine == "trl-liger")
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
            micro //= 2
        if times is None:
            torch.cuda.empty_cache()
    engine = f"{args.engine}{' compiled' if args.compile else ''}, transformers {transformers.__version__}, torch {torch.__version__}"
    if args.engine != "transformers":
        import trl

        engine += f", trl {trl.__version__}"
    if args.engine == "trl-liger":
        import importlib.metadata

        engine += f", liger-kernel {importlib.metadata.version('liger-kernel')}"
    median = statistics.median(times)
    result = {
        "engine": engine,
        "model": args.model,
        "task": "dpo",
        "layout": "separate",
        "precision": "bf16",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "pairs": args.pairs,
        "prompt": args.prompt,
        "response": args.response,
        "micro_batches": args.pairs // micro,
        "steps": len(times),
        "step_ms": times,
        "pairs_per_s": 1e3 * args.pairs / median,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }
    pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    print(f"{args.model} {args.engine}: {median:.1f} ms a step, {result['pairs_per_s']:.1f} pairs/s, micro-batches of {micro}")


if __name__ == "__main__":
    main()
