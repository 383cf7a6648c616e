//! A log in memory, filled before the clock starts: frames, verdicts and remap rows. What the
//! engine does with it is what it does with a log that was written before a restart.

use std::collections::BTreeMap;
use trueup_operators::{
    log::{Append, Done, End, Frame, Log, LogError, Topic},
    remap::{REMAP_VERSION, RemapRow, Upto, Writer},
    time::LogTime,
};

/// Frames by topic and partition.
pub(super) struct MemoryLog {
    partitions: u16,
    frames: BTreeMap<(Topic, u16), Vec<Frame>>,
    bytes: u64,
}

impl MemoryLog {
    pub(super) fn new(partitions: u16) -> MemoryLog {
        MemoryLog { partitions, frames: BTreeMap::new(), bytes: 0 }
    }

    /// Appends what one epoch holds, and its remap row.
    pub(super) fn add_epoch(&mut self, frames: Vec<Append>, log_time: LogTime) {
        for frame in frames {
            self.add(frame, log_time);
        }
        let upto = |topic, partition| Upto { offset: self.end(topic, partition), log_time };
        let row = RemapRow {
            epoch: self.end(Topic::Remap, 0) + 1,
            writer: Writer::default(),
            begins: false,
            events: (0..self.partitions).map(|p| upto(Topic::Events, p)).collect(),
            verdicts: vec![upto(Topic::Verdicts, 0)],
            metadata: vec![upto(Topic::Metadata, 0)],
        };
        let remap = Append {
            topic: Topic::Remap,
            partition: 0,
            schema_version: REMAP_VERSION,
            records: 1,
            payload: row.encode().into(),
        };
        self.add(remap, log_time);
    }

    fn add(&mut self, append: Append, log_time: LogTime) {
        let (topic, partition) = (append.topic, append.partition);
        self.bytes += append.payload.len() as u64;
        let frame = append.into_frame(self.end(topic, partition), log_time);
        self.frames.entry((topic, partition)).or_default().push(frame);
    }

    fn end(&self, topic: Topic, partition: u16) -> u64 {
        self.frames.get(&(topic, partition)).map_or(0, |frames| frames.len() as u64)
    }

    /// The last epoch.
    pub(super) fn epochs(&self) -> u64 {
        self.end(Topic::Remap, 0)
    }

    /// All payloads.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Log for MemoryLog {
    fn partitions(&self, topic: Topic) -> u16 {
        if topic == Topic::Events { self.partitions } else { 1 }
    }

    fn append(&self, _: Vec<Append>, _: Done) -> Result<(), LogError> {
        // A measurement ends with the epochs that it began with.
        Err(LogError::Unavailable { reason: "the log of a measurement takes nothing".into() })
    }

    fn ends(&self, topic: Topic) -> Vec<End> {
        (0..self.partitions(topic))
            .map(|partition| {
                let frames = self.frames.get(&(topic, partition)).map_or(&[][..], |f| f);
                End {
                    offset: frames.len() as u64,
                    complete_to: frames.last().map_or(LogTime(0), |frame| frame.log_time),
                    bytes: 0,
                    records: frames.iter().map(|frame| u64::from(frame.records)).sum(),
                }
            })
            .collect()
    }

    fn first(&self, _: Topic, _: u16) -> u64 {
        0
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        let frames = self.frames.get(&(topic, partition)).map_or(&[][..], |frames| frames);
        let wanted = frames.get(from as usize..to as usize).ok_or(LogError::OutOfRange {
            topic,
            partition,
            offset: from,
            first: 0,
            end: frames.len() as u64,
        })?;
        let mut bytes = 0;
        let fits = |frame: &&Frame| {
            bytes += frame.payload.len();
            bytes <= bytes_max
        };
        let count = wanted.iter().take_while(fits).count().max(1);
        Ok(wanted[..count.min(wanted.len())].to_vec())
    }

    fn offset_at(&self, topic: Topic, partition: u16, time: LogTime) -> Result<u64, LogError> {
        let frames = self.frames.get(&(topic, partition)).map_or(&[][..], |frames| frames);
        Ok(frames.partition_point(|frame| frame.log_time < time) as u64)
    }
}
