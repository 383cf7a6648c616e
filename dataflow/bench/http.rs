//! ADS-1 end to end: clients send JSON or Arrow bodies over the loopback to a real server (sockets,
//! decoder, fsynced log, epochs, engine, views) in this process, and the clock stops when the last
//! event is in the views. What the clients cost is taken off by their threads' own clocks.

use super::{
    Bench, Query,
    client::{Client, Media, thread_cpu_s},
    engine::{answer, expected},
    meter::{Meter, median},
};
use crate::{
    config::{Config, Fsync, Size},
    server::{self, Running},
};
use serde_json::json;
use std::{
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use trueup_generator::ads1::{Ads1, shift_to_end_at_ms};

/// Events of a body.
pub(super) const BODY_EVENTS: u64 = 5_000;
/// The longest run.
const PATIENCE: Duration = Duration::from_secs(600);

/// A request of the stream: events, and the verdicts that come with them.
pub(super) struct Sent {
    events: Vec<u8>,
    verdicts: Option<Vec<u8>>,
}

/// A server in this process, on a directory of its own.
pub(super) struct Served {
    pub(super) running: Running,
    stop: Arc<Notify>,
    thread: std::thread::JoinHandle<Result<(), server::ServeError>>,
    dir: PathBuf,
}

impl Served {
    pub(super) fn start(bench: &Bench, query: Query, name: &str) -> Result<Served, String> {
        let dir = bench.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let dir = dir.join(format!("trueup-bench-{}-{name}", std::process::id()));
        let mut config =
            Config { data_dir: dir.clone(), rollups: query.rollups(), ..Config::default() };
        config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.workers.threads = bench.workers;
        config.log.partitions = bench.partitions;
        config.log.fsync = Fsync::Batch;
        config.flow.history_bytes_max = Size(64 << 20);
        let stop = Arc::new(Notify::new());
        let (send, receive) = mpsc::channel();
        let until = {
            let stop = Arc::clone(&stop);
            async move { stop.notified().await }
        };
        let thread = std::thread::spawn(move || {
            server::serve(config, until, |running| {
                // The receiver waits below.
                let _waiting = send.send(running);
                Box::new(|| {})
            })
        });
        match receive.recv() {
            Ok(running) => Ok(Served { running, stop, thread, dir }),
            Err(_) => Err(match thread.join() {
                Ok(Err(error)) => error.to_string(),
                _ => "the server ended before it listened".into(),
            }),
        }
    }

    /// Waits until there is an epoch to be read.
    pub(super) fn wait_until_ready(&self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while self.running.node.host.tables().visible().is_none() {
            if Instant::now() > until {
                return Err(format!("no epoch is visible after {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until the views have decided so many events, and show all else that was appended.
    pub(super) fn wait_for(&self, events: u64) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        let tables = self.running.node.host.tables();
        loop {
            let decided = tables.counts().map_or(0, |(_, c)| c.fates.iter().sum::<u64>());
            // The verdicts that came last, too.
            if decided >= events && self.running.node.host.engine().lag().bytes == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("{decided} of {events} events are visible after {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(super) fn end(self) -> Result<(), String> {
        self.stop.notify_one();
        let Served { running, thread, dir, .. } = self;
        drop(running);
        let ended = thread.join().map_err(|_| "the server panicked".to_owned())?;
        std::fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        ended.map_err(|e| e.to_string())
    }
}

/// Runs a query over HTTP.
pub(super) fn run(bench: &Bench, query: Query, media: Media) -> Result<serde_json::Value, String> {
    let ads1 = Ads1::new();
    let events = bench.http_events;
    let expected = expected(&ads1, events, query);
    let encoding = media.name();
    let (mut rates, mut acknowledged, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = json!(null);
    for run in 0..=bench.runs {
        // Anew for each run: log time is now, and so must the stream's end be.
        let sent = bodies(&ads1, events, query, media);
        let bytes: usize = sent.iter().map(|s| s.events.len()).sum();
        let served = Served::start(bench, query, &format!("{encoding}-{run}"))?;
        let meter = Meter::start(std::process::id());
        let client_cpu_s = send_all(&sent, served.running.address, bench.clients, media)?;
        let acknowledged_s = meter.read().wall.as_secs_f64();
        served.wait_for(events)?;
        let cost = meter.read();
        let is = answer(&**served.running.node.host.tables(), query)?;
        let log = served.running.node.host.log().counts();
        served.end()?;
        if is != expected {
            return Err(format!("{encoding}: the answer is {is:?}, it should be {expected:?}"));
        }
        let millions = events as f64 / 1e6;
        let rate = millions / cost.wall.as_secs_f64();
        let server_cpu = (cost.cpu_s - client_cpu_s) / millions;
        eprintln!(
            "http {encoding} {} run {run}: {rate:.2} M events/s to visible ({:.2} to \
             acknowledged), server {server_cpu:.2} + clients {:.2} CPU s per million, {:.0} bytes \
             an event, {} fsyncs of {:.1} ms",
            query.name(),
            millions / acknowledged_s,
            client_cpu_s / millions,
            bytes as f64 / events as f64,
            log.syncs,
            log.sync_us as f64 / 1e3 / log.syncs.max(1) as f64,
        );
        if run > 0 {
            rates.push(rate);
            acknowledged.push(millions / acknowledged_s);
            cpu.push(server_cpu);
        }
        last = json!({
            "peakRssMib": cost.peak_rss_mib,
            "bytesPerEvent": bytes as f64 / events as f64,
        });
    }
    Ok(json!({
        "bench": "ads1-http",
        "encoding": encoding,
        "query": query.name(),
        "events": events,
        "clients": bench.clients,
        "workers": bench.workers,
        "runs": bench.runs,
        "millionEventsPerSecond": median(&mut rates),
        "acknowledgedMillionEventsPerSecond": median(&mut acknowledged),
        "serverCpuSecondsPerMillion": median(&mut cpu),
        "lastRun": last,
    }))
}

/// The stream, ending about now.
pub(super) fn bodies(ads1: &Ads1, events: u64, query: Query, media: Media) -> Vec<Sent> {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let shift_ms = shift_to_end_at_ms(events, now_ms);
    let next = AtomicUsize::new(0);
    let count = events.div_ceil(BODY_EVENTS) as usize;
    let make = |n: usize| {
        let range = n as u64 * BODY_EVENTS..((n as u64 + 1) * BODY_EVENTS).min(events);
        let events = match media {
            Media::Json => ads1.body(range.clone(), shift_ms),
            Media::GzippedJson => zip(&ads1.body(range.clone(), shift_ms)),
            Media::Arrow => ads1.arrow_body(range.clone(), shift_ms),
        };
        let verdicts = query.has_verdicts().then(|| ads1.verdict_body(range, shift_ms)).flatten();
        Sent { events, verdicts }
    };
    let mut made: Vec<(usize, Sent)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut made = Vec::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return made;
                        }
                        made.push((n, make(n)));
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().expect("making bodies cannot panic")).collect()
    });
    made.sort_by_key(|(n, _)| *n);
    made.into_iter().map(|(_, sent)| sent).collect()
}

/// As a client would: zlib's default level.
pub(super) fn zip(plain: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(plain).and_then(|()| gzip.finish()).expect("a Vec takes all bytes")
}

/// Sends everything with some clients; their CPU seconds.
pub(super) fn send_all(
    sent: &[Sent],
    host: SocketAddr,
    clients: usize,
    media: Media,
) -> Result<f64, String> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| -> Result<f64, String> {
                    let before = thread_cpu_s();
                    let mut client = Client::connect(host)?;
                    while let Some(sent) = sent.get(next.fetch_add(1, Ordering::Relaxed)) {
                        client.post("/v1/events/collect", media, &sent.events)?;
                        if let Some(verdicts) = &sent.verdicts {
                            client.post("/v1/verdicts", Media::Json, verdicts)?;
                        }
                    }
                    Ok(thread_cpu_s() - before)
                })
            })
            .collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, Result<f64, String>>| {
            t.join().map_err(|_| "a client panicked".to_owned())?
        };
        threads.into_iter().map(join).sum()
    })
}
