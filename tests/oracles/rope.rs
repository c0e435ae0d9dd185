//! The rotation of Hugging Face's `apply_rotary_pos_emb`: x * cos + rotate_half(x) * sin, with
//! rotate_half([low, high]) = [-high, low].

/// Returns the whole of `qkv` with queries and keys turned; `direction` is 1.0, or -1.0 to turn back.
#[allow(clippy::too_many_arguments)]
pub fn apply(
    qkv: &[f64],
    position: &[i32],
    cos: &[f64],
    sin: &[f64],
    direction: f64,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Vec<f64> {
    let half = head_dim / 2;
    let mut turned = qkv.to_vec();
    for (t, &p) in position.iter().enumerate() {
        for head in 0..heads + kv_heads {
            let at = (t * (heads + 2 * kv_heads) + head) * head_dim;
            for d in 0..head_dim {
                let angle = p as usize * half + d % half;
                let partner = if d < half { -qkv[at + d + half] } else { qkv[at + d - half] };
                turned[at + d] = qkv[at + d] * cos[angle] + direction * partner * sin[angle];
            }
        }
    }
    turned
}
