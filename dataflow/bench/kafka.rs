//! ADS-1 from Kafka to the views: a topic that was filled before is read from its beginning to its
//! end by what a server runs (the log that `[log] kind = "kafka"` opens, host, engine, views, with
//! checkpoints or without), and beside it by librdkafka alone. The clock starts when the log is
//! open and the host is not, and stops when all is visible.
//!
//! The topic stays: runs, encodings and other programs read the same messages. What decides epochs
//! is written anew for each run, before the clock starts: remap rows that cut the topic as a server
//! would have that was there while it was filled, `--epoch-events` an epoch. A server that finds a
//! full topic for the first time takes all of it as one epoch; that is `--epoch-events` of all.
//!
//! An event's log time is when it was filled in, or when the rows were written; its event time is
//! that of the stream, moved by whole minutes so that the stream ended at the filling. So no event
//! is ahead of its log time, and with a horizon of [`HORIZON`] none is too late, however old the
//! topic: the answers are the reference's. Verdicts stand beside the topic, hashed with the key
//! that the run has, and are appended anew for each run too.

mod topics;

use self::topics::{Beside, KEY, Stream};
use super::{
    Bench, Encoding, Query,
    engine::{answer, expected},
    meter::{Cost, Meter, median},
};
use crate::{
    ads::AD_DIMENSIONS_MAX,
    config::{Config, KafkaEncoding, LogKind, Size, Span},
    host::Host,
    topology::AdJob,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use trueup_generator::{
    ads1::{Ads1, Answer},
    frames::Layout,
};

/// For how long a topic can be read again.
const HORIZON: Duration = Duration::from_secs(365 * 86_400);
/// The longest run.
const PATIENCE: Duration = Duration::from_secs(600);

/// What one run came to.
struct Done {
    cost: Cost,
    answer: Answer,
    checkpoints: u64,
}

/// Figures of several runs, a million events each.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    cpu: Vec<f64>,
}

/// Runs a query `runs` times after one that does not count, and prints each run and the median.
pub(super) fn run(bench: &Bench, query: Query) -> Result<Value, String> {
    let ads1 = Ads1::new();
    let stream = Stream::fill_once(bench, &ads1)?;
    let expected = expected(&ads1, bench.events, query);
    let (mut ours, mut plain) = (Figures::default(), Figures::default());
    let mut last = json!(null);
    for run in 0..=bench.runs {
        let meter = Meter::start(std::process::id());
        stream.read_plain()?;
        plain.add(bench, "librdkafka alone", run, meter.read());
        let done = once(bench, query, &stream, &ads1, run)?;
        if done.answer != expected {
            return Err(format!("the answer is {:?}, it should be {expected:?}", done.answer));
        }
        ours.add(bench, query.name(), run, done.cost);
        last = json!({
            "peakRssMib": done.cost.peak_rss_mib,
            "checkpoints": done.checkpoints,
        });
    }
    Ok(json!({
        "bench": "kafka",
        "encoding": bench.encoding.name(),
        "topic": stream.topic,
        "query": query.name(),
        "events": bench.events,
        "workers": bench.workers,
        "partitions": bench.partitions,
        "epochEvents": bench.epoch_events,
        "checkpointInterval": bench.checkpoint_interval.map(|interval| interval.to_string()),
        "runs": bench.runs,
        "millionEventsPerSecond": median(&mut ours.rates),
        "cpuSecondsPerMillion": median(&mut ours.cpu),
        "librdkafka": {
            "millionEventsPerSecond": median(&mut plain.rates),
            "cpuSecondsPerMillion": median(&mut plain.cpu),
        },
        "lastRun": last,
        "answer": format!("{expected:?}"),
    }))
}

impl Figures {
    /// Says what a run came to; the first one does not count.
    fn add(&mut self, bench: &Bench, what: &str, run: usize, cost: Cost) {
        let millions = bench.events as f64 / 1e6;
        let (rate, cpu) = (millions / cost.wall.as_secs_f64(), cost.cpu_s / millions);
        eprintln!(
            "kafka {} {what} run {run}: {rate:.2} M events/s, {cpu:.3} CPU s per million, peak \
             {:.0} MiB",
            bench.encoding.name(),
            cost.peak_rss_mib
        );
        if run > 0 {
            self.rates.push(rate);
            self.cpu.push(cpu);
        }
    }
}

/// One run, on topics and a directory of its own beside the stream.
fn once(
    bench: &Bench,
    query: Query,
    stream: &Stream,
    ads1: &Ads1,
    run: usize,
) -> Result<Done, String> {
    let name = format!("{}-{run}", query.name());
    let beside = Beside::new(&stream.brokers, &stream.topic, &name);
    let config = config(bench, query, stream, &beside, &name);
    let done = beside.during(|| read(bench, query, stream, ads1, &config));
    let dir = &config.data_dir;
    let removed = std::fs::remove_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()));
    let done = done?;
    removed.map(|()| done)
}

fn config(bench: &Bench, query: Query, stream: &Stream, beside: &Beside, name: &str) -> Config {
    let dir = bench.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let data_dir = dir.join(format!("trueup-bench-{}-kafka-{name}", std::process::id()));
    let mut config = Config { data_dir, rollups: query.rollups(), ..Config::default() };
    config.log.kind = LogKind::Kafka;
    config.log.partitions = bench.partitions;
    config.kafka.brokers.clone_from(&stream.brokers);
    config.kafka.events_topic.clone_from(&stream.topic);
    config.kafka.verdicts_topic.clone_from(&beside.verdicts);
    config.kafka.metadata_topic.clone_from(&beside.metadata);
    config.kafka.remap_topic.clone_from(&beside.remap);
    config.kafka.encoding = match bench.encoding {
        Encoding::Json => KafkaEncoding::Json,
        Encoding::Batch => KafkaEncoding::Batch,
    };
    config.checkpoint.interval = bench.checkpoint_interval.unwrap_or(Span(Duration::ZERO));
    config.time.correction_horizon = Span(HORIZON);
    config.workers.threads = bench.workers;
    config.flow.history_bytes_max = Size(64 << 20);
    config
}

/// The part of a run that the clock is held to.
fn read(
    bench: &Bench,
    query: Query,
    stream: &Stream,
    ads1: &Ads1,
    config: &Config,
) -> Result<Done, String> {
    let log = config.open_log().map_err(|e| e.to_string())?;
    let key = match bench.encoding {
        Encoding::Json => log.identity().hash_key,
        Encoding::Batch => KEY,
    };
    let layout = Layout { partitions: bench.partitions, key };
    let verdicts = |range: std::ops::Range<u64>| {
        query.has_verdicts().then(|| ads1.verdict_frame(range, &layout, 0)).flatten()
    };
    let epochs = stream.cut(bench, &**log.log(), verdicts).map_err(|e| e.to_string())?;
    let meter = Meter::start(std::process::id());
    let host = Host::open_on::<AdJob, AD_DIMENSIONS_MAX>(
        &config.data_dir,
        &config.checkpoint.store,
        log,
        AdJob { rollups: config.rollups.clone() },
        config.engine(),
        config.views(),
    )
    .map_err(|e| e.to_string())?;
    wait_for(&host, epochs)?;
    let cost = meter.read();
    let answer = answer(&**host.tables(), query)?;
    let checkpoints = host.engine().checkpoints().map_or(0, |taken| taken.status().published);
    host.close();
    Ok(Done { cost, answer, checkpoints })
}

/// Waits until the views show an epoch.
fn wait_for(host: &Host, epoch: u64) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let visible = host.engine().lag().visible;
        if visible >= epoch {
            return Ok(());
        }
        if let Some(fault) = host.engine().fault() {
            return Err(fault);
        }
        if Instant::now() > until {
            return Err(format!("epoch {visible} of {epoch} is visible after {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
