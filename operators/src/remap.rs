//! What an epoch is. A remap row names, for each partition of each topic, the offset that the
//! epoch ends before and the log time that the partition is complete to. The rows are a log
//! themselves ([`crate::log::Topic::Remap`]), one frame a row, durable before anything of their
//! epoch is visible: so a replay cuts the input exactly where the live run did.
//!
//! # Format, version 1, little-endian
//!
//! ```text
//! 0   u8   version = 1
//! 1   u8   reserved = 0
//! 2   u16  partitions of events     ─┐
//! 4   u16  partitions of verdicts    │ e, v, m
//! 6   u16  partitions of metadata   ─┘
//! 8   u64  epoch
//! 16  (e + v + m) × { u64 end offset, i64 log time in µs }
//! ```

use crate::{
    feed::EpochTimes,
    time::{Epoch, LogTime},
};

/// The version of the format above.
pub const REMAP_VERSION: u16 = 1;

/// How far a partition belongs to an epoch and to those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upto {
    /// The offset after the last frame.
    pub offset: u64,
    /// Frames before `offset` have at most, frames from it on at least this log time. An idle
    /// partition that is read to its end carries the time of closing.
    pub log_time: LogTime,
}

/// The definition of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemapRow {
    /// Which; the first is 1, and they follow one another without gaps.
    pub epoch: Epoch,
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
            events: none(events),
            verdicts: none(verdicts),
            metadata: none(metadata),
        }
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
        let mut bytes = vec![REMAP_VERSION as u8, 0];
        for part in parts {
            // At most `PARTITIONS_MAX`.
            bytes.extend((part.len() as u16).to_le_bytes());
        }
        bytes.extend(self.epoch.to_le_bytes());
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
        if u16::from(head[0]) != REMAP_VERSION {
            return Err(format!("a remap row has version {}, known is {REMAP_VERSION}", head[0]));
        }
        let count = |i: usize| usize::from(u16::from_le_bytes([head[i], head[i + 1]]));
        let epoch = u64::from_le_bytes(word(8).ok_or_else(short)?);
        let mut at = 16;
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
        let (events, verdicts, metadata) = (part(count(2))?, part(count(4))?, part(count(6))?);
        if at != bytes.len() {
            return Err(format!("a remap row has {} bytes, not {at}", bytes.len()));
        }
        Ok(RemapRow { epoch, events, verdicts, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_and_refuses_what_it_did_not_write() {
        let mut row = RemapRow::origin(3, 1, 1);
        row.epoch = 7;
        row.events[2] = Upto { offset: 9, log_time: LogTime(-5) };
        row.events[0] = Upto { offset: 1, log_time: LogTime(44) };
        let bytes = row.encode();
        assert_eq!(RemapRow::decode(&bytes), Ok(row.clone()));
        for cut in 0..bytes.len() {
            assert!(RemapRow::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert_eq!((row.frontier(), row.latest()), (LogTime(-5), LogTime(44)));
    }
}
