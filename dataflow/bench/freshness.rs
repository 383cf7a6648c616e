//! From append to visible, at a fixed rate ([`schedule`](super::schedule)); of verdicts too, if the
//! query has some.
//!
//! A body is *visible in the views* at the first epoch whose log-time frontier has passed the
//! moment at which the body was acknowledged, which is later than its log time; and *visible at a
//! subscriber* when a Server-Sent Events client reads the progress of such an epoch. Both figures
//! are therefore upper bounds, and both hold HTTP, decoding, fsync, tick and engine.

use super::{
    Bench, Query,
    client::{Client, Media},
    http::{BODY_EVENTS, Served},
    schedule::{Due, Schedule, histogram, now_us, told},
};
use hdrhistogram::Histogram;
use serde_json::json;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use trueup_generator::ads1::Ads1;
use trueup_operators::time::parse_rfc3339;

/// Bodies are small, so that the schedule is fine: a tenth of those of the throughput runs.
const EVENTS: u64 = BODY_EVENTS / 10;

/// How often verdicts are sent.
const VERDICTS_EVERY: Duration = Duration::from_millis(100);

/// Wall-clock instants (µs) at which a frontier (µs) was seen.
type Seen = Arc<Mutex<Vec<(i64, i64)>>>;

/// When each body was due and when it was acknowledged.
struct Acknowledged {
    events: Vec<Due>,
    verdicts: Vec<Due>,
}

/// Runs at `bench.rate` events a second for `bench.seconds`.
pub(super) fn run(bench: &Bench, query: Query) -> Result<serde_json::Value, String> {
    let served = Served::start(bench, query, "freshness")?;
    let address = served.running.address;
    let stop = Arc::new(AtomicBool::new(false));
    let (in_views, at_subscriber) = (Seen::default(), Seen::default());
    let watching = watch(&served, &in_views, &stop);
    let view = query.rollups()[0].view_name(trueup_operators::time::Granularity::Minute);
    served.wait_until_ready()?;
    let listening = listen(address, &view, &at_subscriber, &stop)?;
    let acknowledged = send_on_time(bench, query, address)?;
    served.wait_for(bodies(bench) * EVENTS)?;
    std::thread::sleep(Duration::from_millis(1_500)); // one more progress for the subscriber
    stop.store(true, Ordering::Release);
    watching.join().map_err(|_| "the watching thread panicked".to_owned())?;
    listening.join().map_err(|_| "the subscriber panicked".to_owned())??;
    served.end()?;
    let figure = |what: &str, bodies: &[Due], seen: &Seen| {
        let seen = seen.lock().map_err(|_| "a thread panicked".to_owned())?;
        let latencies = latencies(bodies, &seen)?;
        Ok::<_, String>(told(&format!("freshness at {} events/s, {what}", bench.rate), &latencies))
    };
    let Acknowledged { events, verdicts } = &acknowledged;
    let mut figures = json!({
        "bench": "freshness",
        "query": query.name(),
        "eventsPerSecond": bench.rate,
        "seconds": bench.seconds,
        "toViews": figure("to the views", events, &in_views)?,
        "toSubscriber": figure("to the subscriber", events, &at_subscriber)?,
    });
    if !verdicts.is_empty() {
        figures["verdictsToSubscriber"] =
            figure("verdicts to the subscriber", verdicts, &at_subscriber)?;
    }
    Ok(figures)
}

/// Sends bodies of events when they are due, and the verdicts that come with them.
fn send_on_time(bench: &Bench, query: Query, address: SocketAddr) -> Result<Acknowledged, String> {
    let ads1 = Ads1::new();
    let schedule = Schedule::start(Duration::from_secs_f64(EVENTS as f64 / bench.rate as f64));
    let verdicts = schedule.at(VERDICTS_EVERY);
    let shift_ms = schedule.start_us / 60_000_000 * 60_000 - trueup_generator::ads1::BASE_MS;
    let count = bodies(bench);
    let send_events = |client: &mut Client, n: u64| {
        let body = ads1.body(n * EVENTS..(n + 1) * EVENTS, shift_ms);
        schedule.wait_until(n);
        client.post("/v1/events/collect", Media::Json, &body).map(|_| true)
    };
    let judged = (bench.rate as f64 * VERDICTS_EVERY.as_secs_f64()) as u64;
    let send_verdicts = |client: &mut Client, n: u64| {
        let Some(body) = ads1.verdict_body(n * judged..(n + 1) * judged, shift_ms) else {
            return Ok(false);
        };
        verdicts.wait_until(n);
        client.post("/v1/verdicts", Media::Json, &body).map(|_| true)
    };
    let bodies_of_verdicts = match query.has_verdicts() {
        true => count * EVENTS / judged.max(1),
        false => 0,
    };
    std::thread::scope(|scope| {
        let judging = scope.spawn(|| verdicts.keep(address, 1, bodies_of_verdicts, &send_verdicts));
        let events = schedule.keep(address, bench.clients, count, &send_events)?;
        let verdicts = judging.join().map_err(|_| "a client panicked".to_owned())??;
        Ok(Acknowledged { events, verdicts })
    })
}

/// How many bodies of events a run sends.
fn bodies(bench: &Bench) -> u64 {
    (bench.rate * bench.seconds).div_ceil(EVENTS)
}

/// Notes when each epoch of the views was seen.
fn watch(served: &Served, seen: &Seen, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let tables = Arc::clone(served.running.node.host.tables());
    let (seen, stop) = (Arc::clone(seen), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut last = 0;
        while !stop.load(Ordering::Acquire) {
            if let Some(at) = tables.visible().filter(|at| at.epoch > last) {
                last = at.epoch;
                if let Ok(mut seen) = seen.lock() {
                    seen.push((now_us(), at.frontier.0));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

/// A subscriber: notes when each progress arrives and what it is complete to.
fn listen(
    address: SocketAddr,
    view: &str,
    seen: &Seen,
    stop: &Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<Result<(), String>>, String> {
    let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| e.to_string())?;
    let filter = "filter=campaignId:cmp_0";
    write!(
        stream,
        "GET /v1/views/{view}/subscribe?snapshot=false&{filter} HTTP/1.1\r\nhost: {address}\r\n\r\n"
    )
    .map_err(|e| e.to_string())?;
    let (seen, stop) = (Arc::clone(seen), Arc::clone(stop));
    Ok(std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).map_err(|e| e.to_string())?;
        if !line.contains(" 200 ") {
            return Err(format!("the subscription was answered with {line:?}"));
        }
        while !stop.load(Ordering::Acquire) {
            line.clear();
            if lines.read_line(&mut line).map_err(|e| e.to_string())? == 0 {
                return Err("the subscription ended".into());
            }
            let Some((_, rest)) = line.split_once("\"logTime\":\"") else { continue };
            let time = rest.split('"').next().and_then(parse_rfc3339);
            let time = time.ok_or_else(|| format!("no time in {line:?}"))?;
            if let Ok(mut seen) = seen.lock() {
                seen.push((now_us(), time));
            }
        }
        Ok(())
    }))
}

/// For each body: from when it was due until a frontier beyond its acknowledgement was seen, µs.
fn latencies(bodies: &[Due], seen: &[(i64, i64)]) -> Result<Histogram<u64>, String> {
    let mut histogram = histogram()?;
    for &Due { due_us, done_us } in bodies {
        let at = seen.partition_point(|&(_, frontier_us)| frontier_us < done_us);
        let (visible_us, _) = seen.get(at).ok_or("the last bodies were never seen")?;
        histogram.saturating_record((visible_us - due_us).max(1) as u64);
    }
    Ok(histogram)
}
