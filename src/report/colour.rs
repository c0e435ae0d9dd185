//! Colours of figures, on white; and what each is on a dark page.

/// Red, green, blue.
pub type Rgb = (u8, u8, u8);

/// Letters.
pub const INK: Rgb = (0x24, 0x29, 0x2F);
/// Numbers at axes.
pub const AXIS: Rgb = (0x5B, 0x64, 0x70);
/// Lines behind curves.
pub const GRID: Rgb = (0xE4, 0xE7, 0xEB);
/// Of each run's curves: so many can be told apart (after Okabe and Ito, darkened for thin lines).
pub const RUNS: [Rgb; 8] = [
    (0x00, 0x66, 0xAA),
    (0xD5, 0x5E, 0x00),
    (0x00, 0x8A, 0x64),
    (0xB0, 0x4A, 0x8C),
    (0xB8, 0x7B, 0x00),
    (0x2F, 0x9B, 0xD6),
    (0x6A, 0x51, 0xA3),
    (0x7A, 0x5C, 0x44),
];

/// What replaces them on a dark page, in the order of [`light`].
const DARK: [Rgb; 11] = [
    (0xE6, 0xE9, 0xED),
    (0x9A, 0xA4, 0xB0),
    (0x2E, 0x34, 0x3C),
    (0x5C, 0xB3, 0xF0),
    (0xFF, 0x95, 0x4D),
    (0x45, 0xC9, 0xA0),
    (0xE3, 0x8F, 0xC6),
    (0xE8, 0xB8, 0x4A),
    (0x9A, 0xD4, 0xF5),
    (0xB3, 0xA2, 0xE6),
    (0xC9, 0xA8, 0x8C),
];

/// Every colour of a figure.
fn light() -> impl Iterator<Item = Rgb> {
    [INK, AXIS, GRID].into_iter().chain(RUNS)
}

/// As the drawing library writes it.
pub fn hex((red, green, blue): Rgb) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// The neighbour of a run's colour that stands for a dashed line in it, for the drawing library knows no dashes.
pub fn dashed((red, green, blue): Rgb) -> Rgb {
    (red, green, blue ^ 1)
}

/// A drawing in which the dashed lines are dashed.
pub fn with_dashes(svg: &str) -> String {
    RUNS.iter().chain([&INK]).fold(svg.to_owned(), |svg, &colour| {
        let dashes = format!("stroke=\"{}\" stroke-dasharray=\"20 14\"", hex(colour));
        svg.replace(&format!("stroke=\"{}\"", hex(dashed(colour))), &dashes)
    })
}

/// The style sheet's rules for a dark page.
pub fn dark_rules() -> String {
    let rule = |(light, dark): (Rgb, Rgb)| {
        let (light, dark) = (hex(light), hex(dark));
        format!("svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}\n")
    };
    light().zip(DARK).map(rule).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_colour_is_one_of_its_own_and_has_a_dark_one() {
        let all: BTreeSet<Rgb> = light().chain(light().map(dashed)).collect();
        assert_eq!(all.len(), 2 * DARK.len());
        assert_eq!(dark_rules().lines().count(), DARK.len());
        let line = format!("<line stroke=\"{}\"/>", hex(dashed(RUNS[2])));
        assert_eq!(with_dashes(&line), "<line stroke=\"#008A64\" stroke-dasharray=\"20 14\"/>");
    }
}
