//! Remap rows written by hand into a journal, and what is said of them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::epochs::tests::Shared;
use trueup_log::{Fsync, Journal, Retention, SEGMENT_BYTES_MIN, Settings, system_clock};
use trueup_operators::{
    log::{Append, append_and_wait},
    remap::{REMAP_VERSION, Writer},
    time::LogTime,
};

fn journal(dir: &tempfile::TempDir) -> Journal {
    let settings = Settings {
        partitions: 2,
        fsync: Fsync::Never,
        segment_bytes_max: SEGMENT_BYTES_MIN,
        ..Settings::default()
    };
    Journal::open(dir.path(), settings, system_clock()).unwrap().0
}

fn append(log: &dyn Log, topic: Topic, payload: Vec<u8>) {
    let schema_version = if topic == Topic::Remap { REMAP_VERSION } else { 1 };
    let payload = payload.into();
    let frame = Append { topic, partition: 0, schema_version, records: 1, payload };
    append_and_wait(log, vec![frame]).unwrap();
}

/// The row of an epoch that ends behind so many frames of partition 0.
fn row(epoch: Epoch, generation: u64, frames: u64) -> RemapRow {
    let mut row = RemapRow::origin(2, 1, 1);
    (row.epoch, row.writer) = (epoch, Writer { generation, nonce: generation });
    row.events[0] = Upto { offset: frames, log_time: LogTime(epoch as i64) };
    row
}

fn write(log: &dyn Log, row: &RemapRow) {
    append(log, Topic::Remap, row.encode());
}

/// A log of three epochs with a frame each.
fn three(log: &dyn Log) {
    for epoch in 1..=3 {
        append(log, Topic::Events, vec![7; 64]);
        write(log, &row(epoch, 1, epoch));
    }
}

fn place(row: RemapRow, remap_offset: u64) -> At {
    At { row, frontier_before: LogTime(0), remap_offset }
}

fn refused(log: &dyn Log, places: &[At]) -> String {
    match check(log, places).unwrap_err() {
        Wrong::Damaged(reason) => reason,
        Wrong::Unread(reason) => panic!("it is said to be unread: {reason}"),
    }
}

#[test]
fn epochs_that_follow_one_another_are_well_and_gaps_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let log = Shared(journal(&dir));
    assert_eq!(check(&log, &[]).unwrap(), Epochs::default(), "nothing yet");
    three(&log);
    assert_eq!(check(&log, &[]).unwrap(), Epochs { after: 0, last: 3, void: 0 });
    // A zombie's rows are void, and no damage where others may write.
    write(&log, &row(4, 2, 3));
    write(&log, &row(4, 1, 3));
    write(&log, &row(2, 1, 2));
    assert_eq!(check(&log, &[]).unwrap(), Epochs { after: 0, last: 4, void: 2 });
    let own = &log.0;
    assert!(refused(own, &[]).contains("epoch 4 comes after epoch 4"), "{}", refused(own, &[]));
    // A gap is, whoever wrote it.
    write(&log, &row(6, 2, 3));
    assert!(refused(&log, &[]).contains("epoch 6 comes after epoch 4"));
}

#[test]
fn rows_that_cannot_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = Shared(journal(&dir));
    three(&log);
    write(&log, &row(4, 1, 2));
    let reason = refused(&log, &[]);
    assert!(reason.contains("epoch 4: partition 0 of events goes back"), "{reason}");

    let dir = tempfile::tempdir().unwrap();
    let log = Shared(journal(&dir));
    three(&log);
    write(&log, &row(4, 1, 9));
    let reason = refused(&log, &[]);
    assert!(reason.contains("epoch 4 ends at offset 9 of partition 0 of events"), "{reason}");

    let dir = tempfile::tempdir().unwrap();
    let log = Shared(journal(&dir));
    append(&log, Topic::Remap, b"no row".to_vec());
    // Where others may write that is no damage, because it counts for nobody.
    assert_eq!(check(&log, &[]).unwrap(), Epochs { after: 0, last: 0, void: 1 });
    let reason = refused(&log.0, &[]);
    assert!(reason.contains("topic remap") && reason.contains("cut short"), "{reason}");
}

#[test]
fn checkpoints_must_be_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = Shared(journal(&dir));
    three(&log);
    let good = [place(row(3, 1, 3), 3), place(row(2, 1, 2), 2)];
    assert_eq!(check(&log, &good).unwrap(), Epochs { after: 0, last: 3, void: 0 });
    // The topics were made anew, or are others.
    let reason = refused(&log, &[place(row(9, 1, 3), 12)]);
    assert!(reason.contains("the checkpoint of epoch 9 is behind offset 11"), "{reason}");
    let reason = refused(&log, &[place(row(2, 5, 2), 2)]);
    assert!(reason.contains("that is of another log"), "{reason}");
}

#[test]
fn a_log_that_was_cut_is_well_where_a_checkpoint_covers_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = journal(&dir);
    let frames = 12;
    for epoch in 1..=frames {
        append(&log, Topic::Events, vec![7; SEGMENT_BYTES_MIN as usize / 2]);
        write(&log, &row(epoch, 1, epoch));
    }
    let last = row(frames, 1, frames);
    let policy = Retention { age_us_max: None, bytes_max: Some(1) };
    assert!(log.retain(policy, |_, _| frames).unwrap().segments_deleted > 0);
    let (held, events) = (log.first(Topic::Remap, 0), log.first(Topic::Events, 0));
    assert!(held > 0 && events > 0);

    let reason = refused(&log, &[]);
    assert!(reason.contains(&format!("the remap topic begins at offset {held}")), "{reason}");
    let covers = [place(last, frames), place(row(frames - 1, 1, frames - 1), frames - 1)];
    let after = frames - 1;
    assert_eq!(check(&log, &covers).unwrap(), Epochs { after, last: frames, void: 0 });
    // It has the rows, and not what comes behind them.
    let mut old = row(held, 1, events - 1);
    old.events[0].log_time = LogTime(0);
    let reason = refused(&log, &[place(old, held)]);
    assert!(reason.contains(&format!("events begins at offset {events}")), "{reason}");
}
