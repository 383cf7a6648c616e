//! ADS-1 against its reference answers, which a third program gave. With `TRUEUP_EVENTS` it is a
//! measurement: `TRUEUP_EVENTS=5000000 cargo test --release -p trueup --lib ads1 -- --nocapture`.

use super::*;
use std::time::Instant;
use trueup_generator::ads1::{Ads1, Reference, VERDICT_DELAY_EVENTS, stream_time_ms};

/// Events of an epoch: a tenth of a second.
const EPOCH_EVENTS: u64 = 10_000;

#[test]
fn ads1_gives_its_reference_answers() {
    let given = std::env::var("TRUEUP_EVENTS").ok().and_then(|text| text.parse().ok());
    let events: u64 = given.unwrap_or(200_000);
    let (ads, mut made, mut reference) = (Ads1::new(), Made::new(), Reference::default());
    for from in (0..events).step_by(EPOCH_EVENTS as usize) {
        let range = from..events.min(from + EPOCH_EVENTS);
        range.clone().for_each(|i| reference.add(&ads.event(i)));
        let now_us = stream_time_ms(range.end) * 1_000;
        made.append(ads.frames(range, &made.layout, 0), now_us).close(now_us);
    }
    // All verdicts on these events, as they come half a minute later.
    let verdicts = VERDICT_DELAY_EVENTS..VERDICT_DELAY_EVENTS + events;
    ads.verdicts(verdicts.clone()).for_each(|v| reference.retract(&v.event));
    let now_us = stream_time_ms(verdicts.end) * 1_000;
    let frame = ads.verdict_frame(verdicts, &made.layout, 0);
    made.append(frame.into_iter().collect(), now_us).close(now_us);

    let start = Instant::now();
    let recomputed = run(&made);
    let seconds = start.elapsed().as_secs_f64();
    let rows: usize = recomputed.views.values().map(ViewRows::len).sum();
    println!("{events} events, {rows} rows: {:.0} ns an event", seconds * 1e9 / events as f64);

    let answer = reference.answer();
    // A view may fold rows, but never loses any.
    for (name, rows) in &recomputed.views {
        let total =
            |column: usize| rows.values().map(|row| row.figures[column]).sum::<i64>() as u64;
        let found = [0, 1, 4, 5].map(total);
        let expected =
            [answer.impressions, answer.clicks, answer.invalid_clicks, answer.spend_micros];
        assert_eq!(found, expected, "{name}");
    }
    assert_eq!(recomputed.counts.retractions, answer.invalid_clicks);
}
