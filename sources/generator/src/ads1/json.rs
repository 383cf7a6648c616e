//! ADS-1 as senders write it. Formatting is by hand, because a load generator that shares the
//! machine with what it measures must not be what is measured: `write!` takes four times as long.

use super::{Ads1, Ads1Event, Ads1Verdict, COUNTRIES, DEVICES};
use std::ops::Range;

/// No event is longer than this.
const EVENT_BYTES_MAX: usize = 320;

const DIGITS: [u8; 200] = {
    let mut digits = [0; 200];
    let mut n = 0;
    while n < 100 {
        digits[n * 2] = b'0' + (n / 10) as u8;
        digits[n * 2 + 1] = b'0' + (n % 10) as u8;
        n += 1;
    }
    digits
};

#[inline]
fn two(n: i64) -> [u8; 2] {
    let at = (n as usize % 100) * 2;
    [DIGITS[at], DIGITS[at + 1]]
}

/// Writes 16 hex digits.
#[inline]
pub(super) fn hex(word: u64, out: &mut [u8]) {
    for (digit, out) in out.iter_mut().take(16).enumerate() {
        *out = b"0123456789abcdef"[(word >> (60 - 4 * digit)) as usize & 15];
    }
}

/// Appends a decimal number.
#[inline]
fn decimal(mut n: u32, out: &mut Vec<u8>) {
    let mut digits = [0; 10];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes `2023-11-14T22:14:00.000Z` for ms since 1970, of the years 1970 to 9999.
#[inline]
fn time(ms: i64) -> [u8; 24] {
    let (days, of_day_ms) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let second = of_day_ms / 1_000;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    text[0..2].copy_from_slice(&two(year / 100));
    text[2..4].copy_from_slice(&two(year));
    text[5..7].copy_from_slice(&two(month));
    text[8..10].copy_from_slice(&two(day));
    text[11..13].copy_from_slice(&two(second / 3_600));
    text[14..16].copy_from_slice(&two(second / 60 % 60));
    text[17..19].copy_from_slice(&two(second % 60));
    text[20] = b'0' + (of_day_ms / 100 % 10) as u8;
    text[21..23].copy_from_slice(&two(of_day_ms % 100));
    text
}

/// The civil date of a day since 1970 (Hinnant's `civil_from_days`): year, month, day.
const fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + (month <= 2) as i64, month, day)
}

/// Appends an event as a JSON object, about 230 bytes. `shift_ms` is added to its time.
pub(super) fn event(e: &Ads1Event, shift_ms: i64, out: &mut Vec<u8>) {
    out.reserve(EVENT_BYTES_MAX);
    out.extend_from_slice(b"{\"eventId\":\"");
    out.extend_from_slice(&e.id_text());
    out.extend_from_slice(if e.click {
        b"\",\"eventType\":\"click\",\"occurredAt\":\"".as_slice()
    } else {
        b"\",\"eventType\":\"impression\",\"occurredAt\":\"".as_slice()
    });
    out.extend_from_slice(&time(e.occurred_at_ms + shift_ms));
    out.extend_from_slice(b"\",\"campaignId\":\"cmp_");
    decimal(e.campaign.into(), out);
    out.extend_from_slice(b"\",\"adId\":\"ad_");
    decimal(e.ad.into(), out);
    out.extend_from_slice(b"\",\"publisherId\":\"pub_");
    decimal(e.publisher.into(), out);
    out.extend_from_slice(b"\",\"placementId\":\"pl_");
    decimal(e.placement.into(), out);
    out.extend_from_slice(b"\",\"country\":\"");
    out.extend_from_slice(COUNTRIES[usize::from(e.country)].as_bytes());
    out.extend_from_slice(b"\",\"deviceType\":\"");
    out.extend_from_slice(DEVICES[usize::from(e.device)].as_bytes());
    if e.click {
        out.extend_from_slice(b"\",\"priceMicros\":");
        decimal(e.price_micros, out);
        out.push(b'}');
    } else {
        out.extend_from_slice(b"\"}");
    }
}

fn verdict(v: &Ads1Verdict, shift_ms: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"eventId\":\"");
    out.extend_from_slice(&v.event.id_text());
    out.extend_from_slice(b"\",\"verdict\":\"invalid\",\"reasonCode\":\"ads1\",\"decidedAt\":\"");
    out.extend_from_slice(&time(v.decided_at_ms + shift_ms));
    out.extend_from_slice(b"\"}");
}

impl Ads1 {
    /// Appends an event as a JSON object, about 230 bytes. `shift_ms` is added to its time.
    pub fn json(&self, event: &Ads1Event, shift_ms: i64, out: &mut Vec<u8>) {
        self::event(event, shift_ms, out);
    }

    /// A body for `POST /v1/events/collect` with the events `range`.
    pub fn body(&self, range: Range<u64>, shift_ms: i64) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + range.end.saturating_sub(range.start) as usize * 240);
        out.extend_from_slice(b"{\"events\":[");
        for i in range {
            event(&self.event(i), shift_ms, &mut out);
            out.push(b',');
        }
        close(out)
    }

    /// The events `0..events` as bodies of `events_per_body`, the last one maybe shorter.
    pub fn bodies(
        &self,
        events: u64,
        events_per_body: u64,
        shift_ms: i64,
    ) -> impl Iterator<Item = Vec<u8>> + use<'_> {
        let step = events_per_body.max(1);
        (0..events.div_ceil(step))
            .map(move |n| self.body(n * step..((n + 1) * step).min(events), shift_ms))
    }

    /// A body for `POST /v1/verdicts` with the verdicts that come with the events `range`; `None`
    /// if there are none.
    pub fn verdict_body(&self, range: Range<u64>, shift_ms: i64) -> Option<Vec<u8>> {
        let mut out = b"{\"verdicts\":[".to_vec();
        let empty = out.len();
        for v in self.verdicts(range) {
            verdict(&v, shift_ms, &mut out);
            out.push(b',');
        }
        (out.len() > empty).then(|| close(out))
    }
}

/// Ends an array whose every element is followed by a comma, and the object around it.
fn close(mut out: Vec<u8>) -> Vec<u8> {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.extend_from_slice(b"]}");
    out
}
