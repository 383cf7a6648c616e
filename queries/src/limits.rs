//! What one request, and all of them together, may take. A limit that cannot be meant (pages of no
//! rows, more seats than there can be) is refused before anything begins, by name.

use serde::{Deserialize, Deserializer, Serialize, de};

/// The limits of reports, views and subscriptions: `[queries]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Buckets that a report may span.
    pub range_buckets_max: u32,
    /// Rows that an answer may have over all its pages.
    pub rows_max: usize,
    /// Rows of a page that does not say how many.
    pub page_rows_default: usize,
    /// Rows of a page.
    pub page_rows_max: usize,
    /// Rows that an answer may look at.
    pub scan_rows_max: u64,
    /// Queries that run at the same time; the others wait.
    pub running_max: usize,
    /// Queries that run or wait; more are turned away.
    pub queries_max: usize,
    /// How long a query waits for its turn.
    pub wait_ms_max: u64,
    /// Bytes of all answers together that their peers have not read yet; more are turned away.
    #[serde(deserialize_with = "size")]
    pub answer_bytes_in_flight_max: usize,
    /// How long the peer of an answer may take to read it before it is cut off.
    pub answer_ms_max: u64,
    /// Subscribers at the same time.
    pub subscribers_max: usize,
    /// Rows of one message to a subscriber.
    pub message_rows_max: usize,
    /// How long a subscriber may leave a message unread before it is cut off.
    pub unread_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            range_buckets_max: 100_000,
            rows_max: 250_000,
            page_rows_default: 10_000,
            page_rows_max: 100_000,
            scan_rows_max: 100_000_000,
            running_max: 2,
            queries_max: 256,
            wait_ms_max: 5_000,
            answer_bytes_in_flight_max: 256 << 20,
            answer_ms_max: 600_000,
            subscribers_max: 1_000,
            message_rows_max: 2_000,
            unread_ms_max: 30_000,
        }
    }
}

/// A limit that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidLimit {
    /// The key.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// The lowest that can be used.
    pub min: u64,
    /// The highest that can be used.
    pub max: u64,
}

impl std::fmt::Display for InvalidLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let InvalidLimit { name, value, min, max } = self;
        write!(f, "`queries.{name}` is {value}; give {min} to {max}")
    }
}

impl std::error::Error for InvalidLimit {}

impl Limits {
    /// Checks every limit.
    ///
    /// # Errors
    /// Names the first that cannot be used.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let (count_max, rows_max, hour_ms) = (1_000_000, 100_000_000, 3_600_000);
        for (name, value, min, max) in [
            ("range_buckets_max", u64::from(self.range_buckets_max), 1, rows_max),
            ("rows_max", self.rows_max as u64, 1, rows_max),
            ("page_rows_default", self.page_rows_default as u64, 1, rows_max),
            ("page_rows_max", self.page_rows_max as u64, 1, rows_max),
            ("scan_rows_max", self.scan_rows_max, 1, 1 << 40),
            ("running_max", self.running_max as u64, 1, 1_024),
            ("queries_max", self.queries_max as u64, 1, count_max),
            ("wait_ms_max", self.wait_ms_max, 0, hour_ms),
            // Less has no room for one page of rows beside the answers that are always small.
            ("answer_bytes_in_flight_max", self.answer_bytes_in_flight_max as u64, MIB, 1 << 40),
            ("answer_ms_max", self.answer_ms_max, 1, 24 * hour_ms),
            // None: nobody may subscribe.
            ("subscribers_max", self.subscribers_max as u64, 0, count_max),
            ("message_rows_max", self.message_rows_max as u64, 1, count_max),
            ("unread_ms_max", self.unread_ms_max, 1, hour_ms),
        ] {
            if !(min..=max).contains(&value) {
                return Err(InvalidLimit { name, value, min, max });
            }
        }
        Ok(())
    }
}

const MIB: u64 = 1 << 20;

/// Bytes, as a number or as text with a unit.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(usize),
        Text(String),
    }
    let text = match Written::deserialize(from)? {
        Written::Number(bytes) => return Ok(bytes),
        Written::Text(text) => text,
    };
    let wrong = || {
        de::Error::custom(format!(
            "`{text}` is no size; write a number of bytes, or one with KiB, MiB or GiB"
        ))
    };
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .unwrap_or((&text, 1));
    let number = number.trim().parse::<usize>().ok();
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_defaults_pass_and_what_cannot_be_meant_is_named() {
        assert_eq!(Limits::default().check(), Ok(()));
        let limits = Limits { page_rows_max: 0, ..Limits::default() };
        let error = limits.check().unwrap_err().to_string();
        assert_eq!(error, "`queries.page_rows_max` is 0; give 1 to 100000000");
        let limits = Limits { subscribers_max: i64::MAX as usize, ..Limits::default() };
        assert_eq!(limits.check().unwrap_err().name, "subscribers_max");
        let limits = Limits { answer_bytes_in_flight_max: 4_096, ..Limits::default() };
        assert_eq!(limits.check().unwrap_err().min, 1 << 20);
    }

    #[test]
    fn sizes_are_numbers_or_have_a_unit() {
        let read = |size: &str| {
            let json = format!("{{\"answer_bytes_in_flight_max\":{size}}}");
            serde_json::from_str::<Limits>(&json).map(|limits| limits.answer_bytes_in_flight_max)
        };
        assert_eq!(read("4096").unwrap(), 4_096);
        assert_eq!(read("\"64 MiB\"").unwrap(), 64 << 20);
        let error = read("\"a lot\"").unwrap_err().to_string();
        assert!(error.contains("`a lot` is no size"), "{error}");
    }
}
