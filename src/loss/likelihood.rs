//! Losses of a sequence's own likelihood (F8), the terms of it beside a preference (F5), and the term on samples of the
//! policy (F9).

use super::definition::{
    Bounds, Definition, HeadPart, LossFamily, LossHead, Mean, Parameter, Parameters, Shape, Special, beta,
};
use crate::{data::reshape::Reshape, forest::Value, ops::loss_likelihood::function};

fn term(function: i32, place: i32, parameters: &[f64]) -> HeadPart {
    HeadPart::new(LossHead::Likelihood { function, place }, parameters)
}

/// `-a` of the sequence at this place of its group.
pub fn sum(place: i32) -> HeadPart {
    term(function::SUM, place, &[])
}

/// `-a / n`.
pub fn mean(place: i32) -> HeadPart {
    term(function::MEAN, place, &[])
}

/// `-a / |second value|`.
pub fn by_score(place: i32) -> HeadPart {
    term(function::BY_SCORE, place, &[])
}

/// `sp(-gamma a)`.
pub fn log_sigmoid(place: i32, gamma: f64) -> HeadPart {
    term(function::LOG_SIGMOID, place, &[gamma])
}

/// With the likelihood term that `sft_weight` asks for.
pub fn with_sft(part: HeadPart, p: &Parameters) -> Vec<HeadPart> {
    let weight = p.get_or_0("sft_weight");
    let term = (weight > 0.0).then(|| sum(0).weighted(weight).over(Mean::Rows(0)));
    [Some(part), term].into_iter().flatten().collect()
}

/// A likelihood of single responses; the rest of the row says what differs.
const SINGLE: Definition = Definition {
    name: "",
    aliases: &[],
    family: LossFamily::Likelihood,
    formula: "",
    gradient: "",
    parameters: &[],
    shape: Shape::Single,
    values: &[],
    rationale: false,
    special: Special::None,
    reference: false,
    source: "",
    traps: &[],
    parts: |_| Vec::new(),
};

/// One row a loss.
pub const LOSSES: &[Definition] = &[
    Definition {
        name: "sft",
        aliases: &["nll"],
        formula: "-(sum a)/(sum n)",
        gradient: "-1/(sum n)",
        source: "negative log-likelihood, the batch-token mean of TRL's sft loss; Pref-FT (arXiv 2404.14367) on the \
                 chosen side",
        parts: |_| vec![sum(0).over(Mean::Rows(0))],
        ..SINGLE
    },
    Definition {
        name: "sft_mean",
        aliases: &["sft_seqmean"],
        formula: "-a/n",
        gradient: "-1/n",
        source: "negative log-likelihood, the mean of each response",
        traps: &["every response counts alike, so a token of a short one counts more"],
        parts: |_| vec![mean(0)],
        ..SINGLE
    },
    Definition {
        name: "rwr",
        formula: "-w a/n, w = min(exp(score/temperature), clip)",
        gradient: "-w/n",
        parameters: &[&[
            Parameter { name: "temperature", default: 1.0, range: Bounds::Above(0.0), meaning: "of the scores" },
            Parameter { name: "clip", default: 20.0, range: Bounds::Above(0.0), meaning: "largest weight" },
        ]],
        values: &[Value::Score],
        source: "Reward-weighted regression as in the code of arXiv 2404.14367, whose clip is off by default",
        parts: |p| vec![term(function::WEIGHTED, 0, &[p.get("temperature"), p.get("clip")])],
        ..SINGLE
    },
    Definition {
        name: "unlikelihood",
        aliases: &["unlikelihood_reconstructed"],
        formula: "-a_w/n_w - (alpha/n_l) sum_t log(1 - e^lp_t) over y_l",
        gradient: "-1/n_w; (alpha/n_l)/expm1(-lp_t)",
        parameters: &[&[Parameter {
            name: "alpha",
            default: 0.5,
            range: Bounds::AtLeast(0.0),
            meaning: "weight of the rejected side",
        }]],
        shape: Shape::Pair,
        source: "reconstructed: unlikelihood training as a baseline of arXiv 2404.14367",
        traps: &["a pole at probability 1: log-probabilities above -1e-6 count as -1e-6"],
        parts: |p| vec![mean(0), term(function::UNLIKELIHOOD, 1, &[]).weighted(p.get("alpha"))],
        ..SINGLE
    },
    Definition {
        name: "control_sft",
        special: Special::Reshape(Reshape::Control),
        aliases: &["csft"],
        formula: "-(sum a)/(sum n) over both responses, each behind its control token",
        gradient: "-1/(sum n); 0 on prompt and control",
        shape: Shape::Pair,
        source: "control-token SFT as in HALOs' csft, with <|good|> and <|bad|>; the binary form of arXiv 2404.14367",
        traps: &[
            "write the good control at the end of the prompt when the model is used",
            "the controls are plain text to a tokenizer that does not know them",
        ],
        parts: |_| vec![sum(-1).over(Mean::AllRows)],
        ..SINGLE
    },
    Definition {
        name: "hindsight_sft",
        special: Special::Reshape(Reshape::Hindsight),
        aliases: &["chain_of_hindsight"],
        formula: "-(sum a)/(sum n) over \"prompt, marker, y_l, marker, y_w\", both responses",
        gradient: "-1/(sum n); 0 on prompt and markers",
        shape: Shape::Pair,
        source: "Chain of Hindsight, arXiv 2302.02676, without its pretraining term",
        traps: &["the worse response comes first and is learnt as well, behind its marker"],
        parts: |_| vec![sum(-1).over(Mean::AllRows)],
        ..SINGLE
    },
    Definition {
        name: "apo_zero_unpaired",
        family: LossFamily::Separate,
        formula: "1 - sig(beta rho) if desirable, else sig(beta rho)",
        gradient: "-beta sig'(beta rho); +beta sig'(beta rho)",
        parameters: &[&[beta(0.1)]],
        shape: Shape::Labelled,
        reference: true,
        source: "Anchored preference optimisation, arXiv 2408.06266, as in TRL's KTO trainer",
        traps: &["two APOs: see apo_zero"],
        parts: |p| vec![term(function::APO_ZERO, 0, &[p.get("beta")])],
        ..SINGLE
    },
    Definition {
        name: "hypo",
        aliases: &["hypo_online_kl"],
        family: LossFamily::OnPolicy,
        formula: "lambda sg(rho) a",
        gradient: "lambda rho",
        parameters: &[&[Parameter {
            name: "lambda",
            default: 0.05,
            range: Bounds::AtLeast(0.0),
            meaning: "weight of the divergence from the reference",
        }]],
        reference: true,
        source: "reconstructed: HyPO's term on fresh samples, arXiv 2406.01462",
        traps: &[
            "unbiased only for rows that the policy of this moment has sampled: bring them as completions",
            "its value is no loss to watch; only its gradient means something",
        ],
        parts: |p| vec![term(function::ONLINE, 0, &[]).weighted(p.get("lambda"))],
        ..SINGLE
    },
];
