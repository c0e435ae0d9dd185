use half::bf16;
use warpo::{
    device::{Device, Float},
    forest::{Forest, Tree},
    model::{ModelConfig, Slopes},
};

use super::{document, fast_devices, list, model_for, named, pair, random_params, steps, tiny_config, tiny_json};
use crate::{
    loss::{on_rows, pair_table, pairs_of},
    oracles::{
        self,
        model::{Input, Params},
        preference_loss::Params as Loss,
    },
    support::{fast_device, fast_hopper, normal, relative_error, strict_devices, strict_hoppers},
};

const BETA: f64 = 0.5;
const LABEL_SMOOTHING: f64 = 0.1;
const SFT_WEIGHT: f64 = 0.3;

/// Trees of every kind in one pack, more than one attention tile long.
fn trees() -> Vec<Tree> {
    vec![pair(1, [12, 7, 5]), steps(2), list(3, 6, 3), document(4, 9), pair(5, [1, 1, 2])]
}

/// A pack, its loss, and reference values near the policy's.
struct Case {
    config: ModelConfig,
    forest: Forest,
    trees: Vec<Tree>,
    params: Params,
    ref_logps: Vec<f32>,
    loss: Loss,
}

impl Case {
    fn new<T: Float>(config: ModelConfig, trees: &[Tree]) -> Self {
        let forest = Forest::pack(trees).unwrap();
        let params = named(&config, &random_params::<T>(&config));
        let model = oracles::model::Model { config: &config, params: &params, round: |x| x };
        let noise = normal(77, forest.rows());
        let logps = model.logps(&Input::forest(&forest));
        let ref_logps = logps.iter().zip(noise).map(|(&logp, noise)| logp as f32 + 0.3 * noise).collect();
        let length = |s: i32| forest.sequence_rows[s as usize + 1] - forest.sequence_rows[s as usize];
        let pairs = pair_table(trees);
        let chosen_tokens: i32 = pairs.chunks(2).map(|pair| length(pair[0])).sum();
        let loss = Loss {
            beta: BETA,
            label_smoothing: LABEL_SMOOTHING,
            dpo_scale: 2.0 / pairs.len() as f64,
            sft_scale: SFT_WEIGHT / f64::from(chosen_tokens),
        };
        Self { config, forest, trees: trees.to_vec(), params, ref_logps, loss }
    }

    /// Loss and its slope at each row, in f64.
    fn head(&self, logps: &[f64]) -> (f64, Vec<f64>) {
        let ref_logps: Vec<f64> = self.ref_logps.iter().map(|&x| f64::from(x)).collect();
        let (rows, pairs) = (&self.forest.sequence_rows, pair_table(&self.trees));
        let (stats, loss) = oracles::preference_loss::pairs(logps, &ref_logps, rows, &pairs, self.loss);
        (loss, oracles::preference_loss::coefficients(&stats, rows, &pairs))
    }

    /// The oracle's log-probabilities and gradients of the loss, with every stored value rounded.
    fn oracle(&self, round: fn(f64) -> f64) -> (Vec<f64>, Params) {
        let model = oracles::model::Model { config: &self.config, params: &self.params, round };
        let input = Input::forest(&self.forest);
        let logps = model.logps(&input);
        let (_, coefficients) = self.head(&logps);
        (logps, model.grads(&input, &coefficients))
    }

    /// The engine's, loss head included.
    fn engine<T: Float>(&self, device: &Device) -> (Vec<f64>, Params) {
        let model = model_for::<T>(device, &self.config, &self.forest);
        let batch = model.upload(&self.forest).unwrap();
        model.forward(&batch).unwrap();
        let logps = model.logps(&batch).unwrap();
        let ref_logps = device.upload(&self.ref_logps).unwrap();
        let parameters = [("beta", BETA), ("label_smoothing", LABEL_SMOOTHING), ("sft_weight", SFT_WEIGHT)];
        let loss = warpo::loss::Loss::with("dpo", &parameters).unwrap();
        let groups = pairs_of(&self.forest, &self.trees);
        let (coefficients, _) = on_rows(device, &loss, &groups, &logps, &ref_logps, &batch.sequence_rows);
        model.backward(&batch, &Slopes::by_logps(&coefficients)).unwrap();
        let logps = device.download(&logps).unwrap().into_iter().map(f64::from).collect();
        (logps, named(&self.config, &device.download(model.params().grads()).unwrap()))
    }
}

/// The gradient along a random direction in each tensor against the loss's slope there.
///
/// With steps `h` and `2 h`, D(h) - D(2h) = -3 c h² + O(h⁴), where c h² is the truncation of D(h): the difference bounds
/// it with room. The loss is a sum of a few hundred terms of size 1 to 10, each after about a thousand operations:
/// its rounding error is taken as 1000 units in the last place, and D(h) divides it by h.
#[test]
fn oracle_agrees_with_central_differences() {
    for tied in [true, false] {
        let case = Case::new::<f32>(tiny_config(tied, 2), &trees());
        let (_, grads) = case.oracle(|x| x);
        let input = Input::forest(&case.forest);
        let loss_at = |params: &Params| {
            let model = oracles::model::Model { config: &case.config, params, round: |x| x };
            case.head(&model.logps(&input)).0
        };
        let here = loss_at(&case.params);
        for (seed, (name, grad)) in grads.iter().enumerate() {
            let direction: Vec<f64> = normal(900 + seed as u64, grad.len()).into_iter().map(f64::from).collect();
            let along = |step: f64| {
                let mut params = case.params.clone();
                params.get_mut(name).unwrap().iter_mut().zip(&direction).for_each(|(w, d)| *w += step * d);
                loss_at(&params)
            };
            let difference = |h: f64| (along(h) - along(-h)) / (2.0 * h);
            let h = 1e-5;
            let (slope, coarse) = (difference(h), difference(2.0 * h));
            let want: f64 = grad.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let limit = (slope - coarse).abs() + 1000.0 * f64::EPSILON * here.abs() / h;
            let error = (slope - want).abs();
            assert!(
                error <= limit,
                "{name} (tied {tied}): slope {slope}, gradient {want}: {error:.2e} over {limit:.2e}"
            );
            // A check that could not fail says nothing.
            assert!(
                want.abs() > 1e3 * limit,
                "{name} (tied {tied}): gradient {want:.2e} drowns in the limit {limit:.2e}"
            );
        }
    }
}

#[test]
fn oracle_agrees_with_itself_on_separate_sequences() {
    let case = Case::new::<f32>(tiny_config(true, 2), &trees());
    let model = oracles::model::Model { config: &case.config, params: &case.params, round: |x| x };
    let (logps, grads) = case.oracle(|x| x);
    let (_, coefficients) = case.head(&logps);
    let mut rest = &coefficients[..];
    let mut separate = Vec::new();
    let mut sums: Params = grads.iter().map(|(name, g)| (name.clone(), vec![0.0; g.len()])).collect();
    for input in trees().iter().flat_map(Input::paths) {
        separate.extend(model.logps(&input));
        let (own, others) = rest.split_at(input.rows.len());
        rest = others;
        for (name, grad) in model.grads(&input, own) {
            sums.get_mut(&name).unwrap().iter_mut().zip(grad).for_each(|(s, g)| *s += g);
        }
    }
    assert!(relative_error(&separate, &logps) < 1e-13);
    for (name, grad) in &grads {
        let error = relative_error(&sums[name], grad);
        assert!(error < 1e-12, "{name}: {error:.2e}");
    }
}

/// Every tensor to 1e-5 of its norm: some thousand f32 roundings of 6e-8 that mostly cancel.
#[test]
fn gradients_f32() {
    for (tied, kv_heads) in [(true, 2), (false, 4), (false, 1)] {
        let case = Case::new::<f32>(tiny_config(tied, kv_heads), &trees());
        let (want_logps, want) = case.oracle(|x| x);
        for (device, on) in fast_devices() {
            let (logps, grads) = case.engine::<f32>(&device);
            assert_close(&format!("tied {tied}, {kv_heads} kv heads, {on}"), &logps, &want_logps, &grads, &want, 1e-5);
        }
    }
}

fn assert_close(what: &str, logps: &[f64], want_logps: &[f64], grads: &Params, want: &Params, limit: f64) {
    let error = relative_error(logps, want_logps);
    assert!(error <= limit, "{what}: log-probabilities: {error:.2e}");
    let mut worst = (0.0, "");
    for (name, want) in want {
        let error = relative_error(&grads[name], want);
        assert!(error <= limit, "{what}: {name}: relative error {error:.2e}");
        worst = if error > worst.0 { (error, name) } else { worst };
    }
    println!("{what}: log-probabilities {error:.1e}, gradients at most {:.1e} ({})", worst.0, worst.1);
}

/// The rule for low precision, by norms of whole tensors: twice the error of a computation that rounds every stored
/// value to bf16. The engine rounds less (logits and normalisers stay in f32), so there is no further allowance.
#[test]
fn gradients_bf16() {
    for tied in [true, false] {
        let case = Case::new::<bf16>(tiny_config(tied, 2), &trees());
        let (want_logps, want) = case.oracle(|x| x);
        let (naive_logps, naive) = case.oracle(|x| bf16::from_f64(x).to_f64());
        for (device, on) in fast_devices() {
            let (logps, grads) = case.engine::<bf16>(&device);
            let what = format!("tied {tied}, {on}");
            assert_naive(&format!("{what}: log-probabilities"), &logps, &naive_logps, &want_logps);
            for (name, want) in &want {
                assert_naive(&format!("{what}: {name}"), &grads[name], &naive[name], want);
            }
        }
    }
}

fn assert_naive(what: &str, got: &[f64], naive: &[f64], want: &[f64]) {
    let (error, naive) = (relative_error(got, want), relative_error(naive, want));
    println!("{what}: {error:.2e}, naive {naive:.2e}");
    assert!(error <= 2.0 * naive, "{what}: relative error {error:.2e}, naive {naive:.2e}");
}

/// One layer, one tree: every check of the strict device on the whole chain.
#[test]
fn strict_f32() {
    let case = Case::new::<f32>(smallest_config(), &[pair(1, [3, 2, 4])]);
    let (want_logps, want) = case.oracle(|x| x);
    for (device, on) in strict_devices() {
        let (logps, grads) = case.engine::<f32>(&device);
        assert_close(&on, &logps, &want_logps, &grads, &want, 1e-5);
    }
}

#[test]
fn strict_bf16() {
    let case = Case::new::<bf16>(smallest_config(), &[pair(1, [3, 2, 4])]);
    let ((want_logps, want), (naive_logps, naive)) = (case.oracle(|x| x), case.oracle(|x| bf16::from_f64(x).to_f64()));
    for (device, on) in strict_devices() {
        let (logps, grads) = case.engine::<bf16>(&device);
        assert_naive(&format!("{on}: log-probabilities"), &logps, &naive_logps, &want_logps);
        for (name, want) in &want {
            assert_naive(&format!("{on}: {name}"), &grads[name], &naive[name], want);
        }
    }
}

/// The whole chain on Hopper's units, attention included, which takes heads of 64: by the rule of [`gradients_bf16`], beside
/// the portable path on the same weights and trees.
#[test]
fn both_paths_keep_the_rule() {
    let heads_of_64 = tiny_json(true, 2).replace(r#""head_dim": 32"#, r#""head_dim": 64"#);
    let config = ModelConfig::parse(&heads_of_64).unwrap();
    assert_eq!(config.head_dim, 64);
    let case = Case::new::<bf16>(config, &trees());
    let ((want_logps, want), (naive_logps, naive)) = (case.oracle(|x| x), case.oracle(|x| bf16::from_f64(x).to_f64()));
    let mut devices = vec![(fast_device(2), "portable".to_string()), (fast_hopper(2), "sm_90a".to_string())];
    // One schedule of each completion mode: the kernels' own tests go through all.
    devices.extend(strict_hoppers().into_iter().take(2));
    for (device, on) in devices {
        let (logps, grads) = case.engine::<bf16>(&device);
        assert_naive(&format!("{on}: log-probabilities"), &logps, &naive_logps, &want_logps);
        for (name, want) in &want {
            assert_naive(&format!("{on}: {name}"), &grads[name], &naive[name], want);
        }
    }
}

fn smallest_config() -> ModelConfig {
    let text = r#"{"model_type": "llama", "vocab_size": 67, "hidden_size": 8, "intermediate_size": 8, "head_dim": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true}"#;
    ModelConfig::parse(text).unwrap()
}
