//! Each rule on a log made by hand, with figures worked out by hand. Minute 0 is 2026-04-27
//! 15:32:00 UTC; the horizon is ten minutes unless a test says otherwise.
#![allow(clippy::unwrap_used)]

mod ads1;
mod engine;
mod foreign;
mod memory_log;
mod reports;
mod rules;

use super::*;
use memory_log::Made;
use trueup_generator::event::{Event, Verdict};
use trueup_operators::{
    event::{EventType, Fate, Position, Target},
    money::PriceBasis,
    time::{Granularity, MINUTE_US, SECOND_US, parse_rfc3339},
};

fn minute_0() -> i64 {
    parse_rfc3339("2026-04-27T15:32:00Z").unwrap()
}

/// Seconds after minute 0, in µs.
fn at(seconds: i64) -> i64 {
    minute_0() + seconds * SECOND_US
}

fn settings() -> VerifySettings {
    VerifySettings {
        lateness: Lateness {
            allowed_lateness_us: 2 * MINUTE_US,
            correction_horizon_us: 10 * MINUTE_US,
            future_skew_us_max: 5 * MINUTE_US,
        },
        rollups: RollupSpec::ad_defaults(),
    }
}

/// A click of `cmp_1` at a time, of 100,000 micros.
fn click(id: &str, occurred_us: i64) -> Event {
    let mut event = Event::new(EventType::Click, id, occurred_us, "cmp_1", "ad_1");
    event.optional.price_micros = Some(100_000);
    event
}

fn impression(id: &str, impression_id: &str, occurred_us: i64) -> Event {
    let mut event = Event::new(EventType::Impression, id, occurred_us, "cmp_1", "ad_1");
    event.optional.impression_id = Some(impression_id.into());
    event
}

fn verdict(target: Target, id: &str, invalid: bool, decided_at_us: i64) -> Verdict {
    Verdict { target, id: id.into(), invalid, decided_at_us, reason_code: "test" }
}

fn by_id(id: &str, invalid: bool, decided_at_us: i64) -> Verdict {
    verdict(Target::Event, id, invalid, decided_at_us)
}

fn by_impression(id: &str, invalid: bool, decided_at_us: i64) -> Verdict {
    verdict(Target::Impression, id, invalid, decided_at_us)
}

/// The row of a view in which events of `cmp_1` without other dimensions stand.
fn row(recomputed: &Recomputed, view: &str, start_us: i64) -> RowFigures {
    let mut rows = recomputed.views[view].iter().filter(|(key, _)| key.0 == start_us);
    let found = rows.next().unwrap_or_else(|| panic!("no row of {view} at {start_us}"));
    assert!(rows.next().is_none(), "one row of {view} at {start_us}");
    *found.1
}

/// The figures of minute 0.
fn figures(recomputed: &Recomputed) -> [i64; 6] {
    row(recomputed, "audience_minute", minute_0()).figures
}

fn run(made: &Made) -> Recomputed {
    recompute(&made.log, &settings(), None).unwrap()
}
