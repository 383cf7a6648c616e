//! A memory of verdicts as bytes. It is written whole each time; nothing in it depends on the
//! number of workers.
//!
//! ```text
//! u64  first turn              u64  first turn of the open slice
//! u64  keys forgotten early
//! u32  t, t × { 16 bytes key, verdict }                       turns, oldest first
//! u32  m, m × { i64 latest log time, u64 end }                marks: slices of turns
//! u32  s, s × { 16 bytes key, u32 n ≥ 1, n × verdict }        superseded, ascending by key
//! ```
//!
//! A verdict is 29 bytes:
//!
//! ```text
//! i64 decided_at_us, u64 frame, u32 place in it, i64 log time, u8 0 valid, 1 invalid
//! ```
//!
//! All little-endian.

use super::{ById, IdHash, Judged, LogTime, Memory, Turn, no_pool};
use crate::{
    ledger::{
        image::NUMBER_MAX,
        marks::{MARK_BYTES, Marks},
        ring::{Part, Ring},
    },
    section::{BrokenSection, Reader},
};

const ID_BYTES: usize = size_of::<IdHash>();
const VERDICT_BYTES: usize = 29;

/// A memory as it was.
#[derive(Debug)]
pub(in crate::ledger) struct MemoryImage {
    turns: Part<Turn>,
    slice_from: u64,
    marks: Marks,
    superseded: Vec<(IdHash, Vec<Judged>)>,
    forgotten_early: u64,
}

impl MemoryImage {
    /// Appends it, as the drawing above has it.
    pub(in crate::ledger) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.turns.first().to_le_bytes());
        out.extend(self.slice_from.max(self.turns.first()).to_le_bytes());
        out.extend(self.forgotten_early.to_le_bytes());
        out.extend((self.turns.len() as u32).to_le_bytes());
        self.turns.iter().for_each(|(_, Turn { key, winner })| {
            out.extend(key);
            winner.write(out);
        });
        out.extend((self.marks.iter().len() as u32).to_le_bytes());
        self.marks.write(out);
        let mut superseded: Vec<_> = self.superseded.iter().collect();
        superseded.sort_unstable_by_key(|(key, _)| key);
        out.extend((superseded.len() as u32).to_le_bytes());
        for (key, verdicts) in superseded {
            out.extend(key);
            out.extend((verdicts.len() as u32).to_le_bytes());
            verdicts.iter().for_each(|verdict| verdict.write(out));
        }
    }

    /// Memory that the image alone holds.
    pub(in crate::ledger) fn bytes(&self) -> usize {
        let verdicts = |(_, v): &(IdHash, Vec<Judged>)| v.capacity() * size_of::<Judged>();
        self.turns.bytes()
            + self.marks.bytes()
            + self.superseded.capacity() * size_of::<(IdHash, Vec<Judged>)>()
            + self.superseded.iter().map(verdicts).sum::<usize>()
    }
}

impl Judged {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.decided_at_us.to_le_bytes());
        out.extend(self.arrival.0.to_le_bytes());
        out.extend(self.arrival.1.to_le_bytes());
        out.extend(self.log_time.0.to_le_bytes());
        out.push(u8::from(self.invalid));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Judged, BrokenSection> {
        Ok(Judged {
            decided_at_us: reader.i64()?,
            arrival: (reader.u64()?, reader.u32()?),
            log_time: LogTime(reader.i64()?),
            invalid: match reader.u8()? {
                0 => false,
                1 => true,
                said => return Err(reader.broken(format!("a verdict says {said}"))),
            },
        })
    }
}

fn read_id(reader: &mut Reader<'_>) -> Result<IdHash, BrokenSection> {
    let bytes = reader.take(ID_BYTES)?;
    Ok(std::array::from_fn(|i| bytes[i]))
}

impl Memory {
    /// The memory as it is now.
    pub(in crate::ledger) fn image(&mut self) -> MemoryImage {
        MemoryImage {
            turns: self.turns.share(self.turns.head()),
            slice_from: self.slice_from,
            marks: self.marks.clone(),
            superseded: self.superseded.iter().map(|(key, v)| (*key, v.clone())).collect(),
            forgotten_early: self.forgotten_early,
        }
    }

    /// Reads what [`MemoryImage::write`] wrote.
    ///
    /// # Errors
    /// When the section is cut short or contradicts itself.
    pub(in crate::ledger) fn read(
        max: usize,
        reader: &mut Reader<'_>,
    ) -> Result<Memory, BrokenSection> {
        let (first, slice_from) = (reader.u64()?, reader.u64()?);
        let mut memory = Memory { forgotten_early: reader.u64()?, ..Memory::new(max) };
        // Each key that was forgotten had its turn.
        if first > NUMBER_MAX || memory.forgotten_early > first {
            let early = memory.forgotten_early;
            let reason =
                format!("the first turn is {first}, and {early} keys were forgotten early");
            return Err(reader.broken(reason));
        }
        memory.turns = Ring::starting_at(first);
        for _ in 0..reader.count(ID_BYTES + VERDICT_BYTES)? {
            let turn = Turn { key: read_id(reader)?, winner: Judged::read(reader)? };
            memory.winners.insert(turn.key, memory.turns.tail());
            memory.turns.push(turn, &mut no_pool());
        }
        let tail = memory.turns.tail();
        memory.marks = Marks::read(reader.count(MARK_BYTES)?, tail, reader)?;
        if !(first..=tail).contains(&slice_from) {
            let reason = format!("a slice begins at turn {slice_from}, there are {first}..{tail}");
            return Err(reader.broken(reason));
        }
        memory.slice_from = slice_from;
        memory.superseded = read_superseded(&memory, reader)?;
        Ok(memory)
    }
}

fn read_superseded(
    memory: &Memory,
    reader: &mut Reader<'_>,
) -> Result<ById<Vec<Judged>>, BrokenSection> {
    let mut superseded = ById::default();
    for _ in 0..reader.count(ID_BYTES + 4 + VERDICT_BYTES)? {
        let key = read_id(reader)?;
        let count = reader.count(VERDICT_BYTES)?;
        let verdicts = (0..count).map(|_| Judged::read(reader)).collect::<Result<Vec<_>, _>>()?;
        let known = memory.winners.contains_key(&key);
        if !known || verdicts.is_empty() || superseded.insert(key, verdicts).is_some() {
            let key = u128::from_be_bytes(key);
            let reason = format!("{count} verdicts on {key:032x} are superseded by nothing");
            return Err(reader.broken(reason));
        }
    }
    Ok(superseded)
}
