//! Memory under full load: a server process of its own, clients that send as fast as it takes, and
//! a look at its resident memory every second. What the state remembers is short (a horizon of two
//! minutes), so everything has come to its size early, and what grows later is a leak: figures are
//! the medians of the tenth of the run before each quarter, and the slope of its second half.
//!
//! Events are ADS-1's, with new ids without end, copies, late ones and verdicts. Their times are
//! moved so that each stretch of the stream ends when its first body is made: they are of now
//! however fast they go. A copy of an event of an earlier stretch has another time and so is a
//! conflict, one in some thousand events; of the late ones those are too late that are older than
//! the horizon. Both are among the fates, and all must have one.
//!
//! Results are kept for days whatever the horizon, and grow: the rollup has few keys, some 5,000
//! rows a minute. The lists of incidents hold a million of each fate; that of conflicts does not
//! come to it in ten minutes and grows by 40 bytes each. Both together are a few MiB a minute, and
//! the quarters say what each part takes.

use super::{
    Bench,
    client::{Client, Media},
    http::BODY_EVENTS,
    meter::{Meter, median, rss_mib},
};
use crate::config::{Config, Size, Span};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_generator::ads1::{Ads1, stream_time_ms};
use trueup_operators::rollup::RollupSpec;

/// How long an event can be corrected.
const HORIZON: Duration = Duration::from_secs(120);
/// How often the state is written down, if nothing else is asked for.
const CHECKPOINTS_EVERY: Duration = Duration::from_secs(30);
/// Events whose times are moved alike: five seconds of the stream.
const STRETCH_EVENTS: u64 = 500_000;
/// The shortest run: a tenth of it has a sample.
const SECONDS_MIN: u64 = 10;
/// How long the server may take to listen, to show what it took, and to end.
const PATIENCE: Duration = Duration::from_secs(120);
const MIB: f64 = 1024.0 * 1024.0;

/// A server process, on a directory of its own.
struct Server {
    child: Child,
    dir: PathBuf,
    address: SocketAddr,
}

/// What the clients share.
struct Load {
    ads1: Ads1,
    /// The next body.
    next: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    stop: AtomicBool,
    /// The newest stretch, and what is added to its times.
    stretch: Mutex<(u64, i64)>,
}

/// What was seen while the load lasted.
struct Seen {
    rss_mib: Vec<f64>,
    quarters: Vec<Value>,
}

/// Runs for `bench.seconds`.
pub(super) fn run(bench: &Bench) -> Result<Value, String> {
    if bench.seconds < SECONDS_MIN {
        return Err(format!("{} s are too short; give {SECONDS_MIN} or more", bench.seconds));
    }
    let config = config(bench);
    let mut server = Server::start(&config)?;
    let load = Load::new();
    let meter = Meter::start(server.child.id());
    let seen = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..bench.clients).map(|_| scope.spawn(|| load.drive(server.address))).collect();
        let seen = watch(&mut server.child, server.address, &load, bench.seconds);
        load.stop.store(true, Ordering::Release);
        for client in clients {
            client.join().map_err(|_| "a client panicked".to_owned())??;
        }
        seen
    });
    let (seen, cost) = (server.unless_ended(seen)?, meter.read());
    let events = load.acknowledged.into_inner();
    let counts = settled(server.address, events)?;
    server.end()?;
    Ok(json!({
        "bench": "soak",
        "seconds": bench.seconds,
        "clients": bench.clients,
        "workers": bench.workers,
        "horizonSeconds": HORIZON.as_secs(),
        "checkpointInterval": config.checkpoint.interval.to_string(),
        "events": events,
        "millionEventsPerSecond": events as f64 / 1e6 / cost.wall.as_secs_f64(),
        "refusedBodies": load.refused.into_inner(),
        "quarters": seen.quarters,
        "peakRssMib": cost.peak_rss_mib,
        "slopeMibPerMinute": slope(&seen.rss_mib[seen.rss_mib.len() / 2..]) * 60.0,
        "counts": counts,
    }))
}

/// Spans so short that all of the state turns over several times in ten minutes.
fn config(bench: &Bench) -> Config {
    let seconds = |seconds| Span(Duration::from_secs(seconds));
    let dir = bench.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let data_dir = dir.join(format!("trueup-bench-{}-soak", std::process::id()));
    let rollups = vec![RollupSpec::new("soak", &["campaignId", "deviceType"])];
    let mut config = Config { data_dir, rollups, ..Config::default() };
    config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.workers.threads = bench.workers;
    config.log.partitions = bench.partitions;
    config.log.retention = Span(HORIZON);
    config.log.retention_listed = Span(HORIZON);
    config.log.segment_bytes_max = Size(64 << 20);
    config.checkpoint.interval = bench.checkpoint_interval.unwrap_or(Span(CHECKPOINTS_EVERY));
    config.time.allowed_lateness = seconds(30);
    config.time.correction_horizon = Span(HORIZON);
    config.time.future_skew_max = seconds(5);
    config.flow.history = Span(HORIZON);
    config.flow.history_bytes_max = Size(64 << 20);
    config
}

/// Looks at the server every second; what a quarter came to is told as it ends.
fn watch(
    child: &mut Child,
    address: SocketAddr,
    load: &Load,
    seconds: u64,
) -> Result<Seen, String> {
    let start = Instant::now();
    let mut seen = Seen { rss_mib: Vec::new(), quarters: Vec::new() };
    let window = (seconds / 10) as usize;
    for second in 1..=seconds {
        let due = start + Duration::from_secs(second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Err(format!("the server ended with {status}"));
        }
        if load.stop.load(Ordering::Acquire) {
            return Err("a client gave up".into());
        }
        seen.rss_mib.push(rss_mib(child.id()));
        let quarter = second * 4 / seconds;
        if quarter > (second - 1) * 4 / seconds {
            let mut last = seen.rss_mib[seen.rss_mib.len() - window..].to_vec();
            let quarter = told(quarter * 25, median(&mut last), address, load)?;
            eprintln!("soak at {second} s: {quarter}");
            seen.quarters.push(quarter);
        }
    }
    Ok(seen)
}

/// A quarter's figures.
fn told(percent: u64, rss_mib: f64, address: SocketAddr, load: &Load) -> Result<Value, String> {
    let status = status(address)?;
    let memory = &status["memory"];
    let mib = |bytes: &Value| bytes.as_f64().map(|bytes| bytes / MIB);
    Ok(json!({
        "percent": percent,
        "rssMib": rss_mib,
        "events": load.acknowledged.load(Ordering::Relaxed),
        "ledgerEvents": memory["ledgerEvents"],
        "ledgerMib": mib(&memory["ledgerBytes"]),
        "accumulatorMib": mib(&memory["accumulatorBytes"]),
        "viewRows": memory["viewRows"],
        "viewMib": mib(&memory["viewBytes"]),
        "historyMib": mib(&memory["historyBytes"]),
        "incidentsMib": mib(&memory["incidentsBytes"]),
        "logTailMib": mib(&memory["logTailBytes"]),
        "logHeldMib": mib(&status["log"]["bytesHeld"]),
        "checkpoints": status["checkpoint"]["published"],
        "checkpointMib": mib(&status["checkpoint"]["bytesLive"]),
        "freshnessSeconds": status["freshnessSeconds"],
    }))
}

fn status(address: SocketAddr) -> Result<Value, String> {
    let text = Client::connect(address)?.get("/v1/status")?;
    serde_json::from_str(&text).map_err(|e| format!("/v1/status: {e}"))
}

/// Waits until every event has a fate; the counts.
fn settled(address: SocketAddr, events: u64) -> Result<Value, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let counts = status(address)?["counts"].take();
        let fates = ["counted", "duplicate", "conflict", "quarantined", "tooLate"];
        let decided: u64 = fates.iter().filter_map(|&fate| counts[fate].as_u64()).sum();
        if decided == events && counts["arithmeticErrors"] == 0 {
            return Ok(counts);
        }
        if Instant::now() > until {
            return Err(format!("{events} events were acknowledged, the counts are {counts}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How much values grow from one to the next, by least squares.
fn slope(values: &[f64]) -> f64 {
    let mean = |sum: f64| sum / values.len() as f64;
    let (x_mean, y_mean) = ((values.len() as f64 - 1.0) / 2.0, mean(values.iter().sum()));
    let (mut covariance, mut variance) = (0.0, 0.0);
    for (x, y) in values.iter().enumerate() {
        let x = x as f64 - x_mean;
        covariance += x * (y - y_mean);
        variance += x * x;
    }
    covariance / variance
}

impl Load {
    fn new() -> Load {
        Load {
            ads1: Ads1::new(),
            next: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            stretch: Mutex::new((0, moved_to_now_ms(0))),
        }
    }

    /// Sends until the load is over, which it is for all when one cannot go on.
    fn drive(&self, address: SocketAddr) -> Result<(), String> {
        self.send(address).inspect_err(|_| self.stop.store(true, Ordering::Release))
    }

    /// Sends bodies, and the verdicts that come with them.
    fn send(&self, address: SocketAddr) -> Result<(), String> {
        let mut client = Client::connect(address)?;
        while !self.stop.load(Ordering::Acquire) {
            let start = self.next.fetch_add(BODY_EVENTS, Ordering::Relaxed);
            let (range, shift_ms) = (start..start + BODY_EVENTS, self.shift_ms(start));
            let body = self.ads1.body(range.clone(), shift_ms);
            let mut refused = client.post("/v1/events/collect", Media::Json, &body)?;
            self.acknowledged.fetch_add(BODY_EVENTS, Ordering::Relaxed);
            if let Some(verdicts) = self.ads1.verdict_body(range, shift_ms) {
                refused += client.post("/v1/verdicts", Media::Json, &verdicts)?;
            }
            self.refused.fetch_add(refused.into(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// What is added to the times of a body that starts with this event.
    fn shift_ms(&self, event: u64) -> i64 {
        let of = event / STRETCH_EVENTS;
        // Nothing can panic while it is held.
        let mut stretch = self.stretch.lock().unwrap_or_else(PoisonError::into_inner);
        if of > stretch.0 {
            *stretch = (of, moved_to_now_ms(of));
        }
        stretch.1
    }
}

/// What makes a stretch of the stream end now.
fn moved_to_now_ms(stretch: u64) -> i64 {
    let end_ms = stream_time_ms((stretch + 1) * STRETCH_EVENTS);
    jiff::Timestamp::now().as_millisecond() - end_ms
}

impl Server {
    fn start(config: &Config) -> Result<Server, String> {
        let dir = config.data_dir.clone();
        let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
        std::fs::create_dir_all(&dir).map_err(failed)?;
        let (file, said) = (dir.join("trueup.toml"), dir.join("said"));
        let text = toml::to_string_pretty(config).map_err(|e| e.to_string())?;
        std::fs::write(&file, text).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        // Every flag has a twin in the environment.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TRUEUP_") {
                command.env_remove(name);
            }
        }
        let child = command
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said).map_err(failed)?)
            .spawn()
            .map_err(|e| format!("a server cannot be started: {e}"))?;
        let mut server = Server { child, dir, address: config.server.listen };
        let listening = server.listening(&said);
        server.address = server.unless_ended(listening)?;
        Ok(server)
    }

    /// Where it listens, which it says when it does.
    fn listening(&mut self, said: &Path) -> Result<SocketAddr, String> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let text = std::fs::read_to_string(said).map_err(|e| e.to_string())?;
            let line = text.lines().find(|line| line.contains(" listening "));
            let address = line.and_then(|line| line.split_once("address="));
            if let Some((_, rest)) = address
                && let Some(address) = rest.split_whitespace().next()
            {
                return address.parse().map_err(|e| format!("{address}: {e}"));
            }
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                return Err(format!("the server ended with {status}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("the server does not listen after {PATIENCE:?}"))
    }

    /// Adds what the server said last to an error.
    fn unless_ended<T>(&self, result: Result<T, String>) -> Result<T, String> {
        result.map_err(|error| {
            let said = std::fs::read_to_string(self.dir.join("said")).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(5).collect();
            format!("{error}; it said last, newest first:\n{}", last.join("\n"))
        })
    }

    /// Tells it to stop, and waits.
    fn end(mut self) -> Result<(), String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(|e| e.to_string())?;
        let until = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().map_err(|e| e.to_string())? {
                Some(status) => break status,
                None if Instant::now() > until => {
                    return Err(format!("the server does not end within {PATIENCE:?}"));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        match status.success() {
            true => Ok(()),
            false => self.unless_ended(Err(format!("the server ended with {status}"))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill and nothing to wait for.
        drop(self.child.kill());
        drop(self.child.wait());
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{} is left: {error}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line_through_the_noise() {
        assert_eq!(slope(&[5.0; 7]), 0.0);
        assert_eq!(slope(&[1.0, 3.0, 5.0, 7.0]), 2.0);
        // Up and down by one around a line that falls by half.
        let noisy: Vec<f64> =
            (0..100).map(|x| 9.0 - 0.5 * f64::from(x) + f64::from(x % 2 * 2 - 1)).collect();
        assert!((slope(&noisy) + 0.5).abs() < 0.01, "{}", slope(&noisy));
    }

    #[test]
    fn a_stretch_of_the_stream_ends_when_it_begins_to_be_sent() {
        let load = Load::new();
        let before_ms = jiff::Timestamp::now().as_millisecond();
        let shift_ms = load.shift_ms(3 * STRETCH_EVENTS);
        let after_ms = jiff::Timestamp::now().as_millisecond();
        let end_ms = stream_time_ms(4 * STRETCH_EVENTS) + shift_ms;
        assert!((before_ms..=after_ms).contains(&end_ms), "{before_ms} {end_ms} {after_ms}");
        // All of it is moved alike, so that copies have the times of their originals.
        assert_eq!(load.shift_ms(4 * STRETCH_EVENTS - 1), shift_ms);
    }
}
