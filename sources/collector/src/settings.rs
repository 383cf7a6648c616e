//! Every limit of the collector, with its default. A limit that is reached has one defined answer,
//! which stands beside it; nothing here is unbounded and nothing waits without an end.
//!
//! Sizes may be written as numbers or as text (`"16MiB"`).

use serde::{Deserialize, Deserializer, Serialize, de};
use trueup_operators::log::FRAME_RECORDS_MAX;

const MIB: usize = 1024 * 1024;

/// Limits of the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The most bytes of a body as it comes. 413.
    #[serde(deserialize_with = "size")]
    pub body_bytes_max: usize,
    /// The most bytes of a body once inflated, and of the text of its events once decoded. 413; no
    /// more than this, and one event, is ever held of either.
    #[serde(deserialize_with = "size")]
    pub body_decoded_bytes_max: usize,
    /// How long a sender may take for a body. 408.
    pub body_read_ms_max: u64,
    /// The most events of a body. 413.
    pub events_per_batch_max: usize,
    /// The most verdicts of a body. 413.
    pub verdicts_per_batch_max: usize,
    /// How far ahead of the clock an event may claim to be. An error of the event. No key of a
    /// file: whoever runs the collector reckons lateness with the same, and sets it.
    #[serde(skip, default = "future_skew_us_max")]
    pub future_skew_us_max: i64,
    /// Requests that are being worked on, their bodies whole. 429.
    pub requests_in_flight_max: usize,
    /// Bytes of bodies that are held, as they came; one of several tokens gets no more of them than
    /// it leaves, but always one body. 429. (Inflated bytes are bounded by
    /// `decode_threads_max` times `body_decoded_bytes_max`.)
    #[serde(deserialize_with = "size")]
    pub decode_bytes_in_flight_max: usize,
    /// Bodies that are decoded at the same time; others wait their turn. 0: one a core.
    pub decode_threads_max: usize,
    /// Events a second for each token, with a burst of one second. 429. 0: no limit.
    pub events_per_second_max: u64,
    /// Answers that are kept for their `Idempotency-Key`; the oldest goes first.
    pub idempotency_keys_max: usize,
    /// Bytes of those answers and keys; the oldest goes first.
    #[serde(deserialize_with = "size")]
    pub idempotency_bytes_max: usize,
    /// How long an answer is kept.
    pub idempotency_ms: u64,
    /// Clicks of one IP in any minute that are taken as valid; those above are kept, as invalid.
    pub clicks_per_minute_per_ip_max: u32,
    /// IPs that are watched at the same time; those that find no room are not limited.
    pub ip_windows_max: usize,
    /// Proxies in front of the collector that add to `X-Forwarded-For`: the client's IP is so many
    /// entries from its end. 0: the header is ignored. The peer's IP counts then, and whenever the
    /// header has no address at that place.
    pub trusted_proxies: usize,
    /// The most bytes of the query of `/click`, `/i` and `/conversion`. 414.
    #[serde(deserialize_with = "size")]
    pub query_bytes_max: usize,
    /// Clicks and pixels that wait for the log. 503.
    pub pixels_in_flight_max: usize,
    /// How long a click waits for others to share its frame.
    pub pixel_linger_ms: u64,
    /// Campaigns, ads and publishers together. 413.
    pub metadata_entries_max: usize,
}

const fn future_skew_us_max() -> i64 {
    300_000_000
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            body_bytes_max: 16 * MIB,
            body_decoded_bytes_max: 64 * MIB,
            body_read_ms_max: 30_000,
            events_per_batch_max: 50_000,
            verdicts_per_batch_max: 10_000,
            future_skew_us_max: future_skew_us_max(),
            requests_in_flight_max: 1024,
            decode_bytes_in_flight_max: 256 * MIB,
            decode_threads_max: 0,
            events_per_second_max: 0,
            idempotency_keys_max: 100_000,
            idempotency_bytes_max: 64 * MIB,
            idempotency_ms: 24 * 3_600_000,
            clicks_per_minute_per_ip_max: 100,
            ip_windows_max: 200_000,
            trusted_proxies: 0,
            query_bytes_max: 4096,
            pixels_in_flight_max: 4096,
            pixel_linger_ms: 3,
            metadata_entries_max: 200_000,
        }
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is {value}; it must be from {min} to {max}")]
pub struct InvalidSetting {
    /// The key.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// The lowest that can be used.
    pub min: u64,
    /// The highest that can be used.
    pub max: u64,
}

impl Settings {
    /// Checks every limit.
    ///
    /// # Errors
    /// Names the first that cannot be used.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        // Offsets of texts are 32 bits in Arrow, and the decoder stops at the same limit.
        let bytes_max = 512 * MIB as u64;
        let rows_max = FRAME_RECORDS_MAX as u64 - 1;
        let count_max = 10_000_000;
        for (name, value, min, max) in [
            ("body_bytes_max", self.body_bytes_max as u64, 1, bytes_max),
            ("body_decoded_bytes_max", self.body_decoded_bytes_max as u64, 1, bytes_max),
            ("body_read_ms_max", self.body_read_ms_max, 1, 3_600_000),
            ("events_per_batch_max", self.events_per_batch_max as u64, 1, rows_max),
            ("verdicts_per_batch_max", self.verdicts_per_batch_max as u64, 1, rows_max),
            ("future_skew_us_max", self.future_skew_us_max as u64, 0, 86_400_000_000 * 366),
            ("requests_in_flight_max", self.requests_in_flight_max as u64, 1, 1_000_000),
            (
                "decode_bytes_in_flight_max",
                self.decode_bytes_in_flight_max as u64,
                self.body_bytes_max as u64,
                1 << 40,
            ),
            ("decode_threads_max", self.decode_threads_max as u64, 0, 1024),
            ("idempotency_keys_max", self.idempotency_keys_max as u64, 1, count_max),
            ("idempotency_bytes_max", self.idempotency_bytes_max as u64, 1, 1 << 40),
            ("idempotency_ms", self.idempotency_ms, 1, 30 * 86_400_000),
            ("ip_windows_max", self.ip_windows_max as u64, 1, count_max),
            ("trusted_proxies", self.trusted_proxies as u64, 0, 16),
            ("query_bytes_max", self.query_bytes_max as u64, 64, 65_536),
            ("pixels_in_flight_max", self.pixels_in_flight_max as u64, 1, 1_000_000),
            ("pixel_linger_ms", self.pixel_linger_ms, 0, 1000),
            ("metadata_entries_max", self.metadata_entries_max as u64, 1, count_max),
        ] {
            if !(min..=max).contains(&value) {
                return Err(InvalidSetting { name, value, min, max });
            }
        }
        Ok(())
    }

    /// Threads that decode, at least one.
    pub(crate) fn decode_threads(&self) -> usize {
        match self.decode_threads_max {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(usize),
        Text(String),
    }
    match Written::deserialize(from)? {
        Written::Number(bytes) => Ok(bytes),
        Written::Text(text) => size_of_text(&text).ok_or_else(|| {
            de::Error::custom(format!(
                "`{text}` is no size; write a number of bytes, or one with KiB, MiB or GiB"
            ))
        }),
    }
}

fn size_of_text(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => MIB,
        "GiB" => 1024 * MIB,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_pass_and_bad_values_are_named() {
        assert_eq!(Settings::default().check(), Ok(()));
        let settings = Settings { events_per_batch_max: 65_536, ..Settings::default() };
        assert_eq!(settings.check().unwrap_err().name, "events_per_batch_max");
        let settings = Settings { future_skew_us_max: -1, ..Settings::default() };
        assert_eq!(settings.check().unwrap_err().name, "future_skew_us_max");
    }

    #[test]
    fn reads_sizes_and_refuses_unknown_keys() {
        let settings: Settings =
            serde_json::from_str(r#"{"body_bytes_max":"2MiB","query_bytes_max":100}"#).unwrap();
        assert_eq!((settings.body_bytes_max, settings.query_bytes_max), (2 * MIB, 100));
        let error = serde_json::from_str::<Settings>(r#"{"body_max":1}"#).unwrap_err();
        assert!(error.to_string().contains("body_max"), "{error}");
        let error = serde_json::from_str::<Settings>(r#"{"body_bytes_max":"2 parsecs"}"#);
        assert!(error.unwrap_err().to_string().contains("2 parsecs"));
    }
}
