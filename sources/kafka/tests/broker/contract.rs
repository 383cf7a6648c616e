//! That Kafka is a log as any other, and what is its own besides.

use crate::world::{
    alone, await_end, beside, brokers, committed, consume, create_topic, delete_below, header,
    open, settings, transact, unique, until,
};
use rdkafka::{Message, Offset, Timestamp};
use std::{
    process::Command,
    sync::Arc,
    sync::atomic::{AtomicI64, Ordering::SeqCst},
};
use trueup_kafka::{KafkaLog, KafkaSettings, system_clock};
use trueup_operators::{
    log::{Log, LogError, Topic, append_and_wait, contract},
    time::LogTime,
};

#[test]
fn kafka_is_a_log_as_any_other() {
    let _beside = beside();
    let settings = settings();
    contract::holds(&open(&settings));
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let _beside = beside();
    let settings = settings();
    let log = open(&settings);
    let mut expected = contract::fill(&log, 60);
    contract::assert_holds(&log, &expected);
    let before = contract::all(&log, Topic::Events, 1);
    drop(log);
    let log = open(&KafkaSettings { create: None, ..settings });
    contract::assert_holds(&log, &expected);
    let same = |a: &trueup_operators::log::Frame| (a.offset, a.next, a.log_time);
    let after = contract::all(&log, Topic::Events, 1);
    assert_eq!(
        before.iter().map(same).collect::<Vec<_>>(),
        after.iter().map(same).collect::<Vec<_>>()
    );
    for (partition, more) in contract::fill(&log, 9).into_iter().enumerate() {
        expected[partition].extend(more);
    }
    contract::assert_holds(&log, &expected);
}

#[test]
fn appends_keep_their_order_and_answer_once() {
    let _beside = beside();
    let log = open(&settings());
    let (send, receive) = std::sync::mpsc::channel();
    for nth in 0..3_000_u32 {
        let send = send.clone();
        let frame = contract::append(Topic::Events, 1, &nth.to_le_bytes());
        let done = Box::new(move |result| send.send((nth, result)).unwrap());
        log.append(vec![frame], done).unwrap();
    }
    drop(send);
    let mut answers: Vec<_> =
        receive.iter().map(|(nth, at)| (nth, at.unwrap()[0].offset)).collect();
    answers.sort_unstable();
    assert_eq!(answers, (0..3_000).map(|nth| (nth, u64::from(nth))).collect::<Vec<_>>());
    let frames = contract::all(&log, Topic::Events, 1);
    let found: Vec<u32> = frames
        .iter()
        .map(|f| u32::from_le_bytes(f.payload.as_slice().try_into().unwrap()))
        .collect();
    assert_eq!(found, (0..3_000).collect::<Vec<_>>());
    assert_eq!(log.waiting_bytes(), 0);
    let end = log.ends(Topic::Events)[1];
    assert_eq!((end.offset, end.records, end.bytes), (3_000, 6_000, 12_000));
}

#[test]
fn plain_consumers_and_kcat_read_what_is_written() {
    let _beside = beside();
    let settings = settings();
    let log = open(&settings);
    let expected = contract::fill(&log, 30);
    let messages = consume(&settings.events_topic, 2);
    assert_eq!(messages.len(), expected[2].len());
    for (message, payload) in messages.iter().zip(&expected[2]) {
        assert_eq!(message.payload(), Some(payload.as_slice()));
        assert_eq!(
            (header(message, "trueup-schema"), header(message, "trueup-records")),
            ("1".into(), "3".into())
        );
        assert!(matches!(message.timestamp(), Timestamp::LogAppendTime(_)));
    }
    let kcat = Command::new("kcat")
        .args(["-b", &brokers(), "-C", "-t", &settings.events_topic, "-p", "2", "-o", "beginning"])
        .args(["-e", "-q", "-f", "%o %S %h\\n"])
        .output()
        .expect("kcat is installed");
    let said = String::from_utf8(kcat.stdout).unwrap();
    let wanted: String = (expected[2].iter().enumerate())
        .map(|(at, payload)| format!("{at} {} trueup-schema=1,trueup-records=3\n", payload.len()))
        .collect();
    assert_eq!(said, wanted);
}

#[test]
fn a_gap_is_known_to_be_one() {
    let _beside = beside();
    let settings = settings();
    let log = open(&settings);
    append_and_wait(&log, vec![contract::append(Topic::Events, 0, b"ours")]).unwrap();
    // Offsets 1, 2 and the marker at 3; the aborted 4 and the marker at 5; 6 and the marker at 7.
    // A marker is written some time after its transaction.
    for (payloads, commit, end) in
        [(&[b"a", b"b"][..], true, 4), (&[b"n"], false, 6), (&[b"c"], true, 8)]
    {
        let payloads: Vec<&[u8]> = payloads.iter().map(|p| &p[..]).collect();
        transact(&settings.events_topic, 0, &payloads, commit);
        await_end(&log, Topic::Events, 0, end);
    }
    let read = |log: &KafkaLog, from, to| -> Vec<(u64, Vec<u8>)> {
        let frames = log.read(Topic::Events, 0, from, to, usize::MAX).unwrap();
        frames.iter().map(|f| (f.offset, f.payload.to_vec())).collect()
    };
    let all: Vec<(u64, Vec<u8>)> =
        vec![(0, b"ours".into()), (1, b"a".into()), (2, b"b".into()), (6, b"c".into())];
    // In all ways, by a cursor that has been elsewhere and by a new one.
    for from in 0..8 {
        for to in from + 1..=8 {
            let wanted: Vec<_> =
                all.iter().filter(|f| (from..to).contains(&f.0)).cloned().collect();
            let mut found = Vec::new();
            let mut at = from;
            while at < to {
                let frames = read(&log, at, to);
                at = frames.last().map_or(to, |last| last.0 + 1);
                found.extend(frames);
            }
            assert_eq!(found, wanted, "{from}..{to}");
        }
    }
    for (from, to) in [(3, 6), (7, 8), (3, 4), (4, 6)] {
        assert_eq!(read(&open(&settings), from, to), [], "{from}..{to}");
    }
    // What comes behind a gap at the end is read as well.
    append_and_wait(&log, vec![contract::append(Topic::Events, 0, b"more")]).unwrap();
    assert_eq!(read(&log, 7, 9), [(8, b"more".to_vec())]);
}

#[test]
fn a_read_waits_for_what_is_on_its_way_and_readers_do_not_wait_for_each_other() {
    let _beside = beside();
    let log = Arc::new(open(&settings()));
    contract::fill(&*log, 300);
    let threads: Vec<_> = (0..contract::PARTITIONS)
        .map(|partition| {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                let mut from = 0;
                while from < 1_100 {
                    let end = log.ends(Topic::Events)[usize::from(partition)].offset;
                    if from == end {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        continue;
                    }
                    let frames = log.read(Topic::Events, partition, from, end, 1 << 20).unwrap();
                    assert_eq!(frames[0].offset, from);
                    // A read-back does not disturb the live cursor.
                    let old = from / 2;
                    let back = log.read(Topic::Events, partition, old, old + 1, 0).unwrap();
                    assert_eq!((back.len(), back[0].offset), (1, old));
                    from = frames.last().unwrap().next;
                }
            })
        })
        .collect();
    let frame = |partition| contract::append(Topic::Events, partition, b"more");
    for _ in 0..1_000 {
        append_and_wait(&*log, vec![frame(0), frame(1), frame(2)]).unwrap();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn what_was_deleted_is_out_of_range() {
    let _beside = beside();
    let settings = KafkaSettings { first_cache_ms: 600_000, ..settings() };
    let log = open(&settings);
    contract::fill(&log, 30);
    assert_eq!(log.first(Topic::Events, 1), 0);
    delete_below(&settings.events_topic, 1, 7);
    // Again and again: what the broker refuses may be refused before, while and after it is sought.
    for from in [0, 6].repeat(50) {
        match log.read(Topic::Events, 1, from, 10, usize::MAX) {
            Err(LogError::OutOfRange { offset, first: 7, end: 10, .. }) => assert_eq!(offset, from),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(log.read(Topic::Events, 1, 7, 10, usize::MAX).unwrap()[0].offset, 7);
    assert_eq!(log.first(Topic::Events, 1), 7);
}

#[test]
fn log_time_is_the_brokers_and_never_decreases() {
    let _beside = beside();
    let settings = settings();
    let clock = Arc::new(AtomicI64::new(5_123_456));
    let time = Arc::clone(&clock);
    let log = KafkaLog::open(settings, Arc::new(move || LogTime(time.load(SeqCst))), None).unwrap();
    assert_eq!(log.ends(Topic::Events)[0].complete_to, LogTime(5_123_000), "whole milliseconds");
    clock.store(1_000, SeqCst);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(log.ends(Topic::Events)[0].complete_to, LogTime(5_123_000), "never back");
    let before = system_clock()().0 / 1_000 * 1_000;
    contract::fill(&log, 60);
    let after = system_clock()().0;
    let frames = contract::all(&log, Topic::Events, 0);
    assert!(frames.is_sorted_by_key(|frame| frame.log_time));
    assert!(frames.iter().all(|f| (before..=after).contains(&f.log_time.0)));
}

#[test]
fn topics_that_cannot_serve_are_refused() {
    let _beside = beside();
    let refuse = |settings: KafkaSettings| match KafkaLog::open(settings, system_clock(), None) {
        Err(LogError::Invalid { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let missing = refuse(KafkaSettings { create: None, ..settings() });
    assert!(missing.contains("has no topic") && missing.contains("for events"), "{missing}");

    let name = unique("stamped-by-senders");
    create_topic(&name, 3, &[("message.timestamp.type", "CreateTime")]);
    let stamped = refuse(KafkaSettings { events_topic: name, ..settings() });
    assert!(stamped.contains("message.timestamp.type=CreateTime"), "{stamped}");

    let broker = [("message.timestamp.type", "LogAppendTime")];
    let name = unique("wide");
    create_topic(&name, 2, &broker);
    let wide = refuse(KafkaSettings { verdicts_topic: name, ..settings() });
    assert!(wide.contains("has 2 partitions; verdicts need one"), "{wide}");

    let name = unique("compacted");
    create_topic(&name, 1, &[broker[0], ("cleanup.policy", "compact")]);
    let compacted = refuse(KafkaSettings { remap_topic: name, ..settings() });
    assert!(compacted.contains("cleanup.policy=compact"), "{compacted}");

    let json = KafkaSettings { encoding: trueup_kafka::Encoding::Json, ..settings() };
    assert!(refuse(json).contains("nothing encodes events"));
}

#[test]
fn limits_of_appends_are_refused_by_name() {
    let _beside = beside();
    let name = unique("narrow");
    let narrow = [("message.timestamp.type", "LogAppendTime"), ("max.message.bytes", "50000")];
    create_topic(&name, 3, &narrow);
    let settings =
        KafkaSettings { events_topic: name.clone(), queue_bytes_max: 200_000, ..settings() };
    let log = open(&settings);
    let frame = |bytes: usize| contract::append(Topic::Events, 0, &contract::payload(1, bytes));
    match append_and_wait(&log, vec![frame(60_000)]) {
        Err(LogError::Invalid { reason }) => {
            assert!(reason.contains("60000 bytes") && reason.contains("49488"), "{reason}");
            assert!(reason.contains(&name), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // Nothing of an append that is refused is taken.
    assert!(append_and_wait(&log, vec![frame(10), frame(60_000)]).is_err());
    assert!(append_and_wait(&log, vec![frame(49_488)]).is_ok());
    await_end(&log, Topic::Events, 0, 1);
    assert_eq!(log.ends(Topic::Events)[0].offset, 1);
    match append_and_wait(&log, (0..5).map(|_| frame(45_000)).collect()) {
        Err(LogError::Invalid { reason }) => assert!(reason.contains("queue_bytes_max 200000")),
        other => panic!("{other:?}"),
    }
    let many = (0..20).map(|_| log.append(vec![frame(45_000)], Box::new(|_| {})));
    let busy = many.filter_map(Result::err).next();
    match busy {
        Some(LogError::Busy { waiting_bytes, limit_bytes: 200_000 }) => {
            assert!((150_000..=200_000).contains(&waiting_bytes), "{waiting_bytes}");
        }
        other => panic!("{other:?}"),
    }
    until("the queue is empty", || log.waiting_bytes() == 0);
    assert!(append_and_wait(&log, vec![frame(45_000)]).is_ok());
}

#[test]
fn offsets_are_published_for_lag_tools_and_decide_nothing() {
    let _beside = beside();
    let settings = settings();
    let log = open(&settings);
    contract::fill(&log, 30);
    let group = unique("group");
    log.publish_offsets(&group, &[(Topic::Events, 0, 4), (Topic::Events, 1, 9)]).unwrap();
    until("the offsets are there", || {
        committed(&group, &settings.events_topic, 1) == Offset::Offset(9)
    });
    assert_eq!(committed(&group, &settings.events_topic, 0), Offset::Offset(4));
    log.publish_offsets(&group, &[(Topic::Events, 0, 6)]).unwrap();
    until("the next one is there", || {
        committed(&group, &settings.events_topic, 0) == Offset::Offset(6)
    });
    assert_eq!(log.read(Topic::Events, 0, 0, 10, 0).unwrap()[0].offset, 0);
}

#[test]
fn without_a_cluster_opening_says_so() {
    let _alone = alone();
    let nowhere =
        KafkaSettings { brokers: "127.0.0.1:9".into(), open_timeout_ms: 500, ..settings() };
    match KafkaLog::open(nowhere, system_clock(), None) {
        Err(LogError::Away { reason }) => {
            assert!(reason.contains("Kafka at 127.0.0.1:9 does not answer"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}
