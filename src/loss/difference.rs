//! Losses of one margin (F1), of one margin per token (F2), and those that stand on one with a likelihood beside it (F5)
//! or token divergences in it (F7).
//!
//! To add a loss of one margin: a row in the table of `kernels/loss_difference.cu`, a row in [`LOSSES`], and its vector.

use super::{
    definition::{Definition, Family, Head, Mean, Parameter, Parameters, Part, Range, Shape},
    likelihood,
};
use crate::{
    forest::Value,
    ops::loss_difference::{
        flag::{CHOSEN_DIVERGENCE_FIXED, NO_REFERENCE, PER_TOKEN, POLICY_WEIGHTED, WITH_DIVERGENCE},
        map, parameter, phi,
    },
};

/// The strength of the pull towards the reference.
pub const fn beta(default: f64) -> Parameter {
    Parameter { name: "beta", default, range: Range::Above(0.0), meaning: "strength of the pull towards the reference" }
}

const fn smoothing(default: f64, range: Range) -> Parameter {
    Parameter { name: "label_smoothing", default, range, meaning: "share of labels taken to be wrong" }
}

const HALF: Range = Range::Below(0.0, 0.5);

/// What every loss of one margin over log-ratios takes: how they are measured, and a likelihood beside it.
const F1: &[Parameter] = &[
    Parameter {
        name: "f_divergence_type",
        default: 0.0,
        range: Range::OneOf(&["reverse_kl", "js_divergence", "forward_kl", "alpha_divergence"]),
        meaning: "divergence the log-ratios are measured by (f-DPO, arXiv 2309.16240)",
    },
    Parameter {
        name: "f_alpha_divergence_coef",
        default: 0.5,
        range: Range::Inside(0.0, 1.0),
        meaning: "alpha of alpha_divergence",
    },
    SFT_WEIGHT,
];

/// A likelihood term beside a preference.
pub const SFT_WEIGHT: Parameter = Parameter {
    name: "sft_weight",
    default: 0.0,
    range: Range::AtLeast(0.0),
    meaning: "weight of the chosen responses' mean negative log-likelihood per token of the step",
};
const SFT: &[Parameter] = &[SFT_WEIGHT];

/// `beta * (x_chosen - x_rejected)` over log-ratios, with [`F1`]'s options.
fn margin(phi: i32, p: &Parameters, own: [f64; 2]) -> Part {
    let mut part = plain(phi, 0, p.get_or_0("beta"), own);
    if let Head::Difference { map, .. } = &mut part.head {
        *map = p.get_or_0("f_divergence_type") as i32;
    }
    part.parameters[parameter::MAP_ALPHA as usize] = p.get_or_0("f_alpha_divergence_coef");
    part
}

fn plain(phi: i32, flags: i32, beta: f64, own: [f64; 2]) -> Part {
    let mut part = Part::new(Head::Difference { phi, map: map::IDENTITY, flags }, &[beta]);
    (part.parameters[parameter::P0 as usize], part.parameters[parameter::P1 as usize]) = (own[0], own[1]);
    part
}

/// With the likelihood term that `sft_weight` asks for.
pub fn with_sft(part: Part, p: &Parameters) -> Vec<Part> {
    let weight = p.get_or_0("sft_weight");
    let term = (weight > 0.0).then(|| likelihood::sum(0).weighted(weight).over(Mean::Rows(0)));
    [Some(part), term].into_iter().flatten().collect()
}

/// A loss of one margin of sums; the rest of the row says what differs.
const SUM: Definition = Definition {
    name: "",
    aliases: &[],
    family: Family::Difference,
    formula: "",
    gradient: "",
    parameters: &[&[beta(0.1)], F1],
    shape: Shape::Pair,
    values: &[],
    rationale: false,
    reference: true,
    source: "",
    traps: &[],
    parts: |_| Vec::new(),
};

/// A loss of one margin per token.
const PER_TOKEN_MEAN: Definition = Definition { family: Family::PerTokenDifference, ..SUM };

/// One row a loss.
pub const LOSSES: &[Definition] = &[
    Definition {
        name: "dpo",
        aliases: &["sigmoid"],
        formula: "(1-e) sp(-u) + e sp(u)",
        gradient: "e sig(u) - (1-e) sig(-u)",
        parameters: &[&[beta(0.1), smoothing(0.0, HALF)], F1],
        source: "Direct Preference Optimization, arXiv 2305.18290; with e = label_smoothing > 0 it is cdpo",
        traps: &["TRL 1.16 reads label_smoothing for robust, exo_pair and aot only, not for its sigmoid loss"],
        parts: |p| {
            let e = p.get("label_smoothing");
            with_sft(margin(if e > 0.0 { phi::SMOOTHED } else { phi::SIGMOID }, p, [e, 0.0]), p)
        },
        ..SUM
    },
    Definition {
        name: "cdpo",
        formula: "(1-e) sp(-u) + e sp(u)",
        gradient: "sig(u) - (1-e)",
        parameters: &[&[beta(0.1), smoothing(0.2, HALF)], F1],
        source: "E. Mitchell, A note on DPO with noisy preferences and relationship to IPO, 2023",
        traps: &["its minimum is at u = log((1-e)/e): margins beyond it are pulled back"],
        parts: |p| with_sft(margin(phi::SMOOTHED, p, [p.get("label_smoothing"), 0.0]), p),
        ..SUM
    },
    Definition {
        name: "rdpo",
        aliases: &["robust", "rdpo_robust"],
        formula: "[(1-e) sp(-u) - e sp(u)] / (1-2e)",
        gradient: "-[(1-e) sig(-u) + e sig(u)] / (1-2e)",
        parameters: &[&[beta(0.1), smoothing(0.1, HALF)], F1],
        source: "Provably Robust DPO, arXiv 2403.00409",
        traps: &["not bounded below: the loss may be negative and the margin is pushed without end"],
        parts: |p| with_sft(margin(phi::ROBUST, p, [p.get("label_smoothing"), 0.0]), p),
        ..SUM
    },
    Definition {
        name: "hinge",
        formula: "max(0, 1 - u)",
        gradient: "-1 if u < 1, else 0",
        source: "RSO's hinge-norm, arXiv 2309.06657, after SLiC, arXiv 2305.10425; without a reference it is slic_hf",
        traps: &["at the kink u = 1 the slope is 0"],
        parts: |p| with_sft(margin(phi::HINGE, p, [1.0, 0.0]), p),
        ..SUM
    },
    Definition {
        name: "ipo_sum",
        formula: "(h - 1/(2 tau))^2, h = rho_w - rho_l",
        gradient: "2 (h - 1/(2 tau))",
        parameters: &[&[TAU], SFT],
        source: "IPO, arXiv 2310.12036, over sums as in its authors' first code; FSPO, arXiv 2502.19312, uses tau 0.01",
        traps: &[
            "several IPOs: TRL divides by the lengths (ipo); the same tau is a much weaker pull there",
            "the gradient grows without bound with the distance from the target",
        ],
        parts: |p| with_sft(plain(phi::SQUARE, 0, 1.0, [0.5 / p.get("tau"), 0.0]), p),
        ..SUM
    },
    Definition {
        name: "exo_pair",
        formula: "q (log q - log(1-e)) + (1-q) (log(1-q) - log e), q = sig(u)",
        gradient: "q (1-q) (u - log((1-e)/e))",
        parameters: &[&[beta(0.1), smoothing(1e-3, Range::Inside(0.0, 0.5))], F1],
        source: "EXO, arXiv 2402.00856",
        traps: &["the gradient vanishes on both sides: hopeless pairs are not learnt from"],
        parts: |p| with_sft(margin(phi::EXO, p, [p.get("label_smoothing"), 0.0]), p),
        ..SUM
    },
    Definition {
        name: "discopop",
        formula: "sp(-u) (1-m) + e^-u m, m = sig(u/tau)",
        gradient: "-sig(-u) (1-m) - e^-u m + (e^-u - sp(-u)) m (1-m) / tau",
        parameters: &[
            &[
                beta(0.05),
                Parameter {
                    name: "discopop_tau",
                    default: 0.05,
                    range: Range::Inside(0.0, 1.0),
                    meaning: "temperature of the mix of the two losses",
                },
            ],
            F1,
        ],
        source: "DiscoPOP's log-ratio modulated loss, arXiv 2406.08414",
        traps: &["not convex: at tau 0.05 there is a minimum at u = -0.119 and a maximum at 0.072; training starts \
                  between them, so the first step lowers the margin"],
        parts: |p| with_sft(margin(phi::DISCOPOP, p, [p.get("discopop_tau"), 0.0]), p),
        ..SUM
    },
    Definition {
        name: "soft_label",
        aliases: &["osp"],
        formula: "p sp(-u) + (1-p) sp(u)",
        gradient: "sig(u) - p",
        values: &[Value::Preference],
        source: "reconstructed: Online Self-Preferring Language Models, arXiv 2405.14103, and any soft label p in 0..1",
        traps: &["below p = 0.5 the pair is trained the other way round"],
        parts: |p| with_sft(margin(phi::SOFT_LABEL, p, [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "dno",
        aliases: &["dno_soft"],
        formula: "p sp(-u) + (1-p) sp(u), p = sig(R_w - R_l)",
        gradient: "sig(u) - p",
        values: &[Value::WinRate],
        source: "Direct Nash Optimization, arXiv 2404.03715, equations 8 and 12; R is a response's mean win rate",
        traps: &[
            "its reference is the policy of the last iteration: start from that model",
            "DNO-Prct is dpo on pairs of a large margin",
        ],
        parts: |p| with_sft(margin(phi::WIN_RATES, p, [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "mcts_dpo",
        formula: "p sp(-u) + (1-p) sp(u), p = 1 - min(1 - 1/(1 + N_l/max(1, N_w)), 1/2)",
        gradient: "sig(u) - p",
        values: &[Value::Visits],
        source: "MCTS-DPO, arXiv 2405.00451 and its code; N are visit counts of two sibling steps",
        traps: &[
            "siblings are ranked by their score (Q); visit counts only set the smoothing",
            "p is N_w / (N_w + N_l), never below 1/2",
        ],
        parts: |p| with_sft(margin(phi::VISITS, p, [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "spa",
        aliases: &["spa_refined"],
        formula: "p sp(-u) + (1-p) sp(u), p = 1 - alpha [u_mix <= gap]",
        gradient: "sig(u) - p",
        parameters: &[
            &[
                beta(0.1),
                Parameter {
                    name: "alpha",
                    default: 0.1,
                    range: Range::Below(0.0, 0.5),
                    meaning: "smoothing of pairs the model is unsure of",
                },
                Parameter {
                    name: "gap",
                    default: 0.0,
                    range: Range::Any,
                    meaning: "margin up to which a pair counts as unsure",
                },
            ],
            F1,
        ],
        values: &[Value::Margin],
        source: "Spread Preference Annotation (Selfie), arXiv 2406.04412 and its code",
        traps: &[
            "u_mix comes with the data; the repository's default mixes nothing, so that it is the pair's own margin",
            "the repository's gap is a running 10 % quantile of 50 steps; here it is a number",
        ],
        parts: |p| with_sft(margin(phi::SPA, p, [p.get("alpha"), p.get("gap")]), p),
        ..SUM
    },
    Definition {
        name: "upo",
        aliases: &["upo_as_printed"],
        formula: "p sp(-u) + (1-p) sp(u), p = 1 - 1/(1 + P)",
        gradient: "sig(u) - p",
        values: &[Value::Uncertainty],
        source: "Uncertainty-enhanced Preference Optimization, arXiv 2409.11212, as printed",
        traps: &["inverted as printed: with P below 1 the flipped label outweighs the given one; its own code trains \
                  plain dpo on sampled pairs, which is what to use"],
        parts: |p| with_sft(margin(phi::UPO, p, [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "wpo",
        aliases: &["wpo_weighted"],
        formula: "sg(w_w w_l) sp(-u), w = exp(mean_t(lp_t - log sum_v p_tv^2))",
        gradient: "-w_w w_l sig(-u)",
        parameters: &[&[beta(0.01)], F1],
        source: "WPO, arXiv 2406.11827, as in TRL (use_weighting)",
        traps: &["the weights need the policy's whole distribution at each token, and so the f32 logits of a chunk"],
        parts: |p| {
            let mut part = margin(phi::SIGMOID, p, [0.0; 2]);
            if let Head::Difference { flags, .. } = &mut part.head {
                *flags |= POLICY_WEIGHTED;
            }
            with_sft(part, p)
        },
        ..SUM
    },
    Definition {
        name: "scir",
        aliases: &["scir_penalty_reconstructed"],
        formula: "[CE(z, sig(u)) + CE(z, sig(g))] / 2, z = [sig(u) + sig(g) > 1]",
        gradient: "(sig(u) - z) / 2",
        values: &[Value::JudgeLogit],
        source: "reconstructed: self-consistency of internal reward models, arXiv 2502.08922; the penalty alone",
        traps: &[
            "the judge's logit g comes with the data and is not trained here",
            "combine it with dpo, over the pairs on which both agree",
        ],
        parts: |p| with_sft(margin(phi::SCIR, p, [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "apo_accelerated",
        aliases: &["apo_accelerated_dpo"],
        formula: "sp(-u), with r' = (1 + alpha) r - alpha r_older in place of r",
        gradient: "-sig(-u)",
        parameters: &[&[beta(0.1), ACCELERATION], F1],
        source: "reconstructed: Accelerated Preference Optimization, arXiv 2410.06293, by log-probabilities",
        traps: &[
            "two APOs: the anchored one is apo_zero and apo_down",
            "needs `model.older_reference`: the model of the iteration before the starting weights",
        ],
        parts: |p| with_sft(margin(phi::SIGMOID, p, [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "genarm",
        aliases: &["genarm_rm"],
        formula: "sp(-beta (a_w - a_l))",
        gradient: "-sig(-u)",
        parameters: &[&[beta(0.05)], SFT],
        reference: false,
        source: "reconstructed: GenARM's autoregressive reward model, arXiv 2410.08193",
        parts: |p| with_sft(plain(phi::SIGMOID, NO_REFERENCE, p.get("beta"), [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "ln_dpo",
        aliases: &["sigmoid_norm"],
        formula: "sp(-u), u = beta (rho_w/n_w - rho_l/n_l)",
        gradient: "-sig(-u)",
        parameters: &[&[beta(2.0)], SFT],
        source: "Hitchhiker's guide to *PO, arXiv 2407.15229, as TRL's sigmoid_norm",
        traps: &["beta counts per token: TRL's default of 0.1 is far too small; Tulu 3 uses 5"],
        parts: |p| with_sft(plain(phi::SIGMOID, PER_TOKEN, p.get("beta"), [0.0; 2]), p),
        ..PER_TOKEN_MEAN
    },
    Definition {
        name: "ipo",
        aliases: &["ipo_avg"],
        formula: "(u - 1/(2 tau))^2, u = rho_w/n_w - rho_l/n_l",
        gradient: "2 (u - 1/(2 tau))",
        parameters: &[&[TAU], SFT],
        source: "IPO, arXiv 2310.12036, over per-token means as in TRL, whose beta is tau here",
        traps: &["several IPOs: ipo_sum is the one over sums"],
        parts: |p| with_sft(plain(phi::SQUARE, PER_TOKEN, 1.0, [0.5 / p.get("tau"), 0.0]), p),
        ..PER_TOKEN_MEAN
    },
    Definition {
        name: "simpo",
        formula: "(1-e) sp(-u) + e sp(u), u = beta (a_w/n_w - a_l/n_l) - gamma",
        gradient: "e sig(u) - (1-e) sig(-u)",
        parameters: &[&[beta(2.0), GAMMA, smoothing(0.0, HALF)], SFT],
        reference: false,
        source: "SimPO, arXiv 2405.14734; its README has beta 2 to 10 and gamma/beta 0.1 to 0.8",
        traps: &[
            "gamma is the margin itself (TRL's simpo_gamma), not gamma/beta",
            "beta has nothing to pull towards: it only scales",
        ],
        parts: |p| simpo(p, map::IDENTITY, 0.0),
        ..PER_TOKEN_MEAN
    },
    Definition {
        name: "alpha_po",
        formula: "simpo with (1 - exp(-alpha a/n)) / alpha in place of a/n",
        gradient: "simpo's times exp(-alpha a/n)",
        parameters: &[
            &[
                beta(2.0),
                GAMMA,
                Parameter {
                    name: "alpha",
                    default: 0.25,
                    range: Range::Above(0.0),
                    meaning: "shape of the reward; towards 0 it is simpo",
                },
                smoothing(0.0, HALF),
            ],
            SFT,
        ],
        reference: false,
        source: "AlphaPO, arXiv 2501.03884, as in TRL's CPO trainer",
        parts: |p| simpo(p, map::ALPHA_REWARD, p.get("alpha")),
        ..PER_TOKEN_MEAN
    },
    Definition {
        name: "rpo",
        aliases: &["rpo_cumulative"],
        family: Family::WithLikelihood,
        formula: "sp(-u) - eta beta a_w",
        gradient: "dpo's; c_w also has -eta beta",
        parameters: &[&[
            beta(0.01),
            Parameter {
                name: "eta",
                default: 0.005,
                range: Range::AtLeast(0.0),
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
        family: Family::WithLikelihood,
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
        family: Family::WithLikelihood,
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
        family: Family::WithLikelihood,
        formula: "(1-e) sp(-u) + e sp(u) - alpha (sum a_w)/(sum n_w), u = beta (a_w - a_l)",
        gradient: "dpo's; c_w also has -alpha/(sum n_w)",
        parameters: &[&[
            beta(0.1),
            Parameter {
                name: "cpo_alpha",
                default: 1.0,
                range: Range::AtLeast(0.0),
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
        family: Family::WithLikelihood,
        formula: "max(0, delta - a_w + a_l) - lambda a_w",
        gradient: "-1/+1 where the hinge is open; c_w also has -lambda",
        parameters: &[&[
            Parameter {
                name: "delta",
                default: 1.0,
                range: Range::Above(0.0),
                meaning: "margin from which on the hinge is closed",
            },
            Parameter { name: "lambda", default: 0.1, range: Range::AtLeast(0.0), meaning: "weight of the likelihood" },
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
        family: Family::WithLikelihood,
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
        family: Family::WithLikelihood,
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
        family: Family::WithLikelihood,
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
        family: Family::WithLikelihood,
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
    Definition {
        name: "tdpo1",
        family: Family::Token,
        formula: "sp(-u), u = beta (S_w - S_l), S = rho + sum_t KL(q_t || p_t)",
        gradient: "-sig(-u); dz_t = c (onehot - q_t)",
        parameters: &[&[beta(0.1)], SFT],
        source: "Token-level DPO, arXiv 2404.11999",
        traps: &[
            "needs the reference's whole distribution at each token: the reference model stays on the device",
            "the policy's softmax cancels: the margin is linear in the logits, hence unbounded",
        ],
        parts: |p| with_sft(divergence(p, 0, 1.0), p),
        ..SUM
    },
    Definition {
        name: "tdpo2",
        family: Family::Token,
        formula: "sp(-u), u = beta [rho_w - rho_l - alpha (KL_l - sg(KL_w))]",
        gradient: "-sig(-u); the divergence of the chosen side is a constant",
        parameters: &[
            &[
                beta(0.1),
                Parameter {
                    name: "alpha",
                    default: 0.5,
                    range: Range::AtLeast(0.0),
                    meaning: "weight of the divergences",
                },
            ],
            SFT,
        ],
        source: "Token-level DPO, arXiv 2404.11999 and its repository",
        traps: &["needs the reference's whole distribution at each token: the reference model stays on the device"],
        parts: |p| with_sft(divergence(p, CHOSEN_DIVERGENCE_FIXED, p.get("alpha")), p),
        ..SUM
    },
    Definition {
        name: "mapo",
        aliases: &["sparsepo_common_or_mapo"],
        family: Family::Token,
        formula: "sp(-u) + l1_reward sum mu + l1_divergence sum md, S = sum_t mu_t (lp_t - lq_t) + md_t KL_t, mu = md from the reference's activations",
        gradient: "-sig(-u); dz_t = c [mu_t (onehot - p_t) + md_t (p_t - q_t)]",
        parameters: &[&[beta(0.8)], L1, SFT],
        source: "SparsePO with the MaPO mask, arXiv 2410.05102 and its repository",
        traps: &[
            "the mask is the mean over layers of each token's mean MLP output in the reference, stretched to 0..1 over the \
             response; the repository's z-score before that changes nothing and is left out",
            "needs the reference's whole distribution at each token: the reference model stays on the device",
        ],
        parts: |p| with_sft(masked(p), p),
        ..SUM
    },
    Definition {
        name: "sparse_po",
        family: Family::Token,
        formula: "mapo's, with mu = md learned",
        gradient: "mapo's; dmu_t = c (lp_t - lq_t + KL_t) + l1_reward + l1_divergence",
        parameters: &[&[beta(0.8)], L1, SFT],
        source: "SparsePO with a common learned mask, arXiv 2410.05102 and its repository's simple_all",
        traps: &[
            LEARNED,
            "needs the reference's whole distribution at each token: the reference model stays on the device",
        ],
        parts: |p| with_sft(masked(p), p),
        ..SUM
    },
    Definition {
        name: "sparse_po_independent",
        aliases: &["sparsepo_independent"],
        family: Family::Token,
        formula: "mapo's, with mu and md learned apart",
        gradient: "mapo's; dmu_t = c (lp_t - lq_t) + l1_reward, dmd_t = c KL_t + l1_divergence",
        parameters: &[&[beta(0.8)], L1, SFT],
        source: "SparsePO with independent learned masks, arXiv 2410.05102 and its repository's simple_all",
        traps: &[
            LEARNED,
            "needs the reference's whole distribution at each token: the reference model stays on the device",
        ],
        parts: |p| with_sft(masked(p), p),
        ..SUM
    },
    Definition {
        name: "ld_dpo",
        family: Family::Token,
        formula: "sp(-u), rho = sum_t w_t (lp_t - lq_t), w_t = 1 up to min(n_w, n_l), alpha after",
        gradient: "-sig(-u); g_t = c w_t",
        parameters: &[&[beta(0.1), LD_ALPHA], F1],
        source: "LD-DPO, arXiv 2409.06411, as TRL's ld_alpha",
        traps: &["logps/* in the metrics are weighted as well"],
        parts: |p| with_sft(margin(phi::SIGMOID, p, [0.0; 2]), p),
        ..SUM
    },
    Definition {
        name: "dove",
        family: Family::Difference,
        formula: "sp(-u), with a and r over prompt and response",
        gradient: "-sig(-u)",
        parameters: &[&[beta(0.1)], F1],
        source: "DOVE, arXiv 2404.00530 and its repository",
        traps: &[
            "where both sides have the same prompt, its tokens cancel and the loss is dpo",
            "rows may give a `rejected_prompt` of their own; a prompt's first token is not predicted",
        ],
        parts: |p| with_sft(margin(phi::SIGMOID, p, [0.0; 2]), p),
        ..SUM
    },
];

const LEARNED: &str = "mask_t = relu(sum_l gamma_l relu(w_l . LN(H_lt) + b_l)) over the reference's hidden states; its \
                       parameters are saved and resumed with the run; no dropout is applied";
const L1: &[Parameter] = &[
    Parameter {
        name: "l1_reward",
        default: 0.0,
        range: Range::AtLeast(0.0),
        meaning: "penalty on the log-ratios' mask",
    },
    Parameter {
        name: "l1_divergence",
        default: 0.0,
        range: Range::AtLeast(0.0),
        meaning: "penalty on the divergences' mask",
    },
];

/// Masked log-ratios and masked divergences.
fn masked(p: &Parameters) -> Part {
    let mut part = divergence(p, 0, 1.0);
    part.parameters[parameter::WEIGHT_PENALTY as usize] = p.get("l1_reward");
    part.parameters[parameter::DIVERGENCE_WEIGHT_PENALTY as usize] = p.get("l1_divergence");
    part
}

const TAU: Parameter = Parameter {
    name: "tau",
    default: 0.1,
    range: Range::Above(0.0),
    meaning: "strength of the pull towards the reference: the margin's target is 1/(2 tau)",
};
const GAMMA: Parameter =
    Parameter { name: "simpo_gamma", default: 1.0, range: Range::AtLeast(0.0), meaning: "margin asked for" };
const LAMBDA_1: Parameter =
    Parameter { name: "lambda", default: 1.0, range: Range::AtLeast(0.0), meaning: "weight of the likelihood" };
const ODDS: Parameter =
    Parameter { name: "lambda", default: 0.1, range: Range::AtLeast(0.0), meaning: "weight of the odds ratio" };
const RATIONALE: Parameter =
    Parameter { name: "gamma", default: 0.001, range: Range::AtLeast(0.0), meaning: "weight of the rationale" };
/// How far the reference is carried on.
pub const ACCELERATION: Parameter = Parameter {
    name: "alpha",
    default: 0.3,
    range: Range::AtLeast(0.0),
    meaning: "how far the last iteration's change is carried on; the paper's value is not known",
};
/// LD-DPO's weight of the tokens beyond the shorter response.
pub const LD_ALPHA: Parameter = Parameter {
    name: "ld_alpha",
    default: 0.5,
    range: Range::Within(0.0, 1.0),
    meaning: "weight of the tokens beyond the shorter response's length",
};

fn smoothed(p: &Parameters, flags: i32) -> Part {
    let e = p.get("label_smoothing");
    plain(if e > 0.0 { phi::SMOOTHED } else { phi::SIGMOID }, flags, p.get("beta"), [e, 0.0])
}

fn simpo(p: &Parameters, shape: i32, alpha: f64) -> Vec<Part> {
    let mut part = smoothed(p, NO_REFERENCE | PER_TOKEN);
    if let Head::Difference { map, .. } = &mut part.head {
        *map = shape;
    }
    part.parameters[parameter::GAMMA as usize] = p.get("simpo_gamma");
    part.parameters[parameter::MAP_ALPHA as usize] = alpha;
    with_sft(part, p)
}

/// The odds ratio of mean log-probabilities.
fn odds() -> Part {
    let head = Head::Difference { phi: phi::SIGMOID, map: map::LOG_ODDS, flags: NO_REFERENCE | PER_TOKEN };
    let mut part = Part::new(head, &[]);
    part.parameters[parameter::BETA as usize] = 1.0;
    part
}

fn divergence(p: &Parameters, flags: i32, factor: f64) -> Part {
    let mut part = plain(phi::SIGMOID, WITH_DIVERGENCE | flags, p.get("beta"), [0.0; 2]);
    part.parameters[parameter::DIVERGENCE_FACTOR as usize] = factor;
    part
}
