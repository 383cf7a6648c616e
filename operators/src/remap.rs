//! What an epoch is. A remap row names, for each partition of each topic, the offset that the
//! epoch ends before and the log time that the partition is complete to. The rows are a log
//! themselves ([`crate::log::Topic::Remap`]), one frame a row, durable before anything of their
//! epoch is visible: so a replay cuts the input exactly where the live run did.
//!
//! # Which rows count
//!
//! A log that several processes can append to may get rows of a writer that should have stopped
//! (a *zombie*), or of two that both think that they lead. So each row names the *generation* of
//! its writer, which is greater than any before when a writer begins, and the writer. In the order
//! of the log a row counts if [`RemapRow::follows`] the last one that counted; all others are
//! void, for whoever reads and whenever. The order of the log decides, so appending is a
//! compare-and-append without any transaction: who appended reads on to its own row to learn
//! whether it counts.
//!
//! # Where a log begins
//!
//! A log that others wrote to before the first start may no longer have its beginning. Then the
//! first row *begins*: it holds nothing, and its offsets say from where on epochs hold anything. So
//! that is decided once, like everything else about epochs, whatever is deleted later.
//!
//! # Format, version 2, little-endian
//!
//! ```text
//! 0   u8   version = 2
//! 1   u8   1: the row begins; else 0
//! 2   u16  partitions of events     ─┐
//! 4   u16  partitions of verdicts    │ e, v, m
//! 6   u16  partitions of metadata   ─┘
//! 8   u64  epoch
//! 16  u64  generation                  not in version 1: 0
//! 24  u64  writer                      not in version 1: 0
//! 32  (e + v + m) × { u64 end offset, i64 log time in µs }       version 1: from 16 on
//! ```

use crate::{
    feed::EpochTimes,
    log::Topic,
    time::{Epoch, LogTime},
};

/// The version of the format above.
pub const REMAP_VERSION: u16 = 2;

/// Who closes epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    /// Greater than that of every writer that began before.
    pub generation: u64,
    /// Tells two writers apart that took the same generation at once.
    pub nonce: u64,
}

/// How far a partition belongs to an epoch and to those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upto {
    /// The offset after the last frame.
    pub offset: u64,
    /// Frames before `offset` have at most, frames from it on at least this log time: where the
    /// clocks of a shared log say otherwise, the row is right and who reads the epoch makes it so.
    /// An idle partition that is read to its end carries the time of closing.
    pub log_time: LogTime,
}

/// The definition of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemapRow {
    /// Which; the first is 1, and they follow one another without gaps.
    pub epoch: Epoch,
    /// Who closed it.
    pub writer: Writer,
    /// It holds nothing: what is before its offsets belongs to no epoch.
    pub begins: bool,
    /// By partition of the events topic.
    pub events: Vec<Upto>,
    /// By partition of the verdicts topic.
    pub verdicts: Vec<Upto>,
    /// By partition of the metadata topic.
    pub metadata: Vec<Upto>,
}

impl RemapRow {
    /// Before the first epoch: nothing of any partition.
    pub fn origin(events: u16, verdicts: u16, metadata: u16) -> RemapRow {
        let none = |n: u16| vec![Upto::default(); n.into()];
        RemapRow {
            epoch: 0,
            writer: Writer::default(),
            begins: false,
            events: none(events),
            verdicts: none(verdicts),
            metadata: none(metadata),
        }
    }

    /// Whether the row counts, read after `last` which was the last one that did.
    pub fn follows(&self, last: &RemapRow) -> bool {
        let (new, old) = (self.writer, last.writer);
        self.epoch == last.epoch + 1 && (new == old || new.generation > old.generation)
    }

    /// How far a partition belongs to the epoch. A partition that the row does not know yet belongs
    /// to later epochs with all that it holds, and is as far as the others.
    pub fn upto(&self, topic: Topic, partition: u16) -> Upto {
        let uptos = match topic {
            Topic::Events => &self.events,
            Topic::Verdicts => &self.verdicts,
            Topic::Metadata => &self.metadata,
            Topic::Remap => &[][..],
        };
        let beyond = Upto { offset: 0, log_time: self.frontier() };
        uptos.get(usize::from(partition)).copied().unwrap_or(beyond)
    }

    /// What events and verdicts are complete to: the least log time of their partitions. (Metadata
    /// decides nothing that has a time.)
    pub fn frontier(&self) -> LogTime {
        self.timed().map(|u| u.log_time).min().unwrap_or_default()
    }

    /// The greatest log time of their partitions: no event of this epoch or before it is younger.
    pub fn latest(&self) -> LogTime {
        self.timed().map(|u| u.log_time).max().unwrap_or_default()
    }

    /// The epoch's times, given the row before it.
    pub fn times(&self, before: &RemapRow) -> EpochTimes {
        EpochTimes {
            epoch: self.epoch,
            frontier_before: before.frontier(),
            frontier: self.frontier(),
            latest: self.latest(),
        }
    }

    fn timed(&self) -> impl Iterator<Item = &Upto> {
        self.events.iter().chain(&self.verdicts)
    }

    /// Writes the format above.
    pub fn encode(&self) -> Vec<u8> {
        let parts = [&self.events, &self.verdicts, &self.metadata];
        let mut bytes = vec![REMAP_VERSION as u8, self.begins.into()];
        for part in parts {
            // At most `PARTITIONS_MAX`.
            bytes.extend((part.len() as u16).to_le_bytes());
        }
        for word in [self.epoch, self.writer.generation, self.writer.nonce] {
            bytes.extend(word.to_le_bytes());
        }
        for upto in parts.into_iter().flatten() {
            bytes.extend(upto.offset.to_le_bytes());
            bytes.extend(upto.log_time.0.to_le_bytes());
        }
        bytes
    }

    /// Reads the format above.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<RemapRow, String> {
        let word = |at: usize| -> Option<[u8; 8]> { bytes.get(at..at + 8)?.try_into().ok() };
        let short = || format!("a remap row of {} bytes is cut short", bytes.len());
        let head = word(0).ok_or_else(short)?;
        let number = |at| word(at).map(u64::from_le_bytes).ok_or_else(short);
        let count = |i: usize| usize::from(u16::from_le_bytes([head[i], head[i + 1]]));
        let epoch = number(8)?;
        let (writer, mut at) = match head[0] {
            1 => (Writer::default(), 16),
            2 => (Writer { generation: number(16)?, nonce: number(24)? }, 32),
            other => {
                return Err(format!("a remap row has version {other}, known are 1 and 2"));
            }
        };
        let mut part = |n: usize| -> Result<Vec<Upto>, String> {
            let mut uptos = Vec::with_capacity(n);
            for _ in 0..n {
                let offset = u64::from_le_bytes(word(at).ok_or_else(short)?);
                let log_time = LogTime(i64::from_le_bytes(word(at + 8).ok_or_else(short)?));
                uptos.push(Upto { offset, log_time });
                at += 16;
            }
            Ok(uptos)
        };
        let begins = match head[1] {
            flag @ (0 | 1) => flag == 1,
            other => return Err(format!("a remap row has the flag {other}, known are 0 and 1")),
        };
        let (events, verdicts, metadata) = (part(count(2))?, part(count(4))?, part(count(6))?);
        if at != bytes.len() {
            return Err(format!("a remap row has {} bytes, not {at}", bytes.len()));
        }
        Ok(RemapRow { epoch, writer, begins, events, verdicts, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_and_refuses_what_it_did_not_write() {
        let mut row = RemapRow::origin(3, 1, 1);
        row.epoch = 7;
        row.begins = true;
        row.writer = Writer { generation: 3, nonce: u64::MAX };
        row.events[2] = Upto { offset: 9, log_time: LogTime(-5) };
        row.events[0] = Upto { offset: 1, log_time: LogTime(44) };
        let bytes = row.encode();
        assert_eq!(RemapRow::decode(&bytes), Ok(row.clone()));
        for cut in 0..bytes.len() {
            assert!(RemapRow::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert_eq!((row.frontier(), row.latest()), (LogTime(-5), LogTime(44)));
        let unknown = [&bytes[..1], &[2], &bytes[2..]].concat();
        let error = RemapRow::decode(&unknown).expect_err("no flag of ours");
        assert!(error.contains("flag 2"), "{error}");
        let unknown = [&[9], &bytes[1..]].concat();
        let error = RemapRow::decode(&unknown).expect_err("no version of ours");
        assert!(error.contains("version 9"), "{error}");
    }

    #[test]
    fn reads_rows_of_the_first_version() {
        let mut row = RemapRow::origin(1, 1, 1);
        row.epoch = 9;
        row.verdicts[0] = Upto { offset: 4, log_time: LogTime(2) };
        let bytes = row.encode();
        let first = [&[1], &bytes[1..16], &bytes[32..]].concat();
        assert_eq!(RemapRow::decode(&first), Ok(row));
    }

    #[test]
    fn the_rows_of_a_writer_that_was_superseded_are_void() {
        let row = |epoch, generation, nonce| RemapRow {
            epoch,
            writer: Writer { generation, nonce },
            ..RemapRow::origin(1, 1, 1)
        };
        let last = row(5, 2, 7);
        assert!(row(6, 2, 7).follows(&last), "the same writer goes on");
        assert!(row(6, 3, 1).follows(&last), "a new one begins");
        assert!(!row(6, 1, 7).follows(&last), "a zombie");
        assert!(!row(6, 2, 8).follows(&last), "of two that began at once the first one counts");
        assert!(!row(5, 3, 1).follows(&last), "an epoch that is closed already");
        assert!(!row(7, 3, 1).follows(&last), "a gap");
    }

    #[test]
    fn a_partition_that_is_new_is_as_far_as_the_others() {
        let mut row = RemapRow::origin(2, 1, 1);
        let upto = |offset, time| Upto { offset, log_time: LogTime(time) };
        (row.events, row.verdicts) = (vec![upto(3, 30), upto(4, 20)], vec![upto(1, 40)]);
        assert_eq!(row.upto(Topic::Events, 1), upto(4, 20));
        assert_eq!(row.upto(Topic::Events, 2), upto(0, 20));
    }
}
