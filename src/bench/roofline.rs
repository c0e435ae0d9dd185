//! A roofline (Williams, Waterman & Patterson 2009): what each case reached of what memory and arithmetic allow, by its FLOPs
//! for each byte.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use serde_json::Value;

use super::times::Times;

/// The drawing's size in pixels; coordinates of an SVG file are whole pixels.
const SIZE: (u32, u32) = (1600, 1000);
const COLORS: [RGBColor; 8] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x17, 0xbe, 0xcf),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0xe3, 0x77, 0xc2),
];

/// A case that was timed.
struct Case {
    family: String,
    is_bf16: bool,
    /// FLOPs for each byte that cannot be left out.
    intensity: f64,
    /// FLOP/s.
    rate: f64,
    /// Seconds that the roof allows, by memory and by arithmetic.
    least: f64,
    flops: f64,
    bytes: f64,
}

impl Case {
    /// `None` for what was not timed and what computes nothing.
    fn of(result: &Value) -> Option<Self> {
        let number = |key: &str| result.get(key)?.as_f64().filter(|&number| number > 0.0);
        let (name, flops, bytes) = (result.get("kernel")?.as_str()?, number("flops")?, number("bytes")?);
        let runs = result.get("ms")?.as_array()?.iter().filter_map(Value::as_f64).collect();
        // A file may keep fewer runs than its shares are of.
        let seconds = number("median_ms").or_else(|| Times::of(runs).map(|times| times.median()))? / 1e3;
        let family = name.split('_').next()?.to_owned();
        let least = number("share_of_roof")? * seconds;
        Some(Self {
            family,
            is_bf16: name.ends_with("bf16"),
            intensity: flops / bytes,
            rate: flops / seconds,
            least,
            flops,
            bytes,
        })
    }
}

/// Bytes a second, and FLOP/s of f32 and of bf16: a case's time on its roof is the longer of two, so the fastest of all of
/// them is the roof itself.
struct Roof {
    bandwidth: f64,
    peaks: [f64; 2],
}

impl Roof {
    fn of(cases: &[Case]) -> Self {
        let most = |of: &dyn Fn(&Case) -> f64| cases.iter().map(of).fold(0.0, f64::max);
        let peak = |bf16: bool| most(&|case| if case.is_bf16 == bf16 { case.flops / case.least } else { 0.0 });
        Self { bandwidth: most(&|case| case.bytes / case.least), peaks: [false, true].map(peak) }
    }
}

/// The SVG of the cases of a kernel bench's results.
///
/// # Errors
/// No case was timed.
pub fn svg(results: &[Value], title: &str) -> Result<String> {
    let cases: Vec<Case> = results.iter().filter_map(Case::of).collect();
    ensure!(!cases.is_empty(), "no kernel was timed: a roofline is drawn of what ran on a GPU");
    let mut text = String::new();
    draw(&mut text, &cases, title).map_err(|why| anyhow::anyhow!("the roofline cannot be drawn: {why}"))?;
    Ok(text)
}

fn draw(text: &mut String, cases: &[Case], title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let roof = Roof::of(cases);
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let intensities = range(cases.iter().map(|case| case.intensity));
    let top = roof.peaks[1].max(roof.peaks[0]) * 2.0;
    let bottom = range(cases.iter().map(|case| case.rate)).start;
    let mut chart = ChartBuilder::on(&root)
        .margin(20)
        .caption(title, ("sans-serif", 34))
        .x_label_area_size(70)
        .y_label_area_size(110)
        .build_cartesian_2d((intensities.clone()).log_scale(), (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("FLOPs for each byte")
        .y_desc("TFLOP/s")
        .x_label_formatter(&|x| plain(*x))
        .y_label_formatter(&|y| plain(*y / 1e12))
        .label_style(("sans-serif", 24))
        .axis_desc_style(("sans-serif", 26))
        .light_line_style(BLACK.mix(0.04))
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    for (peak, name) in roof.peaks.iter().zip(["f32", "bf16"]).filter(|(peak, _)| **peak > 0.0) {
        let at = |x: f64| (x, (x * roof.bandwidth).min(*peak));
        let ridge = (peak / roof.bandwidth).clamp(intensities.start, intensities.end);
        let points = [intensities.start, ridge, intensities.end].map(at);
        chart.draw_series(LineSeries::new(points, BLACK.stroke_width(3)))?;
        let label = format!("{name}: {} TFLOP/s", plain(peak / 1e12));
        let style = ("sans-serif", 24).into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Bottom));
        chart.draw_series([Text::new(label, at(intensities.end), style)])?;
    }
    let label = format!("{:.2} TB/s", roof.bandwidth / 1e12);
    let place = (intensities.start * 1.2, intensities.start * roof.bandwidth * 4.0);
    chart.draw_series([Text::new(label, place, ("sans-serif", 24).into_font().color(&BLACK))])?;
    families(&mut chart, cases)?;
    root.present()?;
    Ok(())
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::combinators::LogCoord<f64>, plotters::coord::combinators::LogCoord<f64>>,
>;

/// A colour for each family of kernels; f32 is hollow.
fn families<'a>(chart: &mut Chart<'a, 'a>, cases: &[Case]) -> Result<(), Box<dyn std::error::Error>> {
    let mut by_family: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    cases.iter().for_each(|case| by_family.entry(&case.family).or_default().push(case));
    for (number, (family, cases)) in by_family.into_iter().enumerate() {
        let (color, hollow) = (COLORS[number % COLORS.len()], number >= COLORS.len());
        let size = if hollow { 5 } else { 7 };
        let points = cases.iter().map(|case| {
            let style = if case.is_bf16 { color.filled() } else { color.stroke_width(3) };
            Circle::new((case.intensity, case.rate), size, style)
        });
        chart.draw_series(points)?.label(family).legend(move |(x, y)| Circle::new((x + 10, y), size, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 24))
        .draw()?;
    Ok(())
}

/// A range that holds all of them, with room on both sides.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    values.for_each(|value| (low, high) = (low.min(value), high.max(value)));
    low / 2.0..high * 2.0
}

/// Three digits at most, without an exponent where people read none.
fn plain(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{}", (value * 1000.0).round() / 1000.0) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Cases of a device of 4 TB/s, 1000 TFLOP/s in bf16 and 60 in f32, at half their roof.
    fn results() -> Vec<Value> {
        let of = |name: &str, flops: f64, bytes: f64, peak: f64| {
            let least = (bytes / 4e12).max(flops / peak);
            json!({"kernel": name, "flops": flops, "bytes": bytes, "ms": [2e3 * least], "share_of_roof": 0.5})
        };
        vec![
            of("gemm_nt_bf16", 1e15, 1e9, 1e15),
            of("gemm_nt_f32", 1e14, 1e9, 6e13),
            of("rmsnorm_fwd_bf16", 1e9, 1e10, 1e15),
            // Of whose runs the slowest was kept.
            json!({"kernel": "gemm_nn_bf16", "flops": 1e15, "bytes": 1e9, "ms": [9e3], "median_ms": 2e3, "share_of_roof": 0.5}),
            json!({"kernel": "embedding_fwd_bf16", "flops": 0.0, "bytes": 1e9, "ms": [1.0], "share_of_roof": 0.5}),
        ]
    }

    #[test]
    fn the_roof_follows_from_the_results() {
        let cases: Vec<Case> = results().iter().filter_map(Case::of).collect();
        assert_eq!(cases.len(), 4);
        let roof = Roof::of(&cases);
        // Two divisions and a product of f64 each way.
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-14, "{a} is not {b}");
        near(roof.bandwidth, 4e12);
        near(roof.peaks[0], 6e13);
        near(roof.peaks[1], 1e15);
    }

    #[test]
    fn a_picture_has_every_family_and_its_roofs() {
        let text = svg(&results(), "a device").unwrap();
        for word in ["gemm", "rmsnorm", "a device", "bf16: 1000 TFLOP/s", "f32: 60 TFLOP/s", "4.00 TB/s"] {
            assert!(text.contains(word), "{word}");
        }
        let why = svg(&[json!({"kernel": "a", "flops": 1.0})], "").unwrap_err().to_string();
        assert!(why.starts_with("no kernel was timed"), "{why}");
    }
}
