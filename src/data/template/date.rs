//! The one date that `strftime_now` writes: the configuration's, else the day's on which the program began.
//!
//! The time of day is 00:00:00, so that rows that are rendered apart say the same.

use std::fmt::Write;

use anyhow::{Context, Result};
use chrono::{Datelike, Local, NaiveDate};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date(NaiveDate);

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

/// From text or a date of TOML.
impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl Date {
    /// Today, where this machine is.
    pub fn today() -> Self {
        Self(Local::now().date_naive())
    }

    /// The day of `YYYY-MM-DD`.
    ///
    /// # Errors
    /// There is no such day.
    pub fn parse(text: &str) -> Result<Self> {
        let shaped = text.len() == 10 && text.bytes().filter(|b| b.is_ascii_digit()).count() == 8;
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| shaped);
        date.map(Self).with_context(|| format!("{text:?} is no day: give it as \"YYYY-MM-DD\""))
    }

    /// The day as `YYYY-MM-DD`.
    pub fn text(self) -> String {
        self.0.format("%Y-%m-%d").to_string()
    }

    /// Python's `strftime` in the C locale; what it does not know stays as it is.
    pub fn strftime(self, format: &str) -> String {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let len = match Directive::read(rest) {
                Some((directive, len)) if directive.write(self.0, &mut out) => len,
                Some((_, len)) => {
                    out.push_str(&rest[..len]);
                    len
                }
                None => {
                    out.push_str(rest);
                    rest.len()
                }
            };
            rest = &rest[len..];
        }
        out + rest
    }
}

/// `%`, flags, a width and a letter.
struct Directive {
    pad: Option<char>,
    upper: bool,
    swap: bool,
    width: Option<usize>,
    letter: char,
}

impl Directive {
    /// The directive at the beginning of `text`, and its length.
    fn read(text: &str) -> Option<(Self, usize)> {
        let mut directive = Self { pad: None, upper: false, swap: false, width: None, letter: ' ' };
        for (at, c) in text.char_indices().skip(1) {
            match c {
                '-' | '_' => directive.pad = Some(c),
                '0' if directive.width.is_none() => directive.pad = Some(c),
                '^' => directive.upper = true,
                '#' => directive.swap = true,
                '0'..='9' => {
                    let digit = c.to_digit(10).unwrap_or(0) as usize;
                    directive.width = Some((directive.width.unwrap_or(0) * 10 + digit).min(1000));
                }
                // Other calendars and digits, of which the C locale has none.
                'E' | 'O' if directive.letter == ' ' => {}
                _ => {
                    directive.letter = c;
                    return Some((directive, at + c.len_utf8()));
                }
            }
        }
        None
    }

    /// Writes what the directive stands for; false if it stands for nothing.
    fn write(&self, date: NaiveDate, out: &mut String) -> bool {
        if let Some((number, width, pad)) = self.number(date) {
            let pad = match self.pad {
                Some('-') => ' ',
                Some('_') => ' ',
                Some(_) => '0',
                None => pad,
            };
            let least = if self.pad == Some('-') { 0 } else { width };
            let width = self.width.map_or(least, |width| width.max(least));
            let digits = number.to_string();
            out.extend(std::iter::repeat_n(pad, width.saturating_sub(digits.len())));
            out.push_str(&digits);
            return true;
        }
        let Some(mut text) = self.words(date) else { return false };
        if self.upper || (self.swap && self.letter != 'p') {
            text = text.to_uppercase();
        } else if self.swap {
            text = text.to_lowercase();
        }
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        out.extend(std::iter::repeat_n(if self.pad == Some('0') { '0' } else { ' ' }, missing));
        out.push_str(&text);
        true
    }

    /// A number with its width and padding.
    fn number(&self, date: NaiveDate) -> Option<(i64, usize, char)> {
        let week = date.iso_week();
        let sunday = i64::from(date.weekday().num_days_from_sunday());
        let monday = i64::from(date.weekday().num_days_from_monday());
        let day_of_year = i64::from(date.ordinal0());
        Some(match self.letter {
            'C' => (i64::from(date.year().div_euclid(100)), 2, '0'),
            'd' => (date.day().into(), 2, '0'),
            'e' => (date.day().into(), 2, ' '),
            'f' => (0, 6, '0'),
            'g' => (i64::from(week.year().rem_euclid(100)), 2, '0'),
            'G' => (week.year().into(), 1, '0'),
            'H' | 'M' | 'S' => (0, 2, '0'),
            'I' => (12, 2, '0'),
            'j' => (day_of_year + 1, 3, '0'),
            'k' => (0, 2, ' '),
            'l' => (12, 2, ' '),
            'm' => (date.month().into(), 2, '0'),
            's' => (self.epoch(date), 1, '0'),
            'u' => (monday + 1, 1, '0'),
            'U' => ((day_of_year + 7 - sunday) / 7, 2, '0'),
            'V' => (week.week().into(), 2, '0'),
            'w' => (sunday, 1, '0'),
            'W' => ((day_of_year + 7 - monday) / 7, 2, '0'),
            'y' => (i64::from(date.year().rem_euclid(100)), 2, '0'),
            'Y' => (date.year().into(), 1, '0'),
            _ => return None,
        })
    }

    /// Seconds since 1970 at the beginning of the day, where this machine is.
    fn epoch(&self, date: NaiveDate) -> i64 {
        let midnight = date.and_time(chrono::NaiveTime::MIN);
        let local = midnight.and_local_timezone(Local).earliest();
        local.map_or_else(|| midnight.and_utc().timestamp(), |time| time.timestamp())
    }

    fn words(&self, date: NaiveDate) -> Option<String> {
        let mut text = String::new();
        let format = match self.letter {
            'a' => "%a",
            'A' => "%A",
            'b' | 'h' => "%b",
            'B' => "%B",
            'c' => "%a %b %e 00:00:00 %Y",
            'D' | 'x' => "%m/%d/%y",
            'F' => "%Y-%m-%d",
            'n' => return Some("\n".into()),
            't' => return Some("\t".into()),
            'p' => return Some("AM".into()),
            'P' => return Some("am".into()),
            'r' => return Some("12:00:00 AM".into()),
            'R' => return Some("00:00".into()),
            'T' | 'X' => return Some("00:00:00".into()),
            'z' | 'Z' => return Some(String::new()),
            '%' => return Some("%".into()),
            _ => return None,
        };
        write!(text, "{}", date.format(format)).ok().map(|()| text)
    }
}

#[cfg(test)]
mod tests {
    use super::Date;

    /// The expected texts are Python's `datetime(...).strftime`.
    #[test]
    fn formats_are_those_of_python() {
        let day = Date::parse("2024-03-05").unwrap();
        for (format, expected) in [
            ("%Y-%m-%d", "2024-03-05"),
            ("%d %B %Y", "05 March 2024"),
            ("%-d %b %y, %A %a", "5 Mar 24, Tuesday Tue"),
            ("%e|%j|%U|%W|%V|%G|%g|%u|%w|%C", " 5|065|09|10|10|2024|24|2|2|20"),
            ("%H:%M:%S.%f %I %p %P", "00:00:00.000000 12 AM am"),
            (
                "%c|%x|%X|%D|%F|%R|%T|%r|%h",
                "Tue Mar  5 00:00:00 2024|03/05/24|00:00:00|03/05/24|2024-03-05|00:00|00:00:00|12:00:00 AM|Mar",
            ),
            ("%z%Z%%%n%t", "%\n\t"),
            ("%^B %^a %_d %05d %#p %-m", "MARCH TUE  5 00005 am 3"),
            ("%Q %J é", "%Q %J é"),
        ] {
            assert_eq!(day.strftime(format), expected, "{format}");
        }
        let first = Date::parse("2021-01-03").unwrap();
        assert_eq!(first.strftime("%U %W %V %G %g"), "01 00 53 2020 20");
    }

    #[test]
    fn a_day_that_is_none_is_refused() {
        for text in ["2024-02-30", "24-01-01", "2024-1-1", "today", "2024-01-01 ", ""] {
            assert!(Date::parse(text).is_err(), "{text}");
        }
        assert_eq!(Date::parse("2024-02-29").unwrap().text(), "2024-02-29");
    }
}
