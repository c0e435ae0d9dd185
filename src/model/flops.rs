//! What the passes over a pack cost.

use super::ModelConfig;
use crate::forest::Forest;

/// Floating-point operations of a forward pass over a pack: matrix products, attention over visible tokens, and the
/// head over its rows. Two a multiply-add.
pub fn flops(config: &ModelConfig, forest: &Forest) -> f64 {
    let (hidden, mlp) = (config.hidden as f64, (config.gate_width() + config.ffn) as f64);
    let projections = 2.0 * hidden * ((config.qkv_width() + config.q_width()) as f64 + mlp) * forest.len() as f64;
    // A token sees its ancestors and itself: one more than its depth. Two products of head_dim per visible token.
    let attention = |window: Option<usize>| -> f64 {
        let seen = |&depth: &i32| f64::from(depth) + 1.0;
        let visible: f64 = forest.position.iter().map(seen).map(|n| n.min(window.map_or(n, |w| w as f64))).sum();
        4.0 * config.q_width() as f64 * visible
    };
    let layers: f64 = config.layer_kinds.iter().map(|kind| projections + attention(kind.window)).sum();
    layers + 2.0 * hidden * config.vocab as f64 * forest.rows() as f64
}
