//! Two rates: events a second of a token, and clicks a minute of an IP.
//!
//! A token has a *bucket with debt*: a body is admitted while the level is above zero and is
//! charged with what it turned out to hold, which may take the level below. So nothing has to be
//! counted before it is decoded, and over time the rate holds exactly.
//!
//! An IP (of version 6: a /64, `client::network`) has a *sliding window* made of two minutes: the
//! count is that of this minute plus the part of the last one that the window still covers. The
//! windows live in two maps that change places every minute, so forgetting is dropping a map, and
//! their number is bounded: an IP that finds no room is not limited (a click is never called
//! invalid for want of memory), and a metric says so.

use crate::names::Metric;
use parking_lot::Mutex;
use std::collections::HashMap;
use trueup_operators::{
    hash::IdHash,
    problem::Problem,
    time::{MINUTE_US, SECOND_US},
};

/// Events a second of each token.
pub(crate) struct TokenRates {
    per_second: u64,
    buckets: Mutex<Vec<Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Events that may still come, in millionths.
    level_millionths: i128,
    at_us: i64,
}

impl TokenRates {
    /// `per_second` 0: no limit.
    pub(crate) fn new(per_second: u64, tokens: usize, now_us: i64) -> TokenRates {
        let full = Bucket { level_millionths: i128::from(per_second) * 1_000_000, at_us: now_us };
        TokenRates { per_second, buckets: Mutex::new(vec![full; tokens.max(1)]) }
    }

    /// Whether the token may send.
    ///
    /// # Errors
    /// 429 with the time until it may.
    pub(crate) fn admit(&self, token: usize, now_us: i64) -> Result<(), Problem> {
        if self.per_second == 0 {
            return Ok(());
        }
        let level = self.change(token, now_us, 0);
        if level > 0 {
            return Ok(());
        }
        let wait_s = (-level / (i128::from(self.per_second) * 1_000_000) + 1).min(3600);
        Err(Problem::new(
            429,
            "token_rate",
            "the token sends too much",
            format!("the token's rate is {} events a second", self.per_second),
            "wait, send less, or raise `[limits] events_per_second_max`",
        )
        .retry_after(wait_s as u32))
    }

    /// Counts what a body held.
    pub(crate) fn charge(&self, token: usize, now_us: i64, events: usize) {
        if self.per_second != 0 {
            self.change(token, now_us, events);
        }
    }

    fn change(&self, token: usize, now_us: i64, events: usize) -> i128 {
        let per_second = i128::from(self.per_second);
        let mut buckets = self.buckets.lock();
        let Some(bucket) = buckets.get_mut(token) else { return 1 };
        let passed_us = i128::from((now_us - bucket.at_us).max(0));
        bucket.at_us = bucket.at_us.max(now_us);
        let filled = bucket.level_millionths + passed_us * per_second;
        bucket.level_millionths = filled.min(per_second * 1_000_000) - events as i128 * 1_000_000;
        bucket.level_millionths
    }
}

/// Clicks a minute of each IP.
pub(crate) struct IpWindows {
    clicks_max: u32,
    ips_max: usize,
    minutes: Mutex<Minutes>,
}

#[derive(Default)]
struct Minutes {
    minute: i64,
    this: HashMap<IdHash, u32>,
    last: HashMap<IdHash, u32>,
}

impl IpWindows {
    pub(crate) fn new(clicks_max: u32, ips_max: usize) -> IpWindows {
        IpWindows { clicks_max, ips_max, minutes: Mutex::default() }
    }

    /// Counts a click; `false` if it is above the limit.
    pub(crate) fn admit(&self, ip: IdHash, now_us: i64) -> bool {
        let mut minutes = self.minutes.lock();
        let minutes = &mut *minutes;
        let minute = now_us.div_euclid(MINUTE_US);
        if minute > minutes.minute {
            std::mem::swap(&mut minutes.this, &mut minutes.last);
            if minute > minutes.minute + 1 {
                minutes.last.clear();
            }
            minutes.this.clear();
            minutes.minute = minute;
        }
        let left_us = MINUTE_US - now_us.rem_euclid(MINUTE_US);
        let before = i64::from(minutes.last.get(&ip).copied().unwrap_or_default());
        let covered = before * (left_us / SECOND_US) / 60;
        if minutes.this.len() >= self.ips_max && !minutes.this.contains_key(&ip) {
            Metric::IpsUnwatched.add(1);
            return true;
        }
        let count = minutes.this.entry(ip).or_default();
        *count = count.saturating_add(1);
        i64::from(*count) + covered <= i64::from(self.clicks_max)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_keeps_its_rate_over_time() {
        let rates = TokenRates::new(100, 2, 0);
        let mut sent = 0;
        for tick in 0..1000 {
            let now_us = tick * 10_000;
            if rates.admit(0, now_us).is_ok() {
                rates.charge(0, now_us, 37);
                sent += 37;
            }
        }
        // Ten seconds and a burst of one; the last body may go into debt.
        assert!((1000..=1137).contains(&sent), "{sent}");
        rates.charge(0, 10_000_000, 1000);
        let problem = rates.admit(0, 10_000_000).unwrap_err();
        assert_eq!(problem.status, 429);
        assert!((9..=12).contains(&problem.retry_after_s.unwrap()), "{problem:?}");
        assert!(rates.admit(1, 10_000_000).is_ok(), "tokens do not share");
    }

    #[test]
    fn an_ip_is_limited_in_any_minute() {
        let windows = IpWindows::new(100, 2);
        let ip = [1; 16];
        let start = 1_000_000 * MINUTE_US + 50 * SECOND_US;
        let taken = |from_us: i64, clicks: i64| {
            (0..clicks).filter(|c| windows.admit(ip, from_us + c)).count()
        };
        assert_eq!(taken(start, 150), 100);
        // Ten seconds later it is another minute, and the window still covers most of the last.
        assert_eq!(taken(start + 11 * SECOND_US, 50), 0);
        assert_eq!(taken(start + 200 * SECOND_US, 50), 50);
        assert!(windows.admit([2; 16], start + 200 * SECOND_US));
        assert!((0..500).all(|_| windows.admit([3; 16], start + 200 * SECOND_US)), "no room");
    }
}
