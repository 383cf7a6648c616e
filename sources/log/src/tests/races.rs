//! Threads that append, ask for ends, read and delete at the same time.

use super::*;
use crate::{Retention, system_clock};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64},
};
use trueup_operators::log::append_and_wait;

const APPENDERS: u64 = 4;
const APPENDS: u64 = 100;

/// A clock that mostly moves on, and sometimes jumps back or ahead.
fn jumping_clock(seed: u64) -> Clock {
    let rng = Mutex::new((Rng::new(seed), 1_000_000_i64));
    Arc::new(move || {
        let mut state = rng.lock();
        let step = state.0.below(100) as i64;
        let jump = match state.0.below(50) {
            0 => -1_000,
            1 => 5_000,
            _ => step,
        };
        state.1 += jump;
        LogTime(state.1)
    })
}

/// The latest promise that was given for each partition and end.
type Promises = BTreeMap<(usize, u64), LogTime>;

/// Asks for the ends all the time. They never go back, and what they tell can be read at once.
fn watch(journal: &Journal, done: &AtomicBool) -> Promises {
    let mut promises = Promises::new();
    let mut before = journal.ends(Topic::Events);
    while !done.load(SeqCst) {
        let ends = journal.ends(Topic::Events);
        for (partition, (end, before)) in ends.iter().zip(&before).enumerate() {
            assert!(end.offset >= before.offset && end.complete_to >= before.complete_to);
            promises.insert((partition, end.offset), end.complete_to);
            if end.offset > 0 {
                let last = end.offset - 1;
                let read = journal.read(Topic::Events, partition as u16, last, end.offset, 1);
                assert_eq!(read.unwrap()[0].offset, last);
            }
        }
        before = ends;
    }
    promises
}

#[test]
fn no_frame_is_earlier_than_what_was_promised_before_it() {
    for_seeds(4, |seed| {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { tail_bytes_max: 20_000, segment_bytes_max: 64 << 10, ..small() };
        let (journal, _) = Journal::open(dir.path(), settings, jumping_clock(seed)).unwrap();
        let done = AtomicBool::new(false);
        let told = std::thread::scope(|scope| {
            let watchers: Vec<_> = (0..2).map(|_| scope.spawn(|| watch(&journal, &done))).collect();
            let appenders: Vec<_> = (0..APPENDERS)
                .map(|thread| {
                    let journal = &journal;
                    scope.spawn(move || append_many(journal, seed ^ thread))
                })
                .collect();
            appenders.into_iter().for_each(|appender| appender.join().unwrap());
            done.store(true, SeqCst);
            watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect::<Vec<_>>()
        });
        let mut distinct = 0;
        let times: Vec<Vec<LogTime>> = (0..3)
            .map(|partition| {
                let frames = all(&journal, Topic::Events, partition);
                let times: Vec<LogTime> = frames.iter().map(|frame| frame.log_time).collect();
                assert!(times.is_sorted());
                distinct += times.chunk_by(|a, b| a == b).count();
                times
            })
            .collect();
        assert!(distinct > 30, "the clock stood still: {distinct} log times");
        for (&(partition, end), &complete_to) in told.iter().flatten() {
            // Log times are sorted, so the first frame behind the end decides.
            let (before, behind) = times[partition].split_at(end as usize);
            assert!(behind.first().is_none_or(|&time| time >= complete_to), "{partition}:{end}");
            assert!(before.last().is_none_or(|&time| time <= complete_to), "{partition}:{end}");
        }
    });
}

fn append_many(journal: &Journal, seed: u64) {
    let mut rng = Rng::new(seed);
    for _ in 0..APPENDS {
        let frames = (0..1 + rng.below(3)).map(|_| {
            let payload = payload(rng.next(), rng.below(2_000) as usize);
            event(rng.below(3) as u16, &payload)
        });
        append_and_wait(journal, frames.collect()).unwrap();
    }
}

#[test]
fn concurrent_appenders_share_syncs_and_get_places_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small(), system_clock()).unwrap();
    let sent = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (journal, sent) = (&journal, &sent);
            scope.spawn(move || {
                for nth in 0..50 {
                    let payload = payload(thread * 1_000 + nth, 100);
                    let partition = (nth % 3) as u16;
                    let at = append_and_wait(journal, vec![event(partition, &payload)]).unwrap();
                    let place = (partition, at[0].offset);
                    assert!(sent.lock().insert(place, payload).is_none(), "place given twice");
                }
            });
        }
    });
    for ((partition, offset), payload) in sent.into_inner() {
        let read = journal.read(Topic::Events, partition, offset, offset + 1, 1).unwrap();
        assert_eq!(read[0].payload.as_slice(), payload);
    }
    let counts = journal.counts();
    assert_eq!(counts.frames, 400);
    assert!(counts.syncs < 400, "{} syncs for 400 appends of 8 threads", counts.syncs);
}

#[test]
fn readers_and_retention_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { tail_bytes_max: 4_000, ..small() };
    let (journal, _) = Journal::open(dir.path(), settings, system_clock()).unwrap();
    let done = AtomicBool::new(false);
    let read = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let first = journal.first(Topic::Events, 0);
                    let end = journal.ends(Topic::Events)[0].offset;
                    if first == end {
                        continue;
                    }
                    match journal.read(Topic::Events, 0, first, end, 20_000) {
                        Ok(frames) => {
                            assert_eq!(frames[0].offset, first);
                            read.fetch_add(frames.len() as u64, SeqCst);
                        }
                        // Deleted since.
                        Err(LogError::OutOfRange { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for nth in 0..300 {
            append_and_wait(&journal, vec![event(0, &payload(nth, 900))]).unwrap();
            if nth % 10 == 0 {
                let policy = Retention { age_us_max: None, bytes_max: Some(60_000) };
                journal.retain(policy, |_, _| u64::MAX).unwrap();
            }
        }
        done.store(true, SeqCst);
    });
    assert!(read.load(SeqCst) > 0);
    assert!(journal.first(Topic::Events, 0) > 100);
    assert!(journal.bytes_held() < 100_000);
}

#[test]
fn a_reader_opens_beside_a_writer_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), small(), system_clock()).unwrap();
    append_and_wait(&journal, vec![event(0, b"first")]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            let (mut frames, mut openings) = (0, 0_u64);
            while !done.load(SeqCst) {
                let (reader, opened) = Journal::open_read_only(dir.path()).unwrap();
                assert!(opened.frames >= frames, "a reader sees no less than the one before");
                frames = opened.frames;
                openings += 1;
                assert_eq!(all(&reader, Topic::Events, 0)[0].payload.as_slice(), b"first");
            }
            openings
        });
        append_many(&journal, 77);
        append_many(&journal, 78);
        done.store(true, SeqCst);
        assert!(opener.join().unwrap() > 0);
    });
}
