//! Reads a segment from front to back and says how far it is good, and, where it is not, whether
//! a crash tore the last write or something destroyed what was durable.
//!
//! # Torn or corrupt?
//!
//! A group of frames is written and then synced. When power fails in between, *any* subset of its
//! sectors may be on disk: a good frame may well follow a bad one, so "something valid comes
//! after" proves nothing. But every frame says up to where the writer knew the segment to be
//! durable (`durable_to`), and the frames of one group all name the group's start or less. So:
//!
//! * a frame somewhere behind the bad byte with `durable_to` above the bad byte: it was durable
//!   once. **Corrupt**, reported, never cut;
//! * no such frame: the bad byte belongs to a write that no sync ever covered or that was the very
//!   last to be synced. **Torn**: the file is cut there, and the cut is reported.
//!
//! In a segment that another follows everything is durable, so any flaw is corrupt.
//!
//! What this cannot see is damage to the last group that was acknowledged, before anything was
//! written after it. The next group ends that state, and so does a *mark*, which the writer adds
//! when it has been idle for a moment, and when it closes: what remains is a medium that loses
//! synced bytes and power within the same fifth of a second.
//!
//! A frame is good if both checksums match and it continues the chain: sequence and offset without
//! a gap, log time not decreasing, `durable_to` not beyond the frame itself.

use crate::{
    disk::{DiskFile, read_full},
    format::{
        Flaw, FrameHeader, HEADER_BYTES, Reach, SegmentHeader, UNIT_BYTES, frame_bytes, padded,
        part,
    },
    slot::Slots,
};
use std::io;
use trueup_operators::time::LogTime;

const WINDOW_BYTES: usize = 1 << 20;

/// What the next frame must continue.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    slots: Slots,
    pub(crate) journal: u64,
    pub(crate) sequence: u64,
    pub(crate) floor: LogTime,
    /// By slot.
    pub(crate) reach: Vec<Reach>,
}

impl Chain {
    /// From the start of a segment.
    pub(crate) fn at_start(header: &SegmentHeader, slots: Slots) -> Chain {
        Chain {
            slots,
            journal: header.journal,
            sequence: header.first_sequence,
            floor: header.floor,
            reach: header.reach.clone(),
        }
    }

    /// Whether a segment starts where the one before it ended.
    pub(crate) fn continues_in(&self, header: &SegmentHeader) -> Result<(), String> {
        if header.first_sequence != self.sequence {
            let found = header.first_sequence;
            let expected = self.sequence;
            return Err(format!(
                "the segment starts with sequence {found}, but the one before it ends with \
                 {expected}: a file is missing or shortened"
            ));
        }
        if header.reach != self.reach || header.floor < self.floor {
            return Err("the segment's table does not continue the segment before it".into());
        }
        Ok(())
    }

    /// Takes the next frame, at a position; its slot, or `None` for a mark.
    fn admit(&mut self, header: &FrameHeader, at: u64) -> Result<Option<usize>, Flaw> {
        if header.sequence != self.sequence {
            return Err(Flaw::Sequence { found: header.sequence, expected: self.sequence });
        }
        if header.durable_to > at {
            return Err(Flaw::DurableTo);
        }
        let slot = match header.of {
            None => None,
            Some((topic, partition)) => {
                let slot = self.slots.slot(topic, partition).ok_or(Flaw::Limits)?;
                let expected = self.reach[slot].offset;
                if header.offset != expected {
                    return Err(Flaw::Offset { found: header.offset, expected });
                }
                if header.log_time < self.floor {
                    return Err(Flaw::LogTime { found: header.log_time.0, floor: self.floor.0 });
                }
                self.extend(slot, header.records);
                self.floor = header.log_time;
                Some(slot)
            }
        };
        self.sequence += 1;
        Ok(slot)
    }

    /// Adds a frame of so many records to a partition.
    pub(crate) fn extend(&mut self, slot: usize, records: u32) {
        let reach = &mut self.reach[slot];
        reach.offset += 1;
        reach.records += u64::from(records);
    }
}

/// How far a segment is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// The first byte after the last good frame.
    pub(crate) end: u64,
    /// Below this, frames say, everything was durable.
    pub(crate) proven: u64,
    /// What is wrong at `end`; nothing if the file ends there.
    pub(crate) flaw: Option<Flaw>,
}

/// Reads frames from a position, which the chain must fit, to the end of the file or to the first
/// that is not good. `visit` gets each good one that is no mark.
pub(crate) fn scan(
    file: &dyn DiskFile,
    from: u64,
    chain: &mut Chain,
    mut visit: impl FnMut(usize, &FrameHeader, u64),
) -> io::Result<Scanned> {
    let mut window = Window::new(file);
    let mut scanned = Scanned { end: from, proven: from, flaw: None };
    loop {
        let at = scanned.end;
        match read_frame(&mut window, at, chain)? {
            Ok(None) => return Ok(scanned),
            Ok(Some((slot, header))) => {
                if let Some(slot) = slot {
                    visit(slot, &header, at);
                }
                scanned.proven = scanned.proven.max(header.durable_to);
                scanned.end = at + frame_bytes(header.payload_bytes);
            }
            Err(flaw) => {
                scanned.flaw = Some(flaw);
                return Ok(scanned);
            }
        }
    }
}

type FrameAt = Option<(Option<usize>, FrameHeader)>;

/// The frame at a position, if it is good; `None` at the end of the file.
fn read_frame(
    window: &mut Window<'_>,
    at: u64,
    chain: &mut Chain,
) -> io::Result<Result<FrameAt, Flaw>> {
    let bytes = window.get(at, HEADER_BYTES)?;
    if bytes.is_empty() {
        return Ok(Ok(None));
    }
    if bytes.len() < HEADER_BYTES {
        return Ok(Err(Flaw::Short { missing: (HEADER_BYTES - bytes.len()) as u64 }));
    }
    let header = match FrameHeader::decode(&part(bytes, 0), chain.journal) {
        Ok(header) => header,
        Err(flaw) => return Ok(Err(flaw)),
    };
    if let Err(flaw) = check_payload(window, at, &header)? {
        return Ok(Err(flaw));
    }
    Ok(chain.admit(&header, at).map(|slot| Some((slot, header))))
}

fn check_payload(
    window: &mut Window<'_>,
    at: u64,
    header: &FrameHeader,
) -> io::Result<Result<(), Flaw>> {
    let start = at + UNIT_BYTES;
    let payload_end = start + u64::from(header.payload_bytes);
    let end = start + padded(u64::from(header.payload_bytes));
    let (mut position, mut crc) = (start, 0);
    while position < end {
        let wanted = (end - position).min(WINDOW_BYTES as u64) as usize;
        let bytes = window.get(position, wanted)?;
        if bytes.len() < wanted {
            let missing = end - position - bytes.len() as u64;
            return Ok(Err(Flaw::Short { missing }));
        }
        let of_payload = payload_end.saturating_sub(position).min(wanted as u64) as usize;
        crc = crc32c::crc32c_append(crc, &bytes[..of_payload]);
        position += wanted as u64;
    }
    Ok(if crc == header.payload_crc { Ok(()) } else { Err(Flaw::PayloadChecksum) })
}

/// Where, behind a bad byte, a frame stands that proves that the bad byte was durable.
fn proof_of_damage(file: &dyn DiskFile, bad_at: u64, journal: u64) -> io::Result<Option<u64>> {
    let mut window = Window::new(file);
    let mut at = bad_at + UNIT_BYTES;
    loop {
        let bytes = window.get(at, HEADER_BYTES)?;
        if bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        let header = FrameHeader::decode(&part(bytes, 0), journal);
        if header.is_ok_and(|header| header.durable_to > bad_at) {
            return Ok(Some(at));
        }
        at += UNIT_BYTES;
    }
}

/// Scans the last segment of a journal. If what stands behind its good end is damage, and no torn
/// write, the second value is where the proof stands.
///
/// `patient`: a server may be writing at this moment. A frame that looked bad may be whole by the
/// time that the one behind it is seen, so it is looked at once more before it is called damaged.
pub(crate) fn scan_last(
    file: &dyn DiskFile,
    mut from: u64,
    chain: &mut Chain,
    patient: bool,
    mut visit: impl FnMut(usize, &FrameHeader, u64),
) -> io::Result<(Scanned, Option<u64>)> {
    let (mut proven, mut suspect) = (from, None);
    loop {
        let found = scan(file, from, chain, &mut visit)?;
        proven = proven.max(found.proven);
        let scanned = Scanned { proven, ..found };
        let at = scanned.end;
        if let Some((suspect_at, proof)) = suspect
            && suspect_at == at
            && scanned.flaw.is_some()
        {
            return Ok((scanned, Some(proof)));
        }
        let proof = match scanned.flaw {
            None => return Ok((scanned, None)),
            // Its checksum matches: it was written so, by another build.
            Some(Flaw::Version(_)) => return Ok((scanned, Some(at))),
            Some(_) => proof_of_damage(file, at, chain.journal)?,
        };
        let Some(proof) = proof else { return Ok((scanned, None)) };
        if !patient {
            return Ok((scanned, Some(proof)));
        }
        (suspect, from) = (Some((at, proof)), at);
    }
}

/// Reads and checks a segment's header; the header and its size.
pub(crate) fn read_segment_header(
    file: &dyn DiskFile,
    slots: Slots,
) -> io::Result<Result<(SegmentHeader, u64), String>> {
    let mut start = [0; HEADER_BYTES];
    let read = read_full(file, &mut start, 0)?;
    let bytes = crate::format::segment_header_bytes(&start).filter(|_| read == HEADER_BYTES);
    let Some(bytes) = bytes else {
        return Ok(Err("the file does not begin with the header of a segment".into()));
    };
    let mut whole = vec![0; bytes];
    if read_full(file, &mut whole, 0)? < bytes {
        return Ok(Err("the file ends within the header of the segment".into()));
    }
    Ok(SegmentHeader::decode(&whole, slots).map(|header| (header, bytes as u64)))
}

/// A part of a file in memory, moved forward as it is read.
struct Window<'a> {
    file: &'a dyn DiskFile,
    bytes: Vec<u8>,
    at: u64,
    filled: usize,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn DiskFile) -> Window<'a> {
        Window { file, bytes: vec![0; WINDOW_BYTES], at: 0, filled: 0 }
    }

    /// Bytes at a position, at most a window's; fewer only at the end of the file.
    fn get(&mut self, at: u64, bytes: usize) -> io::Result<&[u8]> {
        debug_assert!(bytes <= WINDOW_BYTES);
        let held = at >= self.at && at + bytes as u64 <= self.at + self.filled as u64;
        if !held {
            self.filled = read_full(self.file, &mut self.bytes, at)?;
            self.at = at;
        }
        let start = (at - self.at) as usize;
        Ok(&self.bytes[start..(start + bytes).min(self.filled)])
    }
}
