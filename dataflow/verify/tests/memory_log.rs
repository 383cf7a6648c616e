//! A log in a few vectors: frames are put where a test wants them, with the log times that it
//! wants. Nothing is ever appended through the trait.

use std::collections::BTreeMap;
use trueup_generator::{
    event::{Event, Verdict},
    frames::Layout,
};
use trueup_operators::{
    hash::HashKey,
    log::{Append, Done, End, Frame, Log, LogError, Topic},
    remap::{RemapRow, Upto, Writer},
    time::LogTime,
};

/// How many partitions of events it has.
pub(super) const PARTITIONS: u16 = 2;

#[derive(Default)]
pub(super) struct MemoryLog {
    pub(super) frames: BTreeMap<(Topic, u16), Vec<Frame>>,
    /// What [`Log::first`] claims.
    pub(super) deleted: u64,
    /// Whether anyone may have written to it.
    pub(super) shared: bool,
}

impl MemoryLog {
    fn push(&mut self, append: Append, log_time: i64) {
        let frames = self.frames.entry((append.topic, append.partition)).or_default();
        frames.push(append.into_frame(frames.len() as u64, LogTime(log_time)));
    }

    fn end(&self, topic: Topic, partition: u16) -> u64 {
        self.frames.get(&(topic, partition)).map_or(0, |frames| frames.len() as u64)
    }
}

impl Log for MemoryLog {
    fn partitions(&self, topic: Topic) -> u16 {
        if topic == Topic::Events { PARTITIONS } else { 1 }
    }

    fn append(&self, _: Vec<Append>, _: Done) -> Result<(), LogError> {
        Err(LogError::Unavailable { reason: "verify appends nothing".into() })
    }

    fn ends(&self, topic: Topic) -> Vec<End> {
        (0..self.partitions(topic))
            .map(|partition| End {
                offset: self.end(topic, partition),
                complete_to: LogTime(0),
                bytes: 0,
                records: 0,
            })
            .collect()
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    fn first(&self, _: Topic, _: u16) -> u64 {
        self.deleted
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        _: usize,
    ) -> Result<Vec<Frame>, LogError> {
        let end = self.end(topic, partition);
        if from >= to || to > end {
            return Err(LogError::OutOfRange { topic, partition, offset: from, first: 0, end });
        }
        // One at a time, so that going on is tested.
        Ok(vec![self.frames[&(topic, partition)][from as usize].clone()])
    }

    fn offset_at(&self, _: Topic, _: u16, _: LogTime) -> Result<u64, LogError> {
        Err(LogError::Unavailable { reason: "verify asks for no times".into() })
    }
}

/// A log under construction, epoch by epoch.
pub(super) struct Made {
    pub(super) log: MemoryLog,
    pub(super) layout: Layout,
    last: RemapRow,
}

impl Made {
    pub(super) fn new() -> Made {
        Made {
            log: MemoryLog::default(),
            layout: Layout { partitions: PARTITIONS, key: HashKey([3; 16]) },
            last: RemapRow::origin(PARTITIONS, 1, 1),
        }
    }

    /// Appends events that the log takes at a time.
    pub(super) fn events(&mut self, log_time: i64, events: &[Event]) -> &mut Made {
        self.append(self.layout.frames(events, log_time), log_time)
    }

    /// Appends frames that the log takes at a time.
    pub(super) fn append(&mut self, frames: Vec<Append>, log_time: i64) -> &mut Made {
        frames.into_iter().for_each(|frame| self.log.push(frame, log_time));
        self
    }

    /// Appends a frame of verdicts that the log takes at a time.
    pub(super) fn verdicts(&mut self, log_time: i64, verdicts: &[Verdict]) -> &mut Made {
        let append = self.layout.verdict_frame(verdicts);
        self.log.push(append, log_time);
        self
    }

    /// Closes an epoch over all that was appended, all partitions complete to a time.
    pub(super) fn close(&mut self, complete_to: i64) -> &mut Made {
        let upto = |log: &MemoryLog, topic, partition| Upto {
            offset: log.end(topic, partition),
            log_time: LogTime(complete_to),
        };
        let row = RemapRow {
            epoch: self.last.epoch + 1,
            writer: Writer::default(),
            begins: false,
            events: (0..PARTITIONS).map(|p| upto(&self.log, Topic::Events, p)).collect(),
            verdicts: vec![upto(&self.log, Topic::Verdicts, 0)],
            metadata: vec![upto(&self.log, Topic::Metadata, 0)],
        };
        self.remap(row)
    }

    /// Appends any remap row.
    pub(super) fn remap(&mut self, row: RemapRow) -> &mut Made {
        let payload = row.encode().into();
        let (topic, schema_version, records) = (Topic::Remap, 1, 1);
        self.log.push(Append { topic, partition: 0, schema_version, records, payload }, 0);
        self.last = row;
        self
    }
}
