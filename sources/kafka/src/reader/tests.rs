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
    read_by(reader, settings, from, to, usize::MAX)
}

fn read_by(
    reader: &Reader,
    settings: &KafkaSettings,
    from: u64,
    to: u64,
    bytes_max: usize,
) -> Vec<Frame> {
    let range = Range { topic: Topic::Events, partition: 0, from, to, bytes_max };
    let (mut at, mut found) = (from, Vec::new());
    while at < to {
        let answer = reader.read(settings, Range { from: at, ..range }, Cut::Times).unwrap();
        let Answer::Frames(frames) = answer else { panic!("{at}..{to} is gone") };
        at = frames.last().map_or(to, |frame| frame.next);
        found.extend(frames);
    }
    found
}

/// The frame at an offset, read for what stands at another one of its own.
fn read_again(
    reader: &Reader,
    settings: &KafkaSettings,
    (from, needed): (u64, u64),
    end: u64,
) -> Frame {
    let to = run_end(from).min(end);
    let range = Range { topic: Topic::Events, partition: 0, from, to, bytes_max: 0 };
    let answer = reader.read(settings, range, Cut::TimesBehind(needed)).unwrap();
    let Answer::Frames(mut frames) = answer else { panic!("{from}..{to} is gone") };
    assert_eq!(frames.len(), 1, "from {from} on");
    frames.swap_remove(0)
}

/// What each row of an epoch is judged by: who reads epochs makes the times of frames ascend.
fn judged(frames: &[Frame]) -> Vec<LogTime> {
    let mut latest = LogTime(i64::MIN);
    let mut times = Vec::new();
    for frame in frames {
        latest = latest.max(frame.log_time);
        times.extend((0..frame.records).map(|_| latest));
    }
    times
}

/// The same, of rows that each have a frame to themselves.
fn judged_alone(stamps_ms: &[i64]) -> Vec<LogTime> {
    let mut latest_s = i64::MIN;
    let time = |stamp_ms: &i64| {
        latest_s = latest_s.max(stamp_ms.div_euclid(1_000));
        LogTime(latest_s * 1_000_000 + 999_999)
    };
    stamps_ms.iter().map(time).collect()
}

/// The rows of frames as [`Sizes`] writes them, of messages of two bytes.
fn texts(stamps_ms: &[i64]) -> String {
    stamps_ms.iter().map(|stamp_ms| format!("{} 2\n", stamp_ms * 1_000)).collect()
}

fn text(frames: &[Frame]) -> String {
    frames.iter().map(|frame| std::str::from_utf8(&frame.payload).unwrap()).collect()
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
        assert_eq!(text(&frames), texts(rest), "from {from} on");
        assert_eq!(judged(&frames), judged_alone(rest), "from {from} on");
    }
    let frames = read(&reader, &settings, 0, end);
    let runs: Vec<_> = frames.iter().map(|frame| (frame.offset, frame.next)).collect();
    assert_eq!(runs, [(0, 1), (1, 6), (6, 8)], "what goes back ends no run");
}

#[test]
fn a_second_ends_whatever_time_a_message_says_that_it_is() {
    for (at, end) in [
        (0, 999_999),
        (999_999, 999_999),
        (1_000_000, 1_999_999),
        (i64::MAX - 775_808, i64::MAX - 775_808),
        (i64::MAX - 775_807, i64::MAX),
        (i64::MAX, i64::MAX),
        (i64::MIN, i64::MIN + 775_807),
    ] {
        assert_eq!(second_end(LogTime(at)), LogTime(end), "of {at}");
    }
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Json);
    // Nanoseconds where milliseconds belong.
    let stamps_ms = [1_790_000_000_000, 1_790_000_000_000_000_000, 1_790_000_001_000];
    write(&settings, stamps_ms.iter().map(|&stamp_ms| (stamp_ms, &b"{}"[..])));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    let frames = read(&reader, &settings, 0, 3);
    let runs: Vec<_> = frames.iter().map(|frame| (frame.next, frame.log_time.0)).collect();
    assert_eq!(runs, [(1, 1_790_000_000_999_999), (3, i64::MAX)]);
}

#[test]
fn a_backlog_of_more_than_a_horizon_makes_nothing_late() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Json);
    // A message every two minutes, for 34 hours: fewer than a run may have.
    let stamps_ms: Vec<i64> = (0..1_020).map(|n| 1_790_000_000_000 + n * 120_000).collect();
    write(&settings, stamps_ms.iter().map(|&stamp_ms| (stamp_ms, &b"{}"[..])));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    let frames = read(&reader, &settings, 0, 1_020);
    assert_eq!(text(&frames), texts(&stamps_ms));
    for (time, stamp_ms) in judged(&frames).into_iter().zip(&stamps_ms) {
        let behind_us = time.0 - stamp_ms * 1_000;
        assert!((0..SECOND_US).contains(&behind_us), "{behind_us} µs after it was taken");
    }
}

#[test]
fn a_row_is_judged_alike_however_its_epoch_is_read() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Json);
    // Two leaders whose clocks are some seconds apart take turns; now and then nothing comes.
    let mut now_ms = 1_790_000_000_000;
    let stamp = |n: i64| {
        now_ms += if n % 400 == 0 { 90_000 } else { n * n % 13 };
        if n / 70 % 2 == 0 { now_ms } else { now_ms - 3_500 }
    };
    let stamps_ms: Vec<i64> = (0..2_600).map(stamp).collect();
    write(&settings, stamps_ms.iter().map(|&stamp_ms| (stamp_ms, &b"{}"[..])));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    // Epochs that begin and end in the middle of runs, read in parts and at once.
    for (from, to) in [(0, 2_600), (0, 37), (37, 1_500), (1_023, 1_025), (1_500, 2_600)] {
        let epoch = &stamps_ms[from as usize..to as usize];
        for bytes_max in [usize::MAX, 9_000, 0] {
            let frames = read_by(&reader, &settings, from, to, bytes_max);
            assert_eq!(text(&frames), texts(epoch), "{from}..{to} by {bytes_max} bytes");
            assert_eq!(judged(&frames), judged_alone(epoch), "{from}..{to} by {bytes_max} bytes");
        }
    }
}

#[test]
fn runs_stay_long_where_many_messages_come() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Json);
    // Two in a millisecond; where seconds meet, stamps of both are mixed.
    let stamps_ms: Vec<i64> = (0..5_000).map(|n| 10_000 + n / 2 + (n % 3) * 40).collect();
    write(&settings, stamps_ms.iter().map(|&stamp_ms| (stamp_ms, &b"{}"[..])));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    let frames = read(&reader, &settings, 0, 5_000);
    let seconds = stamps_ms.iter().map(|stamp_ms| stamp_ms / 1_000).max().unwrap() - 10;
    let blocks = 5_000_usize.div_ceil(RUN_MESSAGES as usize);
    assert!(frames.len() <= blocks + 2 * seconds as usize, "{} frames", frames.len());
    assert_eq!(judged(&frames), judged_alone(&stamps_ms));
}

#[test]
fn a_frame_that_is_read_again_has_all_rows_wherever_it_was_cut() {
    let cluster = MockCluster::new(1).unwrap();
    let settings = settings(&cluster, Encoding::Json);
    write(&settings, STAMPS_MS.iter().map(|&stamp_ms| (stamp_ms, &b"{}"[..])));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    let end = STAMPS_MS.len() as u64;
    for from in 0..end {
        // Epochs end where they like, and with them frames that are fed.
        let fed = (from + 1..=end).map(|to| read(&reader, &settings, from, to).swap_remove(0).next);
        let last_fed = fed.max().unwrap();
        for needed in from..end {
            let frame = read_again(&reader, &settings, (from, needed), end);
            // What was fed before runs were cut by times has its rows as well.
            let rows = &STAMPS_MS[from as usize..frame.next as usize];
            assert_eq!(text(std::slice::from_ref(&frame)), texts(rows), "{from} to {needed}");
            assert_eq!(frame.log_time, judged_alone(&rows[..1])[0], "that of its first row");
            assert!(frame.next >= last_fed.max(needed + 1), "{from} to {needed}");
            assert!(frame.next == last_fed || needed >= last_fed, "{from} to {needed}");
        }
    }
}

#[test]
fn events_that_are_read_back_in_order_are_sought_once_and_each_is_read_once() {
    let cluster = MockCluster::new(1).unwrap();
    // The cursor that reads ahead has nothing to do, and is left alone.
    let settings = KafkaSettings { idle_after_ms: 0, ..settings(&cluster, Encoding::Json) };
    // A message a second.
    let stamps_ms: Vec<i64> = (0..600).map(|n| 1_790_000_000_000 + n * 1_000).collect();
    write(&settings, stamps_ms.iter().map(|&stamp_ms| (stamp_ms, &b"{}"[..])));
    let reader = Reader::open(&settings, Some(Arc::new(Sizes))).unwrap();
    let fed = read(&reader, &settings, 0, 600);
    assert_eq!(fed.len(), 600);
    let mut records = 0;
    for frame in &fed {
        let again = read_again(&reader, &settings, (frame.offset, frame.offset), 600);
        assert_eq!((again.offset, again.next), (frame.offset, frame.next));
        records += again.records;
    }
    assert_eq!(records, 600);
    let cursors = reader.cursors(&settings, Topic::Events, 0);
    assert_eq!(cursors.back.lock().run, 599, "all but the first go on where the one before ended");
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
    let run = run(&mut cursor, &settings, (range, Cut::Times), deadline).unwrap().unwrap();
    assert_eq!((run.rows.len(), run.bytes.len()), (10, largest.len() + 2 * small.len()));
}
