//! Where every frame is: for each partition, in the order of offsets, the segment, the position in
//! it, the length, the records and the log time, 24 bytes a frame. So a read seeks nowhere but in
//! memory, and a time is found by binary search. It is bounded by `Settings::frames_max`, at most
//! [`FRAMES_HELD_MAX`]: frames of some tens of KiB fill any disk before that, but small requests
//! make frames of some hundred bytes, and of those 64 Mi are a dozen GiB. So the limit is met in
//! earnest: retention by size is what stays below it.

use crate::format::{FrameHeader, UNIT_BYTES, frame_bytes, units};
use std::collections::VecDeque;
use trueup_operators::time::LogTime;

/// The most frames that a journal can be set to hold of the remap topic, and as many of all other
/// topics together; 1.5 GiB of positions each. The remap topic has room of its own, so that what
/// was taken becomes visible, checkpoints go on, and with them retention. At a limit nothing more
/// is appended until retention deletes some.
pub const FRAMES_HELD_MAX: u64 = 64 << 20;

/// Where one frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) log_time: LogTime,
    /// The segment's number in this process.
    pub(crate) segment: u32,
    pub(crate) at_units: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) records: u32,
}

const _: () = assert!(size_of::<Position>() == 24);

impl Position {
    pub(crate) fn of(header: &FrameHeader, segment: u32, at: u64) -> Position {
        Position {
            log_time: header.log_time,
            segment,
            at_units: units(at),
            payload_bytes: header.payload_bytes,
            records: header.records,
        }
    }

    /// The frame's first byte in its segment.
    pub(crate) const fn at(&self) -> u64 {
        self.at_units as u64 * UNIT_BYTES
    }

    /// The first byte after the frame.
    pub(crate) const fn end(&self) -> u64 {
        self.at() + frame_bytes(self.payload_bytes)
    }
}

/// The frames of one partition that are held.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    /// The offset of the first frame held.
    pub(crate) first: u64,
    frames: VecDeque<Position>,
    /// Of all frames held, headers included.
    pub(crate) bytes: u64,
    /// Of those that were held once and are no more.
    forgotten_bytes: u64,
}

impl Partition {
    pub(crate) fn starting_at(first: u64) -> Partition {
        Partition { first, ..Partition::default() }
    }

    /// The offset after the last frame.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// How many are held.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Bytes of all frames that were ever held.
    pub(crate) fn bytes_taken(&self) -> u64 {
        self.bytes + self.forgotten_bytes
    }

    pub(crate) fn push(&mut self, position: Position) {
        debug_assert!(self.frames.back().is_none_or(|last| last.log_time <= position.log_time));
        self.bytes += frame_bytes(position.payload_bytes);
        self.frames.push_back(position);
    }

    /// Forgets the frames below an offset; how many those were.
    pub(crate) fn forget_below(&mut self, first: u64) -> u64 {
        let forgotten = first.clamp(self.first, self.end()) - self.first;
        for position in self.frames.drain(..forgotten as usize) {
            let bytes = frame_bytes(position.payload_bytes);
            self.bytes -= bytes;
            self.forgotten_bytes += bytes;
        }
        self.first += forgotten;
        forgotten
    }

    /// Frames `from..to` up to a sum of payload bytes, but at least one. `from` must be held.
    pub(crate) fn range(&self, from: u64, to: u64, bytes_max: usize) -> Vec<Position> {
        let mut bytes = 0;
        let start = (from - self.first) as usize;
        let frames = self.frames.range(start..(to - self.first) as usize);
        let fitting = frames.enumerate().take_while(|(nth, position)| {
            bytes += position.payload_bytes as usize;
            *nth == 0 || bytes <= bytes_max
        });
        fitting.map(|(_, position)| *position).collect()
    }

    /// The first offset whose frame has a log time of at least `time`; the end if there is none.
    pub(crate) fn offset_at(&self, time: LogTime) -> u64 {
        self.first + self.frames.partition_point(|position| position.log_time < time) as u64
    }

    /// The frames of the last segment, with their offsets, last first.
    pub(crate) fn back_in(&self, segment: u32) -> impl Iterator<Item = (u64, Position)> {
        let offsets = (self.first..self.end()).rev();
        offsets
            .zip(self.frames.iter().rev().copied())
            .take_while(move |(_, position)| position.segment == segment)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn partition() -> Partition {
        let mut partition = Partition::starting_at(100);
        for nth in 0..10_u64 {
            partition.push(Position {
                log_time: LogTime(10 * (nth / 2) as i64),
                segment: (nth / 5) as u32,
                at_units: units(nth * 192),
                payload_bytes: 70,
                records: 1,
            });
        }
        partition
    }

    #[test]
    fn ranges_end_at_the_byte_limit_but_hold_one() {
        let partition = partition();
        assert_eq!(partition.range(103, 110, 0).len(), 1);
        assert_eq!(partition.range(103, 110, 140).len(), 2);
        assert_eq!(partition.range(103, 110, usize::MAX).len(), 7);
        assert_eq!(partition.range(103, 110, usize::MAX)[0].at(), 3 * 192);
        assert!(partition.range(110, 110, 10).is_empty());
    }

    #[test]
    fn times_find_the_first_frame_at_or_after_them() {
        let partition = partition();
        for (time, offset) in [(-1, 100), (0, 100), (1, 102), (10, 102), (40, 108), (41, 110)] {
            assert_eq!(partition.offset_at(LogTime(time)), offset, "time {time}");
        }
    }

    #[test]
    fn forgetting_moves_the_first_offset_and_the_bytes() {
        let mut partition = partition();
        assert_eq!(partition.bytes, 10 * 192);
        assert_eq!(partition.forget_below(90), 0);
        assert_eq!(partition.forget_below(104), 4);
        assert_eq!((partition.first, partition.end(), partition.bytes), (104, 110, 6 * 192));
        let back: Vec<u64> = partition.back_in(1).map(|(offset, _)| offset).collect();
        assert_eq!(back, [109, 108, 107, 106, 105]);
        assert_eq!(partition.forget_below(1_000), 6);
        assert_eq!((partition.first, partition.bytes), (110, 0));
        assert_eq!(partition.bytes_taken(), 10 * 192);
    }
}
