//! RFC 3339 to µs since 1970, fast for what senders write: `2026-04-27T15:32:10.123Z`. Events of a
//! body are of the same minute or two, so the last `2026-04-27T15:32:` is remembered and only the
//! seconds are read. Everything else (offsets, leap seconds, lower case) goes to jiff; both agree
//! from 1970 on, which a test checks.
//!
//! Digits of a fraction beyond the sixth are cut off, not rounded: a time never moves into the
//! next bucket. (Before 1970 jiff cuts towards 1970; no event is that old.)

use trueup_operators::time::{MINUTE_US, SECOND_US, parse_rfc3339};

const MINUTE_BYTES: usize = 17;

/// Remembers the last minute that it read.
#[derive(Default)]
pub(crate) struct Instants {
    minute: [u8; MINUTE_BYTES],
    minute_us: i64,
}

impl Instants {
    /// Reads a time. `None` if it is none.
    #[inline]
    pub(crate) fn read(&mut self, text: &[u8]) -> Option<i64> {
        if let Some((minute, rest)) = text.split_first_chunk::<MINUTE_BYTES>()
            && let Some(us) = second_us(rest)
        {
            if *minute != self.minute {
                self.minute_us = minute_us(minute)?;
                self.minute = *minute;
            }
            return Some(self.minute_us + us);
        }
        parse_rfc3339(std::str::from_utf8(text).ok()?)
    }
}

/// `SS[.f…]Z`, up to 9 digits of a fraction. `None`: not of this form, or a leap second.
#[inline]
fn second_us(text: &[u8]) -> Option<i64> {
    let (&[tens, ones], rest) = text.split_first_chunk::<2>()?;
    if !(tens.is_ascii_digit() && ones.is_ascii_digit()) || tens > b'5' {
        return None;
    }
    let second = i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
    if rest == b"Z" {
        return Some(second * SECOND_US);
    }
    let fraction = rest.strip_prefix(b".")?.strip_suffix(b"Z")?;
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let mut us = 0;
    let mut unit = SECOND_US / 10;
    for &digit in fraction {
        if !digit.is_ascii_digit() {
            return None;
        }
        us += i64::from(digit - b'0') * unit;
        unit /= 10;
    }
    Some(second * SECOND_US + us)
}

/// `YYYY-MM-DDTHH:MM:` in µs since 1970.
fn minute_us(text: &[u8; MINUTE_BYTES]) -> Option<i64> {
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if separators.into_iter().any(|(at, separator)| text[at] != separator) {
        // jiff also takes a space or a lower-case t; the date does the rest.
        let text = std::str::from_utf8(text).ok()?;
        return parse_rfc3339(&format!("{text}00Z"));
    }
    let number = |from: usize, to: usize| {
        text[from..to].iter().try_fold(0i64, |value, digit| {
            digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0'))
        })
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute) = (number(11, 13)?, number(14, 16)?);
    if hour > 23 || minute > 59 {
        return None;
    }
    let date = jiff::civil::Date::new(
        i16::try_from(year).ok()?,
        i8::try_from(month).ok()?,
        i8::try_from(day).ok()?,
    )
    .ok()?;
    let epoch = jiff::civil::Date::new(1970, 1, 1).ok()?;
    let days = i64::from((date - epoch).get_days());
    Some((days * 1440 + hour * 60 + minute) * MINUTE_US)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn agree(text: &str) {
        let (ours, theirs) = (Instants::default().read(text.as_bytes()), parse_rfc3339(text));
        assert_eq!(ours.is_some(), theirs.is_some(), "{text}");
        if ours.is_some_and(|us| us >= 0) {
            assert_eq!(ours, theirs, "{text}");
        }
    }

    #[test]
    fn agrees_with_jiff_on_what_is_a_time_before_1970() {
        agree("0000-01-01T00:00:00.0000001Z");
        agree("1969-12-31T23:59:59.9999999Z");
    }

    proptest! {
        #[test]
        fn agrees_with_jiff(us in 0i64..4_102_444_800_000_000, digits in 0usize..9, z in 0..8) {
            let time = jiff::Timestamp::from_microsecond(us).unwrap();
            let mut text = format!("{time:.digits$}");
            match z {
                0 => text = text.replace('Z', "+02:00"),
                1 => text = text.replace('Z', "z"),
                2 => text = text.replace('T', " "),
                3 => text = text.replace('T', "t"),
                _ => {}
            }
            let mut instants = Instants::default();
            prop_assert_eq!(instants.read(text.as_bytes()), parse_rfc3339(&text), "{}", text);
            // Again, with the minute remembered.
            prop_assert_eq!(instants.read(text.as_bytes()), parse_rfc3339(&text), "{}", text);
        }

        #[test]
        fn never_takes_what_jiff_refuses(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:\
                                                  [0-9]{2}(\\.[0-9]{0,10})?Z?") {
            agree(&text);
        }
    }

    #[test]
    fn reads_the_forms_of_rfc_3339() {
        let mut i = Instants::default();
        assert_eq!(i.read(b"1970-01-01T00:00:01Z"), Some(1_000_000));
        assert_eq!(i.read(b"1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(i.read(b"1970-01-01T00:00:59.123456789Z"), Some(59_123_456));
        assert_eq!(i.read(b"1970-01-01T02:00:01+02:00"), Some(1_000_000));
        for bad in ["", "Z", "1970-02-30T00:00:00Z", "1970-01-01T24:00:00Z", "1970-01-01", "x"] {
            assert_eq!(i.read(bad.as_bytes()), None, "{bad}");
        }
    }
}
