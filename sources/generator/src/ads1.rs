//! ADS-1, the stream that Trueup and its peers are measured on (BENCHMARKS.md has the results).
//!
//! Event *i* is a pure function of *i*, so any range of the stream can be made anywhere: with
//! `out(k) = fin(SEED + k·G)` of splitmix64 it takes `o(i, k) = out(8·i + k + 1)`, *k* = 0…6.
//! 1 % of the numbers are exact copies of an earlier event (at most 100,000 back; chains of copies
//! are followed), 5 % are clicks, 2 % happened up to five minutes before their place in the
//! stream, campaigns and countries are Zipf(1.1) distributed. Event time advances by 100,000
//! events a second from [`BASE_MS`].
//!
//! `o(i, 7)` is not used by the stream; [`Ads1::is_judged`] draws from it which clicks a verdict
//! takes out, [`VERDICT_DELAY_MS`] of event time later.
//!
//! The definition is fixed: other engines are measured on it. The tests hold it to check sums of
//! its tables and to answers that another program gave.

mod frames;
mod json;
mod reference;
#[cfg(test)]
mod tests;

pub use reference::{Answer, Reference};

use crate::random::{STEP, finalise, zipf_table};
use trueup_operators::event::EventType;

/// The seed of the stream.
pub const SEED: u64 = 0xAD5_0001;
/// The event time of event 0, ms since 1970: a whole number of minutes.
pub const BASE_MS: i64 = 1_700_000_040_000;
/// How many events a millisecond of event time holds.
pub const EVENTS_PER_MS: u64 = 100;
/// How long after its click a verdict comes.
pub const VERDICT_DELAY_MS: u64 = 30_000;
/// How many places of the stream that is.
pub const VERDICT_DELAY_EVENTS: u64 = VERDICT_DELAY_MS * EVENTS_PER_MS;
/// How far back a copy's original may be.
pub const COPY_DISTANCE_MAX: u64 = 100_000;

/// The countries, the most frequent first.
pub const COUNTRIES: [&str; 50] = [
    "US", "DE", "FR", "GB", "CN", "JP", "IN", "BR", "CA", "AU", "ES", "IT", "NL", "SE", "NO", "DK",
    "FI", "PL", "CZ", "AT", "CH", "BE", "PT", "GR", "HU", "RO", "BG", "HR", "SI", "SK", "IE", "IS",
    "TR", "IL", "AE", "SA", "EG", "ZA", "NG", "KE", "MX", "AR", "CL", "CO", "PE", "KR", "TW", "TH",
    "VN", "ID",
];
/// The device types.
pub const DEVICES: [&str; 5] = ["ios", "android", "desktop", "ctv", "tablet"];

const CAMPAIGNS: u16 = 1_000;
const ONE_PERCENT: u32 = 42_949_673;
const TWO_PERCENT: u32 = 85_899_346;
const THREE_PERCENT: u32 = 128_849_019;
const FIVE_PERCENT: u32 = 214_748_365;

/// An event of the stream. Names are numbers: campaign 7 is `cmp_7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ads1Event {
    /// The first half of the event id.
    pub id_high: u64,
    /// The second half.
    pub id_low: u64,
    /// Event time, ms since 1970.
    pub occurred_at_ms: i64,
    /// What a click costs; 0 for an impression.
    pub price_micros: u32,
    /// `cmp_<n>`
    pub campaign: u16,
    /// `ad_<n>`; the campaign is its tenth.
    pub ad: u16,
    /// `pub_<n>`
    pub publisher: u16,
    /// `pl_<n>`
    pub placement: u8,
    /// Of [`COUNTRIES`].
    pub country: u8,
    /// Of [`DEVICES`].
    pub device: u8,
    /// A click; otherwise an impression.
    pub click: bool,
}

impl Ads1Event {
    /// What it is.
    pub const fn event_type(&self) -> EventType {
        if self.click { EventType::Click } else { EventType::Impression }
    }

    /// The event id as it is sent: 32 hex digits, the first half first.
    pub fn id_text(&self) -> [u8; 32] {
        let mut text = [0; 32];
        json::hex(self.id_high, &mut text[..16]);
        json::hex(self.id_low, &mut text[16..]);
        text
    }
}

/// A verdict of the stream: a click that turned out invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ads1Verdict {
    /// The click.
    pub event: Ads1Event,
    /// When it was decided, ms since 1970.
    pub decided_at_ms: i64,
}

/// The stream. Holds the two tables that campaigns and countries are drawn from.
#[derive(Clone, Debug)]
pub struct Ads1 {
    campaigns: Vec<u16>,
    countries: Vec<u16>,
}

impl Default for Ads1 {
    fn default() -> Self {
        Ads1 {
            campaigns: zipf_table(CAMPAIGNS, 1 << 16, 1.1),
            countries: zipf_table(COUNTRIES.len() as u16, 1 << 12, 1.1),
        }
    }
}

#[inline]
fn out(i: u64, k: u64) -> u64 {
    finalise(SEED.wrapping_add((i * 8 + k + 1).wrapping_mul(STEP)))
}

/// A number below `end` from 32 random bits.
#[inline]
const fn scaled(bits: u32, end: u64) -> u64 {
    (bits as u64 * end) >> 32
}

const fn high(bits: u64) -> u32 {
    (bits >> 32) as u32
}

impl Ads1 {
    /// The stream.
    pub fn new() -> Ads1 {
        Ads1::default()
    }

    /// The number of the event that `i` is a copy of; `i` itself if it is none.
    #[inline]
    pub fn original(&self, mut i: u64) -> u64 {
        loop {
            let draw = out(i, 0);
            if draw as u32 >= ONE_PERCENT || i == 0 {
                return i;
            }
            i -= 1 + scaled(high(draw), i.min(COPY_DISTANCE_MAX));
        }
    }

    /// Event `i`.
    #[inline]
    pub fn event(&self, i: u64) -> Ads1Event {
        self.own(self.original(i))
    }

    /// Event `i`, which is not a copy.
    #[inline]
    fn own(&self, i: u64) -> Ads1Event {
        let (kind, place, source) = (out(i, 3), out(i, 4), out(i, 5));
        let click = (kind as u32) < FIVE_PERCENT;
        let late = high(kind) < TWO_PERCENT;
        let mut occurred_at_ms = stream_time_ms(i);
        let mut price_micros = 0;
        if click || late {
            let draw = out(i, 6);
            if click {
                price_micros = 10_000 + scaled(draw as u32, 490_001) as u32;
            }
            if late {
                occurred_at_ms -= scaled(high(draw), 300_000) as i64;
            }
        }
        let campaign = self.campaigns[(place & 0xFFFF) as usize];
        Ads1Event {
            id_high: out(i, 1),
            id_low: out(i, 2),
            occurred_at_ms,
            price_micros,
            campaign,
            ad: campaign * 10 + ((((place >> 28) & 0xFFFF) * 10) >> 16) as u16,
            publisher: scaled(source as u32, 500) as u16,
            placement: scaled(high(source), 20) as u8,
            country: self.countries[((place >> 16) & 0xFFF) as usize] as u8,
            device: (((place >> 44) * 5) >> 20) as u8,
            click,
        }
    }

    /// Whether a verdict says later that event `i` is invalid: 3 % of the clicks, copies not
    /// counted.
    pub fn is_judged(&self, i: u64) -> bool {
        (out(i, 7) as u32) < THREE_PERCENT
            && (out(i, 3) as u32) < FIVE_PERCENT
            && self.original(i) == i
    }

    /// The verdicts that come while the stream's events `range` come, in order.
    pub fn verdicts(
        &self,
        range: std::ops::Range<u64>,
    ) -> impl Iterator<Item = Ads1Verdict> + use<'_> {
        let about = |i: u64| i.saturating_sub(VERDICT_DELAY_EVENTS);
        (about(range.start)..about(range.end)).filter(|&i| self.is_judged(i)).map(|i| Ads1Verdict {
            event: self.own(i),
            decided_at_ms: stream_time_ms(i + VERDICT_DELAY_EVENTS),
        })
    }
}

/// Where event time stands when event `i` comes, ms since 1970.
pub const fn stream_time_ms(i: u64) -> i64 {
    BASE_MS + (i / EVENTS_PER_MS) as i64
}

/// What to add to every time so that a stream of `events` ends at about `now_ms`: a whole number of
/// minutes, so that no answer changes.
pub const fn shift_to_end_at_ms(events: u64, now_ms: i64) -> i64 {
    (now_ms - stream_time_ms(events)).div_euclid(60_000) * 60_000
}
