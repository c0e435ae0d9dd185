//! Shapes of released models: their linear layers' products on 16384 tokens, and attention over documents as the published
//! figures of FlashAttention-3 have it (16384 tokens, heads of 64 and 128 in a width of 2048).

use crate::ops::{
    attention::sm90::Tile,
    gemm::sm90::Plan,
    gemm::{self, Gemm},
};
use half::bf16;

use super::{
    Case, GPU_SIZE, NOT_SPLIT, Size,
    matrix::{attention_bwd, attention_bwd_by, attention_fwd, attention_fwd_by, product, weight_product},
};

const TOKENS: usize = 16384;
/// Of an H200 too.
const H100_SMS: usize = 132;

/// Name, hidden size, width of q, k and v, width of attention, width of the MLP's first product and of its second.
const MODELS: &[(&str, usize, usize, usize, usize, usize)] = &[
    ("gpt2-124m", 768, 2304, 768, 3072, 3072),
    ("llama-3.2-1b", 2048, 3072, 2048, 16384, 8192),
    ("qwen2.5-1.5b", 1536, 2048, 1536, 17920, 8960),
    ("qwen2.5-3b", 2048, 2560, 2048, 22016, 11008),
    ("llama-3-8b", 4096, 6144, 4096, 28672, 14336),
];

/// Forward, input gradient and weight gradient of every linear layer.
pub fn products(share: usize) -> Vec<Case> {
    let part = |size: usize| (size / share).next_multiple_of(8);
    let mut cases = Vec::new();
    for &(name, hidden, qkv, attended, up, ffn) in MODELS {
        for (layer, outputs, inputs) in
            [("qkv", qkv, hidden), ("o", hidden, attended), ("up", up, hidden), ("down", hidden, ffn)]
        {
            let splits = Plan::choose_split(&Gemm::tn(outputs, inputs, TOKENS), H100_SMS, usize::MAX).splits > 1;
            let (tokens, outputs, inputs) = (part(TOKENS), part(outputs), part(inputs));
            let of = format!(", {layer} of {name}");
            cases.push(product::<bf16>("gemm_nt", &of, Gemm::nt(tokens, outputs, inputs)));
            cases.push(product::<bf16>("gemm_nn", &of, Gemm::nn(tokens, inputs, outputs)));
            let gradient = Gemm::tn(outputs, inputs, tokens).accumulating();
            cases.push(weight_product::<bf16>("gemm_tn", &of, gemm::split_workspace::<bf16>, gradient));
            if splits {
                // What splitting brings.
                cases.push(weight_product::<bf16>("gemm_tn", &(of + NOT_SPLIT), |_, _| 0, gradient));
            }
        }
    }
    cases
}

/// Causal documents: a prompt alone is one.
pub fn documents(share: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for head_dim in [64, 128] {
        for length in [512, 2048, 8192] {
            let heads = (2048usize / head_dim).div_ceil(share);
            let prompt = (length / share).max(1);
            let size = Size {
                trees: (TOKENS / length).div_ceil(share),
                prompt,
                response: 0,
                heads,
                kv_heads: heads,
                head_dim,
                ..GPU_SIZE
            };
            cases.push(attention_fwd::<bf16>(&size));
            cases.push(attention_bwd::<bf16>(&size));
        }
    }
    cases
}

/// Short sequences by every tile. Small tiles with three slots, or two for the gradients of queries, leave shared memory for a
/// third CTA on an SM.
pub fn tiles(share: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (trees, prompt, response) in [(32, 512, 0), (16, 512, 256), (8, 2048, 0)] {
        let part = |size: usize| size.div_ceil(share);
        let size = Size {
            trees: part(trees),
            prompt: part(prompt),
            response: response / share,
            heads: part(32),
            kv_heads: part(32),
            head_dim: 64,
            ..GPU_SIZE
        };
        for (tile, stages) in [(Tile::Rows128, 5), (Tile::Rows64, 5), (Tile::Rows64, 4), (Tile::Rows64, 3)] {
            cases.push(attention_fwd_by::<bf16>(&size, Some((tile, stages))));
        }
        for (tile, stages) in [(Tile::Rows128, 4), (Tile::Rows64, 4), (Tile::Rows64, 2)] {
            cases.push(attention_bwd_by::<bf16>(&size, Some((tile, stages))));
        }
    }
    cases
}
