//! What an accumulator knows and a view's rows do not say: the rows that came to nothing in their
//! first epoch, which nobody ever published but which take a place in their share. With these and
//! the rows of its view an accumulator goes on as if it had never stopped. The image is small and
//! always whole, so taking it costs a walk over the tables.
//!
//! # The section, little-endian
//!
//! ```text
//! 0   key                  16 bytes, see `section`; kind 4
//! 16  u64  epoch
//! 24  u8   words of a key: n
//! 25  u8   0
//! 26  u16  0
//! 28  u32  texts
//! 32  u32  tables
//! 36  texts                see `section`
//! ..  tables × {
//!         bucket of a table, see `section`
//!         u32  rows that were never published: r
//!         r × n × u32 text
//!     }
//! ```

use super::Accumulators;
use crate::{
    change::TableId,
    metrics::Group,
    section::{BrokenSection, Dictionary, Part, Reader, SectionKey, ShardId, write_bucket},
    symbols::{Symbol, Symbols},
    time::{Bucket, Epoch},
};

/// The bytes of a table without rows.
const TABLE_BYTES_MIN: usize = 12;

/// What one accumulator knew at the end of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccumulatorImage {
    /// Which.
    pub epoch: Epoch,
    words: u8,
    tables: Vec<TableImage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct TableImage {
    id: TableId,
    bucket: Bucket,
    /// The keys of rows that were never published, one behind the other.
    silent: Vec<Symbol>,
}

/// A table as the section has it: its keys as symbols of this process with their stable hashes.
pub(super) struct TableRead {
    pub(super) id: TableId,
    pub(super) bucket: Bucket,
    /// Each key's words one behind the other.
    pub(super) silent: Vec<(Symbol, u64)>,
}

impl<const N: usize, M: Group> Accumulators<N, M> {
    /// What a view's rows do not say, at the end of an epoch.
    pub(super) fn image(&mut self, epoch: Epoch) -> AccumulatorImage {
        let Accumulators { places, tables, .. } = self;
        let mut images = Vec::new();
        for (&(id, bucket), &place) in places.iter() {
            let silent: Vec<Symbol> = tables[place].silent().flatten().copied().collect();
            if !silent.is_empty() {
                images.push(TableImage { id, bucket, silent });
            }
        }
        AccumulatorImage { epoch, words: N as u8, tables: images }
    }
}

impl AccumulatorImage {
    /// The section's key and bytes.
    pub fn section(&self, shard: ShardId, symbols: &Symbols) -> (SectionKey, Vec<u8>) {
        let key = SectionKey { shard, part: Part::Accumulator };
        let (mut dictionary, mut tables) = (Dictionary::default(), Vec::new());
        for table in &self.tables {
            write_bucket(table.id, table.bucket, &mut tables);
            let rows = table.silent.len() / usize::from(self.words).max(1);
            tables.extend((rows as u32).to_le_bytes());
            for &symbol in &table.silent {
                tables.extend(dictionary.number(symbol).to_le_bytes());
            }
        }
        let mut bytes = key.encode().to_vec();
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend([self.words, 0, 0, 0]);
        bytes.extend((dictionary.len() as u32).to_le_bytes());
        bytes.extend((self.tables.len() as u32).to_le_bytes());
        dictionary.write(symbols, &mut bytes);
        bytes.append(&mut tables);
        (key, bytes)
    }
}

/// Reads what [`AccumulatorImage::section`] wrote, behind the key.
pub(super) fn read(
    mut reader: Reader<'_>,
    epoch: Epoch,
    words: usize,
    symbols: &Symbols,
) -> Result<Vec<TableRead>, BrokenSection> {
    let of = reader.u64()?;
    if of != epoch {
        return Err(reader.broken(format!("is of epoch {of}, the checkpoint of {epoch}")));
    }
    let found = reader.u8()?;
    if usize::from(found) != words {
        return Err(reader.broken(format!("has keys of {found} words, the job's have {words}")));
    }
    reader.take(3)?;
    let texts = reader.count(4)?;
    let tables = reader.count(TABLE_BYTES_MIN)?;
    let texts = reader.texts(texts, symbols)?;
    let tables: Vec<TableRead> =
        (0..tables).map(|_| read_table(&mut reader, words, &texts)).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(tables)
}

fn read_table(
    reader: &mut Reader<'_>,
    words: usize,
    texts: &[(Symbol, u64)],
) -> Result<TableRead, BrokenSection> {
    let (id, bucket) = reader.bucket()?;
    let rows = reader.count(words * size_of::<u32>())?;
    let mut silent = Vec::with_capacity(rows * words);
    for _ in 0..rows * words {
        let number = reader.u32()?;
        let text = texts.get(number as usize);
        silent.push(*text.ok_or_else(|| reader.broken(format!("names no text {number}")))?);
    }
    Ok(TableRead { id, bucket, silent })
}
