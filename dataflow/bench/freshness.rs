//! From append to visible, at a fixed rate. The schedule is *open loop*: when a body is due is
//! decided before the run, and its latency counts from then, whether or not the server kept up, so
//! a stall is charged to every body that it held up (no coordinated omission).
//!
//! A body is *visible in the views* at the first epoch whose log-time frontier has passed the
//! moment at which the body was acknowledged, which is later than its log time; and *visible at a
//! subscriber* when a Server-Sent Events client reads the progress of such an epoch. Both figures
//! are therefore upper bounds, and both hold HTTP, decoding, fsync, tick and engine.

use super::{
    Bench, Query,
    client::Client,
    http::{BODY_EVENTS, Served},
};
use hdrhistogram::Histogram;
use serde_json::json;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_generator::ads1::Ads1;
use trueup_operators::time::parse_rfc3339;

/// Bodies are small, so that the schedule is fine: a tenth of those of the throughput runs.
const EVENTS: u64 = BODY_EVENTS / 10;

/// Wall-clock instants (µs) at which a frontier (µs) was seen.
type Seen = Arc<Mutex<Vec<(i64, i64)>>>;

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
    let bodies = (bench.rate * bench.seconds).div_ceil(EVENTS);
    let acknowledged = send_on_time(bench, address, bodies)?;
    served.wait_for(bodies * EVENTS)?;
    std::thread::sleep(Duration::from_millis(1_500)); // one more progress for the subscriber
    stop.store(true, Ordering::Release);
    watching.join().map_err(|_| "the watching thread panicked".to_owned())?;
    listening.join().map_err(|_| "the subscriber panicked".to_owned())??;
    served.end()?;
    let figure = |seen: &Seen| {
        let seen = seen.lock().map_err(|_| "a thread panicked".to_owned())?;
        latencies(&acknowledged, &seen)
    };
    let (views, subscriber) = (figure(&in_views)?, figure(&at_subscriber)?);
    for (what, h) in [("views", &views), ("subscriber", &subscriber)] {
        eprintln!(
            "freshness at {} events/s, to the {what}: p50 {:.0} ms, p99 {:.0} ms, \
             max {:.0} ms, {} bodies",
            bench.rate,
            h.value_at_quantile(0.5) as f64 / 1e3,
            h.value_at_quantile(0.99) as f64 / 1e3,
            h.max() as f64 / 1e3,
            h.len()
        );
    }
    let told = |h: &Histogram<u64>| {
        json!({
            "p50Ms": h.value_at_quantile(0.5) as f64 / 1e3,
            "p99Ms": h.value_at_quantile(0.99) as f64 / 1e3,
            "maxMs": h.max() as f64 / 1e3,
            "bodies": h.len(),
        })
    };
    Ok(json!({
        "bench": "freshness",
        "query": query.name(),
        "eventsPerSecond": bench.rate,
        "seconds": bench.seconds,
        "toViews": told(&views),
        "toSubscriber": told(&subscriber),
    }))
}

/// Sends bodies when they are due; when each was due and when it was acknowledged, µs since 1970.
fn send_on_time(
    bench: &Bench,
    address: SocketAddr,
    bodies: u64,
) -> Result<Vec<(i64, i64)>, String> {
    let ads1 = Ads1::new();
    let every = Duration::from_secs_f64(EVENTS as f64 / bench.rate as f64);
    let (start, start_us) = (Instant::now(), now_us());
    let start_ms = start_us / 60_000_000 * 60_000 - trueup_generator::ads1::BASE_MS;
    let next = AtomicU64::new(0);
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..bench.clients)
            .map(|_| {
                scope.spawn(|| -> Result<Vec<(i64, i64)>, String> {
                    let mut client = Client::connect(address)?;
                    let mut times = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= bodies {
                            return Ok(times);
                        }
                        let body = ads1.body(n * EVENTS..(n + 1) * EVENTS, start_ms);
                        let due = every * n as u32;
                        std::thread::sleep((start + due).saturating_duration_since(Instant::now()));
                        client.post("/v1/events/collect", false, &body)?;
                        times.push((start_us + due.as_micros() as i64, now_us()));
                    }
                })
            })
            .collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, Result<Vec<(i64, i64)>, String>>| {
            t.join().map_err(|_| "a client panicked".to_owned())?
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    Ok(times.into_iter().flatten().collect())
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
fn latencies(bodies: &[(i64, i64)], seen: &[(i64, i64)]) -> Result<Histogram<u64>, String> {
    let mut histogram = Histogram::new_with_bounds(1, 600_000_000, 3).map_err(|e| e.to_string())?;
    for &(due_us, acknowledged_us) in bodies {
        let at = seen.partition_point(|&(_, frontier_us)| frontier_us < acknowledged_us);
        let (visible_us, _) = seen.get(at).ok_or("the last bodies were never seen")?;
        histogram.saturating_record((visible_us - due_us).max(1) as u64);
    }
    Ok(histogram)
}

fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
