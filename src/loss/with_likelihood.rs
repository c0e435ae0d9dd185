//! A preference and a likelihood (F5): a margin's head and a likelihood's, added up.

use super::{
    definition::{Bounds, Definition, HeadPart, LossFamily, LossHead, Mean, Parameter, beta},
    difference::{HALF, SUM, plain, smoothed, smoothing},
    likelihood,
};
use crate::{
    forest::Value,
    ops::loss_difference::{
        flag::{NO_REFERENCE, PER_TOKEN},
        map, parameter, phi,
    },
};

/// One row a loss.
pub const LOSSES: &[Definition] = &[
    Definition {
        name: "rpo",
        aliases: &["rpo_cumulative"],
        family: LossFamily::WithLikelihood,
        formula: "sp(-u) - eta beta a_w",
        gradient: "dpo's; c_w also has -eta beta",
        parameters: &[&[
            beta(0.01),
            Parameter {
                name: "eta",
                default: 0.005,
                range: Bounds::AtLeast(0.0),
                meaning: "weight of the likelihood, before it is multiplied by beta",
            },
        ]],
        source: "Regularized Preference Optimization, arXiv 2405.16436 and its code",
        traps: &["three strengths under one name: this is the sum times beta of the paper's main part; \
                  dpo with sft_weight is TRL's batch-token mean, dpo_nll the mean of each response"],
        parts: |p| {
            let nll = likelihood::sum(0).weighted(p.get("eta") * p.get("beta"));
            vec![plain(phi::SIGMOID, 0, p.get("beta"), [0.0; 2]), nll]
        },
        ..SUM
    },
    Definition {
        name: "dpo_nll",
        aliases: &["dpo_plus_nll_seqmean", "iterative_rpo"],
        family: LossFamily::WithLikelihood,
        formula: "sp(-u) - lambda a_w/n_w",
        gradient: "dpo's; c_w also has -lambda/n_w",
        parameters: &[&[beta(0.1), LAMBDA_1]],
        source: "Iterative reasoning preference optimisation, arXiv 2404.19733",
        parts: |p| vec![plain(phi::SIGMOID, 0, p.get("beta"), [0.0; 2]), likelihood::mean(0).weighted(p.get("lambda"))],
        ..SUM
    },
    Definition {
        name: "upo_nll",
        aliases: &["upo_nll_sign_fixed"],
        family: LossFamily::WithLikelihood,
        formula: "p sp(-u) + (1-p) sp(u) - lambda a_w/|R_w|",
        gradient: "sig(u) - p; c_w also has -lambda/|R_w|",
        parameters: &[&[beta(0.1), LAMBDA_1]],
        values: &[Value::Preference, Value::Score],
        source: "reconstructed: UPO, arXiv 2409.11212, with the sign of its likelihood corrected; R_w is the reward",
        traps: &["a reward near 0 makes the likelihood term as large as it likes"],
        parts: |p| {
            vec![plain(phi::SOFT_LABEL, 0, p.get("beta"), [0.0; 2]), likelihood::by_score(0).weighted(p.get("lambda"))]
        },
        ..SUM
    },
    Definition {
        name: "cpo",
        aliases: &["cpo_batch_token_nll"],
        family: LossFamily::WithLikelihood,
        formula: "(1-e) sp(-u) + e sp(u) - alpha (sum a_w)/(sum n_w), u = beta (a_w - a_l)",
        gradient: "dpo's; c_w also has -alpha/(sum n_w)",
        parameters: &[&[
            beta(0.1),
            Parameter {
                name: "cpo_alpha",
                default: 1.0,
                range: Bounds::AtLeast(0.0),
                meaning: "weight of the chosen responses' mean negative log-likelihood per token of the step",
            },
            smoothing(0.0, HALF),
        ]],
        reference: false,
        source: "Contrastive Preference Optimization, arXiv 2401.08417, as in TRL",
        traps: &["ALMA's repository now holds a later method under the same name"],
        parts: |p| {
            let nll = likelihood::sum(0).weighted(p.get("cpo_alpha")).over(Mean::Rows(0));
            vec![smoothed(p, NO_REFERENCE), nll]
        },
        ..SUM
    },
    Definition {
        name: "slic_hf",
        family: LossFamily::WithLikelihood,
        formula: "max(0, delta - a_w + a_l) - lambda a_w",
        gradient: "-1/+1 where the hinge is open; c_w also has -lambda",
        parameters: &[&[
            Parameter {
                name: "delta",
                default: 1.0,
                range: Bounds::Above(0.0),
                meaning: "margin from which on the hinge is closed",
            },
            Parameter {
                name: "lambda",
                default: 0.1,
                range: Bounds::AtLeast(0.0),
                meaning: "weight of the likelihood",
            },
        ]],
        reference: false,
        source: "SLiC-HF, arXiv 2305.10425, as in HALOs",
        parts: |p| {
            let hinge = plain(phi::HINGE, NO_REFERENCE, 1.0, [p.get("delta"), 0.0]);
            vec![hinge, likelihood::sum(0).weighted(p.get("lambda"))]
        },
        ..SUM
    },
    Definition {
        name: "orpo",
        family: LossFamily::WithLikelihood,
        formula: "-X + lambda sp(-o), X = a_w/n_w, Y = a_l/n_l, o = (X - Y) - (log(1-e^X) - log(1-e^Y))",
        gradient: "c_w = [-1 + lambda sig(-o)/expm1(X)]/n_w, c_l = -lambda sig(-o)/expm1(Y)/n_l",
        parameters: &[&[ODDS]],
        reference: false,
        source: "ORPO, arXiv 2403.07691",
        traps: &[
            "the likelihood is each response's mean; TRL's runs over prompt and response and over the batch's tokens",
            "a pole at probability 1: means above -1e-6 count as -1e-6",
        ],
        parts: |p| vec![likelihood::mean(0), odds().weighted(p.get("lambda"))],
        ..SUM
    },
    Definition {
        name: "rationale_dpo",
        aliases: &["rationale_dpo_paper"],
        family: LossFamily::WithLikelihood,
        formula: "sp(-u) - gamma a_r",
        gradient: "dpo's; c_r = -gamma",
        parameters: &[&[beta(0.1), RATIONALE]],
        rationale: true,
        source: "reconstructed: Data-centric human preference optimisation with rationales, arXiv 2407.14477, as printed",
        parts: |p| vec![plain(phi::SIGMOID, 0, p.get("beta"), [0.0; 2]), likelihood::sum(2).weighted(p.get("gamma"))],
        ..SUM
    },
    Definition {
        name: "rationale_dpo_repo",
        family: LossFamily::WithLikelihood,
        formula: "sp(-u) + sp(-gamma a_r)",
        gradient: "dpo's; c_r = -gamma sig(-gamma a_r)",
        parameters: &[&[beta(0.1), RATIONALE]],
        rationale: true,
        source: "arXiv 2407.14477, its repository's trainers.py",
        traps: &[
            "a log-sigmoid of gamma times the log-probability, not the likelihood the paper prints: between a half \
                  and the whole of it",
        ],
        parts: |p| vec![plain(phi::SIGMOID, 0, p.get("beta"), [0.0; 2]), likelihood::log_sigmoid(2, p.get("gamma"))],
        ..SUM
    },
    Definition {
        name: "rationale_orpo",
        aliases: &["rationale_orpo_repo"],
        family: LossFamily::WithLikelihood,
        formula: "orpo - gamma a_r/n_r",
        gradient: "orpo's; c_r = -gamma/n_r",
        parameters: &[&[ODDS, Parameter { default: 1.0, ..RATIONALE }]],
        rationale: true,
        reference: false,
        source: "arXiv 2407.14477, its repository",
        parts: |p| {
            let rationale = likelihood::mean(2).weighted(p.get("gamma"));
            vec![likelihood::mean(0), odds().weighted(p.get("lambda")), rationale]
        },
        ..SUM
    },
];

const LAMBDA_1: Parameter =
    Parameter { name: "lambda", default: 1.0, range: Bounds::AtLeast(0.0), meaning: "weight of the likelihood" };
const ODDS: Parameter =
    Parameter { name: "lambda", default: 0.1, range: Bounds::AtLeast(0.0), meaning: "weight of the odds ratio" };
const RATIONALE: Parameter =
    Parameter { name: "gamma", default: 0.001, range: Bounds::AtLeast(0.0), meaning: "weight of the rationale" };

/// The odds ratio of mean log-probabilities.
fn odds() -> HeadPart {
    let head = LossHead::Difference { phi: phi::SIGMOID, map: map::LOG_ODDS, flags: NO_REFERENCE | PER_TOKEN };
    let mut part = HeadPart::new(head, &[]);
    part.parameters[parameter::BETA as usize] = 1.0;
    part
}
