//! Reports while events come: readers ask for the largest campaign by minute, country and device,
//! once a second each, in an open loop ([`schedule`](super::schedule)), of a server that has the
//! events of the stream and takes more at a fixed rate. A latency holds HTTP, the sum over the
//! campaign's rows, and the first page as JSON. What is answered otherwise than with 200 ends the
//! run.

use super::{
    Bench, Query,
    client::{Client, Media},
    http::{BODY_EVENTS, Served, bodies, send_all},
    schedule::{Due, Schedule, histogram, told},
};
use serde_json::json;
use std::time::Duration;
use trueup_generator::ads1::{Ads1, EVENTS_PER_MS, shift_to_end_at_ms};
use trueup_operators::time::format_rfc3339;

/// How often a reader asks.
const EVERY: Duration = Duration::from_secs(1);

/// Fills a server with `bench.http_events`, then reads for `bench.seconds` while `bench.rate`
/// events a second come.
pub(super) fn run(bench: &Bench, query: Query) -> Result<serde_json::Value, String> {
    let ads1 = Ads1::new();
    let served = Served::start(bench, query, "reports")?;
    let address = served.running.address;
    let filling = bodies(&ads1, bench.http_events, query, Media::Json);
    send_all(&filling, address, bench.clients, Media::Json)?;
    drop(filling);
    served.wait_for(bench.http_events)?;

    // The stream goes on where the filling ended.
    let first = bench.http_events.div_ceil(BODY_EVENTS);
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let shift_ms = shift_to_end_at_ms(bench.http_events, now_ms);
    let path = path(bench, now_ms);
    let coming = Schedule::start(Duration::from_secs_f64(BODY_EVENTS as f64 / bench.rate as f64));
    let asking = coming.at(EVERY / bench.readers as u32);
    let sent = bench.rate * bench.seconds / BODY_EVENTS;
    let send = |client: &mut Client, n: u64| {
        let body = ads1.body((first + n) * BODY_EVENTS..(first + n + 1) * BODY_EVENTS, shift_ms);
        coming.wait_until(n);
        client.post("/v1/events/collect", Media::Json, &body).map(|_| true)
    };
    let ask = |client: &mut Client, n: u64| {
        asking.wait_until(n);
        client.get(&path).map(|_| true)
    };
    let asked = bench.seconds * bench.readers as u64;
    let (taken, answered) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| coming.keep(address, bench.clients, sent, &send));
        let answered = asking.keep(address, bench.readers, asked, &ask)?;
        Ok::<_, String>((sending.join().map_err(|_| "a client panicked".to_owned())??, answered))
    })?;
    let last_us = taken.iter().map(|due| due.done_us).max().unwrap_or(coming.start_us);
    let rate = (sent * BODY_EVENTS) as f64 / ((last_us - coming.start_us) as f64 / 1e6);
    served.wait_for((first + sent) * BODY_EVENTS)?;
    let answer = Client::connect(address)?.get(&path)?;
    let answer: serde_json::Value = serde_json::from_str(&answer).map_err(|e| e.to_string())?;
    let rows = answer["rows"].as_array().map_or(0, Vec::len);
    let table_rows = served.running.node.host.tables().memory().rows;
    served.end()?;
    let mut latencies = histogram()?;
    for &Due { due_us, done_us } in &answered {
        latencies.saturating_record((done_us - due_us).max(1) as u64);
    }
    let what = format!(
        "reports for {} readers at {rate:.0} events/s, {rows} rows a page of {table_rows}",
        bench.readers
    );
    Ok(json!({
        "bench": "reports",
        "query": query.name(),
        "eventsPerSecond": rate,
        "seconds": bench.seconds,
        "readers": bench.readers,
        "rowsHeld": table_rows,
        "rowsOfAPage": rows,
        "latency": told(&what, &latencies),
    }))
}

/// The report of the largest campaign, over all that there will be.
fn path(bench: &Bench, now_ms: i64) -> String {
    let day_ms = 86_400_000;
    let length_ms = (bench.http_events / EVENTS_PER_MS) as i64 + 10 * 60_000;
    let from = format_rfc3339((now_ms - length_ms).div_euclid(60_000) * 60_000_000);
    let to = format_rfc3339((now_ms + day_ms).div_euclid(60_000) * 60_000_000);
    format!(
        "/v1/reports/campaigns/cmp_0?from={from}&to={to}&granularity=minute\
         &dimensions=country,deviceType"
    )
}
