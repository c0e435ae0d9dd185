//! What a progress bar shows: one line of a terminal, never wider than it is.

use std::time::Duration;

use crate::units::duration;

/// A terminal that does not say how wide it is.
const USUAL_WIDTH: usize = 80;

/// The line of a bar. Fields that find no place are left out whole, the last ones first; fields are parted by two spaces.
pub(super) fn line(width: usize, [done, total]: [u64; 2], left: Option<Duration>, message: &str) -> String {
    let cells = match width {
        100.. => 24,
        50.. => 12,
        _ => 0,
    };
    let full = (u128::from(done) * cells as u128 / u128::from(total.max(1))).min(cells as u128) as usize;
    let (head, rest) = if full < cells { (">", cells - full - 1) } else { ("", 0) };
    let bar = format!("{}{head}{}", "=".repeat(full), " ".repeat(rest));
    let left = left.map(|left| format!("{} left", duration(left)));
    let fields = [Some(bar).filter(|bar| !bar.is_empty()), Some(format!("{done}/{total}")), left];
    fit(
        width,
        fields.into_iter().flatten().chain(message.split("  ").filter(|field| !field.is_empty()).map(str::to_owned)),
    )
}

/// As many of the fields as a terminal has columns for; of the first one at least what fits.
pub(super) fn fit(width: usize, fields: impl IntoIterator<Item = String>) -> String {
    // The last column stays free: a cursor beyond it would begin another line.
    let room = if width == 0 { USUAL_WIDTH } else { width } - 1;
    let mut text = String::new();
    for field in fields {
        let longer = if text.is_empty() { field } else { format!("{text}  {field}") };
        if columns(&longer) > room {
            return if text.is_empty() { cut(&longer, room) } else { text };
        }
        text = longer;
    }
    text
}

/// At most: whatever is not ASCII may take two.
fn columns(text: &str) -> usize {
    text.chars().map(|letter| if letter.is_ascii() { 1 } else { 2 }).sum()
}

fn cut(text: &str, room: usize) -> String {
    let mut kept = String::new();
    for letter in text.chars() {
        if columns(&kept) + 2 > room {
            break;
        }
        kept.push(letter);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_and_drops_whole_fields() {
        let message = "loss 1.0964 (dpo 0.6155)  rewards/accuracies 0.812  rewards/margins +0.1752";
        let at = |width| line(width, [50, 168], Some(Duration::from_secs(7)), message);
        assert_eq!(at(60), "===>          50/168  7s left  loss 1.0964 (dpo 0.6155)");
        assert_eq!(at(30), "50/168  7s left");
        assert_eq!(at(140), format!("=======>                  50/168  7s left  {message}"));
        for width in 1..200 {
            assert!(at(width).chars().count() < width, "{width}: {}", at(width));
        }
        assert_eq!(line(30, [3, 3], None, ""), "3/3");
        assert_eq!(fit(12, ["tokenising 数据集".to_owned()]), "tokenising");
    }
}
