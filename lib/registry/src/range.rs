//! The `Range` header of RFC 9110, section 14: which bytes of a blob a client wants. Called by the agent's front, the
//! origin's HTTP side and the embedded registry.

use std::ops::Range;

/// The most ranges served in one answer; lazy snapshotters send dozens.
pub const RANGES_MAX: usize = 128;

/// What to serve of a blob. Ranges are half-open, not empty, and inside the blob.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RangeSet {
    /// Answer 200 with the whole blob: the header is malformed, of another unit, or asks for more than the blob holds
    /// (RFC 9110 lets a server ignore any `Range`).
    Whole,
    /// Answer 206 with `Content-Range`.
    Single(Range<u64>),
    /// Answer 206 with `multipart/byteranges`, in this order: at least two, at most [`RANGES_MAX`], and together not more
    /// bytes than the blob.
    Multi(Vec<Range<u64>>),
    /// Answer 416 with `Content-Range: bytes */length`.
    Unsatisfiable,
}

/// Reads the value of a `Range` header for a blob of `length` bytes.
#[must_use]
pub fn parse(header: &str, length: u64) -> RangeSet {
    let Some((unit, list)) = header.split_once('=') else { return RangeSet::Whole };
    // An empty blob has nothing a range could select; containerd asks for `bytes=0-` of those too.
    if !unit.trim().eq_ignore_ascii_case("bytes") || length == 0 {
        return RangeSet::Whole;
    }
    let mut ranges = Vec::new();
    let mut specs = 0;
    for spec in list.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        specs += 1;
        match parse_spec(spec, length) {
            Spec::Malformed => return RangeSet::Whole,
            Spec::Outside => {}
            Spec::Inside(range) => ranges.push(range),
        }
        if specs > RANGES_MAX {
            return RangeSet::Whole;
        }
    }
    match ranges.len() {
        0 if specs == 0 => RangeSet::Whole,
        0 => RangeSet::Unsatisfiable,
        1 => RangeSet::Single(ranges.remove(0)),
        _ if total(&ranges) > u128::from(length) => RangeSet::Whole,
        _ => RangeSet::Multi(ranges),
    }
}

/// The value of the `Content-Range` header for one range of a blob.
#[must_use]
pub fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1))
}

/// A `Content-Range` that an upstream sent: the range, if any, and the blob's length, if said.
pub(crate) fn parse_content_range(header: &str) -> Option<(Option<Range<u64>>, Option<u64>)> {
    let (range, length) = header.strip_prefix("bytes ")?.split_once('/')?;
    let length = match length {
        "*" => None,
        length => Some(number(length)?),
    };
    if range == "*" {
        return Some((None, length));
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let end = last.checked_add(1).filter(|end| *end > first && length.is_none_or(|length| *end <= length))?;
    Some((Some(first..end), length))
}

enum Spec {
    Malformed,
    Outside,
    Inside(Range<u64>),
}

fn parse_spec(spec: &str, length: u64) -> Spec {
    let Some((first, last)) = spec.split_once('-') else { return Spec::Malformed };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match number(last) {
            None => Spec::Malformed,
            Some(0) => Spec::Outside,
            Some(suffix) => Spec::Inside(length.saturating_sub(suffix)..length),
        };
    }
    let end = if last.is_empty() { Some(length) } else { number(last).map(|last| last.saturating_add(1).min(length)) };
    match (number(first), end) {
        (Some(first), Some(_)) if first >= length => match number(last) {
            Some(last) if last < first => Spec::Malformed,
            Some(_) | None => Spec::Outside,
        },
        (Some(first), Some(end)) if end > first => Spec::Inside(first..end),
        (Some(_), Some(_)) | (None, _) | (_, None) => Spec::Malformed,
    }
}

/// Digits only: `u64::from_str` would take a sign. More than 64 bits hold count as the largest number.
fn number(digits: &str) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().unwrap_or(u64::MAX))
}

fn total(ranges: &[Range<u64>]) -> u128 {
    ranges.iter().map(|range| u128::from(range.end - range.start)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn single_ranges() {
        let table = [
            ("bytes=0-", 0..100),
            ("bytes=0-0", 0..1),
            ("bytes=99-", 99..100),
            ("bytes=10-19", 10..20),
            ("bytes=10-1000", 10..100),
            ("bytes=90-99999999999999999999999", 90..100),
            ("bytes=-1", 99..100),
            ("bytes=-100", 0..100),
            ("bytes=-1000", 0..100),
            ("Bytes = 5-6 ", 5..7),
            ("bytes=, 5-6 ,", 5..7),
            ("bytes=5-6,200-300", 5..7),
        ];
        for (header, range) in table {
            assert_eq!(parse(header, 100), RangeSet::Single(range), "{header}");
        }
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "a list of ranges is meant")]
    fn several_ranges_keep_their_order() {
        assert_eq!(parse("bytes=0-0,-1", 100), RangeSet::Multi(vec![0..1, 99..100]));
        assert_eq!(parse("bytes=50-59, 0-9", 100), RangeSet::Multi(vec![50..60, 0..10]));
        assert_ne!(parse("bytes=50-59", 100), RangeSet::Multi(vec![50..60]));
    }

    #[test]
    fn a_range_outside_the_blob_is_unsatisfiable() {
        for header in ["bytes=100-", "bytes=100-200", "bytes=99999999999999999999-", "bytes=-0", "bytes=100-,200-"] {
            assert_eq!(parse(header, 100), RangeSet::Unsatisfiable, "{header}");
        }
    }

    #[test]
    fn what_is_malformed_or_of_another_unit_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=+1-2",
            "bytes=200-150",
            "items=0-1",
            "bytes=1",
        ] {
            assert_eq!(parse(header, 100), RangeSet::Whole, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), RangeSet::Whole);
    }

    #[test]
    fn ranges_that_would_cost_more_than_the_blob_are_ignored() {
        assert_eq!(parse("bytes=0-,0-", 100), RangeSet::Whole);
        let many = format!("bytes={}", vec!["0-0"; RANGES_MAX + 1].join(","));
        assert_eq!(parse(&many, 1 << 40), RangeSet::Whole);
        let fewer = format!("bytes={}", vec!["0-0"; RANGES_MAX].join(","));
        assert!(matches!(parse(&fewer, 1 << 40), RangeSet::Multi(_)));
    }

    #[test]
    fn a_content_range_is_read_as_it_is_written() {
        assert_eq!(content_range(&(5..10), 100), "bytes 5-9/100");
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((Some(5..10), Some(100))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((Some(5..10), None)));
        assert_eq!(parse_content_range("bytes */100"), Some((None, Some(100))));
        for malformed in ["", "bytes", "bytes 5-9", "bytes 9-5/100", "bytes 5-100/100", "bytes a-b/c", "items 5-9/100"]
        {
            assert_eq!(parse_content_range(malformed), None, "{malformed}");
        }
    }

    fn selected(set: &RangeSet) -> Vec<Range<u64>> {
        match set {
            RangeSet::Whole | RangeSet::Unsatisfiable => Vec::new(),
            RangeSet::Single(range) => vec![range.clone()],
            RangeSet::Multi(ranges) => ranges.clone(),
        }
    }

    proptest! {
        #[test]
        fn ranges_lie_inside_the_blob(header in "(bytes=)?[0-9,\\- ]{0,40}", length in 0u64..1000) {
            let ranges = selected(&parse(&header, length));
            for range in &ranges {
                prop_assert!(range.start < range.end && range.end <= length);
            }
            prop_assert!(total(&ranges) <= u128::from(length));
        }

        #[test]
        fn a_range_of_plain_numbers_is_found_again(start in 0u64..1000, count in 1u64..1000, beyond in 0u64..1000) {
            let (end, length) = (start + count, start + count + beyond);
            let header = format!("bytes={start}-{}", end - 1);
            prop_assert_eq!(parse(&header, length), RangeSet::Single(start..end));
            let sent = parse_content_range(&content_range(&(start..end), length));
            prop_assert_eq!(sent, Some((Some(start..end), Some(length))));
        }

        #[test]
        fn no_header_panics(header in ".{0,60}", length: u64) {
            let _ = parse(&header, length);
            let _ = parse_content_range(&header);
        }
    }
}
