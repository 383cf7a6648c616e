//! A remap topic that anyone can write to: what is no row of ours is void for whoever reads it, in
//! steps of any size and from any row that counts; what a newer program wrote is not.
#![allow(clippy::unwrap_used)]

use super::*;
use parking_lot::Mutex;
use trueup_operators::{
    log::{Append, Done, End},
    remap::Writer,
    time::LogTime,
};

/// A log of which others may write to the remap topic; it holds nothing else. Offsets may have
/// been deleted, and it may not answer.
#[derive(Default)]
pub(crate) struct Remap {
    pub(crate) frames: Mutex<Vec<Frame>>,
    pub(crate) first: u64,
    /// How many frames a read gives at most; 0: as many as there are.
    pub(crate) most: usize,
    /// Offsets that were asked for.
    pub(crate) asked: Mutex<Vec<u64>>,
}

impl Remap {
    pub(crate) fn push(&self, bytes: Vec<u8>, schema_version: u16, foreign: Option<Foreign>) {
        let (topic, partition, records) = (Topic::Remap, 0, 1);
        let append = Append { topic, partition, schema_version, records, payload: bytes.into() };
        let mut frames = self.frames.lock();
        let frame = append.into_frame(frames.len() as u64, LogTime(1));
        frames.push(Frame { foreign, ..frame });
    }

    pub(crate) fn row(&self, epoch: u64, generation: u64) -> RemapRow {
        let row = row(epoch, generation);
        self.push(row.encode(), REMAP_VERSION, None);
        row
    }

    /// One of each kind of message that is none of ours.
    fn strays(&self) {
        let no_header = Foreign::NoHeader { name: "trueup-schema" };
        self.push(b"x".to_vec(), 0, Some(no_header.clone()));
        self.push(Vec::new(), 0, Some(Foreign::NoPayload));
        self.push(b"garbage with our headers".to_vec(), REMAP_VERSION, None);
        self.push(Vec::new(), 1, None);
        // What looks like the row that is to come, and nobody of ours has written.
        self.push(row(2, 9).encode(), 0, Some(no_header));
    }

    fn end(&self) -> u64 {
        self.frames.lock().len() as u64
    }
}

impl Log for Remap {
    fn is_shared(&self) -> bool {
        true
    }

    fn partitions(&self, _: Topic) -> u16 {
        1
    }

    fn append(&self, _: Vec<Append>, _: Done) -> Result<(), LogError> {
        Err(LogError::Unavailable { reason: "nothing is appended here".into() })
    }

    fn ends(&self, topic: Topic) -> Vec<End> {
        let offset = if topic == Topic::Remap { self.end() } else { 0 };
        vec![End { offset, complete_to: LogTime(0), bytes: 0, records: 0 }]
    }

    fn first(&self, topic: Topic, _: u16) -> u64 {
        if topic == Topic::Remap { self.first } else { 0 }
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        _: usize,
    ) -> Result<Vec<Frame>, LogError> {
        self.asked.lock().push(from);
        let (first, end) = (self.first, self.end());
        if from < first || from >= to || to > end || topic != Topic::Remap {
            return Err(LogError::OutOfRange { topic, partition, offset: from, first, end });
        }
        let most = if self.most == 0 { usize::MAX } else { self.most };
        let frames = self.frames.lock()[from as usize..to as usize].to_vec();
        Ok(frames.into_iter().take(most).collect())
    }

    fn offset_at(&self, _: Topic, _: u16, _: LogTime) -> Result<u64, LogError> {
        Err(LogError::Unavailable { reason: "no times are known here".into() })
    }
}

fn row(epoch: u64, generation: u64) -> RemapRow {
    RemapRow { epoch, writer: Writer { generation, nonce: 1 }, ..RemapRow::origin(1, 1, 1) }
}

/// All rows after a cursor that count, and the offsets behind them.
fn rows(log: &Remap, mut cursor: Cursor) -> Vec<(RemapRow, u64)> {
    let mut rows = Vec::new();
    while cursor.next < log.end() {
        let read = cursor.advance(log, log.end()).unwrap();
        rows.extend(read.into_iter().map(|cursor| ((*cursor.row).clone(), cursor.behind)));
    }
    rows
}

#[test]
fn stray_messages_are_void_wherever_a_reader_begins_and_however_far_it_reads() {
    for most in [0, 1, 2, 3, 7] {
        let log = Remap { most, ..Remap::default() };
        let (mut written, mut live) = (Vec::new(), Vec::new());
        let mut follows = Cursor::origin(&log);
        for epoch in 1..=6 {
            log.strays();
            if epoch > 1 {
                // A zombie's.
                log.row(epoch, 0);
            }
            written.push((log.row(epoch, 1 + epoch / 3), log.end()));
            while follows.next < log.end() {
                live.extend(follows.advance(&log, log.end()).unwrap());
            }
        }
        log.strays();
        assert_eq!(rows(&log, Cursor::origin(&log)), written, "at most {most} at a time");
        let live: Vec<_> = live.into_iter().map(|c| ((*c.row).clone(), c.behind)).collect();
        assert_eq!(live, written);
        for (from, (row, behind)) in written.iter().enumerate() {
            let begun = Cursor::of(row.clone(), *behind);
            assert_eq!(rows(&log, begun.clone()), written[from + 1..]);
            let tip = begun.tip(&log).unwrap();
            let (last, behind) = written.last().unwrap();
            assert_eq!((&*tip.row, tip.behind, tip.next), (last, *behind, log.end()));
        }
    }
}

#[test]
fn nobody_reads_past_a_row_of_a_newer_version() {
    let foreign = Foreign::UnknownSchema { version: 3, known: REMAP_VERSION };
    for (version, foreign) in [(3, None), (0, Some(foreign))] {
        let log = Remap::default();
        log.row(1, 1);
        log.push(vec![3; 40], version, foreign);
        let error = Cursor::origin(&log).tip(&log).unwrap_err();
        assert!(matches!(error, LogError::Invalid { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("offset 1") && text.contains("schema version 3"), "{text}");
    }
}
