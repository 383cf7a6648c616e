//! The index of a sealed segment, so that opening a journal does not read all of it.
//!
//! It is written when the segment is sealed and holds nothing that the segment does not hold. So
//! it is neither synced nor trusted: if it is missing, damaged or of another length of segment,
//! the segment is scanned and the index is written again.
//!
//! ```text
//! byte  size
//!    0     8  magic "TRUEUPIX"
//!    8     2  format version, 1
//!   10     2  zero
//!   12     4  entries
//!   16     8  journal
//!   24     8  sequence of the segment's first frame
//!   32     8  sequence after its last
//!   40     8  bytes of the segment
//!   48     8  log time of its last frame, or its floor
//!   56     4  CRC-32C of the entries
//!   60     4  CRC-32C of bytes 0…59
//!   64  32·n  by partition and offset: topic u8, zero u8, partition u16, payload bytes u32,
//!             offset u64, log time i64, position u32 in units of 64 bytes, records u32
//! ```

use crate::{
    disk::{Access, Disk, DiskFile, read_full, write_all},
    format::{HEADER_BYTES, part},
    positions::Position,
    scan::Chain,
    slot::{Slots, topic_from_code},
};
use std::{
    io::{self, ErrorKind, IoSlice},
    path::Path,
};
use trueup_operators::{log::Topic, time::LogTime};

const MAGIC: &[u8; 8] = b"TRUEUPIX";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 32;

/// What an index says of its segment, besides the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) journal: u64,
    pub(crate) first_sequence: u64,
    pub(crate) end_sequence: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) floor: LogTime,
}

/// One frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) of: (Topic, u16),
    pub(crate) offset: u64,
    pub(crate) position: Position,
}

/// Writes an index under its name, whole or not at all.
pub(crate) fn write(
    disk: &dyn Disk,
    path: &Path,
    summary: &Summary,
    entries: &[Entry],
) -> io::Result<()> {
    let mut body = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for entry in entries {
        body.extend([entry.of.0 as u8, 0]);
        body.extend(entry.of.1.to_le_bytes());
        body.extend(entry.position.payload_bytes.to_le_bytes());
        body.extend(entry.offset.to_le_bytes());
        body.extend(entry.position.log_time.0.to_le_bytes());
        body.extend(entry.position.at_units.to_le_bytes());
        body.extend(entry.position.records.to_le_bytes());
    }
    let count =
        u32::try_from(entries.len()).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
    let mut head = [0; HEADER_BYTES];
    head[0..8].copy_from_slice(MAGIC);
    head[8..10].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&count.to_le_bytes());
    head[16..24].copy_from_slice(&summary.journal.to_le_bytes());
    head[24..32].copy_from_slice(&summary.first_sequence.to_le_bytes());
    head[32..40].copy_from_slice(&summary.end_sequence.to_le_bytes());
    head[40..48].copy_from_slice(&summary.segment_bytes.to_le_bytes());
    head[48..56].copy_from_slice(&summary.floor.0.to_le_bytes());
    head[56..60].copy_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    let crc = crc32c::crc32c(&head[..60]);
    head[60..64].copy_from_slice(&crc.to_le_bytes());

    let new = path.with_added_extension("new");
    let file = disk.open(&new, Access::Create)?;
    write_all(&*file, &mut [IoSlice::new(&head), IoSlice::new(&body)], 0)?;
    disk.rename(&new, path)
}

/// Reads the index of a segment of which the chain and the size are known, and moves the chain to
/// the segment's end. `None`, with the chain in any state, when the index cannot be used.
pub(crate) fn load(
    file: &dyn DiskFile,
    segment: u32,
    segment_bytes: u64,
    slots: Slots,
    chain: &mut Chain,
) -> io::Result<Option<(Summary, Vec<Entry>)>> {
    let mut head = [0; HEADER_BYTES];
    if read_full(file, &mut head, 0)? < HEADER_BYTES {
        return Ok(None);
    }
    let crc = u32::from_le_bytes(part(&head, 60));
    let version = u16::from_le_bytes(part(&head, 8));
    if head[0..8] != *MAGIC || version != VERSION || crc != crc32c::crc32c(&head[..60]) {
        return Ok(None);
    }
    let summary = Summary {
        journal: u64::from_le_bytes(part(&head, 16)),
        first_sequence: u64::from_le_bytes(part(&head, 24)),
        end_sequence: u64::from_le_bytes(part(&head, 32)),
        segment_bytes: u64::from_le_bytes(part(&head, 40)),
        floor: LogTime(i64::from_le_bytes(part(&head, 48))),
    };
    let count = u32::from_le_bytes(part(&head, 12)) as usize;
    let expected = HEADER_BYTES as u64 + (count * ENTRY_BYTES) as u64;
    let of_this_segment = summary.journal == chain.journal
        && summary.first_sequence == chain.sequence
        && summary.segment_bytes == segment_bytes
        && file.bytes()? == expected;
    if !of_this_segment {
        return Ok(None);
    }
    // As large as the file, which was just asked, so no damaged count makes it larger.
    let mut body = vec![0; count * ENTRY_BYTES];
    let read = read_full(file, &mut body, HEADER_BYTES as u64)?;
    if read < body.len() || u32::from_le_bytes(part(&head, 56)) != crc32c::crc32c(&body) {
        return Ok(None);
    }
    let floor = chain.floor;
    let mut entries = Vec::with_capacity(count);
    for bytes in body.chunks_exact(ENTRY_BYTES) {
        let Some(entry) = admit(bytes, segment, slots, chain) else { return Ok(None) };
        entries.push(entry);
        // Entries stand by partition: their log times do not decrease within one only.
        let same = entries.len() >= 2 && entries[entries.len() - 2].of == entry.of;
        let last = if same { entries[entries.len() - 2].position.log_time } else { floor };
        if entry.position.log_time < last || entry.position.log_time > summary.floor {
            return Ok(None);
        }
    }
    chain.sequence = summary.end_sequence;
    chain.floor = summary.floor;
    Ok(Some((summary, entries)))
}

fn admit(bytes: &[u8], segment: u32, slots: Slots, chain: &mut Chain) -> Option<Entry> {
    let topic = topic_from_code(bytes[0])?;
    let partition = u16::from_le_bytes(part(bytes, 2));
    let offset = u64::from_le_bytes(part(bytes, 8));
    let position = Position {
        log_time: LogTime(i64::from_le_bytes(part(bytes, 16))),
        segment,
        at_units: u32::from_le_bytes(part(bytes, 24)),
        payload_bytes: u32::from_le_bytes(part(bytes, 4)),
        records: u32::from_le_bytes(part(bytes, 28)),
    };
    let slot = slots.slot(topic, partition)?;
    if offset != chain.reach[slot].offset {
        return None;
    }
    chain.extend(slot, position.records);
    Some(Entry { of: (topic, partition), offset, position })
}
