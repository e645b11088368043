//! Sizes, rates and durations as people write them: in config files, flags and reports.
//!
//! Every type prints in a form that parses back to the very same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, written as `10GiB`, `512MiB`, `1.5GB`, Kubernetes' `10Gi`, or a plain number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(u64);

/// Bytes per second, above zero: written in bits as `200mbit` or `25gbit`, or in bytes as `50MiB/s` or `125MB/s`.
///
/// `mb/s` is refused: some read it as bits, some as bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate(u64);

/// A span of time, written as `30s`, `1m 30s` or `500ms`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct HumanDuration(pub Duration);

/// Says that a text is not the quantity wanted: the value given and the values accepted. Whoever wrote it must mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {accepted}")]
pub struct ParseUnitError {
    /// The text as it was given, cut at 80 characters.
    pub given: String,
    /// What would have been accepted.
    pub accepted: &'static str,
}

impl ParseUnitError {
    fn new(given: &str, accepted: &'static str) -> Self {
        Self { given: given.chars().take(80).collect(), accepted }
    }
}

const SIZE_ACCEPTED: &str = "a size such as 512MiB, 10GiB or 1.5GB (units B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)";
const RATE_ACCEPTED: &str = "a rate above zero such as 200mbit, 25gbit or 50MiB/s (units bit, kbit, mbit, gbit, or B/s, kB/s, MB/s, MiB/s, GiB/s)";
const DURATION_ACCEPTED: &str = "a duration such as 30s, 500ms or 1m 30s (units ms, s, m, h, d)";

/// Units of bytes, largest first, so that printing finds the shortest exact form.
const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Units of bits per second, largest first.
const BIT_UNITS: [(&str, u64); 5] =
    [("tbit", 1_000_000_000_000), ("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

impl ByteSize {
    /// A size of so many bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of so many KiB (1,024 bytes).
    #[must_use]
    pub const fn kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// A size of so many MiB (1,048,576 bytes).
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// A size of so many GiB (1,073,741,824 bytes).
    #[must_use]
    pub const fn gib(gib: u64) -> Self {
        Self(gib << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_number(text);
        parse_bytes(number, unit).map(Self).ok_or_else(|| ParseUnitError::new(text, SIZE_ACCEPTED))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_exact(f, self.0, &BYTE_UNITS)
    }
}

impl Rate {
    /// A rate in bytes per second; `None` for zero, which would only ever stall.
    #[must_use]
    pub const fn bytes_per_second(bytes: u64) -> Option<Self> {
        if bytes == 0 { None } else { Some(Self(bytes)) }
    }

    /// The bytes per second.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_rate(text).and_then(Self::bytes_per_second).ok_or_else(|| ParseUnitError::new(text, RATE_ACCEPTED))
    }
}

fn parse_rate(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text);
    let per_second = unit.strip_suffix("/s");
    let bits = per_second.unwrap_or(unit).to_ascii_lowercase();
    if let Some((_, scale)) = BIT_UNITS.iter().find(|(name, _)| *name == bits) {
        return scaled(number, *scale).map(|bits| bits / 8);
    }
    let unit = per_second?;
    let binary = unit.len() == 3;
    if !binary && !unit.ends_with('B') {
        return None;
    }
    parse_bytes(number, unit)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.checked_mul(8) {
            Some(bits) if bits % 1_000 == 0 => write_exact(f, bits, &BIT_UNITS),
            Some(_) | None => {
                write_exact(f, self.0, &BYTE_UNITS)?;
                f.write_str("/s")
            }
        }
    }
}

impl HumanDuration {
    /// A duration of so many seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Self).map_err(|_| ParseUnitError::new(text, DURATION_ACCEPTED))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// Splits `1.5 GiB` into the number and the unit.
fn split_number(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

fn parse_bytes(number: &str, unit: &str) -> Option<u64> {
    let known = |name: &str| name.eq_ignore_ascii_case(unit);
    let scale = match unit {
        "" => 1,
        _ => {
            BYTE_UNITS
                .iter()
                .find(|(name, _)| known(name) || name.strip_suffix("iB").is_some_and(|n| unit == [n, "i"].concat()))?
                .1
        }
    };
    scaled(number, scale)
}

/// Multiplies a decimal number by a scale, exactly while it has no fraction; `None` when malformed or too large.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let value = number.parse::<f64>().ok()? * scale as f64;
    (value < 2f64.powi(63)).then_some(value.round() as u64)
}

fn write_exact(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let unit = units.iter().find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale));
    let (name, scale) = unit.or(units.last()).expect("the table of units is not empty");
    write!(f, "{}{name}", value / scale)
}

/// Reads a quantity from text, and from an integer where `integer` allows one.
struct Quantity<T> {
    accepted: &'static str,
    integer: fn(u64) -> Option<T>,
}

impl<T: FromStr> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.accepted)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.integer)(number).ok_or_else(|| E::invalid_type(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let checked = u64::try_from(number).ok().and_then(self.integer);
        checked.ok_or_else(|| E::invalid_type(Unexpected::Signed(number), &self))
    }
}

macro_rules! text_serde {
    ($type:ty, $accepted:expr, $integer:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Quantity { accepted: $accepted, integer: $integer })
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

text_serde!(ByteSize, SIZE_ACCEPTED, |bytes| Some(ByteSize(bytes)));
text_serde!(Rate, RATE_ACCEPTED, |_| None);
text_serde!(HumanDuration, DURATION_ACCEPTED, |_| None);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> u64 {
        text.parse::<ByteSize>().unwrap().get()
    }

    fn rate(text: &str) -> u64 {
        text.parse::<Rate>().unwrap().get()
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("10GiB"), 10 << 30);
        assert_eq!(size("10 gib"), 10 << 30);
        assert_eq!(size("10Gi"), 10 << 30);
        assert_eq!(size("1.5GB"), 1_500_000_000);
        assert_eq!(size("512"), 512);
        assert_eq!(size("0B"), 0);
    }

    #[test]
    fn rates_hold_bytes_per_second() {
        assert_eq!(rate("200mbit"), 25_000_000);
        assert_eq!(rate("25Gbit/s"), 3_125_000_000);
        assert_eq!(rate("50MiB/s"), 50 << 20);
        assert_eq!(rate("125MB/s"), rate("1gbit"));
        assert_eq!(rate("0.5mbit"), 62_500);
    }

    #[test]
    fn an_ambiguous_or_empty_rate_is_refused() {
        for text in ["50mb/s", "50Mb/s", "50MiB", "50", "mbit", "0mbit", "7bit", "-1mbit", "50MiB/m", ""] {
            assert!(text.parse::<Rate>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_refused_size_names_what_was_given_and_what_is_accepted() {
        for text in ["10 gigs", "GiB", "1..5GB", "-1", "99999999999TiB", "1e400GiB", "ten"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ParseUnitError::new(text, SIZE_ACCEPTED)));
        }
        let message = "10 gigs".parse::<ByteSize>().unwrap_err().to_string();
        assert!(message.starts_with("\"10 gigs\" is not a size such as 512MiB"), "{message}");
    }

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!("1m 30s".parse(), Ok(HumanDuration::from_secs(90)));
        assert_eq!(HumanDuration::from_secs(90).to_string(), "1m 30s");
        assert!("30".parse::<HumanDuration>().is_err());
    }

    #[test]
    fn quantities_print_in_their_shortest_exact_unit() {
        assert_eq!(ByteSize::gib(10).to_string(), "10GiB");
        assert_eq!(ByteSize::bytes(1_500_000_000).to_string(), "1500MB");
        assert_eq!(ByteSize::bytes(0).to_string(), "0B");
        assert_eq!(Rate(25_000_000).to_string(), "200mbit");
        assert_eq!(Rate(50 << 20).to_string(), "50MiB/s");
    }

    proptest! {
        #[test]
        fn every_size_reads_back_as_it_was_printed(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn every_rate_reads_back_as_it_was_printed(bytes in 1u64..) {
            prop_assert_eq!(Rate(bytes).to_string().parse(), Ok(Rate(bytes)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,40}") {
            let _ = (text.parse::<ByteSize>(), text.parse::<Rate>(), text.parse::<HumanDuration>());
        }
    }
}
