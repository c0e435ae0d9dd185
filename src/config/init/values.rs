//! Values of other tools as values here.

use serde_json::Value;

/// Longest text of a value that is not carried over, in characters.
const TEXT: usize = 60;

/// A number, also where it is written as a text: YAML reads `1e-5` so.
pub(super) fn number(value: &Value) -> Option<f64> {
    let found = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    found.filter(|found| found.is_finite())
}

/// A whole number of 0 or more.
pub(super) fn whole(value: &Value) -> Option<u64> {
    number(value).filter(|found| found.fract() == 0.0 && (0.0..9e15).contains(found)).map(|found| found as u64)
}

/// The schedule of this name in `transformers` or axolotl.
pub(super) fn schedule(there: &str) -> Option<&'static str> {
    match there {
        "linear" => Some("linear"),
        "cosine" | "cosine_with_min_lr" => Some("cosine"),
        "constant" | "constant_with_warmup" => Some("constant"),
        "warmup_stable_decay" => Some("warmup_stable_decay"),
        _ => None,
    }
}

/// The optimizer of this name in `transformers`, and how the two differ.
pub(super) fn optimizer(there: &str) -> Option<(&'static str, &'static str)> {
    match there {
        "rmsprop" => Some(("rmsprop", "")),
        "rmsprop_bnb" | "rmsprop_bnb_8bit" | "rmsprop_bnb_32bit" => Some(("rmsprop", ": its state is f32 here")),
        "adamw_torch" | "adamw_torch_fused" | "adamw_hf" | "adamw_apex_fused" | "adamw" => Some(("adamw", "")),
        _ if there.contains("adamw") && there.starts_with("paged") => {
            Some(("adamw", ": nothing is paged here; optim.moments_on = \"host\" keeps moments in the host's memory"))
        }
        _ if there.contains("adamw") && there.contains("bit") => Some(("adamw", "")),
        _ => None,
    }
}

/// The precision that a setting means, and how the two differ.
pub(super) fn precision(name: &str, value: &Value) -> Option<(&'static str, &'static str)> {
    match (name, value) {
        ("bf16" | "pure_bf16", Value::Bool(true)) => Some(("bf16", "")),
        ("bf16", Value::String(auto)) if auto == "auto" => Some(("auto", "")),
        ("dtype" | "torch_dtype", Value::String(name)) => match name.as_str() {
            "bfloat16" => Some(("bf16", "")),
            "float32" => Some(("f32", "")),
            "auto" => Some(("auto", "")),
            _ => None,
        },
        _ => None,
    }
}

/// A value with its long texts cut.
pub(super) fn shortened(value: &Value) -> Value {
    match value {
        Value::String(text) => match text.char_indices().nth(TEXT) {
            Some((end, _)) => format!("{} [...]", &text[..end]).into(),
            None => value.clone(),
        },
        Value::Array(items) => items.iter().map(shortened).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), shortened(value))).collect(),
        _ => value.clone(),
    }
}

/// A value as TOML writes it; nothing for null.
pub(super) fn to_toml(value: &Value) -> Option<toml::Value> {
    toml::Value::try_from(value).ok()
}
