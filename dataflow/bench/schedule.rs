//! An *open loop*: when something is due is decided before the run, and its latency counts from
//! then, whether or not the server kept up, so a stall is charged to everything that it held up (no
//! coordinated omission).

use super::client::Client;
use hdrhistogram::Histogram;
use serde_json::json;
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// When things are due.
#[derive(Clone, Copy)]
pub(super) struct Schedule {
    start: Instant,
    /// The same, µs since 1970.
    pub(super) start_us: i64,
    every: Duration,
}

/// When something was due and when it was done, µs since 1970.
#[derive(Clone, Copy)]
pub(super) struct Due {
    pub(super) due_us: i64,
    pub(super) done_us: i64,
}

impl Schedule {
    /// One that begins now.
    pub(super) fn start(every: Duration) -> Schedule {
        Schedule { start: Instant::now(), start_us: now_us(), every }
    }

    /// The same beginning, another pace.
    pub(super) fn at(self, every: Duration) -> Schedule {
        Schedule { every, ..self }
    }

    /// Waits until the `n`th is due.
    pub(super) fn wait_until(&self, n: u64) {
        let due = self.start + self.after(n);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }

    /// Does things `0..count` over some connections, each as soon as one is free. `act` prepares,
    /// waits until it is due, acts, and says whether there was anything to do.
    pub(super) fn keep(
        &self,
        address: SocketAddr,
        connections: usize,
        count: u64,
        act: &(impl Fn(&mut Client, u64) -> Result<bool, String> + Sync),
    ) -> Result<Vec<Due>, String> {
        let next = AtomicU64::new(0);
        let done = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..connections)
                .map(|_| {
                    scope.spawn(|| -> Result<Vec<Due>, String> {
                        let mut client = Client::connect(address)?;
                        let mut done = Vec::new();
                        loop {
                            let n = next.fetch_add(1, Ordering::Relaxed);
                            if n >= count {
                                return Ok(done);
                            }
                            if act(&mut client, n)? {
                                let due_us = self.start_us + self.after(n).as_micros() as i64;
                                done.push(Due { due_us, done_us: now_us() });
                            }
                        }
                    })
                })
                .collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, Result<Vec<Due>, String>>| {
                t.join().map_err(|_| "a client panicked".to_owned())?
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
        })?;
        Ok(done.into_iter().flatten().collect())
    }

    fn after(&self, n: u64) -> Duration {
        Duration::from_secs_f64(self.every.as_secs_f64() * n as f64)
    }
}

/// Latencies, µs, of up to ten minutes.
pub(super) fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1, 600_000_000, 3).map_err(|e| e.to_string())
}

/// What was measured, said on stderr and as JSON.
pub(super) fn told(what: &str, latencies: &Histogram<u64>) -> serde_json::Value {
    let p50_ms = latencies.value_at_quantile(0.5) as f64 / 1e3;
    let p99_ms = latencies.value_at_quantile(0.99) as f64 / 1e3;
    let (max_ms, count) = (latencies.max() as f64 / 1e3, latencies.len());
    eprintln!(
        "{what}: p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, max {max_ms:.1} ms, {count} of them"
    );
    json!({ "p50Ms": p50_ms, "p99Ms": p99_ms, "maxMs": max_ms, "count": count })
}

/// The wall clock, µs since 1970.
pub(super) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
