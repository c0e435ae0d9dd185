//! The page of a report: one file that asks nobody for anything, in light or dark as its reader's screen is.

use std::fmt::Write;

use anyhow::Result;

use super::{
    colour::{INK, RUNS, Rgb, dark_rules, hex},
    figure::Figure,
    history::History,
    numbers::short,
    panels::panels,
    summary::{self, Cost, Side},
    thin::{COLUMNS, is_thinned},
};

const STYLE: &str = include_str!("page.css");
const DARK: &str = "--paper: #14171b; --ink: #e6e9ed; --soft: #9aa4b0; --line: #2e343c; --shade: #1b1f24";

/// The page about these runs.
///
/// # Errors
/// A figure cannot be drawn.
pub fn page(runs: &[History]) -> Result<String> {
    let names: Vec<String> = runs.iter().map(|run| escaped(&run.name)).collect();
    let title = names.join(", ");
    let mut page = format!(
        "<!doctype html>\n{}\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}\
         @media (prefers-color-scheme: dark) {{\n:root {{ {DARK} }}\n{}}}\n</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        super::MARK,
        dark_rules()
    );
    page += &legend(runs);
    page += &figures(runs)?;
    page += &format!("<h2>Values</h2>\n{}", values(runs));
    page += &runs.iter().map(pairs).collect::<String>();
    page += &configurations(runs);
    page += &format!("<p class=\"soft\">Written by warpo {}.</p>\n</body>\n</html>\n", env!("CARGO_PKG_VERSION"));
    Ok(page)
}

/// Text as it stands in the page.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The runs with their colours, and how to tell their curves apart.
fn legend(runs: &[History]) -> String {
    let mut text = "<ul class=\"runs\">\n".to_owned();
    for (run, &colour) in runs.iter().zip(RUNS.iter().cycle()) {
        let broken = match run.broken {
            0 => String::new(),
            lines => format!("; {lines} broken lines of {} were left out", super::METRICS),
        };
        let line = swatch(colour, "");
        let (name, state, cost) = (escaped(&run.name), summary::state(run), Cost::of(run).line());
        writeln!(text, "<li>{line}<span><b>{name}</b> {state}{broken}<small>{cost}</small></span></li>")
            .expect("memory");
    }
    let (dots, dashes) = ("<circle cx=\"14\" cy=\"5\" r=\"3.5\" fill=\"INK\"/>", " stroke-dasharray=\"5 3.5\"");
    let key = [("", "training"), (dots, "on held-out rows"), (dashes, "rejected")];
    let key = key.map(|(mark, what)| format!("<span>{}{what}</span>", swatch(INK, mark)));
    format!("{text}</ul>\n<p class=\"key\">{}</p>\n", key.concat())
}

/// A line as in the figures, with dashes or a dot.
fn swatch(colour: Rgb, mark: &str) -> String {
    let colour = hex(colour);
    let (dashes, dot) = if mark.starts_with('<') { ("", mark.replace("INK", &colour)) } else { (mark, String::new()) };
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 28 10\"><line x1=\"0\" y1=\"5\" x2=\"28\" y2=\"5\" stroke-width=\"2.5\" \
         stroke=\"{colour}\"{dashes}/>{dot}</svg>"
    )
}

fn figures(runs: &[History]) -> Result<String> {
    let (panels, missing) = panels(runs);
    let mut text = "<div class=\"figures\">\n".to_owned();
    for panel in &panels {
        writeln!(text, "<figure>{}</figure>", Figure::draw(panel, runs, false)?.inline())?;
    }
    text += "</div>\n";
    if runs.iter().flat_map(|run| run.curves.values()).any(is_thinned) {
        text += &format!(
            "<p class=\"soft\">Curves of more than {COLUMNS} values are drawn in {COLUMNS} columns at most: the line is the \
             mean of a column's values, and the band around it goes from the least to the greatest of them.</p>\n"
        );
    }
    if !missing.is_empty() {
        text += &format!("<p class=\"soft\">Not in the records of {}: {}.</p>\n", these(runs), missing.join(", "));
    }
    Ok(text)
}

fn these(runs: &[History]) -> &'static str {
    if runs.len() == 1 { "this run" } else { "these runs" }
}

/// Last and best values of every metric, a group of columns a run.
fn values(runs: &[History]) -> String {
    let tables: Vec<_> = runs.iter().map(summary::rows).collect();
    let mut names: Vec<&str> = Vec::new();
    tables
        .iter()
        .flatten()
        .for_each(|row| names.extend((!names.contains(&row.name.as_str())).then_some(row.name.as_str())));
    let heads: String = runs.iter().map(|run| format!("<th colspan=\"3\">{}</th>", escaped(&run.name))).collect();
    let mut text = format!("<div class=\"wide\"><table>\n<thead><tr><th></th>{heads}</tr>\n<tr><th></th>");
    text += &"<th>training</th><th>held out</th><th>best held out</th>".repeat(runs.len());
    text += "</tr></thead>\n";
    for name in names {
        let cells: String = runs.iter().map(|run| cells(&summary::row(run, name).sides)).collect();
        writeln!(text, "<tr><th>{}</th>{cells}</tr>", escaped(name)).expect("memory");
    }
    text + "</table></div>\n"
}

fn cells([training, held_out]: &[Side; 2]) -> String {
    let number = |value: Option<f64>| value.map_or(String::new(), short);
    let best =
        held_out.best.map_or(String::new(), |(step, value)| format!("{} <small>at {step}</small>", short(value)));
    let [training, last] = [training.last, held_out.last].map(number);
    format!("<td class=\"first\">{training}</td><td>{last}</td><td>{best}</td>")
}

/// Held-out pairs of a run: those it tells apart best, and worst.
fn pairs(run: &History) -> String {
    if run.pairs[0].is_empty() {
        return String::new();
    }
    let mut text = format!(
        "<h2>Held-out pairs of {}</h2>\n<p class=\"soft\">At the last evaluation: the widest margins between the rewards of \
         both responses, and the narrowest.</p>\n<div class=\"wide\"><table>\n<thead><tr><th>row</th><th>margin</th>\
         <th class=\"text\">prompt</th><th class=\"text\">chosen</th><th class=\"text\">rejected</th></tr></thead>\n",
        escaped(&run.name)
    );
    let gap = [false, true].into_iter().zip(&run.pairs).filter(|(_, pairs)| !pairs.is_empty());
    for (narrowest, pairs) in gap {
        text += if narrowest { "<tr><td colspan=\"5\" class=\"gap\">[...]</td></tr>\n" } else { "" };
        for pair in pairs {
            let texts: String = [&pair.prompt, &pair.chosen, &pair.rejected]
                .map(|text| format!("<td class=\"text\">{}</td>", escaped(&without_blanks(text))))
                .concat();
            // The file's own name is enough for people.
            let row = pair.row.rsplit('/').next().unwrap_or(&pair.row);
            let (row, margin) = (escaped(row), short(pair.margin));
            writeln!(text, "<tr><td class=\"row\">{row}</td><td>{margin}</td>{texts}</tr>").expect("memory");
        }
    }
    text + "</table></div>\n"
}

/// Without the blank lines of a template.
fn without_blanks(text: &str) -> String {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// Where they differ, and each as a whole.
fn configurations(runs: &[History]) -> String {
    let mut text = "<h2>Configuration</h2>\n".to_owned();
    let differences = History::differences(runs);
    if differences.is_empty() && runs.len() > 1 {
        text += "<p>The configurations are the same.</p>\n";
    }
    if !differences.is_empty() {
        let heads: String = runs.iter().map(|run| format!("<th>{}</th>", escaped(&run.name))).collect();
        write!(text, "<div class=\"wide\"><table>\n<thead><tr><th>differs</th>{heads}</tr></thead>\n").expect("memory");
        for row in &differences {
            let value = |value: &Option<String>| value.as_deref().map_or("<i>not set</i>".into(), escaped);
            let cells: String = row.values.iter().map(|cell| format!("<td>{}</td>", value(cell))).collect();
            writeln!(text, "<tr><th>{}</th>{cells}</tr>", escaped(&row.key)).expect("memory");
        }
        text += "</table></div>\n";
    }
    for run in runs {
        let (name, config) = (escaped(&run.name), escaped(run.config.trim_end()));
        let summary = format!("{name}: {}", super::CONFIG);
        writeln!(text, "<details><summary>{summary}</summary><pre>{config}</pre></details>").expect("memory");
    }
    text
}
