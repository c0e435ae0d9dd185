"""Attention of PyTorch's own backends on the documents of `cargo bench --bench kernels`: the peer of its attention rows.

    python benches/baselines/kernels.py --out result.json

16384 tokens, causal, bf16, heads of 64 and 128 in a width of 2048, normal random data. `flash` is FlashAttention-2 as torch
ships it, `cudnn` NVIDIA's own kernels for Hopper. Device events, the L2 cache flushed before each run, median of 20 runs; the
backward pass alone. FLOPs are counted as in the bench: 4 (forward) and 10 (backward) for each visible pair, head and column.
"""

import argparse
import json
import pathlib
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS, WIDTH = 16384, 2048
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def milliseconds(run, flush):
    times = []
    for i in range(23):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return times


def measure(backend, head_dim, length, flush):
    heads, documents = WIDTH // head_dim, TOKENS // length
    q, k, v, dout = (
        torch.randn(documents, heads, length, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=i < 3)
        for i in range(4)
    )
    visible = documents * length * (length + 1) // 2
    with sdpa_kernel(BACKENDS[backend]):
        attend = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = attend()
        forward = milliseconds(attend, flush)
        backward = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), flush)
    for name, times, count in [("attention_fwd", forward, 4), ("attention_bwd", backward, 10)]:
        flops = count * visible * WIDTH
        median = statistics.median(times)
        print(f"| {name} | {backend} | {documents} documents of {length}, {heads}x{head_dim} | {1e3 * median:.1f} µs | {flops / median / 1e9:.1f} TFLOP/s |")
        yield {
            "kernel": name, "backend": backend, "shape": f"{documents} documents of {length}, {heads}/{heads}x{head_dim}",
            "ms": times, "flops": flops, "torch": torch.__version__, "device": torch.cuda.get_device_name(),
        }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    results = []
    for head_dim in [64, 128]:
        for length in [512, 2048, 8192]:
            for backend in BACKENDS:
                try:
                    results += measure(backend, head_dim, length, flush)
                except RuntimeError as why:
                    print(f"{backend} {head_dim} {length}: {why}")
    pathlib.Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
