//! One JSON event a message: what others write is read, what we write others read, and a row is a
//! message wherever a frame begins.

use crate::world::{Stray, await_end, beside, consume, produce, settings, transact};
use rdkafka::Message;
use std::sync::Arc;
use trueup_kafka::{
    Body, Encoded, Encoding, JsonEvents, JsonMessage, KafkaLog, KafkaSettings, RUN_MESSAGES, Row,
    system_clock,
};
use trueup_operators::{
    event::Position,
    log::{Append, Foreign, Frame, Log, LogError, Topic, append_and_wait, contract, read_frame},
};

/// Events are lines; a frame is lines one below the other.
struct Lines;

impl JsonEvents for Lines {
    fn to_messages(&self, append: &Append) -> Result<Vec<JsonMessage>, LogError> {
        let lines = append.payload.split(|byte| *byte == b'\n');
        Ok(lines.map(|line| JsonMessage { key: line.into(), payload: line.into() }).collect())
    }

    fn to_frame(&self, rows: &[Row<'_>]) -> Result<Encoded, LogError> {
        assert!(rows.len() as u64 <= RUN_MESSAGES);
        assert!(rows.is_sorted_by_key(|row| row.log_time));
        let line = |row: &Row<'_>| match &row.body {
            Body::Message(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Body::Foreign(Foreign::NoPayload) => "no payload".into(),
            Body::Foreign(foreign) => format!("foreign: {foreign}"),
        };
        let lines: Vec<String> = rows.iter().map(line).collect();
        Ok(Encoded { schema_version: 7, payload: lines.join("\n").into_bytes().into() })
    }
}

fn open(settings: &KafkaSettings) -> KafkaLog {
    KafkaLog::open(settings.clone(), system_clock(), Some(Arc::new(Lines))).unwrap()
}

fn json() -> KafkaSettings {
    KafkaSettings { encoding: Encoding::Json, message_bytes_max: 20_000, ..settings() }
}

fn lines(partition: u16, lines: &[String]) -> Append {
    let records = lines.len() as u32;
    Append { records, ..contract::append(Topic::Events, partition, lines.join("\n").as_bytes()) }
}

fn rows(frame: &Frame) -> Vec<String> {
    let rows = frame.payload.split(|byte| *byte == b'\n');
    rows.map(|row| String::from_utf8(row.to_vec()).unwrap()).collect()
}

/// Where a range is cut: at multiples, and where a later second of the broker's time begins.
fn runs(stamps_ms: &[i64], from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let second = |offset: u64| stamps_ms[offset as usize] / 1_000;
    for offset in from..to {
        match runs.last_mut() {
            Some((first, next))
                if offset % RUN_MESSAGES != 0 && second(offset) <= second(*first) =>
            {
                *next = offset + 1;
            }
            _ => runs.push((offset, offset + 1)),
        }
    }
    runs
}

/// All rows of a range, and that each stands where it should.
fn read(log: &dyn Log, from: u64, to: u64, bytes_max: usize) -> Vec<(u64, String)> {
    let (mut at, mut found) = (from, Vec::new());
    while at < to {
        let frames = log.read(Topic::Events, 0, at, to, bytes_max).unwrap();
        at = frames.last().map_or(to, |frame| frame.next);
        for frame in frames {
            let rows = rows(&frame);
            assert_eq!(rows.len() as u64, frame.next - frame.offset);
            assert_eq!((rows.len() as u32, frame.schema_version), (frame.records, 7));
            assert!(frame.offset / RUN_MESSAGES == (frame.next - 1) / RUN_MESSAGES, "aligned");
            found.extend((frame.offset..).zip(rows));
        }
    }
    found
}

#[test]
fn events_are_messages_and_rows_are_offsets() {
    let _beside = beside();
    let settings = json();
    let log = open(&settings);
    let events: Vec<String> = (0..2_500).map(|n| format!("{{\"eventId\":\"{n}\"}}")).collect();
    let mut offset = 0;
    for chunk in events.chunks(700) {
        let at = append_and_wait(&log, vec![lines(0, chunk), lines(1, &chunk[..1])]).unwrap();
        assert_eq!(at[0].offset, offset, "where its first message is");
        offset += chunk.len() as u64;
    }
    await_end(&log, Topic::Events, 0, 2_500);
    assert_eq!(log.ends(Topic::Events)[0].records, 2_500);
    let wanted: Vec<(u64, String)> = (0..).zip(events.iter().cloned()).collect();
    for bytes_max in [0, 40_000, usize::MAX] {
        assert_eq!(read(&log, 0, 2_500, bytes_max), wanted);
    }
    assert_eq!(read(&log, 1_000, 1_100, 0), wanted[1_000..1_100]);
    let messages = consume(&settings.events_topic, 0);
    assert_eq!(messages.len(), 2_500);
    let stamps_ms: Vec<i64> =
        messages.iter().map(|message| message.timestamp().to_millis().unwrap()).collect();
    let frames = log.read(Topic::Events, 0, 1_000, 2_500, usize::MAX).unwrap();
    let places: Vec<_> = frames.iter().map(|f| (f.offset, f.next)).collect();
    assert_eq!(places, runs(&stamps_ms, 1_000, 2_500));
    // A frame that ended with its range, read again: its rows are where they were.
    let short = &log.read(Topic::Events, 0, 1_000, 1_010, 0).unwrap()[0];
    assert_eq!(short.next, runs(&stamps_ms, 1_000, 1_010)[0].1);
    let again = |offset, row| read_frame(&log, Position { partition: 0, offset, row }).unwrap();
    let whole = again(1_000, 0);
    assert_eq!(whole.next, runs(&stamps_ms, 1_000, 2_500)[0].1);
    assert_eq!(rows(&whole)[..rows(short).len()], rows(short));
    // A row that was found before runs were cut by times is there, wherever seconds meet.
    let long = again(1_000, 23);
    assert_eq!((rows(&long), long.next), (events[1_000..1_024].to_vec(), 1_024));
    let last = again(2_490, 9);
    assert_eq!((rows(&last), last.next), (events[2_490..].to_vec(), 2_500));
    for (message, event) in messages.iter().zip(&events) {
        assert_eq!(message.payload(), Some(event.as_bytes()));
        assert_eq!(message.key(), Some(event.as_bytes()));
    }
    // The other topics have frames.
    append_and_wait(&log, vec![contract::append(Topic::Verdicts, 0, b"[1,\n2]")]).unwrap();
    await_end(&log, Topic::Verdicts, 0, 1);
    let frames = contract::all(&log, Topic::Verdicts, 0);
    assert_eq!((frames[0].payload.as_slice(), frames[0].schema_version), (&b"[1,\n2]"[..], 1));
    let again = read_frame(&log, Position::of_message(Topic::Verdicts, 0, 0)).unwrap();
    assert_eq!((again.next, again.payload.as_slice()), (1, &b"[1,\n2]"[..]));
}

#[test]
fn what_others_write_is_read_and_what_is_no_event_has_its_row() {
    let _beside = beside();
    let settings = json();
    let log = open(&settings);
    let stray = |payload| Stray { partition: 0, headers: &[], payload };
    let large = contract::payload(1, 30_000);
    let topic = &settings.events_topic;
    produce(topic, &[stray(Some(b"{\"theirs\":1}")), stray(None)]);
    transact(topic, 0, &[b"in a transaction"], true);
    await_end(&log, Topic::Events, 0, 4);
    transact(topic, 0, &[b"taken back", b"this too"], false);
    await_end(&log, Topic::Events, 0, 7);
    append_and_wait(&log, vec![lines(0, &["ours".into()])]).unwrap();
    await_end(&log, Topic::Events, 0, 8);
    let wanted: Vec<(u64, String)> = (0..)
        .zip(["{\"theirs\":1}", "no payload", "in a transaction"].into_iter().map(String::from))
        // Between them stand a marker, what was taken back, and its marker.
        .chain([(7, "ours".to_owned())])
        .collect();
    assert_eq!(read(&log, 0, 8, 0), wanted);
    for from in 0..8 {
        let rest: Vec<_> = wanted.iter().filter(|row| row.0 >= from).cloned().collect();
        assert_eq!(read(&log, from, 8, 0), rest, "{from}");
    }
    // A range without any message has no frame.
    assert_eq!(read(&open(&settings), 3, 7, 0), []);
    drop(log);
    // Larger than we read, in a topic that takes it.
    let wide = KafkaSettings { message_bytes_max: 100_000, ..json() };
    drop(open(&wide));
    produce(&wide.events_topic, &[stray(Some(&large)), stray(Some(b"small"))]);
    let log = open(&KafkaSettings { message_bytes_max: 20_000, ..wide });
    await_end(&log, Topic::Events, 0, 2);
    let rows = read(&log, 0, 2, 0);
    assert_eq!(rows[0].1, "foreign: it has 30000 bytes, the limit is 20000");
    assert_eq!(rows[1].1, "small");
    match append_and_wait(&log, vec![lines(0, &["x".repeat(20_000)])]) {
        Err(LogError::Invalid { reason }) => assert!(reason.contains("40000 bytes"), "{reason}"),
        other => panic!("{other:?}"),
    }
}
