//! The bytes of a segment file. Everything is little-endian and in units of 64 bytes: a position
//! is a multiple of 64, so it fits 32 bits, and a run of frames that is read into 64-byte aligned
//! memory has every payload aligned as Arrow wants it, without a copy.
//!
//! # Segment file
//!
//! ```text
//! byte  size
//!    0     8  magic "TRUEUPSG"
//!    8     2  format version, 1
//!   10     2  entries in the table
//!   12     4  bytes of this header, table and padding included (a multiple of 64)
//!   16     8  journal: 8 random bytes from `identity`
//!   24     8  sequence of the first frame; the file's name, too
//!   32     8  log time that no frame of this segment is below, µs
//!   40    20  zero
//!   60     4  CRC-32C of bytes 0…59 and of everything from byte 64 to the end of the header
//!   64  24·n  for each partition: topic u8, zero u8, partition u16, zero u32, next offset u64,
//!             records so far u64
//!    …        zeros up to a multiple of 64, then frames
//! ```
//!
//! The table lets a segment stand alone: offsets go on where they were even when retention has
//! deleted every frame of a partition.
//!
//! # Frame
//!
//! ```text
//! byte  size
//!    0     4  magic "TUFR"
//!    4     1  version, 1
//!    5     1  topic; 255 is a *mark*, which holds no records
//!    6     2  partition
//!    8     8  sequence: the frame's number in the whole journal, without gaps
//!   16     8  offset: its number in its partition, without gaps
//!   24     8  log time, µs; never decreases from frame to frame of the journal
//!   32     4  bytes of the payload
//!   36     4  records in the payload
//!   40     2  schema version
//!   42     2  zero
//!   44     4  durable_to, in units of 64 bytes
//!   48     8  journal, as in the segment's header
//!   56     4  CRC-32C of the payload
//!   60     4  CRC-32C of bytes 0…59
//!   64     …  the payload, then zeros up to a multiple of 64
//! ```
//!
//! **`durable_to`** is the position below which the writer knew this segment to be durable when it
//! wrote the frame. It is what tells a torn write from damage (see `scan.rs`): a bad byte below
//! the `durable_to` of any frame was once good on disk.
//!
//! **`journal`** cannot be guessed, so no payload, whatever a client sends, can look like a frame.

use crate::slot::{Slots, topic_from_code};
use trueup_operators::{
    log::{FRAME_RECORDS_MAX, OFFSET_MAX, Topic},
    time::LogTime,
};

/// The unit of positions and of alignment, and the size of a frame's header.
pub(crate) const UNIT_BYTES: u64 = 64;
/// The size of a frame's header.
pub(crate) const HEADER_BYTES: usize = 64;
/// The most bytes that a frame may hold.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

const VERSION: u8 = 1;
const FRAME_MAGIC: &[u8; 4] = b"TUFR";
const SEGMENT_MAGIC: &[u8; 8] = b"TRUEUPSG";
const SEGMENT_VERSION: u16 = 1;
const MARK: u8 = u8::MAX;
const TABLE_ENTRY_BYTES: usize = 24;

const _: () = assert!(HEADER_BYTES as u64 == UNIT_BYTES);
const _: () = assert!(PAYLOAD_BYTES_MAX < u32::MAX as usize);

/// Rounded up to whole units.
pub(crate) const fn padded(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT_BYTES) * UNIT_BYTES
}

/// What a frame takes on disk.
pub(crate) const fn frame_bytes(payload_bytes: u32) -> u64 {
    UNIT_BYTES + padded(payload_bytes as u64)
}

/// What is wrong with bytes that should be a frame or a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("the file ends {missing} bytes too early")]
    Short { missing: u64 },
    #[error("zeros where a frame should begin")]
    Zeros,
    #[error("no frame begins here")]
    Magic,
    #[error("the checksum of the frame's header does not match")]
    HeaderChecksum,
    #[error("the checksum of the frame's payload does not match")]
    PayloadChecksum,
    #[error("the frame's version is {0}; this build knows version {VERSION} only")]
    Version(u8),
    #[error("the frame belongs to another journal")]
    Journal,
    #[error("the frame breaks a limit of the format")]
    Limits,
    #[error("the frame's sequence is {found}, expected {expected}")]
    Sequence { found: u64, expected: u64 },
    #[error("the frame's offset is {found}, expected {expected}")]
    Offset { found: u64, expected: u64 },
    #[error("the frame's log time {found} is below {floor}, that of the frame before it")]
    LogTime { found: i64, floor: i64 },
    #[error("the frame claims a durable end beyond itself")]
    DurableTo,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Topic and partition; `None` is a mark.
    pub(crate) of: Option<(Topic, u16)>,
    pub(crate) sequence: u64,
    pub(crate) offset: u64,
    pub(crate) log_time: LogTime,
    pub(crate) payload_bytes: u32,
    pub(crate) records: u32,
    pub(crate) schema_version: u16,
    /// A position in the segment, in bytes.
    pub(crate) durable_to: u64,
    pub(crate) journal: u64,
    pub(crate) payload_crc: u32,
}

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        debug_assert!(self.durable_to.is_multiple_of(UNIT_BYTES));
        let (topic, partition) = self.of.map_or((MARK, 0), |(topic, p)| (topic as u8, p));
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(FRAME_MAGIC);
        bytes[4] = VERSION;
        bytes[5] = topic;
        bytes[6..8].copy_from_slice(&partition.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.log_time.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.records.to_le_bytes());
        bytes[40..42].copy_from_slice(&self.schema_version.to_le_bytes());
        bytes[44..48].copy_from_slice(&units(self.durable_to).to_le_bytes());
        bytes[48..56].copy_from_slice(&self.journal.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; says what is wrong if it is none.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], journal: u64) -> Result<FrameHeader, Flaw> {
        if bytes[0..4] != *FRAME_MAGIC {
            let zeros = bytes.iter().all(|&byte| byte == 0);
            return Err(if zeros { Flaw::Zeros } else { Flaw::Magic });
        }
        if u32::from_le_bytes(part(bytes, 60)) != crc32c::crc32c(&bytes[..60]) {
            return Err(Flaw::HeaderChecksum);
        }
        if bytes[4] != VERSION {
            return Err(Flaw::Version(bytes[4]));
        }
        let of = match bytes[5] {
            MARK => None,
            code => {
                let topic = topic_from_code(code).ok_or(Flaw::Limits)?;
                Some((topic, u16::from_le_bytes(part(bytes, 6))))
            }
        };
        let header = FrameHeader {
            of,
            sequence: u64::from_le_bytes(part(bytes, 8)),
            offset: u64::from_le_bytes(part(bytes, 16)),
            log_time: LogTime(i64::from_le_bytes(part(bytes, 24))),
            payload_bytes: u32::from_le_bytes(part(bytes, 32)),
            records: u32::from_le_bytes(part(bytes, 36)),
            schema_version: u16::from_le_bytes(part(bytes, 40)),
            durable_to: u64::from(u32::from_le_bytes(part(bytes, 44))) * UNIT_BYTES,
            journal: u64::from_le_bytes(part(bytes, 48)),
            payload_crc: u32::from_le_bytes(part(bytes, 56)),
        };
        header.within_limits(journal)?;
        Ok(header)
    }

    fn within_limits(&self, journal: u64) -> Result<(), Flaw> {
        if self.journal != journal {
            return Err(Flaw::Journal);
        }
        let mark_with_payload = self.of.is_none() && self.payload_bytes != 0;
        if self.payload_bytes as usize > PAYLOAD_BYTES_MAX
            || self.records as usize > FRAME_RECORDS_MAX
            || self.offset > OFFSET_MAX
            || mark_with_payload
        {
            return Err(Flaw::Limits);
        }
        Ok(())
    }
}

/// How far a partition has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The offset that its next frame gets.
    pub(crate) offset: u64,
    /// Records in all frames before that one, deleted ones included.
    pub(crate) records: u64,
}

/// What a segment begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) journal: u64,
    pub(crate) first_sequence: u64,
    pub(crate) floor: LogTime,
    /// How far each slot had come.
    pub(crate) reach: Vec<Reach>,
}

/// The size of a segment's header, from its first bytes; `None` if they are no such header.
pub(crate) fn segment_header_bytes(start: &[u8; HEADER_BYTES]) -> Option<usize> {
    let bytes = u32::from_le_bytes(part(start, 12)) as usize;
    let entries = usize::from(u16::from_le_bytes(part(start, 10)));
    let fits = bytes == padded((HEADER_BYTES + entries * TABLE_ENTRY_BYTES) as u64) as usize;
    (start[0..8] == *SEGMENT_MAGIC && fits).then_some(bytes)
}

impl SegmentHeader {
    pub(crate) fn encode(&self, slots: Slots) -> Vec<u8> {
        let entries = slots.count();
        let bytes = padded((HEADER_BYTES + entries * TABLE_ENTRY_BYTES) as u64) as usize;
        let mut out = vec![0; bytes];
        out[0..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(entries as u16).to_le_bytes());
        out[12..16].copy_from_slice(&(bytes as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.journal.to_le_bytes());
        out[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        out[32..40].copy_from_slice(&self.floor.0.to_le_bytes());
        let table = out[HEADER_BYTES..].chunks_exact_mut(TABLE_ENTRY_BYTES);
        for ((entry, (topic, partition)), reach) in table.zip(slots.all()).zip(&self.reach) {
            entry[0] = topic as u8;
            entry[2..4].copy_from_slice(&partition.to_le_bytes());
            entry[8..16].copy_from_slice(&reach.offset.to_le_bytes());
            entry[16..24].copy_from_slice(&reach.records.to_le_bytes());
        }
        let crc = segment_crc(&out);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a whole header, of the size that [`segment_header_bytes`] says.
    pub(crate) fn decode(bytes: &[u8], slots: Slots) -> Result<SegmentHeader, String> {
        if u32::from_le_bytes(part(bytes, 60)) != segment_crc(bytes) {
            return Err("the checksum of the segment's header does not match".into());
        }
        let version = u16::from_le_bytes(part(bytes, 8));
        if version != SEGMENT_VERSION {
            return Err(format!(
                "the segment has format version {version}; this build knows version \
                 {SEGMENT_VERSION} only"
            ));
        }
        let entries = usize::from(u16::from_le_bytes(part(bytes, 10)));
        let mut reach = vec![Reach::default(); slots.count()];
        for entry in bytes[HEADER_BYTES..].chunks_exact(TABLE_ENTRY_BYTES).take(entries) {
            let partition = u16::from_le_bytes(part(entry, 2));
            let slot = topic_from_code(entry[0])
                .and_then(|topic| slots.slot(topic, partition))
                .ok_or_else(|| format!("unknown topic {} partition {partition}", entry[0]))?;
            reach[slot] = Reach {
                offset: u64::from_le_bytes(part(entry, 8)),
                records: u64::from_le_bytes(part(entry, 16)),
            };
        }
        Ok(SegmentHeader {
            journal: u64::from_le_bytes(part(bytes, 16)),
            first_sequence: u64::from_le_bytes(part(bytes, 24)),
            floor: LogTime(i64::from_le_bytes(part(bytes, 32))),
            reach,
        })
    }
}

fn segment_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[HEADER_BYTES..])
}

/// A position as files and memory hold it.
pub(crate) fn units(position: u64) -> u32 {
    // Segments are at most `SEGMENT_BYTES_LIMIT` plus one request, far below 2³² units.
    u32::try_from(position / UNIT_BYTES).expect("a segment is shorter than 256 GiB")
}

/// `N` bytes of a slice, for the `from_le_bytes` functions.
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
            of: Some((Topic::Events, 3)),
            sequence: 77,
            offset: 12,
            log_time: LogTime(1_700_000_000_000_000),
            payload_bytes: 1_000,
            records: 5,
            schema_version: 1,
            durable_to: 640,
            journal: 0xABCD,
            payload_crc: 99,
        }
    }

    #[test]
    fn a_frame_header_comes_back_and_any_flipped_bit_is_seen() {
        let encoded = header().encode();
        assert_eq!(FrameHeader::decode(&encoded, 0xABCD), Ok(header()));
        assert_eq!(FrameHeader::decode(&encoded, 0xABCE), Err(Flaw::Journal));
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = encoded;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&damaged, 0xABCD).is_err(), "bit {bit}");
        }
        let mark = FrameHeader { of: None, payload_bytes: 0, ..header() };
        assert_eq!(FrameHeader::decode(&mark.encode(), 0xABCD).unwrap().of, None);
        assert_eq!(FrameHeader::decode(&[0; HEADER_BYTES], 0xABCD), Err(Flaw::Zeros));
    }

    #[test]
    fn limits_of_the_format_are_checked() {
        for broken in [
            FrameHeader { payload_bytes: PAYLOAD_BYTES_MAX as u32 + 1, ..header() },
            FrameHeader { records: FRAME_RECORDS_MAX as u32 + 1, ..header() },
            FrameHeader { offset: OFFSET_MAX + 1, ..header() },
            FrameHeader { of: None, ..header() },
        ] {
            assert_eq!(FrameHeader::decode(&broken.encode(), 0xABCD), Err(Flaw::Limits));
        }
    }

    #[test]
    fn a_segment_header_comes_back_and_any_flipped_bit_is_seen() {
        let slots = Slots::new(6);
        let reach = (0..slots.count() as u64).map(|slot| Reach { offset: slot, records: 9 * slot });
        let reach = reach.collect();
        let header = SegmentHeader { journal: 7, first_sequence: 9, floor: LogTime(-4), reach };
        let encoded = header.encode(slots);
        assert_eq!(segment_header_bytes(&part(&encoded, 0)), Some(encoded.len()));
        assert!((encoded.len() as u64).is_multiple_of(UNIT_BYTES));
        assert_eq!(SegmentHeader::decode(&encoded, slots), Ok(header));
        for bit in 0..encoded.len() * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let seen = segment_header_bytes(&part(&damaged, 0)) != Some(encoded.len())
                || SegmentHeader::decode(&damaged, slots).is_err();
            assert!(seen, "bit {bit}");
        }
    }
}
