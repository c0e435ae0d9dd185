//! A `config.json` of sizes that no model has.

use std::fs;

use super::{super::scratch::Scratch, Case, check, train};

/// `config.json` with this value.
pub(super) fn size(scratch: &Scratch, key: &str, value: &str) {
    let text = fs::read_to_string(scratch.path("model/config.json")).unwrap();
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    config.remove(key);
    let rest = serde_json::to_string(&config).unwrap();
    scratch.write("model/config.json", rest.replacen('{', &format!("{{\"{key}\": {value},"), 1));
}

const CONFIG: &[&str] = &["model/config.json"];

const SIZES: &[Case] = &[
    train(
        "2^60 layers",
        |s| size(s, "num_hidden_layers", "1152921504606846976"),
        &["config.json", "num_hidden_layers"],
    ),
    train("a billion layers", |s| size(s, "num_hidden_layers", "1000000000"), &["config.json", "num_hidden_layers"]),
    train("no layer", |s| size(s, "num_hidden_layers", "0"), &["config.json", "num_hidden_layers 0"]),
    train("-1 layers", |s| size(s, "num_hidden_layers", "-1"), &["config.json", "num_hidden_layers -1"]),
    train("a layer and a half", |s| size(s, "num_hidden_layers", "1.5"), &["config.json", "num_hidden_layers 1.5"]),
    train("1e300 layers", |s| size(s, "num_hidden_layers", "1e300"), &["config.json", "num_hidden_layers"]),
    train("1e999 layers", |s| size(s, "num_hidden_layers", "1e999"), CONFIG),
    train("NaN layers", |s| size(s, "num_hidden_layers", "NaN"), CONFIG),
    train(
        "layers in words",
        |s| size(s, "num_hidden_layers", "\"two\""),
        &["config.json", "num_hidden_layers \"two\""],
    ),
    train("a list of layers", |s| size(s, "num_hidden_layers", "[1]"), &["config.json", "num_hidden_layers"]),
    train("a vocabulary of 2^62", |s| size(s, "vocab_size", "4611686018427387904"), &["config.json", "vocab_size"]),
    train("a vocabulary of 2^30", |s| size(s, "vocab_size", "1073741824"), &["error: "]),
    train("heads without number", |s| size(s, "num_attention_heads", "18446744073709551616"), CONFIG),
    train("a million heads", |s| size(s, "num_attention_heads", "1000000"), &["error: "]),
    train("a hidden size of 2^30", |s| size(s, "hidden_size", "1073741824"), &["error: "]),
    train("an MLP of 2^30", |s| size(s, "intermediate_size", "1073741824"), &["error: "]),
    train("2^63 positions", |s| size(s, "max_position_embeddings", "9223372036854775808"), CONFIG),
    train("an epsilon of 0", |s| size(s, "rms_norm_eps", "0"), &["config.json", "rms_norm_eps 0"]),
    train("a negative base", |s| size(s, "rope_theta", "-1e4"), &["config.json", "rope_theta"]),
    train("a base that is text", |s| size(s, "rope_theta", "\"1e4\""), &["config.json", "rope_theta"]),
    train("a scaling by 0", |s| size(s, "rope_scaling", r#"{"rope_type": "linear", "factor": 0}"#), CONFIG),
    train("a scaling that is a list", |s| size(s, "rope_scaling", "[[[1]]]"), CONFIG),
    train("a token of end that is negative", |s| size(s, "eos_token_id", "-5"), &["error: "]),
    train("half a file", |s| s.write("model/config.json", "{\"model_type\": \"lla"), CONFIG),
    train("no UTF-8", |s| s.write("model/config.json", b"{\"model_type\": \"\xff\"}"), CONFIG),
    train("no byte", |s| s.write("model/config.json", ""), CONFIG),
];

#[test]
fn absurd_sizes() {
    check(SIZES);
}
