//! Losses over lists of responses (F6).
//!
//! To add one: a row in the table of `kernels/loss_list.cu`, a row in [`LOSSES`], and its vector.

use super::definition::{Bounds, Definition, HeadPart, LossFamily, LossHead, Parameter, Shape, Special, beta};
use crate::{forest::Value, ops::loss_list::function};

const TEMPERATURE: Parameter = Parameter {
    name: "temperature",
    default: 1.0,
    range: Bounds::Above(0.0),
    meaning: "of the scores: labels are softmax(scores / temperature)",
};

/// A loss over lists; the rest of the row says what differs.
const LIST: Definition = Definition {
    name: "",
    aliases: &[],
    family: LossFamily::List,
    formula: "",
    gradient: "",
    parameters: &[&[beta(0.1), TEMPERATURE]],
    shape: Shape::List,
    values: &[Value::Score],
    rationale: false,
    special: Special::None,
    reference: true,
    source: "",
    traps: &[],
    parts: |_| Vec::new(),
};

const HARD: &str = "rows with labels in place of scores share their probability among the desirable ones: with one of \
                    two it is the pair loss, to the bit";

/// One row a loss; s_i = beta rho_i, v_i are scores, y = softmax(v / temperature).
pub const LOSSES: &[Definition] = &[
    Definition {
        name: "tpo",
        aliases: &["tpo_lambda_list", "lipo"],
        formula: "sum over v_i > v_j of D_ij sp(-(s_i - s_j)), D_ij = |2^v_i - 2^v_j| |1/log(1+rank_i) - 1/log(1+rank_j)|",
        gradient: "-sum_j D_ij sig(-(s_i - s_j)) + sum_j D_ji sig(-(s_j - s_i)), by s_i",
        parameters: &[&[beta(0.5)]],
        source: "reconstructed: Tree Preference Optimization, arXiv 2410.12854, read as LiPO-lambda, arXiv 2402.01878",
        traps: &[
            "neither release of TPO's code computes this: its sign is turned and its weights are lost",
            "responses of equal score do not meet; the adaptive step weights of the paper are not applied",
            "Triple Preference Optimization (arXiv 2405.16681) is another TPO",
        ],
        parts: |p| vec![HeadPart::new(LossHead::List { function: function::TPO }, &[p.get("beta")])],
        ..LIST
    },
    Definition {
        name: "infonca",
        aliases: &["infonca_list"],
        formula: "-sum_i y_i log softmax(s)_i",
        gradient: "softmax(s)_i - y_i, by s_i",
        source: "Noise contrastive alignment, arXiv 2402.05369, reward_trainer.py",
        traps: &[HARD],
        parts: |p| {
            vec![HeadPart::new(LossHead::List { function: function::INFO_NCA }, &[p.get("beta"), p.get("temperature")])]
        },
        ..LIST
    },
    Definition {
        name: "nca",
        aliases: &["nca_list"],
        formula: "(1/K) sum_i sp(s_i) + sum_i y_i sp(-s_i)",
        gradient: "sig(s_i)/K - y_i sig(-s_i), by s_i",
        source: "Noise contrastive alignment, arXiv 2402.05369, reward_trainer.py",
        traps: &[HARD],
        parts: |p| {
            vec![HeadPart::new(LossHead::List { function: function::NCA }, &[p.get("beta"), p.get("temperature")])]
        },
        ..LIST
    },
    Definition {
        name: "exo",
        aliases: &["exo_reward_list"],
        formula: "sum_i q_i (log q_i - log y_i), q = softmax(s)",
        gradient: "q_i (log q_i - log y_i - L), by s_i",
        source: "EXO, arXiv 2402.00856, its reward mode",
        traps: &["needs scores: a label that is impossible has no logarithm"],
        parts: |p| {
            vec![HeadPart::new(LossHead::List { function: function::EXO }, &[p.get("beta"), p.get("temperature")])]
        },
        ..LIST
    },
];

/// Whether hard labels will not do.
pub fn needs_scores(head: LossHead) -> bool {
    matches!(head, LossHead::List { function } if function == function::EXO)
}
