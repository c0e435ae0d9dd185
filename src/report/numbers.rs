//! Numbers of metrics, short.

/// Four digits that count, five before a point.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "nan".into();
    }
    match size {
        0.0 => "0".into(),
        1e5.. | ..1e-3 => exponent(value),
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        1.0.. => format!("{value:.3}"),
        0.1.. => format!("{value:.4}"),
        0.01.. => format!("{value:.5}"),
        _ => format!("{value:.6}"),
    }
}

/// The same for the label of an axis, without zeros at its end, and thousands as `k`.
pub fn label(value: f64) -> String {
    let (value, unit) = match value.abs() {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = short(value);
    let text = if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{unit}")
}

fn exponent(value: f64) -> String {
    let text = format!("{value:.3e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let values = [0.0, 0.012_345, 0.29354, -7.07631, 12.3456, 9323.4, 5e-4, 1.234_56e-5, 2_000_000.0, f64::NAN];
        let texts = ["0", "0.01235", "0.2935", "-7.076", "12.35", "9323", "5e-4", "1.235e-5", "2e6", "nan"];
        assert_eq!(values.map(short), texts);
        let values = [0.0, 0.5, 100.0, 12_500.0, 1e6, 5e-4, 0.25];
        assert_eq!(values.map(label), ["0", "0.5", "100", "12.5k", "1M", "5e-4", "0.25"]);
    }
}
