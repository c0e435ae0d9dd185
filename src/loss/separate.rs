//! Losses of both log-ratios of a pair, one by one (F3).
//!
//! To add one: a row in the table of `kernels/loss_separate.cu`, a row in [`LOSSES`], and its vector.

use super::{
    definition::{
        Bounds, Definition, HeadPart, LossFamily, LossHead, Parameter, Parameters, SFT, Shape, Special, beta,
    },
    likelihood::with_sft,
};
use crate::{forest::Value, ops::loss_separate::function};

fn parts(function: i32, p: &Parameters) -> Vec<HeadPart> {
    with_sft(HeadPart::new(LossHead::Separate { function }, &[p.get("beta"), p.get_or_0("delta")]), p)
}

/// A loss of both log-ratios; the rest of the row says what differs.
const PAIR: Definition = Definition {
    name: "",
    aliases: &[],
    family: LossFamily::Separate,
    formula: "",
    gradient: "",
    parameters: &[&[beta(0.001)], SFT],
    shape: Shape::Pair,
    values: &[],
    rationale: false,
    special: Special::None,
    reference: true,
    source: "",
    traps: &[],
    parts: |_| Vec::new(),
};

const LARGE_GRADIENTS: &str = "with beta 0.001 the targets are 500 nats away: gradients of about 1000 a sequence at the \
                               start are right, and clipping is what tames them";

/// One row a loss; x = rho_w, y = rho_l.
pub const LOSSES: &[Definition] = &[
    Definition {
        name: "sppo_hard",
        formula: "(x - 1/(2 beta))^2 + (y + 1/(2 beta))^2",
        gradient: "2 (x - 1/(2 beta)); 2 (y + 1/(2 beta))",
        source: "SPPO, arXiv 2405.00675, as in TRL; beta is 1/eta",
        traps: &[LARGE_GRADIENTS, "no factor 1/2: twice the gradient of sppo_soft at the same win rates"],
        parts: |p| parts(function::SPPO_HARD, p),
        ..PAIR
    },
    Definition {
        name: "sppo_soft",
        formula: "[(x - (P_w - 1/2)/beta)^2 + (y - (P_l - 1/2)/beta)^2] / 2",
        gradient: "x - (P_w - 1/2)/beta; y - (P_l - 1/2)/beta",
        values: &[Value::WinRate],
        source: "SPPO, arXiv 2405.00675 and its trainer; P are mean win rates among five samples, oneself included",
        traps: &[LARGE_GRADIENTS, "the reference is the policy of the last iteration"],
        parts: |p| parts(function::SPPO_SOFT, p),
        ..PAIR
    },
    Definition {
        name: "sppo_single",
        formula: "[(x - (P - 1/2)/beta)^2 + (y + (P - 1/2)/beta)^2] / 2",
        gradient: "x - (P - 1/2)/beta; y + (P - 1/2)/beta",
        values: &[Value::Preference],
        source: "SPPO, arXiv 2405.00675 and its trainer; P is how likely the chosen one is to win",
        traps: &[LARGE_GRADIENTS],
        parts: |p| parts(function::SPPO_SINGLE, p),
        ..PAIR
    },
    Definition {
        name: "gpo",
        aliases: &["gpo_score"],
        formula: "[(x - s_w/beta)^2 + (y - s_l/beta)^2] / 2",
        gradient: "x - s_w/beta; y - s_l/beta",
        values: &[Value::Score],
        source: "General Preference Optimization, arXiv 2410.02197, equations 5.2 and 5.3; s are mean log-odds",
        traps: &[LARGE_GRADIENTS, "the factor 1/2 follows SPPO's code: the trainer itself is not public"],
        parts: |p| parts(function::GPO, p),
        ..PAIR
    },
    Definition {
        name: "nca_pair",
        formula: "sp(-u) + sp(u)/2 + sp(v)/2, u = beta x, v = beta y",
        gradient: "beta (sig(u)/2 - sig(-u)); beta sig(v)/2",
        parameters: &[&[beta(0.01)], SFT],
        source: "Noise contrastive alignment, arXiv 2402.05369, as in TRL",
        traps: &["the chosen log-ratio has a finite target: u = log 2"],
        parts: |p| parts(function::NCA, p),
        ..PAIR
    },
    Definition {
        name: "bco_pair",
        formula: "sp(-(u - delta)) + sp(v - delta), u = beta x, v = beta y",
        gradient: "-beta sig(delta - u); beta sig(v - delta)",
        parameters: &[
            &[
                beta(0.01),
                Parameter {
                    name: "delta",
                    default: 0.0,
                    range: Bounds::Any,
                    meaning: "reward that counts as neither good nor bad",
                },
            ],
            SFT,
        ],
        source: "Binary classifier optimisation, arXiv 2404.04656, as in TRL's DPO trainer (delta 0)",
        traps: &[
            "TRL's documentation prints plain DPO as this loss, which its code does not compute",
            "bco is the unpaired one, with delta as a running mean",
        ],
        parts: |p| parts(function::BCO, p),
        ..PAIR
    },
    Definition {
        name: "apo_zero",
        formula: "1 - sig(u) + sig(v), u = beta x, v = beta y",
        gradient: "-beta sig'(u); beta sig'(v)",
        parameters: &[&[beta(0.1)], SFT],
        source: "Anchored preference optimisation, arXiv 2408.06266, as in TRL",
        traps: &[
            "two APOs: the accelerated one (arXiv 2410.06293) is another paper, here apo_accelerated",
            "the gradient vanishes on both sides: pairs with |beta rho| far above 1 stop learning",
        ],
        parts: |p| parts(function::APO_ZERO, p),
        ..PAIR
    },
    Definition {
        name: "apo_down",
        formula: "sig(u) + 1 - sig(beta (x - y)), u = beta x",
        gradient: "beta [sig'(u) - sig'(beta (x-y))]; beta sig'(beta (x-y))",
        parameters: &[&[beta(0.1)], SFT],
        source: "Anchored preference optimisation, arXiv 2408.06266, as in TRL",
        traps: &["two APOs: see apo_zero", "the chosen side's gradient can have either sign"],
        parts: |p| parts(function::APO_DOWN, p),
        ..PAIR
    },
];
