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

/// A line a loss: name, family, formula.
pub fn list() -> String {
    let mut text = String::new();
    for loss in all() {
        let family = loss.family.describe().split(':').next().unwrap_or_default();
        let _ = writeln!(text, "{:<20} {family}  {}", loss.name, loss.formula);
    }
    text
}

/// The part of `docs/losses.md` that is written from the code.
pub fn page() -> String {
    let mut text = String::from("| loss | family | data | reference | source |\n| --- | --- | --- | --- | --- |\n");
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
