//! Two results of the same bench side by side: the ratio of their medians, and whether their spreads are apart.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::times::Times;

/// The keys that say what was timed, in both benches.
const NAMES: [&str; 9] = ["kernel", "shape", "model", "task", "layout", "pairs", "prompt", "response", "graph"];
/// The keys that have times in milliseconds.
const TIMES: [&str; 2] = ["ms", "step_ms"];

/// The runs of a result, where it has any.
fn times(result: &Value) -> Option<Times> {
    let runs = TIMES.iter().find_map(|key| result.get(key)?.as_array())?;
    Times::of(runs.iter().filter_map(Value::as_f64).collect())
}

/// A table of the cases that both have, one row each: medians, the middle four fifths, the ratio of the medians (below 1 is
/// faster), and a word where the spreads do not touch. Cases of one side only are counted.
///
/// # Errors
/// One of them holds no times, or they have no case in common.
pub fn table(before: &[Value], now: &[Value]) -> Result<String> {
    let [before, now] = [("before", before), ("now", now)].map(|(name, results)| {
        let found: BTreeMap<String, (usize, Times)> = results
            .iter()
            .enumerate()
            .filter_map(|(place, result)| Some((name_of(result), (place, times(result)?))))
            .collect();
        ensure!(
            !found.is_empty(),
            "the results {name} have no times: only what ran on a GPU, or whole steps, are measured"
        );
        Ok(found)
    });
    let (before, now) = (before?, now?);
    let mut text = String::from("| case | ms before | ms now | now / before | |\n| --- | ---: | ---: | ---: | --- |\n");
    let mut ratios = Vec::new();
    let mut shared: Vec<_> = now.iter().filter_map(|(name, now)| Some((name, now, before.get(name)?))).collect();
    shared.sort_by_key(|(_, (place, _), _)| *place);
    for (name, (_, now), (_, before)) in shared {
        let ratio = now.median() / before.median();
        ratios.push(ratio.ln());
        let ([low, high], [old_low, old_high]) = (now.spread(), before.spread());
        let verdict = match () {
            () if high < old_low => "faster",
            () if low > old_high => "slower",
            () => "spreads touch",
        };
        let shown = |times: &Times| {
            let [low, high] = times.spread();
            format!("{:.4} ({low:.4} to {high:.4})", times.median())
        };
        let _ = writeln!(text, "| {name} | {} | {} | {ratio:.3} | {verdict} |", shown(before), shown(now));
    }
    ensure!(!ratios.is_empty(), "no case of one file is in the other");
    let alone = before.len() + now.len() - 2 * ratios.len();
    let mean = (ratios.iter().sum::<f64>() / ratios.len() as f64).exp();
    let _ =
        writeln!(text, "\n{} cases, {mean:.3} times as long (geometric mean); {alone} of one side only", ratios.len());
    Ok(text)
}

/// What was timed, in words.
fn name_of(result: &Value) -> String {
    let word = |key: &&str| match result.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Bool(true) => Some((*key).to_owned()),
        Value::Number(number) => Some(format!("{key} {number}")),
        _ => None,
    };
    NAMES.iter().filter_map(word).collect::<Vec<_>>().join(" ")
}

/// The results of a JSON file that a bench wrote.
///
/// # Errors
/// It is none: names what is wrong.
pub fn read(text: &str) -> Result<Vec<Value>> {
    let value: Value = serde_json::from_str(text).context("not JSON")?;
    let Value::Array(results) = value else { anyhow::bail!("not a list of results, as --json writes it") };
    Ok(results)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use serde_json::json;

    use super::*;

    fn case(name: &str, ms: &[f64]) -> Value {
        json!({"kernel": name, "shape": "8x8", "ms": ms})
    }

    #[test]
    fn medians_are_compared_and_spreads_decide() {
        let ten = |from: f64| (0..10).map(|i| from + 0.01 * f64::from(i)).collect::<Vec<_>>();
        let before = [case("a", &ten(1.0)), case("b", &ten(1.0)), case("c", &ten(1.0)), case("old", &ten(1.0))];
        let now = [case("c", &ten(2.0)), case("b", &ten(1.05)), case("a", &ten(0.5))];
        let text = table(&before, &now).unwrap();
        let rows: Vec<&str> = text.lines().skip(2).take(3).collect();
        assert_eq!(rows[0], "| c 8x8 | 1.0500 (1.0100 to 1.0800) | 2.0500 (2.0100 to 2.0800) | 1.952 | slower |");
        assert!(rows[1].ends_with("| 1.048 | spreads touch |") && rows[2].ends_with("| 0.524 | faster |"), "{text}");
        // The cube root of 2.05/1.05 * 1.10/1.05 * 0.55/1.05.
        assert!(text.ends_with("\n3 cases, 1.023 times as long (geometric mean); 1 of one side only\n"), "{text}");
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let of = |before: &Value, now: &Value| table(from_ref(before), from_ref(now)).unwrap_err().to_string();
        let (timed, counted) = (case("a", &[1.0]), json!({"kernel": "a", "shape": "8x8", "flops": 1.0}));
        assert!(of(&counted, &timed).starts_with("the results before have no times"));
        assert!(of(&timed, &counted).starts_with("the results now have no times"));
        assert_eq!(of(&timed, &case("b", &[1.0])), "no case of one file is in the other");
        assert_eq!(read("{}").unwrap_err().to_string(), "not a list of results, as --json writes it");
    }
}
