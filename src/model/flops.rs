//! What the passes over a pack cost.

use super::{ModelConfig, Rung};
use crate::forest::Forest;

/// Floating-point operations of a forward pass over a pack: matrix products, attention over visible tokens, and the
/// head over its rows. Two a multiply-add.
pub fn flops(config: &ModelConfig, forest: &Forest) -> f64 {
    let layers: f64 = layers(config, forest).map(|layer| layer.all()).sum();
    layers + 2.0 * config.hidden as f64 * config.vocab as f64 * forest.rows() as f64
}

/// Those that the backward pass does again under these rungs; the last layer is still whole when it begins.
pub fn recomputed_flops(config: &ModelConfig, forest: &Forest, levels: &[Rung]) -> f64 {
    let all_but_last = levels.len().saturating_sub(1);
    layers(config, forest).zip(levels).take(all_but_last).map(|(layer, rung)| layer.again(*rung)).sum()
}

/// Those of one layer's forward pass, by product.
#[derive(Clone, Copy, Debug)]
pub struct LayerFlops {
    /// Of queries with keys, and of shares with values.
    pub attention: f64,
    gate_up: f64,
    qkv: f64,
    o: f64,
    down: f64,
    /// Whether the down product's output is kept for a norm.
    norms_mlp: bool,
}

impl LayerFlops {
    /// Of a layer over so many tokens, which see `visible` keys together.
    pub fn new(config: &ModelConfig, tokens: f64, visible: f64) -> Self {
        let product = |rows: usize, columns: usize| 2.0 * rows as f64 * columns as f64 * tokens;
        let hidden = config.hidden;
        Self {
            // Two products of head_dim per visible token.
            attention: 4.0 * config.q_width() as f64 * visible,
            gate_up: product(config.gate_width(), hidden),
            qkv: product(config.qkv_width(), hidden),
            o: product(hidden, config.q_width()),
            down: product(hidden, config.ffn),
            norms_mlp: config.norm_after,
        }
    }

    /// Of the whole layer.
    pub fn all(&self) -> f64 {
        self.attention + self.gate_up + self.qkv + self.o + self.down
    }

    /// Of what a rung drops and the rungs before it do not.
    pub fn step(&self, rung: Rung) -> f64 {
        match rung {
            Rung::None => 0.0,
            Rung::Attention => self.attention,
            Rung::GateUp => self.gate_up,
            Rung::Qkv => self.qkv,
            Rung::Block => self.o + if self.norms_mlp { self.down } else { 0.0 },
        }
    }

    /// Of all that is computed again on a rung.
    pub fn again(&self, rung: Rung) -> f64 {
        Rung::ALL.into_iter().filter(|&step| step <= rung).map(|step| self.step(step)).sum()
    }
}

fn layers<'a>(config: &'a ModelConfig, forest: &'a Forest) -> impl Iterator<Item = LayerFlops> + 'a {
    // A token sees its ancestors and itself: one more than its depth.
    let visible = |window: Option<usize>| -> f64 {
        let seen = |&depth: &i32| f64::from(depth) + 1.0;
        forest.position.iter().map(seen).map(|n| n.min(window.map_or(n, |w| w as f64))).sum()
    };
    let tokens = forest.len() as f64;
    config.layer_kinds.iter().map(move |kind| LayerFlops::new(config, tokens, visible(kind.window)))
}
