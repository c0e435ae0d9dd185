//! Losses of one margin (F1) and of one margin per token (F2). What stands on one is in `with_likelihood` (F5) and `token` (F7).
//!
//! To add a loss of one margin: a row in the table of `kernels/loss_difference.cu`, a row in [`LOSSES`], and its vector.

use super::{
    definition::{
        Bounds, Definition, HeadPart, LossFamily, LossHead, Parameter, Parameters, SFT, SFT_WEIGHT, Shape, Special,
        beta,
    },
    likelihood::with_sft,
};
use crate::{
    forest::Value,
    ops::loss_difference::{
        flag::{NO_REFERENCE, PER_TOKEN, POLICY_WEIGHTED},
        map, parameter, phi,
    },
};

pub(super) const fn smoothing(default: f64, range: Bounds) -> Parameter {
    Parameter { name: "label_smoothing", default, range, meaning: "share of labels taken to be wrong" }
}

pub(super) const HALF: Bounds = Bounds::Below(0.0, 0.5);

/// What every loss of one margin over log-ratios takes: how they are measured, and a likelihood beside it.
pub(super) const F1: &[Parameter] = &[
    Parameter {
        name: "f_divergence_type",
        default: 0.0,
        range: Bounds::OneOf(&["reverse_kl", "js_divergence", "forward_kl", "alpha_divergence"]),
        meaning: "divergence the log-ratios are measured by (f-DPO, arXiv 2309.16240)",
    },
    Parameter {
        name: "f_alpha_divergence_coef",
        default: 0.5,
        range: Bounds::Inside(0.0, 1.0),
        meaning: "alpha of alpha_divergence",
    },
    SFT_WEIGHT,
];

/// `beta * (x_chosen - x_rejected)` over log-ratios, with [`F1`]'s options.
pub(super) fn margin(phi: i32, p: &Parameters, own: [f64; 2]) -> HeadPart {
    let mut part = plain(phi, 0, p.get_or_0("beta"), own);
    if let LossHead::Difference { map, .. } = &mut part.head {
        *map = p.get_or_0("f_divergence_type") as i32;
    }
    part.parameters[parameter::MAP_ALPHA as usize] = p.get_or_0("f_alpha_divergence_coef");
    part
}

pub(super) fn plain(phi: i32, flags: i32, beta: f64, own: [f64; 2]) -> HeadPart {
    let mut part = HeadPart::new(LossHead::Difference { phi, map: map::IDENTITY, flags }, &[beta]);
    (part.parameters[parameter::P0 as usize], part.parameters[parameter::P1 as usize]) = (own[0], own[1]);
    part
}

/// A loss of one margin of sums; the rest of the row says what differs.
pub(super) const SUM: Definition = Definition {
    name: "",
    aliases: &[],
    family: LossFamily::Difference,
    formula: "",
    gradient: "",
    parameters: &[&[beta(0.1)], F1],
    shape: Shape::Pair,
    values: &[],
    rationale: false,
    special: Special::None,
    reference: true,
    source: "",
    traps: &[],
    parts: |_| Vec::new(),
};

/// A loss of one margin per token.
const PER_TOKEN_MEAN: Definition = Definition { family: LossFamily::PerTokenDifference, ..SUM };

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
        parameters: &[&[beta(0.1), smoothing(1e-3, Bounds::Inside(0.0, 0.5))], F1],
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
                    range: Bounds::Inside(0.0, 1.0),
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
                    range: Bounds::Below(0.0, 0.5),
                    meaning: "smoothing of pairs the model is unsure of",
                },
                Parameter {
                    name: "gap",
                    default: 0.0,
                    range: Bounds::Any,
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
            if let LossHead::Difference { flags, .. } = &mut part.head {
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
        special: Special::OlderReference,
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
                    range: Bounds::Above(0.0),
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
        name: "dove",
        special: Special::JointPrompts,
        family: LossFamily::Difference,
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

const TAU: Parameter = Parameter {
    name: "tau",
    default: 0.1,
    range: Bounds::Above(0.0),
    meaning: "strength of the pull towards the reference: the margin's target is 1/(2 tau)",
};
const GAMMA: Parameter =
    Parameter { name: "simpo_gamma", default: 1.0, range: Bounds::AtLeast(0.0), meaning: "margin asked for" };
/// How far the reference is carried on.
pub const ACCELERATION: Parameter = Parameter {
    name: "alpha",
    default: 0.3,
    range: Bounds::AtLeast(0.0),
    meaning: "how far the last iteration's change is carried on; the paper's value is not known",
};

pub(super) fn smoothed(p: &Parameters, flags: i32) -> HeadPart {
    let e = p.get("label_smoothing");
    plain(if e > 0.0 { phi::SMOOTHED } else { phi::SIGMOID }, flags, p.get("beta"), [e, 0.0])
}

fn simpo(p: &Parameters, shape: i32, alpha: f64) -> Vec<HeadPart> {
    let mut part = smoothed(p, NO_REFERENCE | PER_TOKEN);
    if let LossHead::Difference { map, .. } = &mut part.head {
        *map = shape;
    }
    part.parameters[parameter::GAMMA as usize] = p.get("simpo_gamma");
    part.parameters[parameter::MAP_ALPHA as usize] = alpha;
    with_sft(part, p)
}
