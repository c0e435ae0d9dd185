//! What a loss costs of a step, by the counts of `benches/step`.

use warpo::{
    forest::{Forest, Tree},
    loss::{Loss, all},
    model::{ModelConfig, flops},
};

/// Bytes and operations of the heads against those of a step, on the step bench's smallest model (GPT-2 124M): the larger
/// the model, the smaller the share. `benches/step` prints the same share for all of its models.
#[test]
fn a_loss_costs_less_than_a_hundredth_of_a_step() {
    let text = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "n_ctx": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true}"#;
    let config = ModelConfig::parse(text).unwrap();
    let trees: Vec<Tree> =
        (0..8).map(|i| Tree::pair(format!("{i}"), vec![1; 256], vec![2; 256], vec![3; 256])).collect();
    let forest = Forest::pack(&trees).unwrap();
    let step = 3.0 * flops(&config, &forest);
    // The head alone moves each row's f32 logits twice.
    let logits = 2.0 * 4.0 * (forest.rows() * config.vocab) as f64;
    let (mut worst_flops, mut worst_bytes) = (0.0f64, 0.0f64);
    for loss in all() {
        let (flops, bytes) = Loss::named(loss.name).unwrap().cost(forest.rows(), forest.sequences());
        assert!(flops < 0.01 * step, "{}: {flops:e} of {step:e} operations", loss.name);
        assert!(bytes < 0.01 * logits, "{}: {bytes:e} of {logits:e} bytes", loss.name);
        (worst_flops, worst_bytes) = (worst_flops.max(flops / step), worst_bytes.max(bytes / logits));
    }
    println!("at most {worst_flops:.1e} of the step's operations, {worst_bytes:.1e} of the bytes of the head's logits");
}
