//! The two times. *Event time* says which bucket an event belongs to; *log time* says when the log
//! took it, and drives lateness, finality and expiry. Both are microseconds since 1970 in UTC,
//! and nothing converts one into the other by accident because they are two types.

use serde::{Deserialize, Serialize};

/// Microseconds in a second.
pub const SECOND_US: i64 = 1_000_000;
/// Microseconds in a minute, the finest bucket.
pub const MINUTE_US: i64 = 60 * SECOND_US;
/// Microseconds in an hour.
pub const HOUR_US: i64 = 60 * MINUTE_US;
/// Microseconds in a day (UTC days have no leap seconds here, as in POSIX).
pub const DAY_US: i64 = 24 * HOUR_US;

/// When an event happened, by its sender's word: µs since 1970, UTC.
///
/// ```
/// use trueup_operators::time::{EventTime, format_rfc3339, parse_rfc3339};
///
/// let at = EventTime(parse_rfc3339("2026-04-27T17:32:10.5+02:00").unwrap());
/// assert_eq!(format_rfc3339(at.0), "2026-04-27T15:32:10.5Z");
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct EventTime(pub i64);

/// When the log took a record: µs since 1970, UTC; never decreases within a partition.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogTime(pub i64);

/// A tick of the whole system; the timely timestamp.
pub type Epoch = u64;

/// How wide a bucket is.
///
/// ```
/// use trueup_operators::time::{EventTime, Granularity, HOUR_US};
///
/// let bucket = Granularity::Hour.bucket(EventTime(5 * HOUR_US + 17));
/// assert_eq!(Granularity::Hour.start(bucket), EventTime(5 * HOUR_US));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// One minute.
    Minute,
    /// One hour.
    Hour,
    /// One UTC day.
    Day,
}

impl Granularity {
    /// All of them, finest first.
    pub const ALL: [Granularity; 3] = [Granularity::Minute, Granularity::Hour, Granularity::Day];

    /// The width of a bucket in µs.
    pub const fn width_us(self) -> i64 {
        match self {
            Granularity::Minute => MINUTE_US,
            Granularity::Hour => HOUR_US,
            Granularity::Day => DAY_US,
        }
    }

    /// `minute`, `hour` or `day`.
    pub const fn name(self) -> &'static str {
        match self {
            Granularity::Minute => "minute",
            Granularity::Hour => "hour",
            Granularity::Day => "day",
        }
    }

    /// The inverse of [`Granularity::name`].
    pub fn from_name(name: &str) -> Option<Granularity> {
        Granularity::ALL.into_iter().find(|g| g.name() == name)
    }

    /// The bucket that `time` falls into.
    #[inline]
    pub const fn bucket(self, time: EventTime) -> Bucket {
        Bucket(time.0.div_euclid(self.width_us()) as i32)
    }

    /// The first instant of a bucket.
    #[inline]
    pub const fn start(self, bucket: Bucket) -> EventTime {
        EventTime(bucket.0 as i64 * self.width_us())
    }

    /// The first instant after a bucket.
    #[inline]
    pub const fn end(self, bucket: Bucket) -> EventTime {
        EventTime((bucket.0 as i64 + 1) * self.width_us())
    }

    /// The bucket of this granularity that holds a minute.
    #[inline]
    pub const fn of_minute(self, minute: Bucket) -> Bucket {
        Bucket(minute.0.div_euclid((self.width_us() / MINUTE_US) as i32))
    }
}

/// The number of a bucket: how many widths of its granularity since 1970. In minutes an `i32`
/// reaches beyond the year 6000; the collector takes no time beyond 2100.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Bucket(pub i32);

/// The two spans, in log time after a bucket's end, that decide what a bucket may still do, and
/// how far ahead of the log an event may claim to be. All in µs.
///
/// ```
/// use trueup_operators::time::{BucketState, DAY_US, EventTime, Lateness, LogTime, MINUTE_US};
///
/// let lateness = Lateness {
///     allowed_lateness_us: 5 * MINUTE_US,
///     correction_horizon_us: DAY_US,
///     future_skew_us_max: 5 * MINUTE_US,
/// };
/// let (end, now) = (EventTime(0), LogTime(6 * MINUTE_US));
/// assert_eq!(lateness.state(end, now), BucketState::Settling);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lateness {
    /// After this the bucket is *settling*: late events still count, and its version goes up.
    pub allowed_lateness_us: i64,
    /// After this the bucket is *final*: what comes now is *too late* and changes no row.
    pub correction_horizon_us: i64,
    /// How far ahead of its log time an event may claim to have happened. The collector refuses
    /// what is further ahead, and the ledger sets aside what others wrote past it.
    pub future_skew_us_max: i64,
}

impl Lateness {
    /// An event is too late when the log took it this long after its *minute* ended. The minute
    /// decides for hour and day as well, so that an hour is always the sum of its minutes.
    #[inline]
    pub const fn too_late(&self, minute: Bucket, at: LogTime) -> bool {
        at.0 >= Granularity::Minute.end(minute).0 + self.correction_horizon_us
    }

    /// Whether an event claims to come from further ahead of its log time than any may. It is set
    /// aside: its id could be forgotten before its minute is over ([`Lateness::retention_us`]), and
    /// the minute would hardly ever be final.
    #[inline]
    pub const fn too_early(&self, time: EventTime, at: LogTime) -> bool {
        time.0 > at.0.saturating_add(self.future_skew_us_max)
    }

    /// What a bucket that ends at `end` is once the log is complete to `frontier`.
    pub fn state(&self, end: EventTime, frontier: LogTime) -> BucketState {
        if frontier.0 >= end.0 + self.correction_horizon_us {
            BucketState::Final
        } else if frontier.0 >= end.0 + self.allowed_lateness_us {
            BucketState::Settling
        } else {
            BucketState::Provisional
        }
    }

    /// How long the ledger remembers an event id, in log time. A copy that comes later than this
    /// is too late by itself: the first copy's event time was at most `future_skew_us_max` ahead
    /// of its log time, and its minute ends within another minute. So no event counts twice.
    pub const fn retention_us(&self) -> i64 {
        self.correction_horizon_us + self.future_skew_us_max + MINUTE_US
    }

    /// Expiry goes by *slices* of this width, 1/64 of the retention, so that forgetting costs one
    /// comparison a slice and not one an event.
    pub const fn slice_us(&self) -> i64 {
        let width = (self.retention_us() + 63) / 64;
        if width < 1 { 1 } else { width }
    }

    /// Whether an id that was first seen in an epoch whose latest log time was `seen` is forgotten
    /// once the log was complete to `frontier` at the end of the epoch before. A pure function of
    /// the remap, so that every run forgets alike.
    pub const fn forgotten(&self, seen: LogTime, frontier: LogTime) -> bool {
        self.retentions_ago(1, seen, frontier)
    }

    /// Whether a verdict of an epoch whose latest log time was `seen` need not be known any more.
    /// It covers no event of a log time at which it would be [`Lateness::forgotten`]; but one of
    /// just before then can be judged for as long again, and an earlier decision that comes
    /// meanwhile must not win. One that comes later is too late for all of them.
    pub const fn outlived(&self, seen: LogTime, frontier: LogTime) -> bool {
        self.retentions_ago(2, seen, frontier)
    }

    const fn retentions_ago(&self, many: i64, seen: LogTime, frontier: LogTime) -> bool {
        let width = self.slice_us();
        frontier.0.div_euclid(width) > seen.0.div_euclid(width) + many * 64
    }
}

/// What may still happen to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BucketState {
    /// Events are still expected.
    Provisional,
    /// Only corrections are expected.
    Settling,
    /// Nothing changes it any more.
    Final,
    /// Final, and since changed by a ledger adjustment.
    Restated,
}

impl BucketState {
    /// As reports write it.
    pub const fn name(self) -> &'static str {
        match self {
            BucketState::Provisional => "provisional",
            BucketState::Settling => "settling",
            BucketState::Final => "final",
            BucketState::Restated => "restated",
        }
    }

    /// Final or restated.
    pub const fn is_finalized(self) -> bool {
        matches!(self, BucketState::Final | BucketState::Restated)
    }
}

/// Writes µs since 1970 as RFC 3339 in UTC with `Z`, with as many fraction digits as it needs.
pub fn format_rfc3339(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |t| t.to_string())
}

/// Reads RFC 3339 with any offset. `None` if the text is no such time.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(|t| t.as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_nest() {
        let t = EventTime(parse_rfc3339("2026-04-27T15:32:10.5Z").expect("a time"));
        let minute = Granularity::Minute.bucket(t);
        assert_eq!(format_rfc3339(Granularity::Minute.start(minute).0), "2026-04-27T15:32:00Z");
        for g in Granularity::ALL {
            assert_eq!(g.of_minute(minute), g.bucket(t));
            assert!(g.start(g.bucket(t)) <= t && t < g.end(g.bucket(t)));
        }
        assert_eq!(Granularity::Minute.bucket(EventTime(-1)), Bucket(-1));
    }

    #[test]
    fn an_id_outlives_every_copy_that_could_count() {
        let l = Lateness {
            allowed_lateness_us: 2 * SECOND_US,
            correction_horizon_us: 5 * SECOND_US,
            future_skew_us_max: 300 * SECOND_US,
        };
        for seen in (0..10 * HOUR_US).step_by(7_777_777) {
            // The event claims the furthest future that its log time allows.
            let minute = Granularity::Minute.bucket(EventTime(seen + l.future_skew_us_max));
            let last = Granularity::Minute.end(minute).0 + l.correction_horizon_us - 1;
            assert!(!l.too_late(minute, LogTime(last)));
            assert!(!l.forgotten(LogTime(seen), LogTime(last)));
        }
    }
}
