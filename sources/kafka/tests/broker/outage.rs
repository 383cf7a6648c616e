//! Brokers that die, hang and come back.

use crate::world::{
    Mute, alone, await_brokers, await_end, beside, broker_count, control, open, settings, until,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use trueup_kafka::{Create, KafkaLog, KafkaSettings, system_clock};
use trueup_operators::log::{Append, End, Log, LogError, Topic, append_and_wait, contract};

/// Numbered frames for one partition.
fn numbered(partition: u16, nth: u64) -> Append {
    let mut payload = nth.to_le_bytes().to_vec();
    payload.extend(contract::payload(nth, 500));
    contract::append(Topic::Events, partition, &payload)
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

/// Appends until told to stop; the offsets of what was acknowledged.
fn load(log: &Arc<KafkaLog>, stop: &Arc<AtomicBool>, partition: u16) -> Vec<(u64, u64)> {
    let acknowledged = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let under_way = Arc::new(AtomicU64::new(0));
    let mut nth = 0;
    while !stop.load(SeqCst) {
        if under_way.load(SeqCst) > 500 {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let (list, left) = (Arc::clone(&acknowledged), Arc::clone(&under_way));
        under_way.fetch_add(1, SeqCst);
        let done =
            Box::new(move |result: Result<Vec<trueup_operators::log::Appended>, LogError>| {
                if let Ok(at) = result {
                    list.lock().push((nth, at[0].offset));
                }
                left.fetch_sub(1, SeqCst);
            });
        log.append(vec![numbered(partition, nth)], done).unwrap();
        nth += 1;
        if nth % 20 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    until("all are answered", || under_way.load(SeqCst) == 0);
    let list = std::mem::take(&mut *acknowledged.lock());
    println!("partition {partition}: {} sent, {} acknowledged", nth, list.len());
    list
}

/// That a log holds what was acknowledged, at its place, each once and in order.
fn assert_kept(log: &KafkaLog, partition: u16, acknowledged: &[(u64, u64)]) {
    let last = acknowledged.iter().map(|at| at.1).max().unwrap();
    await_end(log, Topic::Events, partition, last + 1);
    let frames = contract::all(log, Topic::Events, partition);
    let found: Vec<(u64, u64)> = frames.iter().map(|f| (f.offset, number(&f.payload))).collect();
    assert!(found.is_sorted_by_key(|f| f.1), "the order of the appends is kept");
    assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].1), "each is there once");
    let mut by_offset = found.iter().copied().collect::<std::collections::BTreeMap<_, _>>();
    for (nth, offset) in acknowledged {
        assert_eq!(by_offset.remove(offset), Some(*nth), "what was acknowledged at {offset}");
    }
}

/// Loads all partitions while something is done to the brokers.
fn under_load(log: &Arc<KafkaLog>, breaks: impl FnOnce()) -> Vec<Vec<(u64, u64)>> {
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|partition| {
            let (log, stop) = (Arc::clone(log), Arc::clone(&stop));
            std::thread::spawn(move || load(&log, &stop, partition))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    breaks();
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, SeqCst);
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn a_broker_killed_under_load_loses_nothing_that_was_acknowledged() {
    let _alone = alone();
    let settings = KafkaSettings { delivery_timeout_ms: 60_000, ..settings() };
    let log = Arc::new(open(&settings));
    let acknowledged = under_load(&log, || {
        control("kill", 1);
        std::thread::sleep(Duration::from_millis(1_000));
        control("restart", 1);
        await_writable(&log);
    });
    for (partition, acknowledged) in (0..).zip(&acknowledged) {
        assert!(acknowledged.len() > 100, "partition {partition}: {}", acknowledged.len());
        assert_kept(&log, partition, acknowledged);
    }
    let again = open(&settings);
    for (partition, acknowledged) in (0..).zip(&acknowledged) {
        assert_kept(&again, partition, acknowledged);
    }
}

#[test]
fn a_live_reader_goes_on_through_a_restart() {
    let _alone = alone();
    let log = Arc::new(open(&settings()));
    let reader = {
        let log = Arc::clone(&log);
        std::thread::spawn(move || {
            let (mut from, mut found) = (0, Vec::new());
            while from < 2_000 {
                let end = log.ends(Topic::Events)[0].offset;
                if from == end {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                let frames = log.read(Topic::Events, 0, from, end, 1 << 20).unwrap();
                from = frames.last().map_or(end, |frame| frame.next);
                found.extend(frames.iter().map(|f| number(&f.payload)));
            }
            found
        })
    };
    let mut nth = 0;
    while nth < 2_000 {
        if nth == 1_000 {
            control("kill", 1);
            control("restart", 1);
        }
        // One at a time, so that there is no repeat: what was not delivered is sent again.
        if append_and_wait(&*log, vec![numbered(0, nth)]).is_ok() {
            nth += 1;
        }
    }
    let mut found = reader.join().unwrap();
    found.dedup();
    assert_eq!(found, (0..2_000).collect::<Vec<_>>());
}

fn await_writable(log: &KafkaLog) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while append_and_wait(log, vec![contract::append(Topic::Verdicts, 0, b"[]")]).is_err() {
        assert!(Instant::now() < deadline, "the cluster does not come back");
    }
}

/// The same offsets, at no earlier time.
#[track_caller]
fn assert_later(later: &[End], earlier: &[End]) {
    for (later, earlier) in later.iter().zip(earlier) {
        assert_eq!(later.offset, earlier.offset);
        assert!(later.complete_to >= earlier.complete_to, "time goes back: {later:?} {earlier:?}");
    }
}

#[test]
fn while_all_brokers_are_mute_nothing_blocks_for_long_and_nothing_goes_back() {
    let _alone = alone();
    let settings = KafkaSettings {
        delivery_timeout_ms: 2_000,
        ends_timeout_ms: 300,
        read_timeout_ms: 500,
        first_cache_ms: 0,
        ..settings()
    };
    let log = open(&settings);
    contract::fill(&log, 30);
    let before = log.ends(Topic::Events);
    assert_eq!(log.first(Topic::Events, 0), 0);
    let mute = Mute::all();
    // What was asked before may still be answered; from then on, nothing is.
    let asked = Instant::now();
    let known = log.ends(Topic::Events);
    assert!(asked.elapsed() < Duration::from_millis(1_000), "{:?}", asked.elapsed());
    assert_later(&known, &before);
    std::thread::sleep(Duration::from_millis(2 * settings.ends_timeout_ms));
    let before = log.ends(Topic::Events);
    assert_later(&before, &known);
    let asked = Instant::now();
    for _ in 0..10 {
        assert_eq!(log.ends(Topic::Events), before, "what was known stands, with its time");
        assert_eq!(log.first(Topic::Events, 0), 0);
    }
    assert!(asked.elapsed() < Duration::from_millis(1_500), "{:?}", asked.elapsed());
    let asked = Instant::now();
    let read = log.read(Topic::Events, 1, 3, 4, 0);
    assert!(
        matches!(&read, Err(LogError::Unavailable { reason }) if reason.contains("3..4")),
        "{read:?}"
    );
    assert!(asked.elapsed() < Duration::from_millis(2_500), "{:?}", asked.elapsed());
    let asked = Instant::now();
    let sent = append_and_wait(&log, vec![contract::append(Topic::Events, 0, b"lost")]);
    assert!(matches!(sent, Err(LogError::Unavailable { .. })), "{sent:?}");
    assert!(asked.elapsed() < Duration::from_millis(4_000), "{:?}", asked.elapsed());
    drop(mute);
    await_writable(&log);
    until("time goes on", || {
        log.ends(Topic::Events).iter().all(|end| end.complete_to > before[0].complete_to)
    });
    assert_eq!(log.read(Topic::Events, 1, 3, 4, 0).unwrap()[0].offset, 3);
}

/// A broker that was mute for longer than its session is put out of the cluster when it speaks
/// again, and let in a moment later. Who looks in between hears that there is no broker and that
/// no partition has a leader.
#[test]
fn a_log_opens_while_its_brokers_are_let_in_again() {
    let _alone = alone();
    let settings = KafkaSettings { open_timeout_ms: 60_000, ..settings() };
    drop(open(&settings));
    for _ in 0..3 {
        let mute = Mute::all();
        std::thread::sleep(Duration::from_secs(5));
        drop(mute);
        std::thread::scope(|scope| {
            for nth in 0..12 {
                let settings = &settings;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(nth * 150));
                    drop(open(settings));
                });
            }
        });
    }
    await_brokers();
}

#[test]
fn an_open_log_goes_on_when_its_brokers_were_put_out_and_let_in_again() {
    let _alone = alone();
    let settings = KafkaSettings { metadata_refresh_ms: 100, ..settings() };
    let logs: Vec<KafkaLog> = (0..8).map(|_| open(&settings)).collect();
    let mut sent = 0;
    for _ in 0..3 {
        let mute = Mute::all();
        std::thread::sleep(Duration::from_secs(5));
        drop(mute);
        for log in &logs {
            await_writable(log);
            sent += 1;
        }
        let at = append_and_wait(&logs[0], vec![numbered(0, sent)]).unwrap();
        for log in &logs {
            await_end(log, Topic::Events, 0, at[0].offset + 1);
            assert!(!contract::all(log, Topic::Events, 0).is_empty());
        }
    }
    await_brokers();
}

/// A setting that can never be met is said at once, and not waited for.
#[test]
fn more_copies_than_brokers_are_refused() {
    let _beside = beside();
    let named = settings();
    let create = Create { replication_factor: broker_count() + 1, ..named.create.unwrap() };
    let began = Instant::now();
    let settings = KafkaSettings { create: Some(create), ..named };
    match KafkaLog::open(settings, system_clock(), None) {
        Err(LogError::Invalid { reason }) => assert!(reason.contains("-events"), "{reason}"),
        other => panic!("{:?}", other.map(|_| ())),
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
