//! What one request, and all of them together, may take.

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
    /// How long the peer of a large answer may take to read it before it is cut off.
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
