//! Losses with token weights or token divergences (F7): a margin's head over weighted rows, with divergences added.

use super::{
    definition::{Bounds, Definition, HeadPart, LossFamily, Parameter, Parameters, SFT, Special, beta},
    difference::{F1, SUM, margin, plain},
    likelihood::with_sft,
};
use crate::{
    model::MaskKind,
    ops::loss_difference::{
        flag::{CHOSEN_DIVERGENCE_FIXED, WITH_DIVERGENCE},
        parameter, phi,
    },
};

/// One row a loss.
pub const LOSSES: &[Definition] = &[
    Definition {
        name: "tdpo1",
        family: LossFamily::Token,
        formula: "sp(-u), u = beta (S_w - S_l), S = rho + sum_t KL(q_t || p_t)",
        gradient: "-sig(-u); dz_t = c (onehot - q_t)",
        parameters: &[&[beta(0.1)], SFT],
        source: "Token-level DPO, arXiv 2404.11999",
        traps: &[DISTRIBUTIONS, "the policy's softmax cancels: the margin is linear in the logits, hence unbounded"],
        parts: |p| with_sft(divergence(p, 0, 1.0), p),
        ..SUM
    },
    Definition {
        name: "tdpo2",
        family: LossFamily::Token,
        formula: "sp(-u), u = beta [rho_w - rho_l - alpha (KL_l - sg(KL_w))]",
        gradient: "-sig(-u); the divergence of the chosen side is a constant",
        parameters: &[
            &[
                beta(0.1),
                Parameter {
                    name: "alpha",
                    default: 0.5,
                    range: Bounds::AtLeast(0.0),
                    meaning: "weight of the divergences",
                },
            ],
            SFT,
        ],
        source: "Token-level DPO, arXiv 2404.11999 and its repository",
        traps: &[DISTRIBUTIONS],
        parts: |p| with_sft(divergence(p, CHOSEN_DIVERGENCE_FIXED, p.get("alpha")), p),
        ..SUM
    },
    Definition {
        name: "mapo",
        special: Special::Masks(MaskKind::Activations),
        aliases: &["sparsepo_common_or_mapo"],
        family: LossFamily::Token,
        formula: "sp(-u) + l1_reward sum mu + l1_divergence sum md, S = sum_t mu_t (lp_t - lq_t) + md_t KL_t, mu = md from the reference's activations",
        gradient: "-sig(-u); dz_t = c [mu_t (onehot - p_t) + md_t (p_t - q_t)]",
        parameters: &[&[beta(0.8)], L1, SFT],
        source: "SparsePO with the MaPO mask, arXiv 2410.05102 and its repository",
        traps: &[
            "the mask is the mean over layers of each token's mean MLP output in the reference, stretched to 0..1 over the \
             response; the repository's z-score before that changes nothing and is left out",
            DISTRIBUTIONS,
        ],
        parts: |p| with_sft(masked(p), p),
        ..SUM
    },
    Definition {
        name: "sparse_po",
        special: Special::Masks(MaskKind::Common),
        family: LossFamily::Token,
        formula: "mapo's, with mu = md learned",
        gradient: "mapo's; dmu_t = c (lp_t - lq_t + KL_t) + l1_reward + l1_divergence",
        parameters: &[&[beta(0.8)], L1, SFT],
        source: "SparsePO with a common learned mask, arXiv 2410.05102 and its repository's simple_all",
        traps: &[LEARNED, DISTRIBUTIONS],
        parts: |p| with_sft(masked(p), p),
        ..SUM
    },
    Definition {
        name: "sparse_po_independent",
        special: Special::Masks(MaskKind::Independent),
        aliases: &["sparsepo_independent"],
        family: LossFamily::Token,
        formula: "mapo's, with mu and md learned apart",
        gradient: "mapo's; dmu_t = c (lp_t - lq_t) + l1_reward, dmd_t = c KL_t + l1_divergence",
        parameters: &[&[beta(0.8)], L1, SFT],
        source: "SparsePO with independent learned masks, arXiv 2410.05102 and its repository's simple_all",
        traps: &[LEARNED, DISTRIBUTIONS],
        parts: |p| with_sft(masked(p), p),
        ..SUM
    },
    Definition {
        name: "ld_dpo",
        special: Special::TailWeight,
        family: LossFamily::Token,
        formula: "sp(-u), rho = sum_t w_t (lp_t - lq_t), w_t = 1 up to min(n_w, n_l), alpha after",
        gradient: "-sig(-u); g_t = c w_t",
        parameters: &[&[beta(0.1), LD_ALPHA], F1],
        source: "LD-DPO, arXiv 2409.06411, as TRL's ld_alpha",
        traps: &["logps/* in the metrics are weighted as well"],
        parts: |p| with_sft(margin(phi::SIGMOID, p, [0.0; 2]), p),
        ..SUM
    },
];

const DISTRIBUTIONS: &str =
    "needs the reference's whole distribution at each token: the reference model stays on the device";

const LEARNED: &str = "mask_t = relu(sum_l gamma_l relu(w_l . LN(H_lt) + b_l)) over the reference's hidden states; its \
                       parameters are saved and resumed with the run; no dropout is applied";
const L1: &[Parameter] = &[
    Parameter {
        name: "l1_reward",
        default: 0.0,
        range: Bounds::AtLeast(0.0),
        meaning: "penalty on the log-ratios' mask",
    },
    Parameter {
        name: "l1_divergence",
        default: 0.0,
        range: Bounds::AtLeast(0.0),
        meaning: "penalty on the divergences' mask",
    },
];

/// LD-DPO's weight of the tokens beyond the shorter response.
pub const LD_ALPHA: Parameter = Parameter {
    name: "ld_alpha",
    default: 0.5,
    range: Bounds::Within(0.0, 1.0),
    meaning: "weight of the tokens beyond the shorter response's length",
};

/// Masked log-ratios and masked divergences.
fn masked(p: &Parameters) -> HeadPart {
    let mut part = divergence(p, 0, 1.0);
    part.parameters[parameter::WEIGHT_PENALTY as usize] = p.get("l1_reward");
    part.parameters[parameter::DIVERGENCE_WEIGHT_PENALTY as usize] = p.get("l1_divergence");
    part
}

fn divergence(p: &Parameters, flags: i32, factor: f64) -> HeadPart {
    let mut part = plain(phi::SIGMOID, WITH_DIVERGENCE | flags, p.get("beta"), [0.0; 2]);
    part.parameters[parameter::DIVERGENCE_FACTOR as usize] = factor;
    part
}
