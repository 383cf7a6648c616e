//! What others left in the log before anybody read it: more than one epoch may hold, of sizes that
//! nobody knows, or without its beginning.

use super::*;
use std::sync::atomic::AtomicU64;
use trueup_operators::remap::Upto;

const FRAME_BYTES: u64 = 1_000;
/// As [`Server::start`] has it.
const EPOCH_BYTES_MAX: u64 = 1 << 20;

/// A journal of others, of which this much is known.
struct Left {
    log: Shared,
    /// What an offset takes, once a frame was read; 0: not known before.
    known_bytes: AtomicU64,
    has_read: AtomicBool,
    /// What was deleted of each partition of events.
    first: AtomicU64,
}

impl LogLayer for Left {
    fn below(&self) -> &dyn Log {
        &self.log
    }
    fn first(&self, topic: Topic, partition: u16) -> u64 {
        match topic {
            Topic::Events => self.first.load(Ordering::Relaxed),
            _ => self.log.0.first(topic, partition),
        }
    }
    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        let first = LogLayer::first(self, topic, partition);
        assert!(from >= first, "{from} of {topic:?} {partition} is gone");
        self.has_read.fetch_or(topic == Topic::Events, Ordering::Relaxed);
        self.log.0.read(topic, partition, from, to, bytes_max)
    }
    fn offset_bytes(&self, topic: Topic, _partition: u16) -> Option<u64> {
        let known = self.known_bytes.load(Ordering::Relaxed);
        match known {
            0 => self.has_read.load(Ordering::Relaxed).then_some(FRAME_BYTES),
            known => (topic == Topic::Events).then_some(known),
        }
    }
}

/// A log of three partitions that hold so many frames.
fn left(dir: &std::path::Path, frames: [u64; 3], known_bytes: u64) -> Arc<Left> {
    let settings = Settings { partitions: 3, fsync: Fsync::Never, ..Settings::default() };
    let (journal, _) = Journal::open(dir, settings, system_clock()).unwrap();
    let log = Left {
        log: Shared(journal),
        known_bytes: known_bytes.into(),
        has_read: AtomicBool::new(false),
        first: AtomicU64::new(0),
    };
    for (partition, frames) in (0..).zip(frames) {
        for _ in 0..frames {
            let payload = vec![0; FRAME_BYTES as usize].into();
            append_and_wait(&log, vec![Append { partition, payload, ..event() }]).unwrap();
        }
    }
    Arc::new(log)
}

/// The rows that a server closes until there is no more.
fn closed(log: &Arc<Left>) -> Vec<RemapRow> {
    let shared = Arc::clone(log) as Arc<dyn Log>;
    let server = Server::start(&shared);
    wait_for("everything to be closed", || {
        let state = server.epochs.state.lock();
        covers(&state.closed.row, &all_ends(&*shared)) && state.fed == state.closed.row
    });
    let (rows, fault) = server.end();
    assert_eq!(fault, None);
    rows
}

/// What a row takes of each partition.
fn taken(rows: &[RemapRow], row: usize) -> [u64; 3] {
    let before = |p: u16| row.checked_sub(1).map_or(0, |b| rows[b].upto(Topic::Events, p).offset);
    [0, 1, 2].map(|p| rows[row].upto(Topic::Events, p).offset - before(p))
}

#[test]
fn an_epoch_takes_no_more_than_it_may_of_what_others_left() {
    let dir = tempfile::tempdir().unwrap();
    let log = left(dir.path(), [6_000, 600, 3], FRAME_BYTES);
    let rows = closed(&log);
    let with_frames = (0..rows.len()).filter(|&n| taken(&rows, n) != [0; 3]).count();
    // All of it is 6.6 MB: in parts of 1 MiB until there are less than 2.
    assert!((6..=7).contains(&with_frames), "{with_frames} epochs");
    let mut last = [LogTime::default(); 3];
    let newest = Log::read(&*log, Topic::Events, 2, 2, 3, 1).unwrap()[0].log_time;
    for (n, row) in rows.iter().enumerate() {
        let taken = taken(&rows, n);
        // Each partition may give one frame more, so that all come to their end.
        let parts = if n + 1 < with_frames { 1 } else { 2 };
        let bytes_max = parts * EPOCH_BYTES_MAX + 3 * FRAME_BYTES;
        assert!(taken.iter().sum::<u64>() * FRAME_BYTES <= bytes_max, "{taken:?}");
        for partition in 0..3 {
            let Upto { offset, log_time } = row.upto(Topic::Events, partition);
            let time = |offset| {
                let frames = Log::read(&*log, Topic::Events, partition, offset, offset + 1, 1);
                frames.ok().and_then(|frames| Some(frames.first()?.log_time))
            };
            // Before it at most, and from it on at least this time.
            let before = offset.checked_sub(1).and_then(time).unwrap_or_default();
            assert!(before <= log_time, "{row:?}");
            assert!(time(offset).is_none_or(|next| log_time <= next), "{row:?}");
            assert!(last[usize::from(partition)] <= log_time);
            last[usize::from(partition)] = log_time;
        }
        // Nor does what has nothing more, to the time of closing.
        if n + 1 < with_frames {
            assert!(row.latest() <= newest, "{row:?} of {newest:?}");
            assert_eq!(row.verdicts[0].log_time, row.frontier());
        }
        // None runs ahead: a tenth as many frames are a tenth of what is taken.
        if taken[0] > 100 && n + 2 < with_frames {
            assert!(taken[1].abs_diff(taken[0] / 10) <= 1, "{taken:?}");
        }
    }
}

#[test]
fn of_what_nothing_is_known_little_is_taken_until_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = left(dir.path(), [4_000, 0, 0], 0);
    let rows = closed(&log);
    let taken: Vec<u64> = (0..rows.len()).map(|n| taken(&rows, n)[0]).filter(|&t| t > 0).collect();
    assert_eq!(taken[0], 64, "{taken:?}");
    assert!(taken[1] > 1_000, "{taken:?}");
    assert!(taken.iter().all(|taken| taken * FRAME_BYTES <= 2 * EPOCH_BYTES_MAX), "{taken:?}");
}

#[test]
fn a_log_without_its_beginning_begins_where_it_does_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let log = left(dir.path(), [900, 800, 701], FRAME_BYTES);
    log.first.store(700, Ordering::Relaxed);
    assert_eq!(missing(&*log), None);
    let rows = closed(&log);
    let begins: Vec<bool> = rows.iter().map(|row| row.begins).collect();
    assert!(begins[0] && !begins[1..].contains(&true), "{begins:?}");
    assert_eq!(taken(&rows, 0), [700; 3]);
    assert_eq!((rows[0].frontier(), taken(&rows, 1)), (LogTime::default(), [200, 100, 1]));
    assert_eq!(missing(&*log), None);
    // What is deleted later is missing, and the first row stands.
    log.first.store(701, Ordering::Relaxed);
    let text = missing(&*log).unwrap();
    assert!(text.contains("begins at offset 701, epochs at 700"), "{text}");
    assert_eq!(closed(&log)[0], rows[0]);
}

#[test]
fn a_partition_that_is_not_heard_of_stays_as_far_as_it_was() {
    let upto = |offset| Upto { offset, log_time: LogTime(offset as i64) };
    let end = |offset| End { offset, complete_to: LogTime(9), bytes: 0, records: 0 };
    let mut last = RemapRow::origin(3, 1, 1);
    last.events = vec![upto(3), upto(4), upto(5)];
    let ends = [vec![end(7), end(8)], vec![end(1)], vec![end(0)]];
    let row = cut::next_row(&last, Writer::default(), &ends, false).unwrap();
    let time = |offset| Upto { offset, log_time: LogTime(9) };
    assert_eq!(row.events, [time(7), time(8), upto(5)]);
}

#[test]
fn what_is_learned_of_sizes_makes_nobody_late() {
    let dir = tempfile::tempdir().unwrap();
    let log = left(dir.path(), [500, 0, 0], 1_000);
    let shared = Arc::clone(&log) as Arc<dyn Log>;
    let server = Server::start(&shared);
    wait_for("it to be closed", || server.epochs.lag().closed > 0);
    // What was there at the start is nobody's fault, and what is visible is not waited for.
    assert_eq!(server.epochs.lag().bytes, 0);
    log.known_bytes.store(1 << 40, Ordering::Relaxed);
    assert_eq!(server.epochs.lag().bytes, 0);
    log.known_bytes.store(1_000, Ordering::Relaxed);
    for _ in 0..10 {
        append_and_wait(&*log, vec![event()]).unwrap();
    }
    wait_for("it to be behind", || server.epochs.lag().bytes == 10_000);
    wait_for("it to be closed", || {
        covers(&server.epochs.state.lock().closed.row, &all_ends(&*log))
    });
    let given = || server.epochs.state.lock().fed.epoch;
    wait_for("it to be given out", || given() == server.epochs.lag().closed);
    server.epochs.commit(0, given());
    wait_for("it to be visible", || server.epochs.lag().bytes == 0);
    drop(server.end());
}
