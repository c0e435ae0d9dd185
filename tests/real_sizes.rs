//! Sizes of released models on a GPU: many more tiles than multiprocessors, every pipeline full, both paths of kernels
//! beside each other. The host device, which emulates, runs the same at a small part of the sizes.

use half::bf16;
use warpo::{
    device::{Buffer, DType, Device, Float},
    forest::{Forest, Tree},
    model::{Capacity, MemoryPlan, Model, ModelConfig, Slopes},
    ops::{
        attention::{self, Dims, Mask},
        gemm::{self, Epilogue, Gemm, Order},
    },
};

use crate::support::{
    assert_same_bits, cast, fast_device, fast_hopper, normal, portable_gpu, relative_error, type_name, widen, with_gpu,
};

/// How often the same must come out.
const RUNS: usize = 5;

/// The same machine twice: with the kernels that every GPU runs, and with Hopper's own where there are any.
struct Paths {
    on: &'static str,
    portable: Device,
    own: Device,
    /// Sizes are divided by this.
    share: usize,
}

fn each_machine(mut test: impl FnMut(&Paths)) {
    let host = || vec![(fast_hopper(2), "host")];
    for (own, on) in with_gpu(host) {
        let portable = match own.is_cuda() {
            true => portable_gpu(),
            false => fast_device(2),
        };
        let share = if own.is_cuda() { 1 } else { 32 };
        test(&Paths { on, portable, own, share });
    }
}

/// Whole numbers up to 7: sums of fewer than 2^24 / 49 products of two are exact in any order.
fn whole_numbers(seed: usize, len: usize) -> Vec<bf16> {
    let number = |i: usize| ((i * 31 + i / 7 + i / 1009 * 5 + seed * 5) % 15) as f32 - 7.0;
    (0..len).map(|i| bf16::from_f32(number(i))).collect()
}

/// A product, with what is added to it, on both paths.
struct Product {
    gemm: Gemm,
    a: Vec<bf16>,
    b: Vec<bf16>,
}

impl Product {
    fn new(gemm: Gemm) -> Self {
        assert!(49 * (gemm.k + 2) < 1 << 24, "sums are exact");
        Self { gemm, a: whole_numbers(1, gemm.m * gemm.k), b: whole_numbers(2, gemm.n * gemm.k) }
    }

    /// What a product writes over 3 everywhere.
    fn by<O: Float>(&self, device: &Device, added: Option<&Buffer<O>>) -> Vec<O> {
        let [a, b] = [&self.a, &self.b].map(|x| device.upload(x).unwrap());
        let d = device.upload(&vec![O::from_f32(3.0); self.gemm.m * self.gemm.n]).unwrap();
        match added {
            // A gradient of a weight as the model computes it, with parts of sums in a workspace of NaN.
            None if self.gemm.accumulate => {
                let parts = gemm::split_workspace::<bf16>(device, &self.gemm);
                let workspace = device.upload(&vec![f32::NAN; parts]).unwrap();
                gemm::run_split(device, &self.gemm, &d.cast(), &a, &b, &workspace)
            }
            None => gemm::run(device, &self.gemm, &d, &a, &b),
            Some(addend) => {
                let extras = Epilogue { bias: None, addend: Some(&addend.cast()) };
                gemm::run_adding::<bf16>(device, &self.gemm, &d.cast(), &a, &b, &extras)
            }
        }
        .unwrap();
        device.download(&d).unwrap()
    }

    /// Elements all over the result, by sums of integers.
    fn check<O: Float>(&self, what: &str, d: &[O], addend: f32) {
        let Gemm { m, n, k, .. } = self.gemm;
        let (by_row, by_column) = (self.gemm.order != Order::Tn, self.gemm.order == Order::Nt);
        for sample in 0..2000 {
            let (row, column) = match sample {
                0 => (m - 1, n - 1),
                _ => (sample * 7919 % m, sample * 104_729 % n),
            };
            let a = |i: usize| if by_row { self.a[row * k + i] } else { self.a[i * self.gemm.lda + row] };
            let b = |i: usize| if by_column { self.b[column * k + i] } else { self.b[i * self.gemm.ldb + column] };
            let sum: i64 = (0..k).map(|i| a(i).to_f32() as i64 * b(i).to_f32() as i64).sum();
            let want = O::from_f32(sum as f32 + addend);
            assert_same_bits(&format!("{what}: ({row}, {column})"), &[d[row * n + column]], &[want]);
        }
    }

    fn judge<O: Float>(&self, paths: &Paths, addend: f32) {
        let what = format!("{:?} to {} on {}", self.gemm, type_name::<O>(), paths.on);
        let added = |device: &Device| {
            let all = vec![O::from_f32(addend); self.gemm.m * self.gemm.n];
            (O::DTYPE == DType::Bf16 && addend != 0.0).then(|| device.upload(&all).unwrap())
        };
        // The portable path adds in a pass of its own, to what is rounded already: an addend needs Hopper's.
        let first = if addend != 0.0 { &paths.own } else { &paths.portable };
        let want = self.by(first, added(first).as_ref());
        let in_place = if self.gemm.accumulate { 3.0 } else { 0.0 };
        self.check(&what, &want, if in_place != 0.0 { in_place } else { addend });
        for run in 0..RUNS {
            let got = self.by::<O>(&paths.own, added(&paths.own).as_ref());
            assert_same_bits(&format!("{what}, run {run}"), &got, &want);
        }
    }
}

#[test]
fn products() {
    each_machine(|paths| {
        // More tiles than multiprocessors, and ragged ones at every edge.
        let part = |size: usize| (size / paths.share).next_multiple_of(8);
        let tokens = part(8192) - 8;
        for (outputs, inputs) in [(part(3072), part(2048)), (part(16384), part(2048)), (part(2048), part(8192))] {
            Product::new(Gemm::nt(tokens, outputs, inputs)).judge::<bf16>(paths, 0.0);
            Product::new(Gemm::nn(tokens, inputs, outputs)).judge::<bf16>(paths, 0.0);
            Product::new(Gemm::tn(outputs, inputs, tokens).accumulating()).judge::<f32>(paths, 0.0);
        }
        // Gradients of which some or all sums are split.
        for (outputs, inputs) in [(768, 768), (3072, 768), (1536, 1536), (2560, 2048), (1536, 8960)] {
            Product::new(Gemm::tn(part(outputs), part(inputs), 2 * tokens).accumulating()).judge::<f32>(paths, 0.0);
        }
        Product::new(Gemm::nt(tokens, part(4096), part(1536))).judge::<bf16>(paths, 5.0);
        Product::new(Gemm::nt(tokens, part(50264) - 8, part(768))).judge::<f32>(paths, 0.0);
        Product::new(Gemm::nt(part(16384) + 24, part(576), part(576))).judge::<bf16>(paths, 0.0);
    });
}

/// Pairs that share a prompt, and lists.
fn trees(share: usize, count: usize, vocab: usize) -> Vec<Tree> {
    let ids = |seed: usize, len: usize| -> Vec<u32> {
        (0..(len / share).max(1)).map(|i| ((i * 7919 + seed * 104_729) % vocab) as u32).collect()
    };
    let lengths = [[512, 256, 256], [700, 300, 40], [64, 500, 460], [301, 77, 333]];
    (0..count)
        .map(|t| {
            let [prompt, chosen, rejected] = lengths[t % lengths.len()];
            Tree::pair(format!("pair {t}"), ids(3 * t, prompt), ids(3 * t + 1, chosen), ids(3 * t + 2, rejected))
        })
        .collect()
}

/// `out` and `dqkv` of attention; not written is NaN.
fn attend<T: Float>(device: &Device, forest: &Forest, dims: &Dims, qkv: &[f32], dout: &[f32]) -> [Vec<T>; 2] {
    let mask = Mask {
        subtree_end: device.upload(&forest.subtree_end).unwrap(),
        tile_bounds: device.upload(&forest.tile_bounds).unwrap(),
        position: device.upload(&forest.position).unwrap(),
        mean_keys: forest.mean_keys(),
    };
    let nan = |len: usize| device.upload(&vec![T::from_f32(f32::NAN); len]).unwrap();
    let statistic = || device.upload(&vec![f32::NAN; dims.heads * dims.tokens]).unwrap();
    let (out, dqkv, lse, delta) = (nan(dout.len()), nan(qkv.len()), statistic(), statistic());
    let [qkv, dout] = [qkv, dout].map(|x| device.upload(&cast::<T>(x)).unwrap());
    let scale = 1.0 / (dims.head_dim as f32).sqrt();
    attention::fwd(device, &out, &lse, &qkv, &mask, scale, dims).unwrap();
    attention::bwd(device, &dqkv, &delta, &dout, &out, &lse, &qkv, &mask, None, scale, dims).unwrap();
    [&out, &dqkv].map(|x| device.download(x).unwrap())
}

/// In bf16 neither path is further from the f32 kernels than twice the other, by norm, and the same bits come every time.
#[test]
fn attention() {
    each_machine(|paths| {
        let forest = Forest::pack(&trees(paths.share, 12, 1000)).unwrap();
        for (heads, kv_heads, head_dim, window) in
            [(32, 8, 64, None), (12, 2, 128, None), (16, 16, 64, Some(300)), (16, 16, 128, None)]
        {
            let groups = heads / kv_heads;
            let kv_heads = (kv_heads * 4 / paths.share).max(1).min(kv_heads);
            let heads = groups * kv_heads;
            let dims = Dims { tokens: forest.len(), heads, kv_heads, head_dim, window, softcap: None };
            let rounded = |seed: u64, len: usize| -> Vec<f32> {
                cast::<bf16>(&normal(seed, len)).into_iter().map(bf16::to_f32).collect()
            };
            let qkv = rounded(1, dims.tokens * (heads + 2 * kv_heads) * head_dim);
            let dout = rounded(2, dims.tokens * heads * head_dim);
            let exact = attend::<f32>(&paths.portable, &forest, &dims, &qkv, &dout);
            let portable = attend::<bf16>(&paths.portable, &forest, &dims, &qkv, &dout);
            let own = attend::<bf16>(&paths.own, &forest, &dims, &qkv, &dout);
            for (i, what) in ["out", "dqkv"].into_iter().enumerate() {
                let error = |got: &[bf16]| relative_error(&widen(got), &widen(&exact[i]));
                assert_neither_is_twice(
                    &format!("{what} of {dims:?} on {}", paths.on),
                    error(&own[i]),
                    error(&portable[i]),
                );
            }
            for run in 1..RUNS {
                let again = attend::<bf16>(&paths.own, &forest, &dims, &qkv, &dout);
                assert_same_bits(&format!("out, run {run}"), &again[0], &own[0]);
                assert_same_bits(&format!("dqkv, run {run}"), &again[1], &own[1]);
            }
        }
    });
}

/// Both round to bf16 as often, each at places of its own: their distances from f32 are alike, and a wrong kernel's is not.
fn assert_neither_is_twice(what: &str, own: f64, portable: f64) {
    println!("{what}: {own:.2e}, portable {portable:.2e}");
    assert!(own <= 2.0 * portable && portable <= 2.0 * own, "{what}: {own:.2e}, portable {portable:.2e} from f32");
}

/// Two layers of released models, with fewer words.
const MODELS: &[(&str, &str)] = &[
    (
        "llama-3.2-1b",
        r#"{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "rope_theta": 500000.0, "tie_word_embeddings": true,"#,
    ),
    (
        "qwen2.5-1.5b",
        r#"{"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
            "num_key_value_heads": 2, "tie_word_embeddings": false,"#,
    ),
    (
        "gpt2-124m",
        r#"{"model_type": "gpt2", "n_embd": 768, "n_layer": 2, "n_head": 12, "n_positions": 2048,
            "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,"#,
    ),
];

const WORDS: usize = 16_000;

fn model_config(text: &str, share: usize) -> ModelConfig {
    let rest = format!(
        r#" "vocab_size": {}, "num_hidden_layers": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-05}}"#,
        WORDS / share
    );
    // The host device takes the same families at a small width; heads stay 64 and 128 columns wide.
    let small = |text: &str| {
        let widths = [
            (
                "2048, \"intermediate_size\": 8192, \"num_attention_heads\": 32",
                "64, \"intermediate_size\": 128, \"num_attention_heads\": 4",
            ),
            ("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 2"),
            (
                "1536, \"intermediate_size\": 8960, \"num_attention_heads\": 12",
                "256, \"intermediate_size\": 96, \"num_attention_heads\": 2",
            ),
            ("768, \"n_layer\": 2, \"n_head\": 12", "128, \"n_layer\": 2, \"n_head\": 2"),
        ];
        widths.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
    };
    let head = if share == 1 { text.to_string() } else { small(text) };
    ModelConfig::parse(&(head + &rest)).unwrap()
}

/// Log-probabilities and gradients with slopes of both signs.
fn train<T: Float>(device: &Device, config: &ModelConfig, trees: &[Tree]) -> (Vec<f64>, Vec<f32>) {
    let forest = Forest::pack(trees).unwrap();
    let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: (forest.rows() / 3).max(1) };
    let plan = MemoryPlan::new(config, T::DTYPE, capacity).unwrap().on(device, config);
    let model = Model::<T>::new(device, config, plan).unwrap();
    // The same numbers in either precision: a block that repeats, norms around 1.
    let block = cast::<bf16>(&normal(7, (1 << 16) - 17));
    let mut params = vec![T::from_f32(0.0); model.layout().elements];
    for spec in &model.layout().tensors {
        let (mean, deviation) = if spec.decay || spec.name.ends_with("bias") { (0.0, 0.04) } else { (1.0, 0.1) };
        let value = |x: &bf16| T::from_f32(bf16::from_f32(mean + deviation * x.to_f32()).to_f32());
        for (param, x) in params[spec.range()].iter_mut().zip(block.iter().cycle()) {
            *param = value(x);
        }
    }
    device.copy_in(&model.params().values(), &params).unwrap();
    let batch = model.upload(&forest).unwrap();
    model.zero_grads().unwrap();
    model.forward(&batch).unwrap();
    let logps = device.download(&model.logps(&batch).unwrap()).unwrap();
    let slopes: Vec<f32> = normal(9, batch.rows).iter().map(|x| x / batch.rows as f32).collect();
    model.backward(&batch, &Slopes::by_logps(&device.upload(&slopes).unwrap())).unwrap();
    (logps.into_iter().map(f64::from).collect(), device.download(model.params().grads()).unwrap())
}

/// Every tensor's gradient by norm: both paths in bf16 against f32 on the same device.
#[test]
fn models_bf16() {
    each_machine(|paths| {
        for (name, text) in MODELS {
            let config = model_config(text, paths.share);
            let trees = trees(paths.share, 8, config.vocab);
            let (exact_logps, exact) = train::<f32>(&paths.portable, &config, &trees);
            let (portable_logps, portable) = train::<bf16>(&paths.portable, &config, &trees);
            let (own_logps, own) = train::<bf16>(&paths.own, &config, &trees);
            let (error, plain) =
                (relative_error(&own_logps, &exact_logps), relative_error(&portable_logps, &exact_logps));
            assert_neither_is_twice(&format!("log-probabilities of {name} on {}", paths.on), error, plain);
            for spec in warpo::model::Layout::new(&config).tensors {
                let error = |grads: &[f32]| relative_error(&widen(&grads[spec.range()]), &widen(&exact[spec.range()]));
                let what = format!("{} of {name} on {}", spec.name, paths.on);
                assert_neither_is_twice(&what, error(&own), error(&portable));
            }
            let (_, again) = train::<bf16>(&paths.own, &config, &trees);
            assert_same_bits(&format!("gradients of {name} on {}", paths.on), &again, &own);
        }
    });
}

/// f32 on a GPU against the host device's: some thousand f32 roundings of 6e-8 that mostly cancel.
#[test]
fn models_f32() {
    each_machine(|paths| {
        let host = fast_device(std::thread::available_parallelism().map_or(2, usize::from));
        for (name, text) in MODELS {
            let config = model_config(text, paths.share);
            let trees = trees(4 * paths.share, 2, config.vocab);
            let (want_logps, want) = train::<f32>(&host, &config, &trees);
            let (logps, grads) = train::<f32>(&paths.own, &config, &trees);
            let error = relative_error(&logps, &want_logps);
            let grad_error = relative_error(&widen(&grads), &widen(&want));
            println!("{name} on {}: log-probabilities {error:.1e}, gradients {grad_error:.1e}", paths.on);
            assert!(error <= 1e-5 && grad_error <= 1e-5, "{name} on {}: {error:.2e}, {grad_error:.2e}", paths.on);
        }
    });
}
