//! What is timed: one case per kernel, element type and shape, with the bytes and FLOPs it cannot do without.

mod elementwise;
mod matrix;
mod models;

use crate::{
    device::{Buffer, DType, Device, Element, Float},
    forest::{Forest, Segment, Tree},
    ops::gemm::Gemm,
};
use anyhow::Result;
use half::bf16;

use super::random::Random;

/// Sizes of a model and a micro-batch.
#[derive(Clone, Copy)]
pub struct Size {
    pub trees: usize,
    pub prompt: usize,
    pub response: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub chunk_rows: usize,
    /// Elements of the parameter arena.
    pub parameters: usize,
}

/// A 1B Llama's layer and 8192 tokens of pairs that share their prompt.
pub const GPU_SIZE: Size = Size {
    trees: 8,
    prompt: 512,
    response: 256,
    hidden: 2048,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    ffn: 8192,
    vocab: 128_256,
    chunk_rows: 10_240,
    parameters: 64 << 20,
};

/// Small enough for kernels that are emulated, ragged on purpose.
pub const SMALL_SIZE: Size = Size {
    trees: 2,
    prompt: 21,
    response: 7,
    hidden: 64,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    ffn: 96,
    vocab: 203,
    chunk_rows: 16,
    parameters: 5000,
};

/// How the shape of a product ends that is there only to show what splitting its sums brings.
pub const NOT_SPLIT: &str = ", not split";

pub type Run = Box<dyn Fn(&Device) -> Result<()>>;
type Prepare = Box<dyn FnOnce(&Device) -> Result<Prepared>>;

/// What is timed, with all it needs on the device.
pub struct Prepared {
    pub run: Run,
    /// What has to be as it was before each run, which is not timed.
    pub reset: Option<Run>,
    /// The same as a product of bf16 matrices that the vendor's library can be asked for.
    pub product: Option<Product>,
}

impl From<Run> for Prepared {
    fn from(run: Run) -> Self {
        Self { run, reset: None, product: None }
    }
}

pub struct Product {
    pub gemm: Gemm,
    pub d: Buffer<bf16>,
    /// In place of `d` where the sums stay in f32.
    pub wide: Option<Buffer<f32>>,
    pub a: Buffer<bf16>,
    pub b: Buffer<bf16>,
}

pub struct Case {
    pub name: String,
    pub shape: String,
    /// Operands of its products, which sets the peak.
    pub dtype: DType,
    pub flops: f64,
    pub bytes: f64,
    /// Allocates and fills what the run needs.
    pub prepare: Prepare,
}

impl Case {
    fn new<T: Float>(
        name: &str,
        shape: String,
        flops: f64,
        bytes: f64,
        prepare: impl FnOnce(&Device) -> Result<Run> + 'static,
    ) -> Self {
        Self::of_product::<T>(name, shape, flops, bytes, move |device| Ok(prepare(device)?.into()))
    }

    fn of_product<T: Float>(
        name: &str,
        shape: String,
        flops: f64,
        bytes: f64,
        prepare: impl FnOnce(&Device) -> Result<Prepared> + 'static,
    ) -> Self {
        let suffix = if T::DTYPE == DType::Bf16 { "bf16" } else { "f32" };
        Self { name: format!("{name}_{suffix}"), shape, dtype: T::DTYPE, flops, bytes, prepare: Box::new(prepare) }
    }
}

/// Every case, bf16 before f32, then the products and documents of released models at `1 / share` of their sizes.
pub fn all(size: &Size, share: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for of_type in [elementwise::cases::<bf16>, matrix::cases::<bf16>, elementwise::cases::<f32>, matrix::cases::<f32>]
    {
        cases.extend(of_type(size));
    }
    cases.extend(models::products(share));
    cases.extend(models::documents(share));
    cases.extend(models::tiles(share));
    cases
}

impl Size {
    pub fn tokens(&self) -> usize {
        self.trees * (self.prompt + 2 * self.response)
    }

    /// One row per response token.
    pub fn rows(&self) -> usize {
        self.trees * 2 * self.response
    }

    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query-key pairs that the mask lets through, of one head.
    pub fn visible(&self) -> f64 {
        let triangle = |n: usize| (n * (n + 1) / 2) as f64;
        let branch = triangle(self.response) + (self.response * self.prompt) as f64;
        self.trees as f64 * (triangle(self.prompt) + 2.0 * branch)
    }

    /// Pairs whose two responses share the prompt, or documents if responses have no tokens; a token id occurs a few times,
    /// as in text.
    pub fn forest(&self) -> Result<Forest> {
        let ids = |count: usize, seed: usize| -> Vec<u32> {
            (0..count).map(|i| ((i * 7919 + seed * 104_729) % self.vocab.min(2000)) as u32).collect()
        };
        let tree = |t: usize| {
            if self.response == 0 {
                let segments = vec![Segment { tokens: ids(self.prompt, t), scored: true, ..Segment::default() }];
                return Tree { name: format!("document {t}"), segments, ..Tree::default() };
            }
            let (chosen, rejected) = (ids(self.response, 3 * t + 1), ids(self.response, 3 * t + 2));
            Tree::pair(format!("tree {t}"), ids(self.prompt, 3 * t), chosen, rejected)
        };
        let trees: Vec<Tree> = (0..self.trees).map(tree).collect();
        Forest::pack(&trees)
    }
}

/// Normally distributed values; a block of them is repeated, because nobody looks.
pub fn filled<T: Float>(device: &Device, len: usize, scale: f32) -> Result<Buffer<T>> {
    const BLOCK: usize = 1 << 16;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let block: Vec<T> = (0..BLOCK.min(len)).map(|_| T::from_f32(scale * random.normal())).collect();
    let data: Vec<T> = block.iter().copied().cycle().take(len).collect();
    device.upload(&data)
}

/// Bytes of so many elements.
pub fn bytes<T: Element>(elements: usize) -> f64 {
    (elements * size_of::<T>()) as f64
}
