//! A reader on a cluster that librdkafka plays: what it gives of an offset is the same wherever it
//! began to read.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::json::Encoded;
use rdkafka::{
    ClientConfig,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
};
use trueup_operators::log::Append;

type Cluster = MockCluster<'static, DefaultProducerContext>;

const WAIT: Duration = Duration::from_secs(20);

fn settings(cluster: &Cluster, encoding: Encoding) -> KafkaSettings {
    cluster.create_topic("events", 1, 1).unwrap();
    KafkaSettings {
        brokers: cluster.bootstrap_servers(),
        events_topic: "events".into(),
        encoding,
        ..KafkaSettings::default()
    }
}

/// Writes messages that carry the times of whoever led the partition.
fn write<'a>(settings: &KafkaSettings, messages: impl Iterator<Item = (i64, &'a [u8])>) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("message.max.bytes", "4000000")
        .create()
        .unwrap();
    for (stamp_ms, payload) in messages {
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&settings.events_topic);
        let record = record.partition(0).timestamp(stamp_ms).payload(payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(WAIT).unwrap();
}

fn read(reader: &Reader, settings: &KafkaSettings, from: u64, to: u64) -> Vec<Frame> {
    let range = Range { topic: Topic::Events, partition: 0, from, to, bytes_max: usize::MAX };
    let (mut at, mut found) = (from, Vec::new());
    while at < to {
        let Answer::Frames(frames) = reader.read(settings, Range { from: at, ..range }).unwrap()
        else {
            panic!("{at}..{to} is gone");
        };
        at = frames.last().map_or(to, |frame| frame.next);
        found.extend(frames);
    }
    found
}

/// What is asked of the program: rows are their bodies' sizes, 0 for what is foreign.
struct Sizes;

impl JsonEvents for Sizes {
    fn to_messages(&self, _: &Append) -> Result<Vec<crate::JsonMessage>, LogError> {
        Err(unavailable("nothing is written".into()))
    }

    fn to_frame(&self, rows: &[Row<'_>]) -> Result<Encoded, LogError> {
        let of = |row: &Row<'_>| match &row.body {
            Body::Message(bytes) => format!("{} {}\n", row.log_time.0, bytes.len()),
            Body::Foreign(foreign) => format!("{} {foreign}\n", row.log_time.0),
        };
        let text: String = rows.iter().map(of).collect();
        Ok(Encoded { schema_version: 1, payload: text.into_bytes().into() })
    }
}

/// Of a partition whose leader was ahead, and then was not.
const STAMPS_MS: [i64; 8] = [10_000, 15_000, 15_100, 11_000, 11_050, 9_000, 16_000, 12_000];

#[test]
fn a_frame_has_the_same_log_time_wherever_reading_began() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Batch);
    write(&settings, STAMPS_MS.iter().map(|&stamp_ms| (stamp_ms, &b"any"[..])));
    let reader = Reader::open(&settings, None).unwrap();
    let end = STAMPS_MS.len() as u64;
    let through: Vec<i64> =
        read(&reader, &settings, 0, end).iter().map(|frame| frame.log_time.0).collect();
    // Backwards, so that each one is sought.
    for from in (0..end).rev() {
        let sought: Vec<i64> =
            read(&reader, &settings, from, end).iter().map(|frame| frame.log_time.0).collect();
        assert_eq!(sought, through[from as usize..], "from {from} on");
    }
    assert_eq!(through, STAMPS_MS.map(|stamp_ms| stamp_ms * 1_000));
}

#[test]
fn a_row_has_the_same_log_time_wherever_reading_began() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Json);
    write(&settings, STAMPS_MS.iter().map(|&stamp_ms| (stamp_ms, &b"{}"[..])));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    let end = STAMPS_MS.len() as u64;
    for from in std::iter::once(0).chain((0..end).rev()) {
        let frames = read(&reader, &settings, from, end);
        let rest = &STAMPS_MS[from as usize..];
        let rows: String =
            rest.iter().map(|stamp_ms| format!("{} 2\n", stamp_ms * 1_000)).collect();
        assert_eq!(frames.len(), 1);
        assert_eq!(std::str::from_utf8(&frames[0].payload), Ok(&*rows), "from {from} on");
        let latest = rest.iter().max().unwrap() * 1_000;
        assert_eq!(frames[0].log_time, LogTime(latest), "from {from} on");
    }
}

#[test]
fn what_is_larger_than_any_event_takes_no_memory_of_a_run_and_ends_none() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Json);
    assert!(settings.message_bytes_max > 10 * JSON_EVENT_BYTES_MAX);
    let junk = vec![b'{'; JSON_EVENT_BYTES_MAX + 1];
    let (largest, small) = (&junk[1..], &b"{}"[..]);
    let payloads = [&junk, small, &junk, &junk, largest, small, &junk, &junk, &junk, &junk];
    write(&settings, payloads.iter().map(|payload| (7, *payload)));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    let frames = read(&reader, &settings, 0, payloads.len() as u64);
    assert_eq!(frames.len(), 1, "one run, whatever its bytes");
    let wanted: String = payloads
        .iter()
        .map(|payload| match payload.len() {
            bytes if bytes > JSON_EVENT_BYTES_MAX => {
                format!("7000 it has {bytes} bytes, the limit is {JSON_EVENT_BYTES_MAX}\n")
            }
            bytes => format!("7000 {bytes}\n"),
        })
        .collect();
    assert_eq!(std::str::from_utf8(&frames[0].payload), Ok(&*wanted));

    // The memory itself.
    let deadline = Instant::now() + WAIT;
    let cursors = reader.cursors(&settings, Topic::Events, 0);
    let mut cursor = cursors.back.lock();
    cursor.go(0, deadline).unwrap();
    let range = Range {
        topic: Topic::Events,
        partition: 0,
        from: 0,
        to: payloads.len() as u64,
        bytes_max: 0,
    };
    let run = run(&mut cursor, &settings, range, deadline).unwrap().unwrap();
    assert_eq!((run.rows.len(), run.bytes.len()), (10, largest.len() + 2 * small.len()));
}
