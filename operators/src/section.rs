//! What the sections of a checkpoint's images of rows have in common: which part of the state a
//! section holds, how it names texts, and a reader that goes no further than the bytes.
//!
//! A section is the unit in which state is written, replaced and loaded: small enough to be held in
//! memory, large enough that its head does not matter. An image of an increment has the sections
//! that have changed; the newest section of each key is the state. Symbols are a process's own, so
//! a section has the texts that it speaks of, each once. Checksums are the file's.
//!
//! # Every section begins with its key, version 1, little-endian
//!
//! ```text
//! 0   u8   version = 1
//! 1   u8   kind: 1 rows, 2 state of a shard, 3 listed events, 4 what only an accumulator knows
//! 2   u8   stage of the shard: 0 rows and fates, 1 `(other)` rows
//! 3   u8   kind 1: granularity, 0 minute, 1 hour, 2 day; kind 3: which list; else 0
//! 4   u16  worker of the shard
//! 6   u16  kind 1: rollup; else 0
//! 8   i32  kind 1: bucket; else 0
//! 12  u32  kind 1: segment of the bucket; kind 3: part of the list; else 0
//! ```
//!
//! # A bucket of a table
//!
//! ```text
//! u16 rollup, u8 granularity as above, u8 0, i32 bucket
//! ```
//!
//! # Texts
//!
//! ```text
//! n × { u32 bytes, UTF-8 }      the empty text is the absent value
//! ```

use crate::{
    accumulate::STAGES,
    change::TableId,
    hash,
    symbols::{Symbol, Symbols},
    time::{Bucket, Granularity, MINUTE_US},
};
use std::fmt;

/// The version of the formats of sections.
pub const SECTION_VERSION: u8 = 1;
/// The bytes of a [`SectionKey`], and so the least of a section.
pub const KEY_BYTES: usize = 16;

/// One of the places where a job's rows are: a worker's rows, or its `(other)` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId {
    /// The worker.
    pub worker: u16,
    /// 0: rows and fates; 1: `(other)` rows.
    pub stage: u8,
}

/// What of a shard a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Rows of one bucket of a table.
    Rows {
        /// The table.
        table: TableId,
        /// The bucket.
        bucket: Bucket,
        /// Which rows of it.
        segment: u32,
    },
    /// What the shard has besides rows and lists, and which of those there are.
    State,
    /// Entries of a list of events that did not count.
    List {
        /// Which list.
        list: u8,
        /// Which entries.
        part: u32,
    },
    /// What an accumulator knows and a view does not.
    Accumulator,
}

/// Which part of the state a section holds. A newer section replaces the older of the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionKey {
    /// Whose.
    pub shard: ShardId,
    /// What.
    pub part: Part,
}

/// Why a section cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{section}: {reason}")]
pub struct BrokenSection {
    /// Which one, as far as it says.
    pub section: String,
    /// What is wrong, and where.
    pub reason: String,
}

impl fmt::Display for SectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ShardId { worker, stage } = self.shard;
        write!(f, "worker {worker}, stage {stage}, ")?;
        match self.part {
            Part::Rows { table: TableId { rollup, granularity }, bucket, segment } => {
                let (width, bucket) = (granularity.name(), bucket.0);
                write!(f, "rollup {rollup}, {width} {bucket}, segment {segment}")
            }
            Part::State => f.write_str("state"),
            Part::List { list, part } => write!(f, "list {list}, part {part}"),
            Part::Accumulator => f.write_str("accumulator"),
        }
    }
}

impl SectionKey {
    /// The first bytes of the section.
    pub fn encode(&self) -> [u8; KEY_BYTES] {
        let (kind, third, rollup, bucket, number) = match self.part {
            Part::Rows { table, bucket, segment } => {
                (1, width_code(table.granularity), table.rollup, bucket.0, segment)
            }
            Part::State => (2, 0, 0, 0, 0),
            Part::List { list, part } => (3, list, 0, 0, part),
            Part::Accumulator => (4, 0, 0, 0, 0),
        };
        let mut bytes = [0; KEY_BYTES];
        bytes[..4].copy_from_slice(&[SECTION_VERSION, kind, self.shard.stage, third]);
        bytes[4..6].copy_from_slice(&self.shard.worker.to_le_bytes());
        bytes[6..8].copy_from_slice(&rollup.to_le_bytes());
        bytes[8..12].copy_from_slice(&bucket.to_le_bytes());
        bytes[12..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    /// The key of a section, and a reader of what is behind it.
    ///
    /// # Errors
    /// When the bytes do not begin with a key of this version.
    pub fn open(section: &[u8]) -> Result<(SectionKey, Reader<'_>), BrokenSection> {
        let name = || "a section".to_owned();
        let mut reader = Reader { section: name(), bytes: section, at: 0 };
        let version = reader.u8()?;
        if version != SECTION_VERSION {
            let reason = format!("has version {version}, known is {SECTION_VERSION}");
            return Err(BrokenSection { section: name(), reason });
        }
        let (kind, stage, third) = (reader.u8()?, reader.u8()?, reader.u8()?);
        let (worker, rollup) = (reader.u16()?, reader.u16()?);
        let (bucket, number) = (Bucket(reader.i32()?), reader.u32()?);
        let part = match (kind, width_of(third)) {
            (1, Some(granularity)) if bucket_of(granularity, bucket.0).is_some() => {
                let table = TableId { rollup, granularity };
                Part::Rows { table, bucket, segment: number }
            }
            (2, _) => Part::State,
            (3, _) => Part::List { list: third, part: number },
            (4, _) => Part::Accumulator,
            _ => {
                let bucket = bucket.0;
                let key = format!("kind {kind}, granularity {third}, bucket {bucket}");
                return Err(reader.broken(format!("has the key {key}, which none has")));
            }
        };
        let key = SectionKey { shard: ShardId { worker, stage }, part };
        if usize::from(stage) >= STAGES || key.encode() != section[..KEY_BYTES] {
            return Err(reader.broken(format!("has the key {key}, which none has")));
        }
        reader.section = key.to_string();
        Ok((key, reader))
    }
}

/// Appends a bucket of a table.
pub fn write_bucket(table: TableId, bucket: Bucket, out: &mut Vec<u8>) {
    out.extend(table.rollup.to_le_bytes());
    out.extend([width_code(table.granularity), 0]);
    out.extend(bucket.0.to_le_bytes());
}

/// A granularity as a byte.
const fn width_code(granularity: Granularity) -> u8 {
    match granularity {
        Granularity::Minute => 0,
        Granularity::Hour => 1,
        Granularity::Day => 2,
    }
}

/// The inverse of [`width_code`].
fn width_of(code: u8) -> Option<Granularity> {
    Granularity::ALL.get(usize::from(code)).copied()
}

/// A bucket by its number. `None`: no event can be in it, and reckoning with it would overflow.
fn bucket_of(granularity: Granularity, number: i32) -> Option<Bucket> {
    let minutes = granularity.width_us() / MINUTE_US;
    i32::try_from(i64::from(number) * minutes).ok().map(|_minute| Bucket(number))
}

/// Reads a section from its begin to its end.
#[derive(Debug)]
pub struct Reader<'a> {
    section: String,
    bytes: &'a [u8],
    at: usize,
}

macro_rules! read_numbers {
    ($($number:ident)+) => {$(
        #[doc = concat!("The next bytes as a `", stringify!($number), "`.")]
        ///
        /// # Errors
        /// When the section is cut short.
        #[inline]
        pub fn $number(&mut self) -> Result<$number, BrokenSection> {
            let bytes = self.take(size_of::<$number>())?;
            // As many as were asked for.
            Ok($number::from_le_bytes(bytes.try_into().unwrap_or_default()))
        }
    )+};
}

impl<'a> Reader<'a> {
    /// Of a section that does not begin with a [`SectionKey`]; `section` is what errors call it.
    pub fn new(section: impl Into<String>, bytes: &'a [u8]) -> Reader<'a> {
        Reader { section: section.into(), bytes, at: 0 }
    }

    read_numbers!(u8 u16 u32 u64 i32 i64);

    /// The next so many bytes.
    ///
    /// # Errors
    /// When the section is cut short.
    #[inline]
    pub fn take(&mut self, bytes: usize) -> Result<&'a [u8], BrokenSection> {
        match self.bytes[self.at..].get(..bytes) {
            Some(taken) => {
                self.at += bytes;
                Ok(taken)
            }
            None => Err(self.cut_short(bytes as u64)),
        }
    }

    #[cold]
    fn cut_short(&self, wanted: u64) -> BrokenSection {
        let (at, len) = (self.at, self.bytes.len());
        self.broken(format!("is cut short: {len} bytes, wanted are {wanted} from byte {at} on"))
    }

    /// How many things follow, of at least so many bytes each: never more than there is room for,
    /// so that making room for them is safe.
    ///
    /// # Errors
    /// When so many cannot follow.
    pub fn count(&mut self, bytes_each_min: usize) -> Result<usize, BrokenSection> {
        let count = self.u32()?;
        let wanted = u64::from(count) * bytes_each_min as u64;
        if wanted > (self.bytes.len() - self.at) as u64 {
            return Err(self.cut_short(wanted));
        }
        Ok(count as usize)
    }

    /// A bucket of a table, as [`write_bucket`] wrote it.
    ///
    /// # Errors
    /// When the section is cut short, or there is no such bucket.
    pub fn bucket(&mut self) -> Result<(TableId, Bucket), BrokenSection> {
        let (rollup, width, _) = (self.u16()?, self.u8()?, self.u8()?);
        let number = self.i32()?;
        let found = width_of(width).and_then(|width| Some((width, bucket_of(width, number)?)));
        let (granularity, bucket) = found.ok_or_else(|| {
            self.broken(format!("names granularity {width}, bucket {number}, which none is"))
        })?;
        Ok((TableId { rollup, granularity }, bucket))
    }

    /// So many texts, as symbols of this process, each with its stable hash.
    ///
    /// # Errors
    /// When the section is cut short, or a text is no UTF-8.
    pub fn texts(
        &mut self,
        count: usize,
        symbols: &Symbols,
    ) -> Result<Vec<(Symbol, u64)>, BrokenSection> {
        let mut texts = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = self.u32()? as usize;
            let at = self.at;
            let text = std::str::from_utf8(self.take(bytes)?);
            texts.push(text.map_err(|e| self.broken(format!("the text at byte {at}: {e}")))?);
        }
        let mut found = Vec::with_capacity(count);
        symbols.intern_all(texts.iter().copied(), &mut found);
        let stables = texts.iter().map(|text| hash::stable(text.as_bytes()));
        Ok(found.into_iter().zip(stables).collect())
    }

    /// An error about this section.
    pub fn broken(&self, reason: impl Into<String>) -> BrokenSection {
        BrokenSection { section: self.section.clone(), reason: reason.into() }
    }

    /// Nothing may follow.
    ///
    /// # Errors
    /// When something does.
    pub fn end(&self) -> Result<(), BrokenSection> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        let (at, len) = (self.at, self.bytes.len());
        Err(self.broken(format!("has {len} bytes and ends at byte {at}")))
    }
}

/// The texts of a section that is being written: symbols get numbers from 0 as they come.
#[derive(Debug, Default)]
pub struct Dictionary {
    /// By symbol: its number, plus one.
    numbers: Vec<u32>,
    listed: Vec<Symbol>,
}

impl Dictionary {
    /// The number of a symbol.
    #[inline]
    pub fn number(&mut self, symbol: Symbol) -> u32 {
        let at = symbol as usize;
        if at >= self.numbers.len() {
            self.numbers.resize(at + 1, 0);
        }
        if self.numbers[at] == 0 {
            self.listed.push(symbol);
            self.numbers[at] = self.listed.len() as u32;
        }
        self.numbers[at] - 1
    }

    /// Whether a symbol has a number.
    #[inline]
    pub fn has(&self, symbol: Symbol) -> bool {
        self.numbers.get(symbol as usize).is_some_and(|&number| number != 0)
    }

    /// How many have numbers.
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// Appends the texts in the order of their numbers.
    pub fn write(&self, symbols: &Symbols, out: &mut Vec<u8>) {
        symbols.with_texts(|text| {
            for &symbol in &self.listed {
                let text = text(symbol);
                out.extend((text.len() as u32).to_le_bytes());
                out.extend(text.as_bytes());
            }
        });
    }

    /// Begins anew, for the next section.
    pub fn clear(&mut self) {
        for symbol in self.listed.drain(..) {
            self.numbers[symbol as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written_and_nothing_else_is_one() {
        let table = TableId { rollup: 7, granularity: Granularity::Day };
        let parts = [
            Part::Rows { table, bucket: Bucket(-3), segment: 9 },
            Part::State,
            Part::List { list: 2, part: 1 << 20 },
            Part::Accumulator,
        ];
        for part in parts {
            let key = SectionKey { shard: ShardId { worker: 513, stage: 1 }, part };
            let bytes = key.encode();
            let (found, reader) = SectionKey::open(&bytes).unwrap();
            assert_eq!(found, key);
            assert_eq!(reader.end(), Ok(()));
            for cut in 0..KEY_BYTES {
                assert!(SectionKey::open(&bytes[..cut]).is_err(), "{key} cut at {cut}");
            }
        }
        let rows = Part::Rows { table, bucket: Bucket(i32::MAX), segment: 0 };
        let far = SectionKey { shard: ShardId { worker: 0, stage: 0 }, part: rows };
        assert!(SectionKey::open(&far.encode()).is_err(), "a day after the end of time");
        let key = SectionKey { part: Part::State, ..far };
        for (at, wrong) in [(0, 2), (1, 5), (1, 0), (2, 2), (3, 1), (8, 1)] {
            let mut bytes = key.encode();
            bytes[at] = wrong;
            assert!(SectionKey::open(&bytes).is_err(), "byte {at} = {wrong}");
        }
    }

    #[test]
    fn texts_come_back_under_other_symbols() {
        let (here, there) = (Symbols::default(), Symbols::default());
        let wanted = ["US", "", "cmp_1", "ü"].map(|text| here.intern(text));
        there.intern("somebody else");
        let (mut dictionary, mut bytes) = (Dictionary::default(), Vec::new());
        let numbers = [0, 1, 0, 2, 3, 1].map(|i: usize| dictionary.number(wanted[i]));
        assert_eq!((numbers, dictionary.len()), ([0, 1, 0, 2, 3, 1], 4));
        dictionary.write(&here, &mut bytes);
        dictionary.clear();
        assert!(dictionary.is_empty());
        assert_eq!(dictionary.number(wanted[3]), 0, "it began anew");

        let mut reader = Reader { section: String::new(), bytes: &bytes, at: 0 };
        let texts = reader.texts(4, &there).unwrap();
        reader.end().unwrap();
        for (&symbol, &(found, stable)) in wanted.iter().zip(&texts) {
            assert_eq!(there.text(found), here.text(symbol));
            assert_eq!(stable, here.stable(symbol));
        }
        let mut more = Reader { section: "s".into(), bytes: &bytes, at: 0 };
        let error = more.texts(5, &there).unwrap_err().to_string();
        assert_eq!(error, format!("s: is cut short: {0} bytes, wanted are 4 from byte {0} on", 25));
    }
}
