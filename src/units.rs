//! Numbers with their units, for people.

use std::time::Duration;

/// Bytes in the largest binary unit that leaves a digit before the point.
pub fn human(bytes: usize) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.2} {}", units[unit]) }
}

/// Bytes in powers of a thousand, with one digit behind the point: as memory of GPUs is sold.
pub fn gigabytes(bytes: usize) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Bytes as people write them: `82.0GB`, `79.5 GiB`, `500MB` or digits alone. `None` for anything else.
pub fn bytes(text: &str) -> Option<usize> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().ok().filter(|number: &f64| *number > 0.0)?;
    let unit = match unit.trim().to_lowercase().as_str() {
        "" | "b" | "bytes" => 1.0,
        "mb" => 1e6,
        "gb" | "g" => 1e9,
        "tb" => 1e12,
        "mib" => (1u64 << 20) as f64,
        "gib" => (1u64 << 30) as f64,
        "tib" => (1u64 << 40) as f64,
        _ => return None,
    };
    Some((number * unit) as usize)
}

/// Seconds and minutes for people: `48s`, `3m05s`, `2h07m`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_people_write_them() {
        let cases = [
            ("82.0GB", Some(82_000_000_000)),
            ("80 gb", Some(80_000_000_000)),
            ("1GiB", Some(1 << 30)),
            ("0.5MiB", Some(1 << 19)),
            ("1024", Some(1024)),
            ("", None),
            ("GB", None),
            ("0GB", None),
            ("1.2.3GB", None),
            ("-1GB", None),
            ("8 boxes", None),
        ];
        for (text, want) in cases {
            assert_eq!(bytes(text), want, "{text}");
        }
        assert_eq!(gigabytes(81_940_000_000), "81.9 GB");
        assert_eq!(gigabytes(70_215_424), "70.2 MB");
    }
}
