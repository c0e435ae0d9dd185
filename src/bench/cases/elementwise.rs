//! Kernels whose roof is memory.

use anyhow::Result;
use half::bf16;

use crate::{
    device::{Buffer, DType, Device, Float},
    forest::Forest,
    loss::{Groups, Loss, Outputs, Shape, Step},
    ops::{
        adamw,
        adamw_8bit::{self, BLOCK, Moments},
        adamw_bf16, bias, embedding, geglu, gelu, grad_norm, layernorm, lerp, loss_batch,
        loss_rows::RowInputs,
        residual,
        rmsnorm::{self, RmsNorm},
        rope::{self, Heads, Rotary},
        swiglu,
    },
    rng::Draw,
};

use super::{Case, Size, bytes, filled};

const EPS: f32 = 1e-5;
/// What the roundings of an update are drawn by.
const DRAW: Draw = Draw { seed: 1, number: 10 };

pub fn cases<T: Float>(size: &Size) -> Vec<Case> {
    let mut cases = vec![
        embedding_fwd::<T>(size),
        embedding_bwd::<T>(size),
        rmsnorm_fwd::<T>(size),
        rmsnorm_bwd::<T>(size),
        rope_apply::<T>(size),
        swiglu_fwd::<T>(size),
        swiglu_bwd::<T>(size),
        geglu_fwd::<T>(size),
        geglu_bwd::<T>(size),
        gelu_fwd::<T>(size),
        gelu_bwd::<T>(size),
        layernorm_fwd::<T>(size),
        layernorm_bwd::<T>(size),
        bias_add::<T>(size),
        bias_bwd::<T>(size),
        residual_add::<T>(size),
        lerp_by::<T>(size),
        adamw_step::<T>(size),
        adamw_bf16_step::<T>(size),
        adamw_8bit_step::<T>(size),
    ];
    if T::DTYPE == DType::F32 {
        // f32 whatever the model's type is.
        let heads = [
            ("loss_difference", "dpo"),
            ("loss_separate", "apo_zero"),
            ("loss_likelihood", "sft"),
            ("loss_list", "infonca"),
            ("loss_batch", "aot"),
        ];
        cases.extend(heads.map(|(stem, name)| loss(size, stem, name)));
        cases.push(norm(size));
    }
    cases
}

fn embedding_fwd<T: Float>(size: &Size) -> Case {
    let (tokens, hidden, vocab) = (size.tokens(), size.hidden, size.vocab);
    let forest = size.forest();
    let moved = 2.0 * bytes::<T>(tokens * hidden) + bytes::<i32>(tokens);
    Case::new::<T>("embedding_fwd", format!("{tokens}x{hidden} of {vocab}"), 0.0, moved, move |device| {
        let ids = device.upload(&forest?.tokens)?;
        let (y, table) = (device.alloc::<T>(tokens * hidden)?, filled(device, vocab * hidden, 1.0)?);
        Ok(Box::new(move |device| embedding::fwd(device, &y, &ids, &table, 1.0, tokens, hidden, vocab)))
    })
}

fn embedding_bwd<T: Float>(size: &Size) -> Case {
    let (tokens, hidden, vocab) = (size.tokens(), size.hidden, size.vocab);
    let forest = size.forest();
    let distinct = forest.as_ref().map_or(0, |forest| forest.distinct_ids.len());
    let adds = (tokens * hidden) as f64;
    let moved = bytes::<T>(tokens * hidden) + 2.0 * bytes::<f32>(distinct * hidden) + bytes::<i32>(tokens);
    Case::new::<T>("embedding_bwd", format!("{tokens}x{hidden}, {distinct} ids"), adds, moved, move |device| {
        let forest = forest?;
        let (ids, offsets) = (device.upload(&forest.distinct_ids)?, device.upload(&forest.distinct_offsets)?);
        let by_id = device.upload(&forest.distinct_tokens)?;
        let (dtable, dy) = (device.zeros(vocab * hidden)?, filled::<T>(device, tokens * hidden, 1.0)?);
        Ok(Box::new(move |device| {
            embedding::bwd(device, &dtable, &dy, &ids, &offsets, &by_id, 1.0, tokens, hidden, vocab)
        }))
    })
}

fn rmsnorm_fwd<T: Float>(size: &Size) -> Case {
    let (rows, hidden) = (size.tokens(), size.hidden);
    let elements = rows * hidden;
    let moved = bytes::<T>(2 * elements + hidden) + bytes::<f32>(rows);
    Case::new::<T>("rmsnorm_fwd", format!("{rows}x{hidden}"), 4.0 * elements as f64, moved, move |device| {
        let (x, w) = (filled::<T>(device, elements, 1.0)?, filled(device, hidden, 1.0)?);
        let (y, rrms) = (device.alloc(elements)?, device.alloc(rows)?);
        Ok(Box::new(move |device| rmsnorm::fwd(device, &y, &rrms, &x, &w, &RmsNorm::new(rows, hidden, EPS))))
    })
}

fn rmsnorm_bwd<T: Float>(size: &Size) -> Case {
    let (rows, hidden) = (size.tokens(), size.hidden);
    let elements = rows * hidden;
    let moved = bytes::<T>(4 * elements + hidden) + bytes::<f32>(rows + 2 * hidden);
    Case::new::<T>("rmsnorm_bwd", format!("{rows}x{hidden}, added"), 12.0 * elements as f64, moved, move |device| {
        let (x, w, dy) =
            (filled::<T>(device, elements, 1.0)?, filled(device, hidden, 1.0)?, filled(device, elements, 1.0)?);
        let (dx, dw, rrms) = (device.zeros(elements)?, device.zeros(hidden)?, filled::<f32>(device, rows, 1.0)?);
        let (partials, norm) = (device.alloc(rmsnorm::bwd_partials(rows, hidden))?, RmsNorm::new(rows, hidden, EPS));
        Ok(Box::new(move |device| rmsnorm::bwd(device, &dx, &dw, &partials, &dy, &x, &w, &rrms, &norm, true)))
    })
}

fn rope_apply<T: Float>(size: &Size) -> Case {
    let (tokens, heads, kv_heads, head_dim) = (size.tokens(), size.heads, size.kv_heads, size.head_dim);
    let turned = tokens * (heads + kv_heads) * head_dim;
    let positions = size.prompt + size.response;
    let (all, forest) = (tokens * size.qkv(), size.forest());
    let moved = bytes::<T>(2 * turned) + bytes::<f32>(positions * head_dim) + bytes::<i32>(tokens);
    let shape = format!("{tokens}x({heads}+{kv_heads})x{head_dim}");
    Case::new::<T>("rope_apply", shape, 3.0 * turned as f64, moved, move |device| {
        let position = device.upload(&forest?.position)?;
        let half = positions * head_dim / 2;
        let rotary = Rotary { cos: filled(device, half, 0.5)?, sin: filled(device, half, 0.5)? };
        let heads = Heads { heads, kv_heads, head_dim };
        let qkv = filled::<T>(device, all, 1.0)?;
        Ok(Box::new(move |device| rope::apply(device, &qkv, &position, &rotary, false, &heads)))
    })
}

fn swiglu_fwd<T: Float>(size: &Size) -> Case {
    let (rows, ffn) = (size.tokens(), size.ffn);
    let elements = rows * ffn;
    let moved = bytes::<T>(3 * elements);
    Case::new::<T>("swiglu_fwd", format!("{rows}x{ffn}"), 5.0 * elements as f64, moved, move |device| {
        let (y, gate_up) = (device.alloc::<T>(elements)?, filled(device, 2 * elements, 1.0)?);
        Ok(Box::new(move |device| swiglu::fwd(device, &y, &gate_up, rows, ffn)))
    })
}

fn swiglu_bwd<T: Float>(size: &Size) -> Case {
    let (rows, ffn) = (size.tokens(), size.ffn);
    let elements = rows * ffn;
    let moved = bytes::<T>(6 * elements);
    Case::new::<T>("swiglu_bwd", format!("{rows}x{ffn}"), 13.0 * elements as f64, moved, move |device| {
        let (dgate_up, gate_up) = (device.alloc::<T>(2 * elements)?, filled(device, 2 * elements, 1.0)?);
        let (y, dy) = (device.alloc(elements)?, filled(device, elements, 1.0)?);
        Ok(Box::new(move |device| swiglu::bwd(device, &dgate_up, &y, &dy, &gate_up, rows, ffn)))
    })
}

fn geglu_fwd<T: Float>(size: &Size) -> Case {
    let (rows, ffn) = (size.tokens(), size.ffn);
    let elements = rows * ffn;
    let moved = bytes::<T>(3 * elements);
    Case::new::<T>("geglu_fwd", format!("{rows}x{ffn}"), 10.0 * elements as f64, moved, move |device| {
        let (y, gate_up) = (device.alloc::<T>(elements)?, filled(device, 2 * elements, 1.0)?);
        Ok(Box::new(move |device| geglu::fwd(device, &y, &gate_up, rows, ffn)))
    })
}

fn geglu_bwd<T: Float>(size: &Size) -> Case {
    let (rows, ffn) = (size.tokens(), size.ffn);
    let elements = rows * ffn;
    let moved = bytes::<T>(6 * elements);
    Case::new::<T>("geglu_bwd", format!("{rows}x{ffn}"), 20.0 * elements as f64, moved, move |device| {
        let (dgate_up, gate_up) = (device.alloc::<T>(2 * elements)?, filled(device, 2 * elements, 1.0)?);
        let (y, dy) = (device.alloc(elements)?, filled(device, elements, 1.0)?);
        Ok(Box::new(move |device| geglu::bwd(device, &dgate_up, &y, &dy, &gate_up, rows, ffn)))
    })
}

fn gelu_fwd<T: Float>(size: &Size) -> Case {
    let elements = size.tokens() * size.ffn;
    Case::new::<T>("gelu_fwd", format!("{elements}"), 9.0 * elements as f64, bytes::<T>(2 * elements), move |device| {
        let (y, x) = (device.alloc::<T>(elements)?, filled(device, elements, 1.0)?);
        Ok(Box::new(move |device| gelu::fwd(device, &y, &x, elements)))
    })
}

fn gelu_bwd<T: Float>(size: &Size) -> Case {
    let elements = size.tokens() * size.ffn;
    Case::new::<T>("gelu_bwd", format!("{elements}"), 17.0 * elements as f64, bytes::<T>(4 * elements), move |device| {
        let (dx, y) = (device.alloc::<T>(elements)?, device.alloc(elements)?);
        let (dy, x) = (filled(device, elements, 1.0)?, filled(device, elements, 1.0)?);
        Ok(Box::new(move |device| gelu::bwd(device, &dx, &y, &dy, &x, elements)))
    })
}

fn layernorm_fwd<T: Float>(size: &Size) -> Case {
    let (rows, hidden) = (size.tokens(), size.hidden);
    let elements = rows * hidden;
    let moved = bytes::<T>(2 * elements + 2 * hidden) + bytes::<f32>(2 * rows);
    Case::new::<T>("layernorm_fwd", format!("{rows}x{hidden}"), 8.0 * elements as f64, moved, move |device| {
        let (x, w, b) =
            (filled::<T>(device, elements, 1.0)?, filled(device, hidden, 1.0)?, filled(device, hidden, 1.0)?);
        let (y, stats) = (device.alloc(elements)?, device.alloc(2 * rows)?);
        Ok(Box::new(move |device| layernorm::fwd(device, &y, &stats, &x, &w, &b, EPS, rows, hidden)))
    })
}

fn layernorm_bwd<T: Float>(size: &Size) -> Case {
    let (rows, hidden) = (size.tokens(), size.hidden);
    let elements = rows * hidden;
    let moved = bytes::<T>(4 * elements + hidden) + bytes::<f32>(2 * rows + 4 * hidden);
    Case::new::<T>("layernorm_bwd", format!("{rows}x{hidden}, added"), 18.0 * elements as f64, moved, move |device| {
        let (x, w, dy) =
            (filled::<T>(device, elements, 1.0)?, filled(device, hidden, 1.0)?, filled(device, elements, 1.0)?);
        let (dx, stats) = (device.zeros(elements)?, filled::<f32>(device, 2 * rows, 1.0)?);
        let (dw, db) = (device.zeros(hidden)?, device.zeros(hidden)?);
        let partials = device.alloc(layernorm::bwd_partials(rows, hidden))?;
        Ok(Box::new(move |device| {
            layernorm::bwd(device, &dx, &dw, &db, &partials, &dy, &x, &w, &stats, true, rows, hidden)
        }))
    })
}

fn bias_add<T: Float>(size: &Size) -> Case {
    let (rows, width) = (size.tokens(), size.ffn);
    let elements = rows * width;
    let moved = bytes::<T>(2 * elements + width);
    Case::new::<T>("bias_add", format!("{rows}x{width}"), elements as f64, moved, move |device| {
        let (y, b) = (filled::<T>(device, elements, 1.0)?, filled(device, width, 1.0)?);
        Ok(Box::new(move |device| bias::add(device, &y, &b, rows, width)))
    })
}

fn bias_bwd<T: Float>(size: &Size) -> Case {
    let (rows, width) = (size.tokens(), size.ffn);
    let elements = rows * width;
    let moved = bytes::<T>(elements) + bytes::<f32>(2 * width);
    Case::new::<T>("bias_bwd", format!("{rows}x{width}"), elements as f64, moved, move |device| {
        let (db, dy) = (device.zeros(width)?, filled::<T>(device, elements, 1.0)?);
        let partials = device.alloc(bias::bwd_partials(rows, width))?;
        Ok(Box::new(move |device| bias::bwd(device, &db, &partials, &dy, rows, width)))
    })
}

fn residual_add<T: Float>(size: &Size) -> Case {
    let (rows, hidden) = (size.tokens(), size.hidden);
    let elements = rows * hidden;
    Case::new::<T>(
        "residual_add",
        format!("{rows}x{hidden}"),
        elements as f64,
        bytes::<T>(3 * elements),
        move |device| {
            let (y, a, b) =
                (device.alloc::<T>(elements)?, filled(device, elements, 1.0)?, filled(device, elements, 1.0)?);
            Ok(Box::new(move |device| residual::add(device, &y, &a, &b, elements)))
        },
    )
}

fn lerp_by<T: Float>(size: &Size) -> Case {
    let elements = size.parameters;
    let moved = bytes::<T>(3 * elements);
    Case::new::<T>("lerp", format!("{elements}"), 3.0 * elements as f64, moved, move |device| {
        let (y, x) = (filled::<T>(device, elements, 1.0)?, filled::<T>(device, elements, 1.0)?);
        Ok(Box::new(move |device| lerp::lerp(device, &y, &x, 1e-3, elements)))
    })
}

/// Rows to sums, one head, sums to rows: all a loss costs besides the model.
fn loss(size: &Size, stem: &str, name: &str) -> Case {
    let (rows, trees, forest) = (size.rows(), size.trees, size.forest());
    let loss = Loss::named(name).expect("a loss of this name");
    // Log-probabilities read twice, reference once, coefficients written; the rest is small.
    let moved = bytes::<f32>(4 * rows);
    Case::new::<f32>(stem, format!("{name}, {trees} pairs, {rows} rows"), 3.0 * rows as f64, moved, move |device| {
        let forest = forest?;
        let groups = groups(&forest, loss.shape());
        let (logps, ref_logps) = (filled(device, rows, 1.0)?, filled(device, rows, 1.0)?);
        let (sequence_rows, coefficients) = (device.upload(&forest.sequence_rows)?, device.zeros(rows)?);
        let state = device.zeros(loss_batch::STATE)?;
        let rows = RowInputs { logps: Some(logps), ref_logps: Some(ref_logps), ..RowInputs::default() };
        Ok(Box::new(move |device| {
            let step = Step::new(device, &loss, &state, std::slice::from_ref(&groups))?;
            step.sum(0, &rows, &sequence_rows)?;
            step.run(None)?;
            let outputs = Outputs { coefficients: &coefficients, divergence_coefficients: None };
            step.spread(0, outputs, &rows, &sequence_rows)
        }))
    })
}

/// The pairs that a forest is made of as groups of a loss; lists and unpaired losses take them as they are.
fn groups(forest: &Forest, shape: Shape) -> Groups {
    let rows = |ends: &[i32]| (ends[1] - ends[0]) as usize;
    let value = |place: usize| if shape == Shape::List && place == 0 { 1.0 } else { 0.0 };
    let values = |place: usize| [value(place), f64::from(u8::from(shape == Shape::List))];
    Groups {
        rows: forest.sequence_rows.windows(2).map(rows).collect(),
        slots: (0..forest.sequences()).collect(),
        starts: (0..=forest.sequences()).step_by(2).collect(),
        values: (0..forest.sequences()).flat_map(|slot| values(slot % 2)).collect(),
        weights: Vec::new(),
    }
}

fn norm(size: &Size) -> Case {
    let elements = size.parameters;
    let moved = bytes::<f32>(elements);
    Case::new::<f32>("grad_norm", format!("{elements}"), 2.0 * elements as f64, moved, move |device| {
        let (stats, partials) = (device.alloc(3)?, device.alloc(grad_norm::partials(elements))?);
        let grads = filled::<f32>(device, elements, 1.0)?;
        Ok(Box::new(move |device| grad_norm::run(device, &stats, &partials, &grads, elements, 1.0)))
    })
}

/// What a step of AdamW reads and writes beside moments.
struct Update<T, G> {
    params: Buffer<T>,
    low: Buffer<u16>,
    grads: Buffer<G>,
    stats: Buffer<f32>,
    progress: Buffer<f64>,
}

const HYPER: adamw::Hyper = adamw::Hyper { lr: 1e-6, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

impl<T: Float, G: Float> Update<T, G> {
    fn new(device: &Device, elements: usize) -> Result<Self> {
        Ok(Self {
            params: filled(device, elements, 1.0)?,
            low: device.zeros(if T::DTYPE == DType::F32 { 0 } else { elements })?,
            grads: filled(device, elements, 1.0)?,
            stats: device.upload(&[1.0f32, 1.0, 1.0])?,
            progress: device.upload(&adamw::progress(9, HYPER.beta1, HYPER.beta2))?,
        })
    }

    fn tensors(&self) -> adamw::Tensors<'_, T, G> {
        let Self { params, low, grads, stats, progress } = self;
        adamw::Tensors { params, low, grads, stats, progress, decay_elements: params.len() / 2 }
    }

    /// Bytes moved beside moments: masters, of which bf16 weights are a half, are read and written, gradients are read.
    fn moved(elements: usize) -> f64 {
        2.0 * bytes::<f32>(elements) + bytes::<G>(elements)
    }
}

fn adamw_step<T: Float>(size: &Size) -> Case {
    let elements = size.parameters;
    let moved = Update::<T, f32>::moved(elements) + 4.0 * bytes::<f32>(elements);
    Case::new::<T>("adamw_step", format!("{elements}"), 14.0 * elements as f64, moved, move |device| {
        let update = Update::<T, f32>::new(device, elements)?;
        let (m, v) = (device.zeros(elements)?, device.zeros(elements)?);
        Ok(Box::new(move |device| adamw::step(device, &update.tensors(), [&m, &v], HYPER)))
    })
}

/// Moments in bf16.
fn adamw_bf16_step<T: Float>(size: &Size) -> Case {
    let elements = size.parameters;
    let moved = Update::<T, f32>::moved(elements) + 4.0 * bytes::<bf16>(elements);
    Case::new::<T>("adamw_bf16_step", format!("{elements}"), 14.0 * elements as f64, moved, move |device| {
        let update = Update::<T, f32>::new(device, elements)?;
        let (m, v) = (device.zeros(elements)?, device.zeros(elements)?);
        Ok(Box::new(move |device| adamw_bf16::step(device, &update.tensors(), [&m, &v], HYPER, DRAW, 0)))
    })
}

/// Moments in eight bits and gradients in bf16: 14 bytes a parameter.
fn adamw_8bit_step<T: Float>(size: &Size) -> Case {
    let (elements, blocks) = (size.parameters, size.parameters.div_ceil(BLOCK));
    let moved = Update::<T, bf16>::moved(elements) + 4.0 * bytes::<u8>(elements + blocks);
    let shape = format!("{elements}, gradients in bf16");
    Case::new::<T>("adamw_8bit_step", shape, 14.0 * elements as f64, moved, move |device| {
        let update = Update::<T, bf16>::new(device, elements)?;
        let (codes, exponents) = (|| device.zeros(elements), || device.zeros(blocks));
        let moments = Moments { m: codes()?, v: codes()?, m_exponents: exponents()?, v_exponents: exponents()? };
        Ok(Box::new(move |device| adamw_8bit::step(device, &update.tensors(), &moments, HYPER, DRAW, 0)))
    })
}
