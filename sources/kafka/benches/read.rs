//! What Kafka as the log costs beside librdkafka alone: the same topics, in the same process, on
//! the same two threads. `TRUEUP_KAFKA_BROKERS=… cargo bench --bench read`, on a quiet machine.
//!
//! Batches are messages of 64,000 bytes (1,600 events of 40 bytes, as the limit in BENCHMARKS.md);
//! JSON events have some 260 bytes each. The plain consumer touches nothing of a message but its
//! length; the log copies each into memory that Arrow reads in place, and runs of JSON into frames.

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};
use trueup_kafka::{
    Body, Create, Encoded, Encoding, JsonEvents, JsonMessage, KafkaLog, KafkaSettings, Row,
    system_clock,
};
use trueup_operators::log::{Append, Log, LogError, Topic};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const PARTITIONS: u16 = 4;
const THREADS: u16 = 2;
const BATCH_BYTES: usize = 64_000;
const BATCH_EVENTS: u64 = 1_600;
const JSON_BYTES: usize = 260;

/// Runs are put one behind the other, and a frame is cut into messages of one length.
struct Cut;

impl JsonEvents for Cut {
    fn to_messages(&self, append: &Append) -> Result<Vec<JsonMessage>, LogError> {
        let messages = append.payload.chunks(JSON_BYTES);
        Ok(messages.map(|m| JsonMessage { key: m[..32].into(), payload: m.into() }).collect())
    }

    fn to_frame(&self, rows: &[Row<'_>]) -> Result<Encoded, LogError> {
        let mut payload = arrow_buffer::MutableBuffer::with_capacity(rows.len() * JSON_BYTES);
        for row in rows {
            if let Body::Message(bytes) = row.body {
                payload.extend_from_slice(bytes);
            }
        }
        Ok(Encoded { schema_version: 1, payload: payload.into() })
    }
}

fn main() -> Result<(), Failed> {
    let brokers = std::env::var("TRUEUP_KAFKA_BROKERS")
        .map_err(|_| "TRUEUP_KAFKA_BROKERS names brokers; `.ci/kafka start` starts one")?;
    let events = std::env::var("TRUEUP_BENCH_EVENTS").map_or(Ok(16_000_000), |n| n.parse())?;
    measure(&brokers, Encoding::Batch, events)?;
    measure(&brokers, Encoding::Json, events / 8)
}

fn measure(brokers: &str, encoding: Encoding, events: u64) -> Result<(), Failed> {
    let name = format!("bench-{}", UNIX_EPOCH.elapsed()?.as_nanos());
    let settings = KafkaSettings {
        brokers: brokers.into(),
        events_topic: format!("{name}-events"),
        verdicts_topic: format!("{name}-verdicts"),
        metadata_topic: format!("{name}-metadata"),
        remap_topic: format!("{name}-remap"),
        encoding,
        create: Some(Create { partitions: PARTITIONS, replication_factor: 1, retention_ms: None }),
        ..KafkaSettings::default()
    };
    let open = || KafkaLog::open(settings.clone(), system_clock(), Some(Arc::new(Cut)));
    let log = open()?;
    let meter = Meter::begin();
    fill(&log, encoding, events)?;
    meter.report(encoding, "append", events);
    drop(log);
    for _ in 0..3 {
        let meter = Meter::begin();
        let messages = parallel(|partitions| plain(&settings, partitions))?;
        meter.report(encoding, "plain consumer", per_message(encoding) * messages);
        let log = open()?;
        let meter = Meter::begin();
        let offsets = parallel(|partitions| read(&log, partitions))?;
        meter.report(encoding, "log", per_message(encoding) * offsets);
    }
    Ok(())
}

fn per_message(encoding: Encoding) -> u64 {
    if encoding == Encoding::Batch { BATCH_EVENTS } else { 1 }
}

/// When something began, and how much this process had computed by then.
struct Meter(Instant, f64);

impl Meter {
    fn begin() -> Meter {
        Meter(Instant::now(), cpu_s())
    }

    /// The second figure is what can be compared on a machine that has other things to do.
    fn report(&self, encoding: Encoding, what: &str, events: u64) {
        let (took, millions) = (self.0.elapsed(), events as f64 / 1e6);
        let (rate, cpu) = (millions / took.as_secs_f64(), (cpu_s() - self.1) / millions);
        println!("{encoding:?} {what}: {rate:.2} M events/s, {cpu:.3} CPU s per million");
    }
}

/// CPU seconds of this process, librdkafka's threads included.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn fill(log: &KafkaLog, encoding: Encoding, events: u64) -> Result<(), Failed> {
    let bytes = if encoding == Encoding::Batch { BATCH_BYTES } else { JSON_BYTES * 1_000 };
    let per_frame = if encoding == Encoding::Batch { BATCH_EVENTS } else { 1_000 };
    // As compressible as events are: some repetition, some noise.
    let noise = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8 | 1;
    let payload: Vec<u8> =
        (0..bytes).map(|i| if i % 8 < 3 { noise(i) } else { (i % 40) as u8 + 1 }).collect();
    let payload = arrow_buffer::Buffer::from_vec(payload);
    let delivered = Arc::new(AtomicU64::new(0));
    let frames = events / per_frame;
    for nth in 0..frames {
        let append = Append {
            topic: Topic::Events,
            partition: (nth % u64::from(PARTITIONS)) as u16,
            schema_version: 1,
            records: per_frame as u32,
            payload: payload.clone(),
        };
        loop {
            let count = Arc::clone(&delivered);
            let done = Box::new(move |result: Result<_, LogError>| match result {
                Ok(_) => drop(count.fetch_add(1, SeqCst)),
                Err(error) => println!("not delivered: {error}"),
            });
            match log.append(vec![append.clone()], done) {
                Err(LogError::Busy { .. }) => std::thread::sleep(Duration::from_millis(1)),
                result => break result?,
            }
        }
    }
    while log.waiting_bytes() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    if delivered.load(SeqCst) == frames { Ok(()) } else { Err("not all was delivered".into()) }
}

/// The sum of what threads do, each with its partitions.
fn parallel(work: impl Fn(Vec<u16>) -> Result<u64, Failed> + Sync) -> Result<u64, Failed> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let partitions = (0..PARTITIONS).filter(|p| p % THREADS == thread).collect();
                scope.spawn(move || work(partitions))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "it panicked")?);
        joined.sum()
    })
}

fn plain(settings: &KafkaSettings, partitions: Vec<u16>) -> Result<u64, Failed> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("group.id", "plain")
        .set("enable.auto.commit", "false")
        .set("fetch.message.max.bytes", "4000000")
        .set("queued.max.messages.kbytes", "262144")
        .set("queued.min.messages", "1000000")
        .set("fetch.wait.max.ms", "10")
        .set("check.crcs", "false")
        .create()?;
    let (mut places, mut left) = (TopicPartitionList::new(), 0);
    for partition in partitions.into_iter().map(i32::from) {
        places.add_partition_offset(&settings.events_topic, partition, Offset::Beginning)?;
        let wait = Duration::from_secs(10);
        left += consumer.fetch_watermarks(&settings.events_topic, partition, wait)?.1 as u64;
    }
    consumer.assign(&places)?;
    let (messages, mut bytes) = (left, 0);
    while left > 0 {
        if let Some(message) = consumer.poll(Duration::from_secs(1)) {
            bytes += message?.payload().map_or(0, <[u8]>::len);
            left -= 1;
        }
    }
    std::hint::black_box(bytes);
    Ok(messages)
}

/// As a worker reads: its partitions in turn, some megabytes at a time.
fn read(log: &KafkaLog, partitions: Vec<u16>) -> Result<u64, Failed> {
    let ends = log.ends(Topic::Events);
    let mut at = vec![0; ends.len()];
    let (mut offsets, mut bytes) = (0, 0);
    loop {
        let mut idle = true;
        for partition in &partitions {
            let of = usize::from(*partition);
            let (from, to) = (at[of], ends[of].offset);
            if from == to {
                continue;
            }
            idle = false;
            let frames = log.read(Topic::Events, *partition, from, to, 4 << 20)?;
            at[of] = frames.last().map_or(to, |frame| frame.next);
            offsets += at[of] - from;
            bytes += frames.iter().map(|frame| frame.payload.len()).sum::<usize>();
        }
        if idle {
            std::hint::black_box(bytes);
            return Ok(offsets);
        }
    }
}
