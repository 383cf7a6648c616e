//! The frames that were appended last, in memory, so that the dataflow, which follows the log
//! closely, never waits for a disk and nothing is copied: the buffer that the collector filled is
//! the buffer that the ledger reads.
//!
//! Bounded by `tail_bytes_max`; the oldest frame goes first, whatever its partition. A payload
//! counts with all the memory that it keeps alive. For each partition the cached frames are an
//! unbroken run up to the durable end, so one comparison says where a read must leave the disk.

use std::collections::VecDeque;
use trueup_operators::log::Frame;

/// What a frame costs besides its payload.
const FRAME_OVERHEAD_BYTES: usize = 128;

#[derive(Debug)]
pub(crate) struct Tail {
    bytes_max: usize,
    bytes: usize,
    partitions: Vec<VecDeque<Frame>>,
    /// The slot of each cached frame, oldest first.
    ages: VecDeque<u32>,
}

impl Tail {
    pub(crate) fn new(slots: usize, bytes_max: usize) -> Tail {
        let partitions = (0..slots).map(|_| VecDeque::new()).collect();
        Tail { bytes_max, bytes: 0, partitions, ages: VecDeque::new() }
    }

    /// Takes the next frame of a partition.
    pub(crate) fn push(&mut self, slot: usize, frame: Frame) {
        let last = self.partitions[slot].back();
        debug_assert!(last.is_none_or(|last| last.offset + 1 == frame.offset));
        self.bytes += held_bytes(&frame);
        self.partitions[slot].push_back(frame);
        self.ages.push_back(slot as u32);
        while self.bytes > self.bytes_max {
            let Some(slot) = self.ages.pop_front() else { break };
            if let Some(evicted) = self.partitions[slot as usize].pop_front() {
                self.bytes -= held_bytes(&evicted);
            }
        }
    }

    /// Appends frames `from..to` of a partition to `out`, if `from` is cached.
    pub(crate) fn read(&self, slot: usize, from: u64, to: u64, out: &mut Vec<Frame>) {
        let frames = &self.partitions[slot];
        let Some(first) = frames.front().map(|frame| frame.offset) else { return };
        if let Some(skipped) = from.checked_sub(first) {
            let frames = frames.iter().skip(skipped as usize);
            out.extend(frames.take_while(|frame| frame.offset < to).cloned());
        }
    }

    /// The first cached offset of a partition.
    pub(crate) fn first(&self, slot: usize) -> Option<u64> {
        self.partitions[slot].front().map(|frame| frame.offset)
    }

    /// The memory that is held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn held_bytes(frame: &Frame) -> usize {
    FRAME_OVERHEAD_BYTES + frame.payload.len().max(frame.payload.capacity())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_buffer::Buffer;
    use trueup_operators::time::LogTime;

    fn frame(offset: u64) -> Frame {
        Frame {
            partition: 0,
            offset,
            next: offset + 1,
            log_time: LogTime(0),
            schema_version: 1,
            records: 1,
            payload: Buffer::from_vec(vec![offset as u8; 1_000]),
            foreign: None,
        }
    }

    #[test]
    fn the_oldest_frames_go_first_and_memory_stays_bounded() {
        let mut tail = Tail::new(2, 10_000);
        for offset in 0..40 {
            tail.push((offset % 2) as usize, frame(offset / 2));
            assert!(tail.bytes() <= 10_000);
        }
        let mut out = Vec::new();
        tail.read(0, 18, 20, &mut out);
        assert_eq!(out.iter().map(|f| f.offset).collect::<Vec<_>>(), [18, 19]);
        out.clear();
        tail.read(0, 3, 20, &mut out);
        assert!(out.is_empty(), "offset 3 was evicted; what follows it is not what was asked for");
        assert_eq!(tail.first(0), Some(16));
    }

    #[test]
    fn a_frame_larger_than_the_cache_is_not_held() {
        let mut tail = Tail::new(1, 500);
        tail.push(0, frame(0));
        assert_eq!((tail.bytes(), tail.first(0)), (0, None));
        tail.push(0, frame(1));
        assert_eq!(tail.bytes(), 0);
    }
}
