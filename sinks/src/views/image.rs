//! What a shard holds after an epoch, for a checkpoint. Taking it is a reference to each segment of
//! rows and to each part of a list, under the lock and without a copy; writing it is another
//! thread's work, while the worker copies what it changes meanwhile ([`crate::segment`]).
//!
//! # Invariants
//!
//! * An image of an increment has the segments that were written to since the image before. So
//!   images must be written in order and none left out; after one that was not written, and after a
//!   load, the next is a whole one.
//! * The state names every bucket and part that there is. What an older section holds and the state
//!   does not name is gone: see [`ShardImage::keys`].
//!
//! # Sections, little-endian
//!
//! Rows of one segment of a bucket; numbers that were never used are left out:
//!
//! ```text
//! 0   key                  16 bytes, see `section`; kind 1
//! 16  u8   words of a key: n
//! 17  u8   0
//! 18  u16  bytes of the metrics: m
//! 20  u32  texts
//! 24  u32  rows
//! 28  texts                see `section`
//! ..  rows × { n × u16 text, u32 version, m bytes of metrics }
//! ```
//!
//! The state of a shard, in every image:
//!
//! ```text
//! 0   key                  kind 2
//! 16  u64  epoch
//! 24  u16  workers of the job
//! 26  u16  lists: 4; 0 says 3, from before duplicates were listed
//! 28  u32  buckets
//! 32  11 × u64             counts: five fates, late, verdicts, retractions, verdicts too late,
//!                          arithmetic errors, folded
//! 120 lists × {            too late, conflict, quarantined, duplicate
//!         u64  how many entries there ever were
//!         u32  number of the first part
//!         u32  parts
//!     }
//! ..  buckets × { bucket of a table, see `section`; u32 rows, unused numbers as well }
//! ```
//!
//! A part of a list:
//!
//! ```text
//! 0   key                  kind 3
//! 16  u32  entries
//! 20  entries × { u64 epoch, u64 offset, i64 log time, u16 partition, u16 row }
//!     in the two highest bits of the partition: the topic, 0 that of the events (see `Position`);
//!     parts from before other topics were listed have none other
//! ```

use super::{
    Views,
    rows::{Row, SEGMENT_ROWS},
    shard::State,
};
use crate::incidents::{Entry, LISTED};
use std::sync::Arc;
use trueup_operators::{
    accumulate::STAGES,
    change::{Counts, TableId},
    feed::ImageKind,
    metrics::Group,
    rollup,
    section::{Dictionary, Part, SectionKey, ShardId, write_bucket},
    symbols::Symbols,
    time::{Bucket, Epoch},
};

/// Which parts a list has, and how many entries there ever were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListState {
    pub(super) total: u64,
    pub(super) first_part: u32,
    pub(super) parts: u32,
}

/// The keys that a state names, its own among them.
pub(super) fn keys(
    shard: ShardId,
    buckets: &[(TableId, Bucket, u32)],
    lists: &[ListState; LISTED.len()],
) -> impl Iterator<Item = SectionKey> {
    let rows = buckets.iter().flat_map(|&(table, bucket, rows)| {
        let segments = rows.div_ceil(SEGMENT_ROWS as u32);
        (0..segments).map(move |segment| Part::Rows { table, bucket, segment })
    });
    let parts = (0..).zip(lists).flat_map(|(list, of)| {
        let last = of.first_part.saturating_add(of.parts);
        (of.first_part..last).map(move |part| Part::List { list, part })
    });
    let all = [Part::State].into_iter().chain(rows).chain(parts);
    all.map(move |part| SectionKey { shard, part })
}

/// What one shard held after an epoch: all of it, or what was written to since the image before.
pub struct ShardImage<const N: usize, M> {
    epoch: Epoch,
    shard: ShardId,
    workers: u16,
    symbols: Arc<Symbols>,
    counts: Counts,
    buckets: Vec<(TableId, Bucket, u32)>,
    lists: [ListState; LISTED.len()],
    rows: Vec<(Part, Arc<Vec<Row<N, M>>>)>,
    parts: Vec<(Part, Arc<Vec<Entry>>)>,
}

impl<const N: usize, M> std::fmt::Debug for ShardImage<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (epoch, segments) = (self.epoch, self.rows.len());
        write!(f, "ShardImage {{ epoch: {epoch}, {:?}, segments: {segments} }}", self.shard)
    }
}

impl<const N: usize, M: Group> Views<N, M> {
    /// Takes an image of what a shard holds after an epoch.
    pub(super) fn image(
        &self,
        place: usize,
        epoch: Epoch,
        kind: ImageKind,
        state: &mut State<N, M>,
    ) -> ShardImage<N, M> {
        let tables = rollup::tables(&self.settings.rollups);
        let (mut buckets, mut rows) = (Vec::new(), Vec::new());
        for table in tables {
            for (&bucket, of) in &mut state.tables[crate::catalog::Catalog::slot(table)] {
                buckets.push((table, bucket, of.len() as u32));
                for (number, segment) in (0..).zip(of.segments_mut()) {
                    if kind == ImageKind::Whole || segment.is_changed() {
                        let part = Part::Rows { table, bucket, segment: number };
                        rows.push((part, segment.share()));
                    }
                }
            }
        }
        let (mut lists, mut parts) = ([ListState::default(); LISTED.len()], Vec::new());
        for (number, (to, list)) in (0..).zip(lists.iter_mut().zip(&mut state.lists)) {
            to.total = list.total_ever();
            for (part, entries) in list.parts_mut() {
                if to.parts == 0 {
                    to.first_part = part;
                }
                to.parts += 1;
                if kind == ImageKind::Whole || entries.is_changed() {
                    parts.push((Part::List { list: number, part }, entries.share()));
                }
            }
        }
        ShardImage {
            epoch,
            shard: ShardId { worker: (place / STAGES) as u16, stage: (place % STAGES) as u8 },
            workers: (self.shards.len() / STAGES) as u16,
            symbols: Arc::clone(&self.symbols),
            counts: state.counts,
            buckets,
            lists,
            rows,
            parts,
        }
    }
}

impl<const N: usize, M: Group> ShardImage<N, M> {
    /// The epoch that it shows.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whose it is.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The keys of all sections that make up the shard's state at the epoch: those of this image,
    /// and of earlier ones what has not changed since. A section under another key is no longer
    /// part of the state.
    pub fn keys(&self) -> impl Iterator<Item = SectionKey> {
        keys(self.shard, &self.buckets, &self.lists)
    }

    /// Writes its sections one by one, each with its key, and lets go of each as soon as it is
    /// written.
    ///
    /// # Errors
    /// The first that `put` returns.
    pub fn write<E>(
        self,
        mut put: impl FnMut(SectionKey, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (shard, mut bytes) = (self.shard, Vec::new());
        let mut put = |part, bytes: &mut Vec<u8>, write: &mut dyn FnMut(&mut Vec<u8>)| {
            let key = SectionKey { shard, part };
            bytes.clear();
            bytes.extend(key.encode());
            write(bytes);
            put(key, bytes)
        };
        put(Part::State, &mut bytes, &mut |out| self.write_state(out))?;
        let mut dictionary = Dictionary::default();
        for (part, rows) in self.rows {
            put(part, &mut bytes, &mut |out| {
                write_rows(&rows, &mut dictionary, &self.symbols, out);
            })?;
        }
        for (part, entries) in self.parts {
            put(part, &mut bytes, &mut |out| write_part(&entries, out))?;
        }
        Ok(())
    }

    fn write_state(&self, out: &mut Vec<u8>) {
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.workers.to_le_bytes());
        out.extend((self.lists.len() as u16).to_le_bytes());
        out.extend((self.buckets.len() as u32).to_le_bytes());
        out.extend(self.counts.numbers().into_iter().flat_map(u64::to_le_bytes));
        for list in &self.lists {
            out.extend(list.total.to_le_bytes());
            out.extend(list.first_part.to_le_bytes());
            out.extend(list.parts.to_le_bytes());
        }
        for &(table, bucket, rows) in &self.buckets {
            write_bucket(table, bucket, out);
            out.extend(rows.to_le_bytes());
        }
    }
}

fn write_rows<const N: usize, M: Group>(
    rows: &[Row<N, M>],
    dictionary: &mut Dictionary,
    symbols: &Symbols,
    out: &mut Vec<u8>,
) {
    // A segment has at most so many texts, and its metrics so many bytes.
    const { assert!(N * SEGMENT_ROWS <= 1 << 16 && M::BYTES < 1 << 16) };
    let used = || rows.iter().filter(|row| row.version > 0);
    used().flat_map(|row| row.key).for_each(|symbol| {
        dictionary.number(symbol);
    });
    out.extend([N as u8, 0]);
    out.extend((M::BYTES as u16).to_le_bytes());
    out.extend((dictionary.len() as u32).to_le_bytes());
    out.extend((used().count() as u32).to_le_bytes());
    dictionary.write(symbols, out);
    for row in used() {
        for &symbol in &row.key {
            // All have their numbers.
            out.extend((dictionary.number(symbol) as u16).to_le_bytes());
        }
        out.extend(row.version.to_le_bytes());
        row.metrics.write(out);
    }
    dictionary.clear();
}

fn write_part(entries: &[Entry], out: &mut Vec<u8>) {
    out.extend((entries.len() as u32).to_le_bytes());
    for (epoch, incident) in entries {
        out.extend(epoch.to_le_bytes());
        out.extend(incident.position.offset.to_le_bytes());
        out.extend(incident.log_time.0.to_le_bytes());
        out.extend(incident.position.partition.to_le_bytes());
        out.extend(incident.position.row.to_le_bytes());
    }
}
