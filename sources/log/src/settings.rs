//! What an operator may set, and the limits that stand.

use crate::{format::PAYLOAD_BYTES_MAX, positions::FRAMES_HELD_MAX};
use std::str::FromStr;
use trueup_operators::log::{LogError, PARTITIONS_MAX};

/// A group of requests that is written and synced at once ends at this size, so that a request
/// waits for some tens of milliseconds of writing at most, and a crash tears no more than this
/// (or one request, if that is larger).
pub(crate) const GROUP_BYTES_MAX: u64 = 16 << 20;
/// Space is reserved in steps of this, ahead of the frames: a full disk is found before a frame is
/// torn, and a sync need not find room first (BENCHMARKS.md says what that brings).
pub(crate) const PREALLOCATE_BYTES: u64 = 32 << 20;
/// The largest value of `segment_bytes_max`.
pub const SEGMENT_BYTES_LIMIT: u64 = 16 << 30;
/// The smallest value of `segment_bytes_max`: room for the largest header and some frames.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 10;

const _: () = assert!((PAYLOAD_BYTES_MAX as u64) < SEGMENT_BYTES_LIMIT);
// Positions are 32 bits of 64 bytes, with room for a request that exceeds its segment.
const _: () = assert!(SEGMENT_BYTES_LIMIT * 8 < (u32::MAX as u64) * 64);

/// When bytes are forced to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// Once for each group, before any of its requests is acknowledged.
    #[default]
    Batch,
    /// Only when a segment is full and when the journal is closed. Acknowledged frames survive
    /// kill -9, but not a power failure: for tests and benchmarks.
    Never,
}

impl FromStr for Fsync {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Fsync, LogError> {
        match text {
            "batch" => Ok(Fsync::Batch),
            "never" => Ok(Fsync::Never),
            _ => Err(invalid(format!("fsync is {text:?}; it can be \"batch\" or \"never\""))),
        }
    }
}

/// How a journal is kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Partitions of the events topic; fixed when the data directory is created.
    pub partitions: u16,
    /// A segment file ends before this, unless one request alone is larger.
    pub segment_bytes_max: u64,
    /// The memory that the frames appended last may take.
    pub tail_bytes_max: usize,
    /// The bytes that may wait to be written; beyond it appends are refused as busy.
    pub queue_bytes_max: u64,
    /// The most frames that are held of the remap topic, and as many of all others together: what
    /// is appended beyond it is refused. (What waits in the queue at that moment is still written.)
    pub frames_max: u64,
    /// When bytes are forced to the disk.
    pub fsync: Fsync,
    /// How far the clock may stand behind the last log time, µs. Farther behind, nothing is
    /// appended: log times would be so far ahead of the events that these would not count.
    pub clock_behind_us_max: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            partitions: 4,
            segment_bytes_max: 256 << 20,
            tail_bytes_max: 256 << 20,
            queue_bytes_max: 128 << 20,
            frames_max: FRAMES_HELD_MAX,
            fsync: Fsync::Batch,
            clock_behind_us_max: 12 * 3_600_000_000,
        }
    }
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), LogError> {
        if !(1..=PARTITIONS_MAX).contains(&self.partitions) {
            let partitions = self.partitions;
            return Err(invalid(format!(
                "partitions is {partitions}; it can be 1 to {PARTITIONS_MAX}"
            )));
        }
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_LIMIT).contains(&self.segment_bytes_max) {
            return Err(invalid(format!(
                "segment_bytes_max is {}; it can be {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_LIMIT}",
                self.segment_bytes_max
            )));
        }
        if !(1..=FRAMES_HELD_MAX).contains(&self.frames_max) {
            let frames_max = self.frames_max;
            return Err(invalid(format!(
                "frames_max is {frames_max}; it can be 1 to {FRAMES_HELD_MAX}"
            )));
        }
        // A single request may fill the queue and then a segment of its own.
        if !(1..=SEGMENT_BYTES_LIMIT).contains(&self.queue_bytes_max) {
            return Err(invalid(format!(
                "queue_bytes_max is {}; it can be 1 to {SEGMENT_BYTES_LIMIT}",
                self.queue_bytes_max
            )));
        }
        Ok(())
    }
}

pub(crate) fn invalid(reason: String) -> LogError {
    LogError::Invalid { reason }
}
