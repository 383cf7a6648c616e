//! Events as batches of columns. [`EventBatch`] is what the ledger and the sums need of any event
//! type; the ad event's columns are named in [`columns`], and the collector writes them.
//!
//! # Columns of an ad event, schema version 1
//!
//! A frame is an Arrow IPC stream with one record batch. Optional columns that hold nothing in a
//! batch are left out of its schema; a reader finds columns by name. *dict* is
//! `Dictionary(UInt16, Utf8)`, *time* is `Timestamp(Microsecond, "UTC")`, *hash* is
//! `FixedSizeBinary(16)`, a keyed hash of [`crate::hash::HashKey`].
//!
//! | column | type | |
//! |---|---|---|
//! | `id_hash` | hash, required | of `eventId` |
//! | `payload_hash` | UInt64, required | of every field that the sender sent but `receivedAt` |
//! | `event_id` | Utf8, required | |
//! | `event_type` | UInt8, required | [`EventType`] |
//! | `occurred_at`, `received_at` | time, required | |
//! | `campaign_id`, `ad_id` | dict, required | |
//! | `advertiser_id` `publisher_id` `placement_id` `country` `region` `device_type` `creative_id` | dict | |
//! | `price_micros` | Int64 | 0 when absent; from 0 to [`crate::money::PRICE_MICROS_MAX`] |
//! | `price_basis` | UInt8 | [`PriceBasis`]; 0 (cpc) when absent |
//! | `value_micros` | Int64 | a conversion's value |
//! | `schema_version` | UInt16 | 1 when absent; one that is not known is quarantined |
//! | `impression_hash` | hash | of `impressionId`; a verdict on it covers the event |
//! | `impression_id` `auction_id` `click_id` `session_id` `device_fingerprint` | Utf8 | |
//! | `user_agent` `referrer` `source` `measurement_source` | dict | |
//! | `user_hash`, `ip_hash` | hash | |
//! | `consent` | dict | the consent carriers as received, a JSON object |
//! | `consent_state` | dict | derived: granted, limited, denied, unknown, not_applicable |
//! | `invalid_reason` | dict | set: the collector took the event as invalid, and why |
//! | `extra` | Utf8 | fields that are not in this table, a JSON object |
//!
//! Rows of another schema version may hold any price, because nobody reads them.

use crate::{
    hash::IdHash,
    log::{Frame, PARTITIONS_MAX, Topic},
    money::{Nanos, PriceBasis},
    symbols::Symbols,
    time::EventTime,
};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum EventType {
    /// An ad was shown.
    Impression = 0,
    /// An ad was clicked.
    Click = 1,
    /// What the advertiser wanted happened.
    Conversion = 2,
}

impl EventType {
    /// The inverse of `as u8`.
    pub const fn from_code(code: u8) -> Option<EventType> {
        match code {
            0 => Some(EventType::Impression),
            1 => Some(EventType::Click),
            2 => Some(EventType::Conversion),
            _ => None,
        }
    }

    /// As events write it.
    pub const fn name(self) -> &'static str {
        match self {
            EventType::Impression => "impression",
            EventType::Click => "click",
            EventType::Conversion => "conversion",
        }
    }
}

/// What a valid event of this type costs. Exact: a CPM price is a thousandth, in nanos. No event
/// may carry a higher price than [`crate::money::PRICE_MICROS_MAX`]; one that is far beyond it
/// stands at the limit of nanos.
#[inline]
pub const fn cost(event: EventType, basis: PriceBasis, price_micros: i64) -> Nanos {
    match (event, basis) {
        (EventType::Click, PriceBasis::Cpc) | (EventType::Conversion, PriceBasis::Cpa) => {
            Nanos(price_micros.saturating_mul(1_000))
        }
        (EventType::Impression, PriceBasis::Cpm) => Nanos(price_micros),
        _ => Nanos(0),
    }
}

/// The collector takes no event that is older than this or as new as that: 2000-01-01 and
/// 2100-01-01, µs.
pub const OCCURRED_US: Range<i64> = 946_684_800_000_000..4_102_444_800_000_000;

/// The dimensions that a rollup may have: name in the outside contract, column in the log.
pub const DIMENSIONS: [(&str, &str); 9] = [
    ("campaignId", "campaign_id"),
    ("adId", "ad_id"),
    ("advertiserId", "advertiser_id"),
    ("publisherId", "publisher_id"),
    ("placementId", "placement_id"),
    ("country", "country"),
    ("region", "region"),
    ("deviceType", "device_type"),
    ("creativeId", "creative_id"),
];

/// The version that the collector writes and the highest that is understood.
pub const SCHEMA_VERSION: u16 = 1;
/// The version of a row that stands for what is no event: never understood.
pub const BROKEN_VERSION: u16 = 0;

/// Column names of an ad event; the module's table says what each holds.
#[expect(missing_docs, reason = "the module's table says what each holds")]
pub mod columns {
    pub const ID_HASH: &str = "id_hash";
    pub const PAYLOAD_HASH: &str = "payload_hash";
    pub const EVENT_ID: &str = "event_id";
    pub const EVENT_TYPE: &str = "event_type";
    pub const OCCURRED_AT: &str = "occurred_at";
    pub const RECEIVED_AT: &str = "received_at";
    pub const PRICE_MICROS: &str = "price_micros";
    pub const PRICE_BASIS: &str = "price_basis";
    pub const VALUE_MICROS: &str = "value_micros";
    pub const SCHEMA_VERSION: &str = "schema_version";
    pub const IMPRESSION_HASH: &str = "impression_hash";
    pub const IMPRESSION_ID: &str = "impression_id";
    pub const AUCTION_ID: &str = "auction_id";
    pub const CLICK_ID: &str = "click_id";
    pub const SESSION_ID: &str = "session_id";
    pub const DEVICE_FINGERPRINT: &str = "device_fingerprint";
    pub const USER_AGENT: &str = "user_agent";
    pub const REFERRER: &str = "referrer";
    pub const SOURCE: &str = "source";
    pub const MEASUREMENT_SOURCE: &str = "measurement_source";
    pub const USER_HASH: &str = "user_hash";
    pub const IP_HASH: &str = "ip_hash";
    pub const CONSENT: &str = "consent";
    pub const CONSENT_STATE: &str = "consent_state";
    pub const INVALID_REASON: &str = "invalid_reason";
    pub const EXTRA: &str = "extra";
}

/// Where one event is: its frame, and its row in it. Or where a message is that is none of ours, in
/// whatever topic: such are listed with the events that were set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The partition of the events topic. Of another topic, the topic stands in the two highest
    /// bits: see [`Position::of_message`] and [`Position::place`].
    pub partition: u16,
    /// The frame.
    pub offset: u64,
    /// The row in the frame.
    pub row: u16,
}

/// The bits of a position's partition that are one.
const PARTITION_BITS: u32 = 14;

impl Position {
    /// Of a message as a whole.
    pub const fn of_message(topic: Topic, partition: u16, offset: u64) -> Position {
        const { assert!(PARTITIONS_MAX <= 1 << PARTITION_BITS && Topic::ALL.len() == 4) };
        Position { partition: (topic as u16) << PARTITION_BITS | partition, offset, row: 0 }
    }

    /// The topic, and the partition of it.
    pub const fn place(self) -> (Topic, u16) {
        let topic = Topic::ALL[(self.partition >> PARTITION_BITS) as usize];
        (topic, self.partition & ((1 << PARTITION_BITS) - 1))
    }
}

/// What became of an event.
/// `accepted = counted + duplicate + conflict + quarantined + too late`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[repr(u8)]
pub enum Fate {
    /// In the rows of the views, valid or invalid.
    Counted = 0,
    /// A copy of an event that the ledger has.
    Duplicate = 1,
    /// The id of an event that the ledger has, with another payload. The first wins.
    Conflict = 2,
    /// Not understood (an unknown schema version), or further ahead of its log time than an event
    /// may be; kept to be read later.
    Quarantined = 3,
    /// After the correction horizon of its minute.
    TooLate = 4,
}

impl Fate {
    /// All of them, in the order of their codes.
    pub const ALL: [Fate; 5] =
        [Fate::Counted, Fate::Duplicate, Fate::Conflict, Fate::Quarantined, Fate::TooLate];

    /// The code in `/v1/quarantine`, in metrics and in `GET /v1/events/{id}`.
    pub const fn code(self) -> &'static str {
        match self {
            Fate::Counted => "counted",
            Fate::Duplicate => "duplicate",
            Fate::Conflict => "id_conflict",
            Fate::Quarantined => "unknown_schema_version",
            Fate::TooLate => "too_late",
        }
    }
}

/// Why a frame of events cannot be read as events.
#[derive(Clone, Debug, thiserror::Error)]
#[error("partition {partition} offset {offset}: {reason}")]
pub struct DecodeError {
    /// The frame's partition.
    pub partition: u16,
    /// The frame's offset.
    pub offset: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// A frame of events, decoded: what the ledger and the sums ask of every event type.
///
/// Shapes: every slice has [`EventBatch::len`] elements, indexed by row.
pub trait EventBatch: Send + Sync + Sized + 'static {
    /// Reads a frame. Dimension texts become symbols.
    ///
    /// # Errors
    /// When the payload is no batch of this type.
    fn decode(frame: &Frame, symbols: &Symbols) -> Result<Self, DecodeError>;

    /// How many events.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keyed hashes of the event ids.
    fn ids(&self) -> &[IdHash];

    /// The hashes of the payloads: the same id with another payload is a conflict.
    fn payloads(&self) -> &[u64];

    /// When the events happened, µs.
    fn times_us(&self) -> &[i64];

    /// Whether this build understands the row; if not it is quarantined.
    fn understood(&self, row: usize) -> bool {
        let _ = row;
        true
    }

    /// Whether any row has a [`EventBatch::group`] or is [`EventBatch::born_invalid`]; lets the
    /// ledger skip asking row by row.
    fn has_groups(&self) -> bool {
        false
    }

    /// The hash that a verdict on a group of events (an impression and its clicks) names.
    fn group(&self, row: usize) -> Option<IdHash> {
        let _ = row;
        None
    }

    /// Whether the event came with a verdict of the source: counted as invalid from the start.
    fn born_invalid(&self, row: usize) -> bool {
        let _ = row;
        false
    }
}

/// What a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The event of this id.
    Event,
    /// Every event of this group: an impression and its clicks.
    Impression,
}

/// A verdict as the verdicts topic holds it: a frame is a JSON array of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// What `id` is.
    pub target: Target,
    /// The id as sent.
    pub id: String,
    /// The keyed hash of `id`, in the domain of `target`.
    pub hash: IdHash,
    /// Invalid, or valid (again).
    pub invalid: bool,
    /// When it was decided, µs since 1970. The latest wins; of two equal ones the later arrival.
    pub decided_at_us: i64,
    /// Why, in the decider's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason_code: String,
    /// Which model decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_version: String,
    /// Who decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

/// The event time of a row.
#[inline]
pub fn event_time<B: EventBatch>(batch: &B, row: usize) -> EventTime {
    EventTime(batch.times_us()[row])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_tells_the_topic_and_those_of_events_are_as_they_were() {
        for topic in Topic::ALL {
            for partition in [0, 1, PARTITIONS_MAX - 1] {
                let position = Position::of_message(topic, partition, 7);
                assert_eq!(position.place(), (topic, partition));
                assert_eq!((position.offset, position.row), (7, 0));
            }
        }
        let event = Position { partition: 3, offset: 7, row: 0 };
        assert_eq!(Position::of_message(Topic::Events, 3, 7), event);
        let all = Topic::ALL.map(|topic| Position::of_message(topic, 3, 7));
        assert!(all.is_sorted(), "of an epoch, events come first");
    }
}
