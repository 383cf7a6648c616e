//! How old what the views show is, over the last minute or two: what `/v1/status` tells of it. Two
//! windows take turns, so that it neither forgets all at once nor remembers for ever.

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// It is told over this long, and what is left of as long before.
const WINDOW: Duration = Duration::from_secs(60);

/// How old the visible epoch was, ms, at regular instants of this window and of the one before.
pub(super) struct Freshness {
    now: Histogram<u64>,
    before: Histogram<u64>,
    since: Instant,
}

impl Freshness {
    pub(super) fn new() -> Freshness {
        // One ms to a day, three digits: 200 KiB each.
        let histogram =
            || Histogram::new_with_bounds(1, 86_400_000, 3).expect("the bounds are in order");
        Freshness { now: histogram(), before: histogram(), since: Instant::now() }
    }

    pub(super) fn record(&mut self, age_us: i64) {
        if self.since.elapsed() > WINDOW {
            std::mem::swap(&mut self.now, &mut self.before);
            self.now.reset();
            self.since = Instant::now();
        }
        self.now.saturating_record((age_us / 1_000).max(1) as u64);
    }

    pub(super) fn told(&self) -> Value {
        let mut both = self.before.clone();
        both.add(&self.now).expect("both have the same bounds");
        let seconds = |quantile| both.value_at_quantile(quantile) as f64 / 1e3;
        json!({ "p50Seconds": seconds(0.5), "p99Seconds": seconds(0.99), "samples": both.len() })
    }
}
