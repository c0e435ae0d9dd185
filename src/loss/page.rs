//! Every loss in words: `docs/losses.md` and `warpo losses` are written from the same rows the heads run from.

use std::fmt::Write as _;

use super::{Definition, all};

/// One loss.
pub fn entry(loss: &Definition) -> String {
    let mut text = format!("### {}\n\n", loss.name);
    let mut line = |what: &str, value: &str| {
        let _ = writeln!(text, "* {what}: {value}");
    };
    if !loss.aliases.is_empty() {
        line("also called", &loss.aliases.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "));
    }
    line("family", loss.family.describe());
    line("loss", &format!("`{}`", loss.formula));
    line("gradient", &format!("`{}`", loss.gradient));
    for parameter in loss.all_parameters() {
        let default = match parameter.default.is_nan() {
            true => "may be left out".to_owned(),
            false => format!("default {}", parameter.show(parameter.default)),
        };
        line(&format!("`{}`", parameter.name), &format!("{}; {}; {default}", parameter.meaning, parameter.range));
    }
    line("data", &data(loss));
    line("reference", if loss.reference { "needed" } else { "not needed" });
    line("source", loss.source);
    for trap in loss.traps {
        line("mind", trap);
    }
    text
}

fn data(loss: &Definition) -> String {
    let mut text = loss.shape.describe().to_owned();
    for &value in loss.values {
        text += &format!(", with {}", value.columns());
    }
    if loss.rationale {
        text += ", with `rationale_prompt` and `rationale`";
    }
    text
}

/// What the formulas are written in.
pub const NOTATION: &[(&str, &str)] = &[
    ("a", "log-probability of a response under the policy, summed over its tokens"),
    ("r", "the same under the reference, the starting weights"),
    ("n", "tokens of the response"),
    ("rho", "`a - r`, the log-ratio"),
    ("_w, _l", "of the chosen, of the rejected response; `x = rho_w`, `y = rho_l` in F3"),
    ("h", "`rho_w - rho_l`"),
    ("u", "`beta (rho_w - rho_l)` unless the formula says otherwise"),
    ("s_i, v_i, K", "in F6: `beta rho` and score of the i-th response of a list, and how many there are"),
    ("beta", "strength of the pull towards the reference"),
    ("e", "`label_smoothing`, the share of labels taken to be wrong"),
    ("alpha, gamma, delta, eta, lambda, tau", "further parameters, of which the loss's own entry tells"),
    ("p", "probability that the chosen response is the better one"),
    ("sig", "logistic function, `sig(x) = 1 / (1 + exp(-x))`; `sig'` its slope"),
    ("sp", "softplus, `sp(x) = log(1 + exp(x))`"),
    ("sg", "taken as a constant"),
    ("lp_t, lq_t", "log-probability of one token under policy and reference"),
    ("p_t, q_t", "the whole distributions; `z_t` the logits, `onehot` the token that came"),
    ("KL", "sum over the tokens of the divergence between those distributions"),
    ("c_w, c_l", "slopes of the loss by `a_w` and `a_l`; a gradient that stands alone is the slope by `u`"),
];

/// The losses by family, a line each: name, formula, other names. What the signs mean comes last.
pub fn list() -> String {
    let mut text = String::new();
    let mut family = None;
    let mut losses: Vec<&Definition> = all().collect();
    losses.sort_by_key(|loss| loss.family.describe());
    for loss in losses {
        if family.replace(loss.family) != Some(loss.family) {
            let heading = loss.family.describe().replacen(": ", "  ", 1);
            let _ = writeln!(text, "{}{heading}", if text.is_empty() { "" } else { "\n" });
        }
        let also =
            if loss.aliases.is_empty() { String::new() } else { format!("  (also {})", loss.aliases.join(", ")) };
        let _ = writeln!(text, "  {:<22} {}{also}", loss.name, loss.formula);
    }
    text += "\nNotation\n";
    for (sign, meaning) in NOTATION {
        let _ = writeln!(text, "  {sign:<22} {}", meaning.replace('`', ""));
    }
    text + "\n`warpo losses NAME` has gradient, parameters, data, source and what surprises people.\n"
}

/// The part of `docs/losses.md` that is written from the code.
pub fn page() -> String {
    let mut text = String::from("## Notation\n\n| sign | meaning |\n| --- | --- |\n");
    for (sign, meaning) in NOTATION {
        let signs: Vec<String> = sign.split(", ").map(|sign| format!("`{sign}`")).collect();
        let _ = writeln!(text, "| {} | {meaning} |", signs.join(", "));
    }
    text += "\n## Losses\n\n| loss | family | data | reference | source |\n| --- | --- | --- | --- | --- |\n";
    for loss in all() {
        let family = loss.family.describe().split(':').next().unwrap_or_default();
        let reference = if loss.reference { "yes" } else { "no" };
        let _ = writeln!(
            text,
            "| [`{0}`](#{0}) | {family} | {1} | {reference} | {2} |",
            loss.name,
            data(loss).replace('|', "\\|"),
            loss.source.replace('|', "\\|")
        );
    }
    for loss in all() {
        text += "\n";
        text += &entry(loss);
    }
    text
}
