"""Vectors of the number formats of an optimizer's state: the random bits, a master in two halves, moments in eight bits,
gradients in bf16, and the bytes that a plan counts.

Bits are unsigned integers of the IEEE pattern; everything else is float64. Needs numpy only. Run: python
make_memory_vectors.py writes fixtures/memory_vectors.json; with --seed N --out FILE others of the same kind, which
MEMORY_VECTORS=FILE hands to the tests.
"""
import argparse
import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

ARGS = argparse.ArgumentParser()
ARGS.add_argument("--seed", type=int, default=0)
ARGS.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "fixtures/memory_vectors.json")
ARGS = ARGS.parse_args()
SHIFT = ARGS.seed
KEY = 42 + SHIFT

OUT = {}
F = np.float64
U32 = np.uint32


def J(x):
    if isinstance(x, np.ndarray):
        return [J(v) for v in x.tolist()] if x.ndim else J(x.item())
    if isinstance(x, (np.floating, float)):
        return float(x)
    if isinstance(x, (np.integer, int)) and not isinstance(x, bool):
        return int(x)
    if isinstance(x, (list, tuple)):
        return [J(v) for v in x]
    if isinstance(x, dict):
        return {k: J(v) for k, v in x.items()}
    return x


def put(name, **kw):
    assert name not in OUT
    OUT[name] = {k: J(v) for k, v in kw.items()}


def bits(x):
    return np.asarray(x, np.float32).view(U32).astype(np.int64)


def from_bits(b):
    return np.asarray(b, np.int64).astype(U32).view(np.float32)


def rne16(b):
    """f32 bits -> bf16 bits, nearest, ties to even."""
    b = np.asarray(b, np.int64)
    return (b + 0x7FFF + ((b >> 16) & 1)) >> 16


# ---------------------------------------------------------------- 1 random bits
def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
assert philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]) == [
    0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
MOMENT, GRADIENT, DROPOUT, MERGE, MASTER = 6, 7, 8, 9, 10  # of src/rng.rs


@lru_cache(None)
def chunk_halves(seed, purpose, number, chunk, sub=0):
    """Eight 16-bit numbers for elements 8*chunk .. 8*chunk+7: low then high half of words 0..3."""
    w = philox([chunk & 0xFFFFFFFF, chunk >> 32, number, purpose | sub << 8], [seed & 0xFFFFFFFF, seed >> 32])
    return [h for x in w for h in (x & 0xFFFF, x >> 16)]


def halves(seed, purpose, number, elements, sub=0):
    return np.array([h for c in range((elements + 7) // 8) for h in chunk_halves(seed, purpose, number, c, sub)][:elements])


def v_random():
    rows = []
    for seed, purpose, number, chunk, sub in [(KEY, MOMENT, 7, 0, 0), (KEY, MOMENT, 7, 1, 0), (KEY, MOMENT, 8, 0, 0),
                                              (KEY, GRADIENT, 7, 0, 3), (2**40 + 5, MOMENT, 1, 2**32 + 9, 0)]:
        rows.append(dict(seed=seed, purpose=purpose, number=number, sub=sub, chunk=chunk,
                         counter=[chunk & 0xFFFFFFFF, chunk >> 32, number, purpose | sub << 8],
                         halves=chunk_halves(seed, purpose, number, chunk, sub)))
    put("rounding_bits", rows=rows)


# ---------------------------------------------------------------- 2 formats of one number
def sr16(b, h):
    b, h = np.asarray(b, np.int64), np.asarray(h, np.int64)
    special = (b & 0x7F800000) == 0x7F800000
    nan = special & ((b & 0x7FFFFF) != 0)
    return np.where(nan, (b >> 16) | 0x40, np.where(special, b >> 16, (b + h) >> 16))


def split(b):
    """f32 bits -> (bf16 bits: nearest, ties away from zero; the 16 low bits)."""
    b = np.asarray(b, np.int64)
    return (b + 0x8000) >> 16, b & 0xFFFF


def join(hi, lo):
    return ((np.asarray(hi, np.int64) - (np.asarray(lo, np.int64) >> 15)) << 16) | np.asarray(lo, np.int64)


def v_formats():
    rng = np.random.default_rng(1 + 1000 * SHIFT)
    b = bits(np.concatenate([[0.0, -0.0, 1.0, -1.0, 0.02, -0.02, 1e-30, 3.3e38, -3.3e38, 1e-41], rng.normal(0, .02, 30)]))
    b = np.concatenate([b, [0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x3F807FFF, 0x3F808001, 0x7F7F7FFF]])
    h = np.concatenate([[0, 0xFFFF, 0x8000, 0x7FFF, 1], rng.integers(0, 65536, len(b) - 5)])
    assert (sr16(b, h) >> 0 <= 0xFFFF).all()
    put("stochastic_bf16", f32_bits=b, halves=h, bf16_bits=sr16(b, h),
        specials=dict(f32_bits=[0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001],
                      bf16_bits=sr16([0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001], [0xFFFF] * 4)))
    hi, lo = split(b)
    assert (join(hi, lo) == b).all()
    # every low half, both signs, both parities of the high half: exact and nearest
    for top in (0x3CA3, 0x3CA4, 0xBCA3, 0xBCA4):
        a = (top << 16) | np.arange(65536)
        x, y = split(a)
        assert (join(x, y) == a).all()
        err = np.abs(from_bits(x << 16).astype(F) - from_bits(a).astype(F))
        ulp = float(from_bits((top & 0x7F80) << 16)) * 2.0**-7
        assert err.max() <= ulp / 2
    ties = (a & 0xFFFF) == 0x8000
    assert (x[~ties] == rne16(a)[~ties]).all()
    put("split_master", f32_bits=b, high=hi, low=lo, nearest_even=rne16(b), differs_from_nearest_even=(hi != rne16(b)).tolist())
    # a chain of subtractions at a learning rate where bf16 alone stands still: each step is one f32 subtraction, no product
    w = from_bits(rne16(bits((rng.choice([-1, 1], 16) * rng.uniform(.01, .04, 16)).astype(np.float32))) << 16)
    alone, chance, rows = bits(w) >> 16, bits(w) >> 16, []
    start = alone.copy()
    for t in range(1, 7):
        u = (5e-7 * np.sign(rng.normal(0, 1, 16)) * rng.uniform(.2, 3, 16)).astype(np.float32)
        w = (w - u).astype(np.float32)
        hi, lo = split(bits(w))
        assert (join(hi, lo) == bits(w)).all()
        alone = rne16(bits((from_bits(alone << 16) - u).astype(np.float32)))
        chance = sr16(bits((from_bits(chance << 16) - u).astype(np.float32)), halves(KEY, MASTER, t, 16))
        rows.append(dict(step=t, change_bits=bits(u), master_bits=bits(w), high=hi, low=lo, bf16_nearest=alone, bf16_stochastic=chance))
    assert (alone == start).all()
    put("split_master_chain", seed=KEY, start_bf16_bits=start, steps=rows, note="bf16_nearest never moves; high and low join to the f32 master at every step")
# ---------------------------------------------------------------- 3 eight-bit moments
DROP = 20  # bits of an f32 that an 8-bit code leaves out: 8 exponent and 3 mantissa bits stay, relative to the block


def q_nearest(b):
    return (b + (1 << (DROP - 1)) - 1 + ((b >> DROP) & 1)) >> DROP


def q_random(b, h):
    return (b + ((h << 4) | 8)) >> DROP


def encode_m(m, counted=slice(None)):
    """Signed: bit 7 sign, 7 bits magnitude. Returns (codes, exponent of the block, margin of `counted` in f32 units)."""
    b = bits(np.abs(m))
    q = q_nearest(b)
    e = int(q.max() >> 3)
    c = np.maximum(q - (8 * e - 120), 0)
    sign = (np.asarray(m) < 0).astype(np.int64)
    half = 1 << (DROP - 1)
    margin = np.abs(((b + half) & ((1 << DROP) - 1)))
    margin = np.minimum(margin, (1 << DROP) - margin)
    return np.where(c > 0, c | sign << 7, 0), e, np.where(b > 0, margin, 1 << DROP)[counted].min(initial=1 << DROP)


def decode_m(c, e):
    c = np.asarray(c, np.int64)
    mag = c & 127
    v = np.where(mag > 0, from_bits(np.maximum(mag + 8 * e - 120, 0) << DROP), 0).astype(F)
    return np.where(c >> 7, -v, v)


def encode_v(v, h, counted=slice(None)):
    b = bits(v)
    q = q_random(b, h)
    e = int(q.max() >> 3)
    c = np.where(b > 0, np.maximum(q - (8 * e - 248), 1), 0)
    frac = (b + ((h << 4) | 8)) & ((1 << DROP) - 1)
    margin = np.minimum(frac, (1 << DROP) - frac)
    return c, e, np.where(b > 0, margin, 1 << DROP)[counted].min(initial=1 << DROP)


def decode_v(c, e):
    c = np.asarray(c, np.int64)
    return np.where(c > 0, from_bits(np.maximum(c + 8 * e - 248, 0) << DROP), 0).astype(F)


def v_moments():
    assert decode_m([127], 127)[0] == 1.875 and decode_m([255], 127)[0] == -1.875
    assert decode_m([1], 127)[0] == 1.125 * 2.0**-15 and decode_v([255], 127)[0] == 1.875
    assert decode_v([1], 127)[0] == 1.125 * 2.0**-31
    assert list(np.sort(decode_v(np.arange(256), 100))) == list(decode_v(np.arange(256), 100))
    rng = np.random.default_rng(5 + 1000 * SHIFT)
    m = np.concatenate([[0.0, 1e-5, -1e-5, 3e-5, -3e-5, 1e-9, -1e-9, 4e-10, 1e-10, -1e-12, 0.0], rng.normal(0, 1e-5, 245)])
    v = np.concatenate([[0.0, 1e-10, 9e-10, 1e-20, 1e-30, 4e-19], rng.normal(0, 1e-5, 250) ** 2])
    m, v = m.astype(np.float32), v.astype(np.float32)
    h = halves(KEY, MOMENT, 3, 256)
    cm, em, _ = encode_m(m)
    cv, ev, _ = encode_v(v, h)
    put("moments_8bit_block", m_bits=bits(m), v_bits=bits(v), seed=KEY, step=3, halves=h, m_codes=cm, m_exponent=em,
        v_codes=cv, v_exponent=ev, m_decoded=decode_m(cm, em), v_decoded=decode_v(cv, ev))

    def run(seed):
        rng = np.random.default_rng(seed + 1000 * SHIFT)
        n, steps = 512, 5
        scale = np.exp(rng.normal(0, 1, n))
        w = (rng.normal(0, .02, n)).astype(np.float32).astype(F)
        w = from_bits(rne16(bits(w)) << 16).astype(F)
        w0 = w.copy()
        beta1, beta2, eps, lr, wd = 0.9, 0.999, 1e-8, 1e-6, 0.1
        b1, b2 = float(np.float32(beta1)), float(np.float32(beta2))
        o1, o2 = float(np.float32(1 - beta1)), float(np.float32(1 - beta2))
        cm, cv = np.zeros(n, int), np.zeros(n, int)
        em, ev = np.zeros(2, int), np.zeros(2, int)
        rows, margin = [], 1 << DROP
        for t in range(1, steps + 1):
            g = (1e-5 * scale * rng.normal(0, 1, n)).astype(np.float32)
            if t == 3:
                g[:300] = 0
            clip = 1.0 if t != 4 else float(np.float32(0.25))
            h = halves(KEY, MOMENT, t, n)
            step, corr = lr / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t)
            newm, newv = np.zeros(n), np.zeros(n)
            for k in range(2):
                s = slice(256 * k, 256 * k + 256)
                newm[s] = b1 * decode_m(cm[s], em[k]) + o1 * clip * g[s].astype(F)
                newv[s] = b2 * decode_v(cv[s], ev[k]) + o2 * (clip * g[s].astype(F)) ** 2
            w = w - (step * newm / (np.sqrt(newv) * corr + eps) + lr * wd * w)
            for k in range(2):
                s = slice(256 * k, 256 * k + 256)
                # without a gradient the one product rounds the same with and without fused multiply-add
                counted = g[s] != 0
                cm[s], em[k], a = encode_m(newm[s].astype(np.float32), counted)
                cv[s], ev[k], b = encode_v(newv[s].astype(np.float32), h[s], counted)
                margin = min(margin, a, b)
            rows.append(dict(step=t, clip=clip, grads_bits=bits(g), m_codes=cm.copy(), m_exponents=em.copy(),
                             v_codes=cv.copy(), v_exponents=ev.copy(), master=w.copy()))
        return margin, dict(elements=n, seed=KEY, beta1=beta1, beta2=beta2, eps=eps, lr=lr, weight_decay=wd, master_start=w0, steps=rows)

    best = max(((run(s)[0], s) for s in range(400)))
    margin, data = run(best[1])
    assert margin >= 24, margin
    put("adamw_8bit", note="codes are equal if the arithmetic is f32: nothing lies within code_margin units in the last place of a rounding boundary",
        code_margin=int(margin), **data)

    # accumulation of gradients in bf16: the first micro-batch rounds to nearest, later ones add in f32 and round by chance
    rng = np.random.default_rng(9 + 1000 * SHIFT)
    parts = rng.normal(0, 1e-4, (4, 24)).astype(np.float32)
    g = rne16(bits(parts[0]))
    rows = [g.copy()]
    for micro in range(1, 4):
        total = (from_bits(g << 16) + parts[micro]).astype(np.float32)
        g = sr16(bits(total), halves(KEY, GRADIENT, 11, 24, 2 * micro))
        rows.append(g.copy())
    put("gradients_bf16", seed=KEY, step=11, parts_bits=bits(parts), after=rows, note="sub = 2 * micro-batch for products, 2 * micro-batch + 1 for the embedding's addition")


# What layers keep, by rung, and what a parameter takes
MODELS = {
    "quickstart": dict(layers=4, hidden=192, heads=6, kv_heads=2, head_dim=32, ffn=512, vocab=1024, tied=True, qkv_bias=False, qk_norm=False),
    "llama-3.2-1b": dict(layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256, tied=True, qkv_bias=False, qk_norm=False),
    "qwen2.5-3b": dict(layers=36, hidden=2048, heads=16, kv_heads=2, head_dim=128, ffn=11008, vocab=151936, tied=True, qkv_bias=True, qk_norm=False),
    "llama-3-8b": dict(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256, tied=False, qkv_bias=False, qk_norm=False),
    "qwen2.5-7b": dict(layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, ffn=18944, vocab=152064, tied=False, qkv_bias=True, qk_norm=False),
    "qwen3-8b": dict(layers=36, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=12288, vocab=151936, tied=False, qkv_bias=False, qk_norm=True),
    "qwen2.5-14b": dict(layers=48, hidden=5120, heads=40, kv_heads=8, head_dim=128, ffn=13824, vocab=152064, tied=False, qkv_bias=True, qk_norm=False),
    "llama-3-70b": dict(layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, ffn=28672, vocab=128256, tied=False, qkv_bias=False, qk_norm=False),
}
RUNGS = [("none", []), ("attention", ["attended"]), ("gate_up", ["gate_up"]), ("qkv", ["qkv", "before_attention"]), ("block", ["middle", "before_mlp"])]


def up256(b):
    return (b + 255) // 256 * 256


def sizes(m):
    q, kv = m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"]
    h, f, l, v = m["hidden"], m["ffn"], m["layers"], m["vocab"]
    linear = h * (q + 2 * kv) + q * h + 3 * h * f
    p = l * (linear + 2 * h + (q + 2 * kv if m["qkv_bias"] else 0) + (2 * m["head_dim"] if m["qk_norm"] else 0)) + (1 if m["tied"] else 2) * v * h + h
    return q, kv, linear, p


def layer_spans(m, t, w):
    q, kv, _, _ = sizes(m)
    qk = q + kv if m["qk_norm"] else 0
    return {"x": up256(t * m["hidden"] * w), "before_attention": up256(t * 4),
            "qkv": up256(t * (q + 2 * kv) * w) + up256(t * qk * w) + up256(t * (m["heads"] + m["kv_heads"] if qk else 0) * 4),
            "attended": up256(t * q * w) + up256(m["heads"] * t * 4), "middle": up256(t * m["hidden"] * w), "before_mlp": up256(t * 4),
            "gate_up": up256(t * 2 * m["ffn"] * w)}


def saved(m, t, w, levels):
    """Bytes of saved activations; levels[i] = rung of layer i (cumulative). One slot holds what any layer recomputes."""
    spans = layer_spans(m, t, w)
    total, slot = 0, 0
    for r in levels:
        dropped = sum(spans[s] for rung in RUNGS[1:r + 1] for s in rung[1])
        total += sum(spans.values()) - dropped
        slot = max(slot, dropped)
    return total + slot + 2 * up256(t * m["hidden"] * w) + up256(t * 4)


def v_plans():
    # What the README's quickstart prints.
    m = MODELS["quickstart"]
    assert saved(m, 1024, 4, [0] * 4) == 33165312 and sizes(m)[3] * 4 == 7084800
    rows = []
    for name, m in MODELS.items():
        q, kv, linear, p = sizes(m)
        spans = {k: v // 16384 for k, v in layer_spans(m, 16384, 2).items()}
        kept, extra, ladder = sum(spans.values()), 0, []
        cost = {"none": 0, "attention": 0, "gate_up": 2 * m["hidden"] * m["ffn"], "qkv": m["hidden"] * (q + 2 * kv), "block": q * m["hidden"]}
        for rung, dropped in RUNGS:
            kept -= sum(spans[s] for s in dropped)
            extra += cost[rung]
            ladder.append(dict(rung=rung, bytes_a_token_a_layer=kept, linear_again=extra / linear, again_of_step=extra / linear / 3))
        rows.append(dict(model=name, parameters=p, linear_parameters=m["layers"] * linear, linear_a_layer=linear, ladder_bf16=ladder,
                         saved_16384={f"rung{r}": saved(m, 16384, 2, [r] * m["layers"]) for r in range(5)} if name != "quickstart" else {},
                         saved_mixed_half=saved(m, 4096, 2, [2] * (m["layers"] // 2) + [0] * (m["layers"] - m["layers"] // 2))))
    put("recompute", rungs=[r for r, _ in RUNGS], drops={r: d for r, d in RUNGS}, models=rows,
        note="cumulative: a rung drops its spans and those of the rungs before it; saved_* counts x_final, final_stats and hidden and one slot")
    per = {"now": [2, 4, 4, 8], "split": [2, 4, 2, 8], "split, bf16 gradients": [2, 2, 2, 8], "split, bf16 gradients and moments": [2, 2, 2, 4],
           "split, bf16 gradients, 8-bit moments": [2, 2, 2, 2 + 2 / 256], "no low bits, bf16 gradients, 8-bit moments": [2, 2, 0, 2 + 2 / 256]}
    put("bytes_a_parameter", columns=["weights", "gradients", "rest of master", "moments"], rows=per, totals={k: sum(v) for k, v in per.items()},
        llama_3_8b={k: sum(v) * sizes(MODELS["llama-3-8b"])[3] for k, v in per.items()})
    rows = []
    for name, t, low, high, n in (("llama-3-8b", 16384, 2, 3, 6), ("llama-3-8b", 8192, 1, 2, 15), ("llama-3-8b", 4096, 0, 0, 0),
                                  ("qwen2.5-7b", 16384, 1, 2, 24), ("qwen2.5-7b", 8192, 1, 2, 7), ("qwen2.5-7b", 4096, 0, 0, 0)):
        m = MODELS[name]
        levels = [high] * n + [low] * (m["layers"] - n)
        rows.append(dict(model=name, tokens=t, levels=levels, saved=saved(m, t, 2, levels), saved_without=saved(m, t, 2, [0] * m["layers"])))
    put("budget_levels", rows=rows, note="the cheapest levels that fit 82.0 GB beside 8.008 bytes a parameter")


def main():
    for f in (v_random, v_formats, v_moments, v_plans):
        f()
    ARGS.out.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in OUT.items()) + "\n}\n")
    print(len(OUT), "entries,", ARGS.out.stat().st_size, "bytes")


main()
