//! What the ledger keeps of an event: 32 bytes, two to a cache line.
//!
//! ```text
//! 0   id        16 bytes  keyed hash of the event id; events are told apart by it alone
//! 16  payload    4 bytes  low half of the payload's hash: another payload under the same id goes
//!                         unnoticed once in 2³² by chance, and whenever a sender constructs it;
//!                         it then counts as a copy, and no figure of anybody changes
//! 20  minute    27 bits   of the event time, since 1970: up to the year 2225
//!     flags      5 bits
//! 24  place      8 bytes  partition 8 bits, offset 40 bits, row 16 bits
//! ```
//!
//! What the event contributes to the views is not here. When a verdict changes how an event
//! stands, the batch is read back from its place in the log.

use super::Standing;
use crate::{
    event::Position,
    hash::IdHash,
    time::{Bucket, MINUTE_US},
};

/// A verdict on the event says invalid, or it was born so and no verdict says otherwise.
pub(super) const EVENT_INVALID: u32 = 1;
/// A verdict on the event's impression says invalid.
pub(super) const GROUP_INVALID: u32 = 2;
/// The source of the event took it as invalid.
pub(super) const BORN_INVALID: u32 = 4;
/// It came after the correction horizon and stands in no row.
pub(super) const TOO_LATE: u32 = 8;
/// It belongs to an impression.
pub(super) const HAS_GROUP: u32 = 16;

/// The flags that a verdict may change once the row is entered.
pub(super) const JUDGED: u32 = EVENT_INVALID | GROUP_INVALID;
/// Bytes of a row, in memory and in an image.
pub(super) const ROW_BYTES: usize = 32;

const FLAG_BITS: u32 = 5;
const MINUTE_MAX: i32 = (1 << (32 - FLAG_BITS)) - 1;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Row {
    pub(super) id: IdHash,
    pub(super) payload: u32,
    minute_and_flags: u32,
    pub(super) place: Place,
}

const _: () = assert!(size_of::<Row>() == ROW_BYTES);

impl Row {
    #[inline(always)]
    pub(super) fn new(id: IdHash, payload: u64, minute: Bucket, flags: u32, place: Place) -> Row {
        let minute = (minute.0 as u32) << FLAG_BITS;
        Row { id, payload: payload as u32, minute_and_flags: minute | flags, place }
    }

    #[inline(always)]
    pub(super) fn minute(&self) -> Bucket {
        Bucket((self.minute_and_flags >> FLAG_BITS) as i32)
    }

    #[inline(always)]
    pub(super) fn has(&self, flag: u32) -> bool {
        self.minute_and_flags & flag != 0
    }

    #[inline(always)]
    pub(super) fn set(&mut self, flag: u32, on: bool) {
        self.minute_and_flags = self.minute_and_flags & !flag | if on { flag } else { 0 };
    }

    /// What verdicts have made of it: [`EVENT_INVALID`] and [`GROUP_INVALID`].
    #[inline(always)]
    pub(super) fn judged(&self) -> u32 {
        self.minute_and_flags & JUDGED
    }

    /// The row as the drawing above has it, little-endian.
    pub(super) fn to_bytes(self) -> [u8; ROW_BYTES] {
        let mut bytes = [0; ROW_BYTES];
        bytes[..16].copy_from_slice(&self.id);
        bytes[16..20].copy_from_slice(&self.payload.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.minute_and_flags.to_le_bytes());
        bytes[24..].copy_from_slice(&self.place.0.to_le_bytes());
        bytes
    }

    /// The inverse of [`Row::to_bytes`]; any bytes are a row.
    pub(super) fn from_bytes(bytes: &[u8; ROW_BYTES]) -> Row {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let middle = word(16);
        Row {
            id: std::array::from_fn(|i| bytes[i]),
            payload: middle as u32,
            minute_and_flags: (middle >> 32) as u32,
            place: Place(word(24)),
        }
    }

    #[inline(always)]
    pub(super) fn standing(&self) -> Standing {
        if self.has(TOO_LATE) {
            Standing::Absent
        } else if self.has(EVENT_INVALID | GROUP_INVALID) {
            Standing::Invalid
        } else {
            Standing::Valid
        }
    }
}

/// The minute of an event as a row can hold it. Times before 1970 and after 2225 stand at the
/// limits; the collector takes neither.
#[inline(always)]
pub(super) fn minute_of(time_us: i64) -> Bucket {
    Bucket(time_us.div_euclid(MINUTE_US).clamp(0, i64::from(MINUTE_MAX)) as i32)
}

/// Where an event is in the log. Orders as (partition, offset, row).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(pub(super) u64);

impl Place {
    /// The first row of a batch. The caller has checked the limits of the log.
    #[inline(always)]
    pub(super) fn of_batch(partition: u16, offset: u64) -> Place {
        Place(u64::from(partition) << 56 | offset << 16)
    }

    /// Another row of the same batch.
    #[inline(always)]
    pub(super) fn with_row(self, row: usize) -> Place {
        Place(self.0 & !0xFFFF | row as u64 & 0xFFFF)
    }

    /// The same for all rows of a batch.
    pub(super) fn batch(self) -> Place {
        self.with_row(0)
    }

    pub(super) fn position(self) -> Position {
        Position {
            partition: (self.0 >> 56) as u16,
            offset: self.0 >> 16 & crate::log::OFFSET_MAX,
            row: self.0 as u16,
        }
    }
}

/// A hash of an id that has nothing to do with its vnode, for the vnode's index. Ids are keyed
/// hashes already; the multiplication is for those of a job whose ids are counted up.
#[inline(always)]
pub(super) fn spread(id: &IdHash) -> u64 {
    let word = u128::from_le_bytes(*id);
    let mixed =
        (word as u64 ^ ((word >> 64) as u64).rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_it_was_made_of() {
        let place = Place::of_batch(255, crate::log::OFFSET_MAX).with_row(65_535);
        let minute = minute_of(4_102_444_800_000_000); // 2100-01-01
        let mut row = Row::new([7; 16], u64::MAX - 1, minute, HAS_GROUP | TOO_LATE, place);
        assert_eq!(row.minute(), minute);
        assert_eq!(minute.0 as i64 * MINUTE_US, 4_102_444_800_000_000);
        let Position { partition, offset, row: r } = row.place.position();
        assert_eq!((partition, offset, r), (255, crate::log::OFFSET_MAX, 65_535));
        assert_eq!((row.payload, row.standing()), (u32::MAX - 1, Standing::Absent));
        assert_eq!(Row::from_bytes(&row.to_bytes()), row);
        row.set(TOO_LATE, false);
        assert_eq!(row.standing(), Standing::Valid);
        row.set(GROUP_INVALID, true);
        assert_eq!((row.standing(), row.minute()), (Standing::Invalid, minute));
    }

    #[test]
    fn times_outside_stand_at_the_limits() {
        assert_eq!(minute_of(-1), Bucket(0));
        assert_eq!(minute_of(i64::MIN), Bucket(0));
        assert_eq!(minute_of(i64::MAX), Bucket(MINUTE_MAX));
    }
}
