//! A partition whose leader changes, and with it the clock that stamps: log times go back from one
//! frame to the next, within an epoch and from one to another. What a job publishes follows from
//! the log and its remap rows all the same, wherever it was started again.

use super::{
    recorded::record,
    resumed::{compare, session_on},
    simulated::repeat,
};
use crate::{remap::Cursor, verify};
use std::{path::Path, sync::Arc};
use trueup_generator::random::finalise;
use trueup_log::Journal;
use trueup_operators::{
    log::{Frame, Log, LogError, LogLayer, Topic},
    remap::RemapRow,
    time::{Epoch, SECOND_US},
};

const EPOCHS: Epoch = 40;
/// Frames that a leader takes before another one does.
const LED: u64 = 3;
/// How far a leader's clock is ahead or behind at most.
const SKEW_US_MAX: i64 = 90 * SECOND_US;

/// A recorded log as brokers with such clocks would have stamped it.
struct Skewed(Journal, u64);

impl Skewed {
    fn open(dir: &Path, seed: u64) -> Arc<Skewed> {
        Arc::new(Skewed(Journal::open_read_only(dir).unwrap().0, seed))
    }

    /// By how much the clock of whoever led the partition at an offset was wrong.
    fn skew_us(&self, topic: Topic, partition: u16, offset: u64) -> i64 {
        let term = (u64::from(partition) << 40 | (topic as u64) << 56) + offset / LED;
        let span_us = 2 * SKEW_US_MAX as u64 + 1;
        (finalise(term ^ self.1) % span_us) as i64 - SKEW_US_MAX
    }
}

impl LogLayer for Skewed {
    fn below(&self) -> &dyn Log {
        &self.0
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        let mut frames = self.0.read(topic, partition, from, to, bytes_max)?;
        for frame in &mut frames {
            frame.log_time.0 += self.skew_us(topic, partition, frame.offset);
        }
        Ok(frames)
    }
}

fn rows(log: &dyn Log) -> Vec<Arc<RemapRow>> {
    let (mut read, end) = (Cursor::origin(log), crate::remap::end(log));
    let mut rows = vec![Arc::clone(&read.row)];
    while read.next < end {
        rows.extend(read.advance(log, end).unwrap().into_iter().map(|cursor| cursor.row));
    }
    rows
}

#[test]
fn whose_clock_stamped_a_frame_changes_nothing_between_a_run_and_its_replays() {
    let (_, seed) = repeat("whose_clock_stamped_a_frame");
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = (dir.path().join("log"), dir.path().join("store"));
    record(&path, seed, EPOCHS);
    let log = Skewed::open(&path, seed);
    let whole = session_on(Arc::clone(&log) as Arc<dyn Log>, None, 1, EPOCHS);
    compare(&*log, EPOCHS, &*whole.tables, "without a stop");

    let mut resumed = 0;
    for upto in 1..=EPOCHS {
        let workers = [1, 2, 4][upto as usize % 3];
        // Opened again, as a start does, so that no reader stands where the last one left it.
        let log = Skewed::open(&path, seed);
        let session = session_on(Arc::clone(&log) as Arc<dyn Log>, Some(&store), workers, upto);
        resumed += u64::from(session.from > 0);
        for (epoch, hash) in &session.hashes {
            assert_eq!(*hash, whole.hashes[epoch], "{workers} workers, {}..={upto}", session.from);
        }
        compare(&*log, upto, &*session.tables, &format!("{workers} workers, up to {upto}"));
    }
    assert!(resumed > EPOCHS / 2, "{resumed} resumed");

    // What the rows promise holds of every event that was set aside, and the clocks broke it.
    let (rows, mut before, mut after) = (rows(&*log), 0, 0);
    let aside = verify::served_events(&*whole.tables, None).unwrap();
    let aside: Vec<_> = aside.into_iter().flat_map(|of| of.events).collect();
    assert!(aside.len() > 100, "{}", aside.len());
    for incident in &aside {
        let (partition, offset) = (incident.position.partition, incident.position.offset);
        let upto = |row: &RemapRow| row.upto(Topic::Events, partition);
        let at = rows.iter().position(|row| upto(row).offset > offset).unwrap();
        let (least, most) = (upto(&rows[at - 1]).log_time, upto(&rows[at]).log_time);
        let told = incident.log_time;
        assert!((least..=most).contains(&told), "{incident:?} of {least:?}..={most:?}");
        let stamped =
            Log::read(&*log, Topic::Events, partition, offset, offset + 1, 0).unwrap()[0].log_time;
        before += u64::from(stamped < least);
        after += u64::from(stamped > most);
    }
    assert!(before > 10 && after > 10, "{before} before, {after} after");
}
