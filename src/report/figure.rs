//! A figure as SVG: a panel's metrics over the steps of every run.
//!
//! The drawing library writes whole numbers, so figures are drawn four times as large as they are shown.

use std::{fmt::Display, ops::Range};

use anyhow::{Result, anyhow};
use plotters::{
    coord::{Shift, types::RangedCoordf64},
    prelude::{
        Cartesian2d, ChartBuilder, ChartContext, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, PathElement,
        Polygon, RGBColor, SVGBackend, ShapeStyle, TRANSPARENT, Text, TextStyle,
    },
};

use super::{
    colour::{AXIS, GRID, INK, RUNS, Rgb, dashed, with_dashes},
    history::History,
    numbers::label,
    panels::Panel,
    thin::{Column, thin},
};

/// Units of a drawing in a pixel of the figure.
const UNITS: u32 = 4;
/// Pixels of a figure without its legend.
const SIZE: (u32, u32) = (480, 280);
/// Pixels of its title, and of a line of its legend.
const TITLE: u32 = 30;
const LINE: u32 = 18;
/// Pixels of letters; the backend divides by the second number.
const LETTERS: f64 = 12.5 * 1.24;
/// A curve of more points has none of them marked.
const DOTS: usize = 60;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What is inside of the element `svg`.
    body: String,
    height: u32,
    title: String,
}

/// How a curve looks.
#[derive(Clone, Copy, Debug)]
struct Look {
    colour: Rgb,
    dashed: bool,
    held_out: bool,
}

/// A metric of a run, in training or on held-out rows.
struct Stroke {
    look: Look,
    columns: Vec<Column>,
}

impl Figure {
    /// Draws a panel; with its `legend` it can stand alone.
    ///
    /// # Errors
    /// The drawing library fails.
    pub fn draw(panel: &Panel, runs: &[History], legend: bool) -> Result<Self> {
        let strokes = strokes(panel, runs);
        let entries = if legend { entries(&strokes, runs) } else { Vec::new() };
        let top = TITLE + LINE * entries.len() as u32;
        let height = SIZE.1 + LINE * entries.len() as u32;
        let mut svg = String::new();
        let failed = |why: &dyn Display| anyhow!("the figure of {}: {why}", panel.title);
        {
            let root = SVGBackend::with_string(&mut svg, (SIZE.0 * UNITS, height * UNITS)).into_drawing_area();
            let (above, below) = root.split_vertically(top * UNITS);
            head(&above, &panel.title, &entries).map_err(|why| failed(&why))?;
            plot(&below, &strokes).map_err(|why| failed(&why))?;
            root.present().map_err(|why| failed(&why))?;
        }
        let body = svg.split_once(">\n").map_or("", |(_, rest)| rest).trim_end().trim_end_matches("</svg>");
        Ok(Self { body: with_dashes(body), height, title: panel.title.clone() })
    }

    /// As a part of a page, as wide as there is room.
    pub fn inline(&self) -> String {
        let [width, height] = [SIZE.0, self.height].map(|size| size * UNITS);
        let title = &self.title;
        format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n{}</svg>", self.body)
    }

    /// As a file, with the mark of those that this program wrote.
    pub fn file(&self) -> String {
        let [width, height] = [SIZE.0, self.height];
        let [wide, high] = [width, height].map(|size| size * UNITS);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {wide} {high}\">\n\
             {}\n<rect width=\"{wide}\" height=\"{high}\" fill=\"#FFFFFF\"/>\n{}</svg>\n",
            super::MARK,
            self.body
        )
    }
}

/// What is drawn, training first, so that held-out curves lie above.
fn strokes(panel: &Panel, runs: &[History]) -> Vec<Stroke> {
    let mut strokes = Vec::new();
    for held_out in [false, true] {
        for (run, &colour) in runs.iter().zip(RUNS.iter().cycle()) {
            for (place, name) in panel.metrics.iter().enumerate() {
                let curve = if held_out { run.held_out(name) } else { run.training(name) };
                let columns = curve.map_or(Vec::new(), |curve| thin(curve, panel.scale));
                if columns.iter().any(|column| column.mean.is_finite()) {
                    strokes.push(Stroke { look: Look { colour, dashed: place > 0, held_out }, columns });
                }
            }
        }
    }
    strokes
}

/// The legend: the runs, and what else tells curves apart.
fn entries(strokes: &[Stroke], runs: &[History]) -> Vec<(Look, String)> {
    let plain = Look { colour: INK, dashed: false, held_out: false };
    let named = runs.iter().zip(RUNS.iter().cycle()).map(|(run, &colour)| (Look { colour, ..plain }, run.name.clone()));
    let mut entries: Vec<_> = named.collect();
    let any = |of: fn(&Look) -> bool| strokes.iter().any(|stroke| of(&stroke.look));
    let held_out = (Look { held_out: true, ..plain }, "on held-out rows".to_owned());
    entries.extend(any(|look| look.held_out).then_some(held_out));
    entries.extend(any(|look| look.dashed).then(|| (Look { dashed: true, ..plain }, "rejected".to_owned())));
    entries
}

impl Look {
    fn style(self) -> ShapeStyle {
        let colour = rgb(if self.dashed { dashed(self.colour) } else { self.colour });
        let (share, width) = if self.held_out { (1.0, 8) } else { (0.75, 5) };
        ShapeStyle { color: colour.mix(share), filled: false, stroke_width: width }
    }

    fn dots(self) -> ShapeStyle {
        rgb(self.colour).filled()
    }
}

fn rgb((red, green, blue): Rgb) -> RGBColor {
    RGBColor(red, green, blue)
}

fn letters(colour: Rgb) -> TextStyle<'static> {
    ("sans-serif", LETTERS * f64::from(UNITS)).into_font().color(&rgb(colour))
}

type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Title and legend.
fn head(area: &Area, title: &str, entries: &[(Look, String)]) -> Drawn {
    let unit = UNITS as i32;
    area.draw(&Text::new(title.to_owned(), (10 * unit, 8 * unit), letters(INK)))?;
    for (line, (look, name)) in entries.iter().enumerate() {
        let y = (TITLE as i32 + LINE as i32 * line as i32) * unit;
        let middle = y + 5 * unit;
        area.draw(&PathElement::new(vec![(10 * unit, middle), (38 * unit, middle)], look.style()))?;
        if look.held_out {
            area.draw(&Circle::new((24 * unit, middle), 3 * unit, look.dots()))?;
        }
        area.draw(&Text::new(name.clone(), (44 * unit, y), letters(INK)))?;
    }
    Ok(())
}

/// Axes and curves.
fn plot(area: &Area, strokes: &[Stroke]) -> Drawn {
    let [steps, values] = ranges(strokes);
    let mut chart = ChartBuilder::on(area)
        .margin_top(6 * UNITS)
        .margin_right(16 * UNITS)
        .margin_bottom(4 * UNITS)
        .x_label_area_size(24 * UNITS)
        .y_label_area_size(54 * UNITS)
        .build_cartesian_2d(steps, values)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(ShapeStyle::from(rgb(GRID)).stroke_width(UNITS));
    mesh.axis_style(ShapeStyle::from(rgb(GRID)).stroke_width(UNITS)).label_style(letters(AXIS));
    mesh.set_all_tick_mark_size(4 * UNITS);
    mesh.x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|step| label(*step))
        .y_label_formatter(&|value| label(*value))
        .draw()?;
    strokes.iter().try_for_each(|stroke| stroke.draw(&mut chart))?;
    // What the axis counts, in the corner that no number reaches.
    let corner = (10 * UNITS as i32, area.dim_in_pixel().1 as i32 - 20 * UNITS as i32);
    area.draw(&Text::new("step", corner, letters(AXIS)))?;
    Ok(())
}

impl Stroke {
    fn draw(&self, chart: &mut Chart) -> Drawn {
        // Where there is no number, there is a gap.
        for piece in self.columns.split(|column| !column.mean.is_finite()).filter(|piece| !piece.is_empty()) {
            if piece.iter().any(|column| column.least < column.greatest) {
                let below = piece.iter().map(|column| (column.step, column.least));
                let above = piece.iter().rev().map(|column| (column.step, column.greatest));
                let band = rgb(self.look.colour).mix(0.18);
                chart.draw_series([Polygon::new(below.chain(above).collect::<Vec<_>>(), band)])?;
            }
            let line: Vec<_> = piece.iter().map(|column| (column.step, column.mean)).collect();
            let single = line.len() == 1;
            if single || self.look.held_out && self.columns.len() <= DOTS {
                let (radius, style) = (3 * UNITS, self.look.dots());
                chart.draw_series(line.iter().map(|&point| Circle::new(point, radius, style)))?;
            }
            if !single {
                chart.draw_series([PathElement::new(line, self.look.style())])?;
            }
        }
        Ok(())
    }
}

/// From the first to the last step, and from the least to the greatest value with room around.
fn ranges(strokes: &[Stroke]) -> [Range<f64>; 2] {
    let columns = || strokes.iter().flat_map(|stroke| &stroke.columns).filter(|column| column.mean.is_finite());
    let span = |low: fn(&Column) -> f64, high: fn(&Column) -> f64| {
        let low = columns().map(low).fold(f64::INFINITY, f64::min);
        let high = columns().map(high).fold(f64::NEG_INFINITY, f64::max);
        (low.max(-1e300), high.min(1e300))
    };
    let (first, last) = span(|column| column.step, |column| column.step);
    let (least, greatest) = span(|column| column.least, |column| column.greatest);
    let room = match greatest - least {
        0.0 if least == 0.0 => 1.0,
        0.0 => 0.1 * least.abs(),
        span => 0.05 * span,
    };
    [first..last.max(first + 1.0), least - room..greatest + room]
}
