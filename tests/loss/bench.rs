//! What a loss costs of a step, by the counts of `benches/step`.

use warpo::{
    forest::{Forest, Tree},
    loss::all,
    model::ModelConfig,
    train::batches,
};

/// Bytes and operations of a loss head against those of its step, on the step bench's smallest model (GPT-2 124M): the larger
/// the model, the smaller the share. Per row it reads a log-probability twice and a reference once and writes a coefficient;
/// per sequence there are eight sums, read and written once by each of at most three heads, and three slopes.
#[test]
fn a_loss_costs_less_than_a_hundredth_of_a_step() {
    let text = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "n_ctx": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true}"#;
    let config = ModelConfig::parse(text).unwrap();
    let trees: Vec<Tree> =
        (0..8).map(|i| Tree::pair(format!("{i}"), vec![1; 256], vec![2; 256], vec![3; 256])).collect();
    let forest = Forest::pack(&trees).unwrap();
    let (rows, sequences) = (forest.rows() as f64, forest.sequences() as f64);
    let parts = all().map(|loss| warpo::loss::Loss::named(loss.name).unwrap().parts().len()).max().unwrap() as f64;
    // About forty operations a row, most of them of log(1 - exp(x)) where it is wanted; some hundred a sequence and head.
    let flops = 40.0 * rows + 200.0 * parts * sequences;
    let step = 3.0 * batches::flops(&config, &forest);
    assert!(flops < 0.01 * step, "{flops:e} of {step:e} operations");
    let bytes = 16.0 * rows + 8.0 * sequences * (8.0 * (1.0 + parts) + 3.0 * (2.0 + parts));
    // The head alone moves each row's f32 logits twice.
    let head = 2.0 * 4.0 * rows * config.vocab as f64;
    assert!(bytes < 0.01 * head, "{bytes:e} of {head:e} bytes");
    println!("{:.1e} of the step's operations, {:.1e} of the bytes of the head's logits", flops / step, bytes / head);
}
