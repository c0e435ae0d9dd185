//! Losses that couple all groups of a step (F4): they see the whole step at once, however it is cut into micro-batches.
//!
//! To add one: a case in `kernels/loss_batch.cu`, a row in [`LOSSES`], and its vector.

use super::definition::{Bounds, Definition, HeadPart, LossFamily, LossHead, Mean, Parameter, Shape, Special, beta};
use crate::{data::reshape::Reshape, forest::Value, ops::loss_batch::function};

const WEIGHTS: &[Parameter] = &[
    Parameter {
        name: "desirable_weight",
        default: 1.0,
        range: Bounds::AtLeast(0.0),
        meaning: "weight of desirable rows",
    },
    Parameter {
        name: "undesirable_weight",
        default: 1.0,
        range: Bounds::AtLeast(0.0),
        meaning: "weight of undesirable rows",
    },
];
const SMOOTHING: Parameter = Parameter {
    name: "label_smoothing",
    default: 0.0,
    range: Bounds::Below(0.0, 0.5),
    meaning: "share of labels taken to be wrong",
};

/// A loss that couples the step; the rest of the row says what differs.
const STEP: Definition = Definition {
    name: "",
    aliases: &[],
    family: LossFamily::Batch,
    formula: "",
    gradient: "",
    parameters: &[],
    shape: Shape::Pair,
    values: &[],
    rationale: false,
    special: Special::None,
    reference: true,
    source: "",
    traps: &[],
    parts: |_| Vec::new(),
};

const SORTED: &str = "sorted over the whole step: TRL sorts what one device has, so its loss depends on the batch size";

/// One row a loss.
pub const LOSSES: &[Definition] = &[
    Definition {
        name: "kto",
        special: Special::Reshape(Reshape::Mismatch),
        formula: "w_D (1 - sig(beta (rho - z0))) if desirable, else w_U (1 - sig(beta (z0 - rho)))",
        gradient: "-w_D beta sig'(beta (rho - z0)); +w_U beta sig'(beta (z0 - rho))",
        parameters: &[&[beta(0.1)], WEIGHTS],
        shape: Shape::Labelled,
        source: "KTO, arXiv 2402.01306, as in TRL and HALOs; z0 = max(0, mean rho of mismatched completions), a constant",
        traps: &[
            "each row is run with the completion of the row before it as well, for z0: a third to twice the tokens",
            "keep w_D n_D / (w_U n_U) between 1 and 4/3",
            "the gradient vanishes on both sides",
        ],
        parts: |p| {
            let [d, u] = ["desirable_weight", "undesirable_weight"].map(|name| p.get(name));
            vec![HeadPart::new(LossHead::Batch { function: function::KTO }, &[p.get("beta"), d, u])]
        },
        ..STEP
    },
    Definition {
        name: "bco",
        aliases: &["bco_unpaired"],
        formula: "w sp(-s (beta rho - delta)), s = +1 if desirable, else -1",
        gradient: "-w s beta sig(-s (beta rho - delta))",
        parameters: &[
            &[
                beta(0.1),
                Parameter {
                    name: "delta",
                    default: f64::NAN,
                    range: Bounds::Any,
                    meaning: "reward that counts as neither good nor bad; if left out, the mean of all rewards seen so far",
                },
            ],
            WEIGHTS,
        ],
        shape: Shape::Labelled,
        source: "Binary classifier optimisation, arXiv 2404.04656, as in TRL's BCO trainer",
        traps: &[
            "the running mean takes in a step before the step's loss, and is saved with a checkpoint",
            "the paper's weight from a prompt classifier is not applied",
        ],
        parts: |p| {
            let [d, u] = ["desirable_weight", "undesirable_weight"].map(|name| p.get(name));
            let delta = p.get("delta");
            let running = f64::from(u8::from(delta.is_nan()));
            let parameters = [p.get("beta"), d, u, if delta.is_nan() { 0.0 } else { delta }, running];
            vec![HeadPart::new(LossHead::Batch { function: function::BCO_UNPAIRED }, &parameters)]
        },
        ..STEP
    },
    Definition {
        name: "aot",
        formula: "(1-e) sp(-u_k) + e sp(u_k), u_k = beta (sort(a_w - a_l)_k - sort(r_w - r_l)_k)",
        gradient: "of u_k, to the pair that is k-th by a_w - a_l",
        parameters: &[&[beta(0.01), SMOOTHING]],
        source: "Alignment via optimal transport, arXiv 2406.05882, as in TRL",
        traps: &[SORTED, "equal margins keep their order"],
        parts: |p| vec![aot(function::AOT, p.get("beta"), p.get("label_smoothing"))],
        ..STEP
    },
    Definition {
        name: "aot_unpaired",
        aliases: &["aot_pair"],
        formula: "(1-e) sp(-u_k) + e sp(u_k), u_k = beta (sort(rho_w)_k - sort(rho_l)_k)",
        gradient: "of u_k, to the k-th chosen and the k-th rejected",
        parameters: &[&[beta(0.01), SMOOTHING]],
        source: "Alignment via optimal transport, arXiv 2406.05882, as in TRL",
        traps: &[SORTED],
        parts: |p| vec![aot(function::AOT_UNPAIRED, p.get("beta"), p.get("label_smoothing"))],
        ..STEP
    },
    Definition {
        name: "maxmin",
        aliases: &["maxmin_dpo_reconstructed"],
        formula: "max over groups g of the mean of sp(-u) over the pairs of g",
        gradient: "-sig(-u)/n_g for the pairs of the worst group, else 0",
        parameters: &[&[beta(0.1)]],
        values: &[Value::Group],
        source: "reconstructed: the offline analogue of MaxMin-RLHF, arXiv 2402.08925, which itself defines no pair loss",
        traps: &["only the worst group of a step learns; take steps large enough to hold all groups"],
        parts: |p| {
            vec![HeadPart::new(LossHead::Batch { function: function::MAX_MIN }, &[p.get("beta")]).over(Mean::Own)]
        },
        ..STEP
    },
];

fn aot(function: i32, beta: f64, smoothing: f64) -> HeadPart {
    HeadPart::new(LossHead::Batch { function }, &[beta, 0.0, 0.0, 0.0, 0.0, smoothing])
}
