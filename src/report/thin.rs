//! Curves with so many points that a picture has no room for them, column by column.

use super::history::Curve;

/// Columns of a curve at most.
pub const COLUMNS: usize = 400;

/// What stands in a column: one point, or several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// The mean of its steps.
    pub step: f64,
    /// The mean of its values; NaN if none is finite.
    pub mean: f64,
    /// The least of them.
    pub least: f64,
    /// The greatest of them.
    pub greatest: f64,
}

/// The columns of a curve: its points as they are where there are few enough.
pub fn thin(curve: &Curve, scale: f64) -> Vec<Column> {
    let size = curve.steps.len().div_ceil(COLUMNS).max(1);
    curve
        .steps
        .chunks(size)
        .zip(curve.values.chunks(size))
        .map(|(steps, values)| column(steps, values, scale))
        .collect()
}

/// Whether [`thin`] leaves points out.
pub fn is_thinned(curve: &Curve) -> bool {
    curve.steps.len() > COLUMNS
}

fn column(steps: &[u64], values: &[f64], scale: f64) -> Column {
    let finite = values.iter().filter(|value| value.is_finite()).map(|value| value * scale);
    let start = (0, 0.0, f64::INFINITY, f64::NEG_INFINITY);
    let (count, sum, least, greatest) = finite.fold(start, |(count, sum, least, greatest), value| {
        (count + 1, sum + value, value.min(least), value.max(greatest))
    });
    let step = steps.iter().map(|&step| step as f64).sum::<f64>() / steps.len() as f64;
    Column { step, mean: sum / f64::from(count), least, greatest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_curve_is_as_it_is_and_a_long_one_keeps_its_extremes() {
        let curve = |n: u64| Curve {
            steps: (1..=n).collect(),
            values: (1..=n).map(|step| if step == 777 { -5.0 } else { (step % 2) as f64 }).collect(),
        };
        let short = thin(&curve(400), 2.0);
        assert_eq!((short.len(), short[0]), (400, Column { step: 1.0, mean: 2.0, least: 2.0, greatest: 2.0 }));
        let long = thin(&curve(100_000), 1.0);
        assert_eq!((long.len(), long[0].mean), (400, 0.5));
        assert_eq!(long.iter().map(|column| column.least).fold(0.0, f64::min), -5.0);
        assert!(is_thinned(&curve(401)) && !is_thinned(&curve(400)));
    }

    #[test]
    fn a_column_without_a_number_is_a_gap() {
        let curve = Curve { steps: vec![1, 2], values: vec![f64::NAN, 1.0] };
        let columns = thin(&curve, 1.0);
        assert!(columns[0].mean.is_nan() && columns[1].mean == 1.0);
    }
}
