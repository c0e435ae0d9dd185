//! A Llama-style decoder and its gradients in plain f64, after the formulas of transformers' `LlamaForCausalLM`:
//! dense mask, separate weights under their names, nothing shared with the engine but the configuration.
//!
//! Every value that a computation would store passes through `round`, so that the same lines serve as the oracle
//! (identity) and as the naive computation in low precision (rounding after every operation).

use std::{collections::BTreeMap, ops::Range};

use warpo::{
    forest::{Forest, Tree},
    model::ModelConfig,
};

use super::{rmsnorm, rope, swiglu};

/// Tensors by Hugging Face name.
pub type Params = BTreeMap<String, Vec<f64>>;

/// Tokens with their mask and what is predicted from them.
pub struct Input {
    pub tokens: Vec<usize>,
    pub position: Vec<i32>,
    /// `visible[i][j]`: token `i` sees token `j`.
    pub visible: Vec<Vec<bool>>,
    /// (token whose hidden state predicts, token id that is predicted)
    pub rows: Vec<(usize, usize)>,
}

impl Input {
    /// A whole pack under its dense mask.
    pub fn forest(forest: &Forest) -> Self {
        let len = forest.len();
        Self {
            tokens: forest.tokens.iter().map(|&t| t as usize).collect(),
            position: forest.position.clone(),
            visible: (0..len).map(|i| (0..len).map(|j| forest.visible(i, j)).collect()).collect(),
            rows: forest.row_source.iter().zip(&forest.row_target).map(|(&s, &t)| (s as usize, t as usize)).collect(),
        }
    }

    /// A plain causal sequence whose tokens in `scored` are predicted.
    pub fn sequence(tokens: &[u32], scored: Range<usize>) -> Self {
        let len = tokens.len();
        Self {
            tokens: tokens.iter().map(|&t| t as usize).collect(),
            position: (0..len as i32).collect(),
            visible: (0..len).map(|i| (0..len).map(|j| j <= i).collect()).collect(),
            rows: scored.filter(|&i| i > 0).map(|i| (i - 1, tokens[i] as usize)).collect(),
        }
    }

    /// The scored segments of a tree, each as a sequence of its own behind all its ancestors.
    pub fn paths(tree: &Tree) -> Vec<Self> {
        paths(tree).into_iter().map(|(tokens, scored)| Self::sequence(&tokens, scored)).collect()
    }
}

/// For each scored segment the tokens from the root to its end, and which of them are its own.
pub fn paths(tree: &Tree) -> Vec<(Vec<u32>, Range<usize>)> {
    let path = |mut segment: usize| {
        let mut parts = vec![tree.segments[segment].tokens.clone()];
        while let Some(parent) = tree.segments[segment].parent {
            parts.insert(0, tree.segments[parent].tokens.clone());
            segment = parent;
        }
        parts.concat()
    };
    let scored = (0..tree.segments.len()).filter(|&i| tree.segments[i].scored);
    let with_own = |i: usize| {
        let tokens = path(i);
        let own = tokens.len() - tree.segments[i].tokens.len()..tokens.len();
        (tokens, own)
    };
    scored.map(with_own).collect()
}

/// The model: its shape, its weights and how stored values are rounded.
pub struct Model<'a> {
    pub config: &'a ModelConfig,
    pub params: &'a Params,
    pub round: fn(f64) -> f64,
}

/// What one layer computes.
struct Layer {
    x: Vec<f64>,
    normed: Vec<f64>,
    qkv: Vec<f64>,
    attended: Vec<f64>,
    middle: Vec<f64>,
    normed_middle: Vec<f64>,
    gate_up: Vec<f64>,
    inner: Vec<f64>,
}

struct Pass {
    layers: Vec<Layer>,
    last: Vec<f64>,
    hidden: Vec<f64>,
    /// One row of logits for each row.
    logits: Vec<Vec<f64>>,
}

impl Model<'_> {
    /// One row of logits for each row.
    pub fn logits(&self, input: &Input) -> Vec<Vec<f64>> {
        self.forward(input).logits
    }

    /// Of every layer, what its MLP's second matrix reads and the stream behind it, by token.
    pub fn activations(&self, input: &Input) -> Vec<[Vec<f64>; 2]> {
        let pass = self.forward(input);
        let streams = pass.layers.iter().skip(1).map(|layer| &layer.x).chain([&pass.last]);
        pass.layers.iter().zip(streams).map(|(layer, stream)| [layer.inner.clone(), stream.clone()]).collect()
    }

    /// The log-probability of every row's target.
    pub fn logps(&self, input: &Input) -> Vec<f64> {
        let pass = self.forward(input);
        pass.logits.iter().zip(&input.rows).map(|(z, &(_, target))| z[target] - log_sum_exp(z)).collect()
    }

    /// Gradients of `sum over rows of coefficient * log-probability`.
    pub fn grads(&self, input: &Input, coefficients: &[f64]) -> Params {
        let pass = self.forward(input);
        let mut grads: Params = self.params.iter().map(|(name, w)| (name.clone(), vec![0.0; w.len()])).collect();
        let dhidden = self.head_bwd(&mut grads, input, &pass, coefficients);
        let mut dx = self.stored(self.norm_bwd(&mut grads, "model.norm.weight", &dhidden, &pass.last));
        for (i, layer) in pass.layers.iter().enumerate().rev() {
            let prefix = format!("model.layers.{i}");
            dx = self.mlp_bwd(&mut grads, &prefix, layer, dx);
            dx = self.attention_bwd(&mut grads, &prefix, layer, dx, input);
        }
        let hidden = self.config.hidden;
        let table = grads.get_mut("model.embed_tokens.weight").unwrap();
        for (&id, dx) in input.tokens.iter().zip(dx.chunks(hidden)) {
            add(&mut table[id * hidden..(id + 1) * hidden], dx);
        }
        grads
    }

    fn stored(&self, values: Vec<f64>) -> Vec<f64> {
        values.into_iter().map(self.round).collect()
    }

    fn head_name(&self) -> &'static str {
        if self.config.tied { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    fn forward(&self, input: &Input) -> Pass {
        let hidden = self.config.hidden;
        let table = &self.params["model.embed_tokens.weight"];
        let mut x: Vec<f64> =
            input.tokens.iter().flat_map(|&id| table[id * hidden..(id + 1) * hidden].to_vec()).collect();
        let mut layers = Vec::new();
        for i in 0..self.config.layers {
            let (layer, y) = self.layer_fwd(&format!("model.layers.{i}"), x, input);
            layers.push(layer);
            x = y;
        }
        let states = self.norm("model.norm.weight", &x);
        let head = &self.params[self.head_name()];
        let logits = |&(source, _): &(usize, usize)| {
            self.stored(linear(&states[source * hidden..(source + 1) * hidden], head, hidden))
        };
        Pass { layers, last: x, logits: input.rows.iter().map(logits).collect(), hidden: states }
    }

    fn layer_fwd(&self, prefix: &str, x: Vec<f64>, input: &Input) -> (Layer, Vec<f64>) {
        let (hidden, ffn) = (self.config.hidden, self.config.ffn);
        let normed = self.norm(&format!("{prefix}.input_layernorm.weight"), &x);
        let qkv = self.stored(linear(&normed, &self.joined(prefix, &QKV), hidden));
        let qkv = self.stored(self.rotate(&qkv, &input.position, 1.0));
        let attended = self.attention(&qkv, input);
        let projected = self.stored(linear(&attended, &self.joined(prefix, &O), self.config.q_width()));
        let middle = self.sum(&x, &projected);
        let normed_middle = self.norm(&format!("{prefix}.post_attention_layernorm.weight"), &middle);
        let gate_up = self.stored(linear(&normed_middle, &self.joined(prefix, &GATE_UP), hidden));
        let inner = self.stored(swiglu::fwd(&gate_up, ffn));
        let projected = self.stored(linear(&inner, &self.joined(prefix, &DOWN), ffn));
        let y = self.sum(&middle, &projected);
        (Layer { x, normed, qkv, attended, middle, normed_middle, gate_up, inner }, y)
    }

    fn sum(&self, a: &[f64], b: &[f64]) -> Vec<f64> {
        self.stored(a.iter().zip(b).map(|(a, b)| a + b).collect())
    }

    fn norm(&self, weight: &str, x: &[f64]) -> Vec<f64> {
        self.stored(rmsnorm::fwd(x, &self.params[weight], f64::from(self.config.norm_eps)).0)
    }

    /// Weights that read the same input, one below the other.
    fn joined(&self, prefix: &str, names: &[&str]) -> Vec<f64> {
        names.iter().flat_map(|name| self.params[&format!("{prefix}.{name}.weight")].clone()).collect()
    }

    fn rotate(&self, qkv: &[f64], position: &[i32], direction: f64) -> Vec<f64> {
        let half = self.config.head_dim / 2;
        let positions = *position.iter().max().unwrap() as usize + 1;
        let angle = |i: usize| {
            (i / half) as f64 / self.config.ropes[0].theta.powf((2 * (i % half)) as f64 / self.config.head_dim as f64)
        };
        let cos: Vec<f64> = (0..positions * half).map(|i| angle(i).cos()).collect();
        let sin: Vec<f64> = (0..positions * half).map(|i| angle(i).sin()).collect();
        let ModelConfig { heads, kv_heads, head_dim, .. } = *self.config;
        rope::apply(qkv, position, &cos, &sin, direction, heads, kv_heads, head_dim)
    }

    /// Start of a head's row in qkv: `part` 0 is the query, 1 the key and 2 the value that query head reads.
    fn at(&self, token: usize, head: usize, part: usize) -> usize {
        let ModelConfig { heads, kv_heads, head_dim, .. } = *self.config;
        let shared = head / (heads / kv_heads);
        let slot = [head, heads + shared, heads + kv_heads + shared][part];
        (token * (heads + 2 * kv_heads) + slot) * head_dim
    }

    /// Softmax over what token `i` sees, 0 elsewhere.
    fn probabilities(&self, qkv: &[f64], input: &Input, i: usize, head: usize) -> Vec<f64> {
        let head_dim = self.config.head_dim;
        let row = |token, part| &qkv[self.at(token, head, part)..][..head_dim];
        let score = |j: usize| (self.round)(dot(row(i, 0), row(j, 1)) / (head_dim as f64).sqrt());
        let seen: Vec<usize> = (0..input.tokens.len()).filter(|&j| input.visible[i][j]).collect();
        let scores: Vec<f64> = seen.iter().map(|&j| score(j)).collect();
        let total = log_sum_exp(&scores);
        let mut p = vec![0.0; input.tokens.len()];
        for (j, score) in seen.into_iter().zip(scores) {
            p[j] = (self.round)((score - total).exp());
        }
        p
    }

    fn attention(&self, qkv: &[f64], input: &Input) -> Vec<f64> {
        let (head_dim, q) = (self.config.head_dim, self.config.q_width());
        let mut out = vec![0.0; input.tokens.len() * q];
        for (i, row) in out.chunks_mut(q).enumerate() {
            for (head, out) in row.chunks_mut(head_dim).enumerate() {
                for (j, p) in self.probabilities(qkv, input, i, head).into_iter().enumerate() {
                    let v = &qkv[self.at(j, head, 2)..][..head_dim];
                    out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
                }
            }
        }
        self.stored(out)
    }

    /// Returns the gradient of the head's input.
    fn head_bwd(&self, grads: &mut Params, input: &Input, pass: &Pass, coefficients: &[f64]) -> Vec<f64> {
        let hidden = self.config.hidden;
        let head = &self.params[self.head_name()];
        let mut dhidden = vec![0.0; pass.hidden.len()];
        for ((z, &(source, target)), c) in pass.logits.iter().zip(&input.rows).zip(coefficients) {
            let total = log_sum_exp(z);
            let one_hot = |v: usize| if v == target { 1.0 } else { 0.0 };
            let dz = self.stored((0..z.len()).map(|v| c * (one_hot(v) - (z[v] - total).exp())).collect());
            let own = source * hidden..(source + 1) * hidden;
            let dw = grads.get_mut(self.head_name()).unwrap();
            let dstate = self.stored(linear_bwd(dw, &dz, &pass.hidden[own.clone()], head, hidden));
            add(&mut dhidden[own], &dstate);
        }
        self.stored(dhidden)
    }

    fn norm_bwd(&self, grads: &mut Params, weight: &str, dy: &[f64], x: &[f64]) -> Vec<f64> {
        let (dx, dw) = rmsnorm::bwd(dy, x, &self.params[weight], f64::from(self.config.norm_eps));
        add(grads.get_mut(weight).unwrap(), &dw);
        dx
    }

    fn mlp_bwd(&self, grads: &mut Params, prefix: &str, layer: &Layer, dy: Vec<f64>) -> Vec<f64> {
        let (hidden, ffn) = (self.config.hidden, self.config.ffn);
        let dinner = self.linear_bwd(grads, prefix, &DOWN, &dy, &layer.inner, ffn);
        let dgate_up = self.stored(swiglu::bwd(&dinner, &layer.gate_up, ffn));
        let dnormed = self.linear_bwd(grads, prefix, &GATE_UP, &dgate_up, &layer.normed_middle, hidden);
        let weight = format!("{prefix}.post_attention_layernorm.weight");
        let dx = self.stored(self.norm_bwd(grads, &weight, &dnormed, &layer.middle));
        self.sum(&dy, &dx)
    }

    fn attention_bwd(&self, grads: &mut Params, prefix: &str, layer: &Layer, dy: Vec<f64>, input: &Input) -> Vec<f64> {
        let hidden = self.config.hidden;
        let dattended = self.linear_bwd(grads, prefix, &O, &dy, &layer.attended, self.config.q_width());
        let dqkv = self.softmax_bwd(&dattended, layer, input);
        let dqkv = self.stored(self.rotate(&dqkv, &input.position, -1.0));
        let dnormed = self.linear_bwd(grads, prefix, &QKV, &dqkv, &layer.normed, hidden);
        let weight = format!("{prefix}.input_layernorm.weight");
        let dx = self.stored(self.norm_bwd(grads, &weight, &dnormed, &layer.x));
        self.sum(&dy, &dx)
    }

    fn softmax_bwd(&self, dout: &[f64], layer: &Layer, input: &Input) -> Vec<f64> {
        let (head_dim, q) = (self.config.head_dim, self.config.q_width());
        let qkv = &layer.qkv;
        let mut dqkv = vec![0.0; qkv.len()];
        for (i, dout) in dout.chunks(q).enumerate() {
            for (head, dout) in dout.chunks(head_dim).enumerate() {
                let p = self.probabilities(qkv, input, i, head);
                let dp: Vec<f64> = (0..p.len()).map(|j| dot(dout, &qkv[self.at(j, head, 2)..][..head_dim])).collect();
                let mean = dot(&p, &dp);
                for (j, (&p, dp)) in p.iter().zip(dp).enumerate().filter(|(j, _)| input.visible[i][*j]) {
                    let ds = (self.round)(p * (dp - mean)) / (head_dim as f64).sqrt();
                    let [query, key, value] = [(i, 0), (j, 1), (j, 2)].map(|(t, part)| self.at(t, head, part));
                    for d in 0..head_dim {
                        dqkv[value + d] += p * dout[d];
                        dqkv[key + d] += ds * qkv[query + d];
                        dqkv[query + d] += ds * qkv[key + d];
                    }
                }
            }
        }
        self.stored(dqkv)
    }

    /// Adds the weights' gradients and returns the input's.
    fn linear_bwd(
        &self,
        grads: &mut Params,
        prefix: &str,
        names: &[&str],
        dy: &[f64],
        x: &[f64],
        columns: usize,
    ) -> Vec<f64> {
        let w = self.joined(prefix, names);
        let mut dw = vec![0.0; w.len()];
        let dx = linear_bwd(&mut dw, dy, x, &w, columns);
        let mut rest = &dw[..];
        for name in names {
            let own = grads.get_mut(&format!("{prefix}.{name}.weight")).unwrap();
            let (part, others) = rest.split_at(own.len());
            add(own, part);
            rest = others;
        }
        self.stored(dx)
    }
}

const QKV: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
const O: [&str; 1] = ["self_attn.o_proj"];
const GATE_UP: [&str; 2] = ["mlp.gate_proj", "mlp.up_proj"];
const DOWN: [&str; 1] = ["mlp.down_proj"];

/// `y = x wᵀ`; `w` (rows, columns).
fn linear(x: &[f64], w: &[f64], columns: usize) -> Vec<f64> {
    x.chunks(columns).flat_map(|x| w.chunks(columns).map(move |w| dot(x, w))).collect()
}

/// Adds `dyᵀ x` to `dw` and returns `dy w`.
fn linear_bwd(dw: &mut [f64], dy: &[f64], x: &[f64], w: &[f64], columns: usize) -> Vec<f64> {
    let rows = w.len() / columns;
    let mut dx = vec![0.0; x.len()];
    for ((dy, x), dx) in dy.chunks(rows).zip(x.chunks(columns)).zip(dx.chunks_mut(columns)) {
        for (r, dy) in dy.iter().enumerate() {
            for c in 0..columns {
                dx[c] += dy * w[r * columns + c];
                dw[r * columns + c] += dy * x[c];
            }
        }
    }
    dx
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f64], values: &[f64]) {
    sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let top = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + values.iter().map(|v| (v - top).exp()).sum::<f64>().ln()
}
