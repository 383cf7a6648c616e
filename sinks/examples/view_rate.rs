//! What views cost, at the size of ADS-1: 14 million rows of (campaign, country, device) by minute,
//! one campaign with 53,692 of them.
//!
//! ```text
//! cargo run --release -p trueup-sinks --example view_rate [-- MILLION_ROWS]
//! ```
//!
//! Prints what a commit costs a change (new rows, and rows that are there), what a row takes in
//! memory, what an image costs, and how long reports over all minutes take: the hot campaign by
//! minute, country and device, alone and while a worker commits at full rate, and all campaigns in
//! one row. Times are by the clock and, in parentheses, of this thread on a CPU, which other work
//! on the machine does not change as much. Machines differ; compare within one sitting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    time::{Duration, Instant},
};
use trueup_operators::{
    change::{Change, Changes, Commit, Counts, Sink, TableId},
    feed::{EpochTimes, ImageKind},
    hash::mix,
    metrics::Metrics,
    money::Nanos,
    rollup::RollupSpec,
    symbols::Symbols,
    time::{Bucket, DAY_US, Granularity, HOUR_US, Lateness, LogTime, MINUTE_US},
};
use trueup_sinks::{Filter, Slots, SumQuery, Tables, ViewSettings, Views, views::ShardSink};

const WORKERS: usize = 2;
const MINUTES: i32 = 62;
const HOT_ROWS: u32 = 53_692;
const CAMPAIGNS: u32 = 1_000;
const TABLE: TableId = TableId { rollup: 0, granularity: Granularity::Minute };

type AdViews = Arc<Views<4, Metrics>>;
type AdCommit = Commit<4, Metrics>;

fn main() {
    let millions = std::env::args().nth(1).map_or(14, |n| n.parse().expect("a whole number"));
    let rows_each = millions * 1_000_000 / (MINUTES as u32 * WORKERS as u32);
    let symbols = Arc::new(Symbols::default());
    for i in 0..CAMPAIGNS {
        symbols.intern(&format!("cmp_{i}"));
    }
    for i in 0..60 {
        symbols.intern(&format!("d{i}"));
    }
    let rollups = vec![RollupSpec::new("q1", &["campaignId", "country", "deviceType"])];
    let lateness = Lateness {
        allowed_lateness_us: 5 * MINUTE_US,
        correction_horizon_us: DAY_US,
        future_skew_us_max: 5 * MINUTE_US,
    };
    let views: AdViews = Views::new(ViewSettings::new(WORKERS, rollups, lateness), symbols);
    let mut sinks: Vec<_> = (0..WORKERS).map(|w| views.shard(w)).collect();
    fill(&views, &mut sinks, rows_each);
    let mut epoch = MINUTES as u64;
    correct(&views, &mut sinks, &mut epoch, rows_each);
    images(&views, &mut sinks, &mut epoch, rows_each);
    report(&views, "alone");
    let stop = Arc::new(AtomicBool::new(false));
    let busy = {
        let (views, stop) = (Arc::clone(&views), Arc::clone(&stop));
        std::thread::spawn(move || commit_until(&views, sinks, epoch, rows_each, &stop))
    };
    report(&views, "while committing");
    stop.store(true, Ordering::Release);
    println!("  committed meanwhile: {:.1} M changes/s", busy.join().expect("no panic"));
}

/// The key of a row: every so often the hot campaign, otherwise one of the others.
fn key(row: u32, rows_each: u32) -> [u32; 4] {
    let every = rows_each * MINUTES as u32 * WORKERS as u32 / HOT_ROWS;
    let campaign = if row.is_multiple_of(every) { 0 } else { 1 + row % (CAMPAIGNS - 1) };
    let rest = row / every;
    [2 + campaign, 2 + CAMPAIGNS + rest % 50, 2 + CAMPAIGNS + 50 + rest / 50 % 10, 0]
}

fn metrics(n: i64) -> Metrics {
    Metrics { impressions: n, clicks: 1, spend: Nanos(n * 1_000), ..Metrics::default() }
}

fn commit(views: &AdViews, sink: &mut ShardSink<4, Metrics>, commit: AdCommit) -> Duration {
    let log_time = LogTime(MINUTES as i64 * MINUTE_US + commit.epoch as i64);
    let (epoch, frontier) = (commit.epoch, log_time);
    views.announce(EpochTimes { epoch, frontier_before: frontier, frontier, latest: frontier });
    let began = cpu_time();
    sink.commit(commit);
    cpu_time() - began
}

/// How long this thread was on a CPU.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|t| t.parse().ok()).unwrap_or_default();
    Duration::from_nanos(ns)
}

fn commit_of(epoch: u64, bucket: i32, changes: Vec<Change<4, Metrics>>) -> AdCommit {
    let changes = vec![Changes { table: TABLE, bucket: Bucket(bucket), changes }];
    Commit { epoch, changes, incidents: Vec::new(), counts: Counts::default(), image: None }
}

fn fill(views: &AdViews, sinks: &mut [ShardSink<4, Metrics>], rows_each: u32) {
    let mut took = Duration::ZERO;
    for minute in 0..MINUTES {
        for (worker, sink) in sinks.iter_mut().enumerate() {
            let changes = (0..rows_each)
                .map(|row| {
                    let (old, new) = (Metrics::default(), metrics(i64::from(row % 7) + 1));
                    let key = key(row + worker as u32, rows_each);
                    Change { row, old_version: 0, key, old, new }
                })
                .collect();
            took += commit(views, sink, commit_of(minute as u64, minute, changes));
        }
    }
    let rows = f64::from(rows_each) * f64::from(MINUTES) * WORKERS as f64;
    println!("{:.1} M rows", rows / 1e6);
    println!("  commit, new rows:      {:5.1} ns of CPU a change", took.as_nanos() as f64 / rows);
    let memory = views.memory();
    let bytes = |b: usize| b as f64 / memory.rows as f64;
    println!(
        "  memory: {:.1} B a row, {:.1} of them index; history {} MiB",
        bytes(memory.rows_bytes + memory.index_bytes),
        bytes(memory.index_bytes),
        memory.history_bytes >> 20
    );
}

/// What taking an image of everything costs the worker's thread, writing it another, and an epoch
/// whose segments an image still holds.
fn images(views: &AdViews, sinks: &mut [ShardSink<4, Metrics>], epoch: &mut u64, rows_each: u32) {
    let (to_writer, images) = channel();
    sinks[0] = views.shard(0).on_image(move |image| to_writer.send(image).expect("it waits"));
    let sink = &mut sinks[0];
    let mut timed = |image| {
        let of = AdCommit { image, ..corrections(*epoch, 0, rows_each, 20_000) };
        *epoch += 1;
        let began = Instant::now();
        commit(views, sink, of);
        began.elapsed().as_micros()
    };
    let plain = timed(None);
    let marked = timed(Some(ImageKind::Whole));
    let held = timed(None);
    let image = images.recv().expect("it was asked for");
    let (mut bytes, began) = (0, Instant::now());
    let put = |_key, section: &[u8]| -> Result<(), ()> {
        bytes += section.len();
        Ok(())
    };
    image.write(put).expect("nothing refuses");
    let mib_s = bytes as f64 / 1024.0 / 1024.0 / began.elapsed().as_secs_f64();
    let next = timed(Some(ImageKind::Increment));
    println!("  image of a shard of {} rows:", rows_each * MINUTES as u32);
    println!("    an epoch of 20,000 changes {plain} µs; with an image of all {marked} µs,");
    println!("    after it while the image is held {held} µs, with an increment {next} µs");
    println!("    {:.1} B a row, written at {mib_s:.0} MiB/s", {
        bytes as f64 / f64::from(rows_each) / f64::from(MINUTES)
    });
}

/// Random rows of a random minute, as an epoch of corrections has them.
fn corrections(epoch: u64, worker: usize, rows_each: u32, n: usize) -> AdCommit {
    let bucket = (mix(epoch, 1) % MINUTES as u64) as i32;
    let step = rows_each / n as u32;
    let changes = (0..n as u32)
        .map(|i| {
            let row = (i * step + (mix(epoch, u64::from(i)) % u64::from(step)) as u32) % rows_each;
            let key = key(row + worker as u32, rows_each);
            Change { row, old_version: epoch as u32, key, old: metrics(1), new: metrics(2) }
        })
        .collect();
    commit_of(epoch, bucket, changes)
}

fn correct(views: &AdViews, sinks: &mut [ShardSink<4, Metrics>], epoch: &mut u64, rows_each: u32) {
    let (mut took, mut changes) = (Duration::ZERO, 0);
    for _ in 0..200 {
        for (worker, sink) in sinks.iter_mut().enumerate() {
            took += commit(views, sink, corrections(*epoch, worker, rows_each, 20_000));
            changes += 20_000;
        }
        *epoch += 1;
    }
    let each = took.as_nanos() as f64 / f64::from(changes);
    println!("  commit, rows there:    {each:5.1} ns of CPU a change, random over a minute");
}

fn commit_until(
    views: &AdViews,
    mut sinks: Vec<ShardSink<4, Metrics>>,
    mut epoch: u64,
    rows_each: u32,
    stop: &AtomicBool,
) -> f64 {
    let (began, mut changes) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Acquire) {
        for (worker, sink) in sinks.iter_mut().enumerate() {
            let next = corrections(epoch, worker, rows_each, 20_000);
            changes += 20_000;
            commit(views, sink, next);
        }
        epoch += 1;
    }
    changes as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn report(views: &AdViews, when: &str) {
    let hot = Filter { dimensions: vec![(0, "cmp_0".into())], ..Filter::default() };
    let all = Filter::default();
    measure(views, &format!("hot campaign, {when}"), 100, &hot, vec![1, 2], Slots::Each);
    let last_30 = SumQuery {
        buckets: Bucket(MINUTES - 30)..Bucket(MINUTES),
        ..query(&hot, vec![1, 2], Slots::Each)
    };
    time(views, &format!("its last 30 minutes, {when}"), 100, &last_30);
    measure(views, &format!("one row over all, {when}"), 5, &all, vec![], Slots::One);
    measure(views, &format!("by campaign over all, {when}"), 5, &all, vec![0], Slots::One);
}

fn query(filter: &Filter, by: Vec<usize>, slots: Slots) -> SumQuery {
    SumQuery {
        rollup: 0,
        granularity: Granularity::Minute,
        buckets: Bucket(0)..Bucket((HOUR_US / MINUTE_US) as i32 * 24),
        filter: filter.clone(),
        by,
        slots,
        finalized_only: false,
        rows_max: 1_000_000,
        scan_rows_max: u64::MAX,
        epoch: None,
    }
}

fn measure(views: &AdViews, what: &str, n: usize, of: &Filter, by: Vec<usize>, slots: Slots) {
    time(views, what, n, &query(of, by, slots));
}

fn time(views: &AdViews, what: &str, n: usize, query: &SumQuery) {
    let (mut times, mut on_cpu) = (Vec::new(), Vec::new());
    let mut rows = 0;
    for _ in 0..n {
        let (began, cpu) = (Instant::now(), cpu_time());
        match views.sum(query) {
            Ok(summed) => rows = summed.rows.len(),
            Err(error) => println!("  {what}: {error}"),
        }
        times.push(began.elapsed());
        on_cpu.push(cpu_time() - cpu);
    }
    let at = |times: &mut Vec<Duration>, percent: usize| {
        times.sort();
        times[(times.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1e3
    };
    println!(
        "  {what}: {rows} rows, p50 {:.1} ms ({:.1}), p99 {:.1} ms ({:.1})",
        at(&mut times, 50),
        at(&mut on_cpu, 50),
        at(&mut times, 99),
        at(&mut on_cpu, 99)
    );
}
