//! Kernels whose roof is the tensor cores.

use crate::{
    device::{Arch, Buffer, DType, Device, Float},
    forest::Forest,
    ops::{
        attention::sm90::{Plan, Tile},
        attention::{self, Dims, Pass},
        gemm::{self, Epilogue, Gemm},
        head::{self, HeadRows, HeadShape, HeadValues, Scratch},
        rope::{self, Heads, Rotary},
        swiglu,
    },
};

use std::rc::Rc;

use anyhow::Result;

use super::{Case, Prepared, Product, Run, Size, bytes, filled};

pub fn cases<T: Float>(size: &Size) -> Vec<Case> {
    let (tokens, hidden) = (size.tokens(), size.hidden);
    vec![
        product::<T>("gemm_nt", "", Gemm::nt(tokens, size.qkv(), hidden)),
        product::<T>("gemm_nt", "", Gemm::nt(tokens, 2 * size.ffn, hidden)),
        product::<T>("gemm_nt", "", Gemm::nt(tokens, hidden, size.ffn)),
        product::<T>("gemm_nn", "", Gemm::nn(tokens, hidden, 2 * size.ffn)),
        weight_product::<T>(
            "gemm_tn",
            "",
            gemm::split_workspace::<T>,
            Gemm::tn(2 * size.ffn, hidden, tokens).accumulating(),
        ),
        attention_fwd::<T>(size),
        attention_bwd::<T>(size),
        head_fwd::<T>(size),
        head_bwd::<T>(size, true),
        head_bwd::<T>(size, false),
        with_addend::<T>(Gemm::nt(tokens, hidden, size.ffn)),
        swiglu_project::<T>(size),
        rope_project::<T>(size),
    ]
}

fn shape(gemm: &Gemm) -> String {
    format!("{}x{}x{}", gemm.m, gemm.n, gemm.k)
}

/// `of` says whose product it is, where that matters.
pub fn product<T: Float>(name: &str, of: &str, gemm: Gemm) -> Case {
    let (a, b, d) = (gemm.m * gemm.k, gemm.n * gemm.k, gemm.m * gemm.n);
    Case::of_product::<T>(name, shape(&gemm) + of, gemm.flops(), bytes::<T>(a + b + d), move |device| {
        let (a, b, d) = (filled::<T>(device, a, 1.0)?, filled::<T>(device, b, 1.0)?, device.alloc::<T>(d)?);
        let is_bf16 = T::DTYPE == DType::Bf16;
        let product = is_bf16.then(|| Product { gemm, d: d.cast(), wide: None, a: a.cast(), b: b.cast() });
        Ok(Prepared { run: Box::new(move |device| gemm::run(device, &gemm, &d, &a, &b)), reset: None, product })
    })
}

/// Added to an f32 gradient, with as much room for parts of sums as `workspace` says.
pub fn weight_product<T: Float>(name: &str, of: &str, workspace: fn(&Device, &Gemm) -> usize, gemm: Gemm) -> Case {
    let (a, b, d) = (gemm.m * gemm.k, gemm.n * gemm.k, gemm.m * gemm.n);
    let moved = bytes::<T>(a + b) + 2.0 * bytes::<f32>(d);
    Case::of_product::<T>(name, format!("{}, added{of}", shape(&gemm)), gemm.flops(), moved, move |device| {
        let (a, b, d) = (filled::<T>(device, a, 1.0)?, filled::<T>(device, b, 1.0)?, device.zeros::<f32>(d)?);
        let is_bf16 = T::DTYPE == DType::Bf16;
        let wide = Some(d.clone());
        let product = is_bf16.then(|| Product { gemm, d: d.cast(), wide, a: a.cast(), b: b.cast() });
        let workspace = device.alloc(workspace(device, &gemm))?;
        Ok(Prepared {
            run: Box::new(move |device| gemm::run_split(device, &gemm, &d, &a, &b, &workspace)),
            reset: None,
            product,
        })
    })
}

fn dims(size: &Size) -> Dims {
    let Size { heads, kv_heads, head_dim, .. } = *size;
    Dims { tokens: size.tokens(), heads, kv_heads, head_dim, window: None, softcap: None }
}

fn attention_shape(size: &Size) -> String {
    let Size { trees, prompt, response, heads, kv_heads, head_dim, .. } = size;
    match response {
        0 => format!("{trees} documents of {prompt}, {heads}/{kv_heads}x{head_dim}"),
        _ => format!("{trees} pairs of {prompt}+2x{response}, {heads}/{kv_heads}x{head_dim}"),
    }
}

fn mask(device: &Device, forest: &Forest) -> Result<attention::Mask> {
    let (subtree_end, tile_bounds) = (device.upload(&forest.subtree_end)?, device.upload(&forest.tile_bounds)?);
    let position = device.upload(&forest.position)?;
    Ok(attention::Mask { subtree_end, tile_bounds, position, mean_keys: forest.mean_keys() })
}

/// Two products of two FLOPs for each visible pair, head and column.
pub fn attention_fwd<T: Float>(size: &Size) -> Case {
    attention_fwd_by::<T>(size, None)
}

/// The same with a tile of a given size and so many slots, where there are Hopper's units.
pub fn attention_fwd_by<T: Float>(size: &Size, plan: Option<(Tile, usize)>) -> Case {
    let (dims, forest) = (dims(size), size.forest());
    let (width, out_width) = (size.qkv(), size.heads * size.head_dim);
    let flops = 4.0 * size.visible() * out_width as f64;
    let moved = bytes::<T>(dims.tokens * (width + out_width)) + bytes::<f32>(dims.tokens * dims.heads);
    let by = plan.map_or(String::new(), |(tile, stages)| format!(", {tile:?}, {stages} slots"));
    Case::new::<T>("attention_fwd", attention_shape(size) + &by, flops, moved, move |device| {
        let forest = forest?;
        let mask = mask(device, &forest)?;
        let (out, lse) = (device.alloc::<T>(dims.tokens * out_width)?, device.alloc(dims.tokens * dims.heads)?);
        let qkv = filled(device, dims.tokens * width, 1.0)?;
        let scale = 1.0 / (dims.head_dim as f32).sqrt();
        Ok(Box::new(move |device| match plan.filter(|_| device.arch() == Arch::Sm90) {
            None => attention::fwd(device, &out, &lse, &qkv, &mask, scale, &dims),
            Some((tile, stages)) => {
                let plan = Plan { stages, ..Plan::with_tile(Pass::Fwd, &dims, tile) };
                attention::fwd_planned(device, &plan, &out.cast(), &lse, &qkv.cast(), &mask, scale, &dims)
            }
        }))
    })
}

/// Five products, as is customary to count, whatever the kernels compute twice.
pub fn attention_bwd<T: Float>(size: &Size) -> Case {
    attention_bwd_by::<T>(size, None)
}

/// The same with a tile of a given size and so many slots for the gradients of queries, where there are Hopper's units.
pub fn attention_bwd_by<T: Float>(size: &Size, plan: Option<(Tile, usize)>) -> Case {
    let (dims, forest) = (dims(size), size.forest());
    let (width, out_width) = (size.qkv(), size.heads * size.head_dim);
    let flops = 10.0 * size.visible() * out_width as f64;
    let moved = bytes::<T>(dims.tokens * (2 * width + 2 * out_width)) + bytes::<f32>(dims.tokens * dims.heads);
    let by = plan.map_or(String::new(), |(tile, stages)| format!(", queries by {tile:?}, {stages} slots"));
    Case::new::<T>("attention_bwd", attention_shape(size) + &by, flops, moved, move |device| {
        let forest = forest?;
        let mask = mask(device, &forest)?;
        let (out, lse) = (device.alloc::<T>(dims.tokens * out_width)?, device.alloc(dims.tokens * dims.heads)?);
        let (qkv, dout) = (filled(device, dims.tokens * width, 1.0)?, filled(device, dims.tokens * out_width, 1.0)?);
        let (dqkv, delta) = (device.alloc(dims.tokens * width)?, device.alloc(dims.tokens * dims.heads)?);
        let scale = 1.0 / (dims.head_dim as f32).sqrt();
        attention::fwd(device, &out, &lse, &qkv, &mask, scale, &dims)?;
        Ok(Box::new(move |device| match plan.filter(|_| device.arch() == Arch::Sm90) {
            None => attention::bwd(device, &dqkv, &delta, &dout, &out, &lse, &qkv, &mask, None, scale, &dims),
            Some((tile, stages)) => {
                let by_key = Plan::choose(Pass::Dkdv, &dims, mask.mean_keys, device.sm_count());
                let plans = [by_key, Plan { stages, ..Plan::with_tile(Pass::Dq, &dims, tile) }];
                let [dqkv, dout, out, qkv] = [&dqkv, &dout, &out, &qkv].map(Buffer::cast);
                attention::bwd_planned(
                    device, &plans, &dqkv, &delta, &dout, &out, &lse, &qkv, &mask, None, scale, &dims,
                )
            }
        }))
    })
}

/// Everything a pass of the head touches.
struct HeadBuffers<T> {
    scratch: Scratch<T>,
    rows: HeadRows,
    hidden_states: Buffer<T>,
    weight: Buffer<T>,
    values: HeadValues,
}

fn head(size: &Size) -> HeadShape {
    HeadShape { vocab: size.vocab, hidden: size.hidden, chunk_rows: size.chunk_rows, softcap: None }
}

fn head_shape(size: &Size) -> String {
    format!("{} rows of {}, {}x{}", size.rows(), size.tokens(), size.vocab, size.hidden)
}

fn head_buffers<T: Float>(device: &Device, size: &Size) -> Result<HeadBuffers<T>> {
    let (forest, head, rows) = (size.forest()?, head(size), size.rows());
    let logits = device.alloc::<f32>(head.chunk_rows * head.ld())?;
    let scratch = Scratch {
        x_rows: device.alloc(head.chunk_rows * head.hidden)?,
        dlogits: device.alloc(head.chunk_rows * head.ld())?,
        dx_rows: device.alloc(rows * head.hidden)?,
        logits,
    };
    let rows_of = HeadRows {
        source: device.upload(&forest.row_source)?,
        target: device.upload(&forest.row_target)?,
        token_row_offsets: device.upload(&forest.token_row_offsets)?,
        token_rows: device.upload(&forest.token_rows)?,
        rows,
        tokens: size.tokens(),
    };
    Ok(HeadBuffers {
        scratch,
        rows: rows_of,
        hidden_states: filled(device, size.tokens() * head.hidden, 1.0)?,
        weight: filled(device, head.vocab * head.hidden, 0.02)?,
        values: HeadValues::alloc(device, rows)?,
    })
}

fn head_fwd<T: Float>(size: &Size) -> Case {
    let (rows, vocab, hidden) = (size.rows(), size.vocab, size.hidden);
    let (size, head) = (*size, head(size));
    let moved = bytes::<T>(rows * hidden + vocab * hidden) + bytes::<f32>(4 * rows);
    let flops = 2.0 * (rows * hidden) as f64 * vocab as f64;
    Case::new::<T>("head_fwd", head_shape(&size), flops, moved, move |device| {
        let at = head_buffers::<T>(device, &size)?;
        Ok(Box::new(move |device| {
            head::fwd(device, &at.values, &at.scratch, &at.hidden_states, &at.weight, &at.rows, &head)
        }))
    })
}

/// Two products; a third where the logits are not `kept` and are computed again, as all but a step's last chunk are.
fn head_bwd<T: Float>(size: &Size, kept: bool) -> Case {
    let (rows, vocab, hidden) = (size.rows(), size.vocab, size.hidden);
    let (size, head) = (*size, head(size));
    let weights = bytes::<T>(vocab * hidden) + 2.0 * bytes::<f32>(vocab * hidden);
    let moved = bytes::<T>((rows + size.tokens()) * hidden) + weights + bytes::<f32>(2 * rows);
    let products = if kept { 2.0 } else { 3.0 };
    let flops = products * 2.0 * (rows * hidden) as f64 * vocab as f64;
    let shape = head_shape(&size) + if kept { ", logits kept" } else { ", logits again" };
    Case::of_product::<T>("head_bwd", shape, flops, moved, move |device| {
        let at = Rc::new(head_buffers::<T>(device, &size)?);
        let dhidden = device.alloc(size.tokens() * hidden)?;
        let (dweight, slopes) = (device.zeros(vocab * hidden)?, filled(device, rows, 0.1)?);
        let again = at.clone();
        let forward = move |device: &Device| {
            let HeadBuffers { scratch, rows, hidden_states, weight, values } = &*again;
            head::fwd(device, values, scratch, hidden_states, weight, rows, &head)
        };
        forward(device)?;
        let run: Run = Box::new(move |device| {
            let HeadBuffers { scratch, rows, hidden_states, weight, values } = &*at;
            head::bwd(
                device,
                &dhidden,
                &dweight,
                scratch,
                hidden_states,
                weight,
                &values.lse,
                &slopes,
                rows,
                &head,
                kept,
                false,
            )
        });
        // The backward pass writes over what the forward pass left.
        Ok(Prepared { run, reset: kept.then(|| Box::new(forward) as Run), product: None })
    })
}

/// A product with the residual stream added to it.
fn with_addend<T: Float>(gemm: Gemm) -> Case {
    let (a, b, d) = (gemm.m * gemm.k, gemm.n * gemm.k, gemm.m * gemm.n);
    let moved = bytes::<T>(a + b + 2 * d);
    Case::new::<T>("gemm_nt", shape(&gemm) + ", residual added", gemm.flops(), moved, move |device| {
        let (a, b, d) = (filled::<T>(device, a, 1.0)?, filled::<T>(device, b, 1.0)?, device.alloc::<T>(d)?);
        let addend = filled::<T>(device, d.len(), 1.0)?;
        Ok(Box::new(move |device| {
            gemm::run_adding(device, &gemm, &d, &a, &b, &Epilogue { bias: None, addend: Some(&addend) })
        }))
    })
}

/// Gate and value, their product before them.
fn swiglu_project<T: Float>(size: &Size) -> Case {
    let (rows, ffn, hidden) = (size.tokens(), size.ffn, size.hidden);
    let gemm = Gemm::nt(rows, 2 * ffn, hidden);
    let moved = bytes::<T>(rows * (hidden + 3 * ffn) + 2 * ffn * hidden);
    Case::new::<T>("swiglu_project", shape(&gemm), gemm.flops(), moved, move |device| {
        let (y, gate_up) = (device.alloc::<T>(rows * ffn)?, device.alloc::<T>(rows * 2 * ffn)?);
        let (x, w) = (filled(device, rows * hidden, 1.0)?, filled(device, 2 * ffn * hidden, 0.02)?);
        Ok(Box::new(move |device| swiglu::project(device, &y, &gate_up, &x, &w, [rows, ffn, hidden])))
    })
}

/// Queries, keys and values, their product before the rotation.
fn rope_project<T: Float>(size: &Size) -> Case {
    let Size { heads, kv_heads, head_dim, hidden, .. } = *size;
    let (size, heads) = (*size, Heads { heads, kv_heads, head_dim });
    let gemm = Gemm::nt(size.tokens(), heads.width(), hidden);
    let moved = bytes::<T>(gemm.m * (gemm.n + gemm.k) + gemm.n * gemm.k);
    Case::new::<T>("rope_project", shape(&gemm), gemm.flops(), moved, move |device| {
        let (forest, half) = (size.forest()?, head_dim / 2);
        let position = device.upload(&forest.position)?;
        let table = |of: fn(f32) -> f32| {
            let angle = |i: usize| (i / half) as f32 * 1e4f32.powf(-((i % half) as f32) / half as f32);
            device.upload(&(0..size.tokens() * half).map(|i| of(angle(i))).collect::<Vec<_>>())
        };
        let rotary = Rotary { cos: table(f32::cos)?, sin: table(f32::sin)? };
        let qkv = device.alloc::<T>(gemm.m * gemm.n)?;
        let (x, w) = (filled(device, gemm.m * hidden, 1.0)?, filled(device, gemm.n * hidden, 0.02)?);
        Ok(Box::new(move |device| {
            rope::project(device, &qkv, &x, &w, None, &position, &rotary, &heads, [gemm.m, hidden])
        }))
    })
}
