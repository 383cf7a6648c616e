//! The accumulators of all workers of a job as a checkpoint has them, for any number of workers: a
//! row goes to the worker that owns its key, whoever had it before.
//!
//! # Invariants
//!
//! * Rows get the numbers 0, 1, 2 … of their (worker, stage, table, bucket) in the order in which
//!   they come, and a view that takes them in the same order stores them by the same numbers. So
//!   rows that were never published, which a view does not have, come last.
//! * Only buckets that are not final have rows here, as in an accumulator that never stopped.
//! * A share has as many rows as it had, so the same keys fold. Whether it has overflowed before
//!   makes no difference: in a share that has all the rows that it may have, new keys fold.

use super::{Accumulators, STAGES, image, image::TableRead, table::Table, unlimited};
use crate::{
    change::{Key, TableId},
    feed::EpochTimes,
    metrics::Group,
    rollup::RollupSpec,
    section::{BrokenSection, Reader, ShardId},
    sum::{share_of, stable_key},
    symbols::Symbols,
    time::{Bucket, Epoch, Lateness},
};
use std::{collections::BTreeMap, sync::Arc};

/// A row of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadedRow<const N: usize, M> {
    /// Its dimensions, as symbols of this process.
    pub key: Key<N>,
    /// [`stable_key`] of it, which says who owns it.
    pub stable: u64,
    /// How often it was published.
    pub version: u32,
    /// What it adds up to.
    pub metrics: M,
}

/// The rows of one worker and stage, for [`super::accumulate`] to begin with.
pub struct Loaded<const N: usize, M> {
    rollups: Vec<RollupSpec>,
    epoch: Epoch,
    tables: BTreeMap<(TableId, Bucket), Table<N, M>>,
}

impl<const N: usize, M> std::fmt::Debug for Loaded<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loaded {{ epoch: {}, tables: {} }}", self.epoch, self.tables.len())
    }
}

impl<const N: usize, M: Group> Loaded<N, M> {
    fn new(rollups: Vec<RollupSpec>, epoch: Epoch) -> Self {
        Loaded { rollups, epoch, tables: BTreeMap::new() }
    }

    fn table(&mut self, id: TableId, bucket: Bucket) -> &mut Table<N, M> {
        let rows_max = self.rollups[usize::from(id.rollup)].rows_max;
        self.tables.entry((id, bucket)).or_insert_with(|| Table::new(id, bucket, rows_max))
    }
}

impl<const N: usize, M: Group> Accumulators<N, M> {
    /// Begins with the rows of a checkpoint.
    pub(super) fn load(&mut self, loaded: Loaded<N, M>) {
        for (at, table) in loaded.tables {
            self.places.insert(at, self.tables.len());
            self.tables.push(table);
        }
        self.weigh();
    }
}

/// A row that was never published.
struct Silent<const N: usize> {
    shard: ShardId,
    table: TableId,
    bucket: Bucket,
    key: Key<N>,
    stable: u64,
}

/// The accumulators of all workers, as they are loaded.
pub struct Loading<const N: usize, M> {
    rollups: Vec<RollupSpec>,
    lateness: Lateness,
    at: EpochTimes,
    symbols: Arc<Symbols>,
    loaded: Vec<[Loaded<N, M>; STAGES]>,
    silent: Vec<Silent<N>>,
}

impl<const N: usize, M> std::fmt::Debug for Loading<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (epoch, workers) = (self.at.epoch, self.loaded.len());
        write!(f, "Loading {{ epoch: {epoch}, workers: {workers} }}")
    }
}

impl<const N: usize, M: Group> Loading<N, M> {
    /// Nothing yet, of the epoch `at`, for so many workers.
    pub fn new(
        rollups: Vec<RollupSpec>,
        lateness: Lateness,
        at: EpochTimes,
        workers: usize,
        symbols: Arc<Symbols>,
    ) -> Self {
        let others = unlimited(&rollups);
        let stages = || [&rollups, &others].map(|rollups| Loaded::new(rollups.clone(), at.epoch));
        let loaded = (0..workers).map(|_| stages()).collect();
        Loading { rollups, lateness, at, symbols, loaded, silent: Vec::new() }
    }

    /// The worker that owns a key.
    pub fn owner(&self, stable: u64) -> usize {
        share_of(stable) % self.loaded.len()
    }

    /// Whether a table is one of the job's.
    pub fn knows(&self, table: TableId) -> bool {
        let rollup = self.rollups.get(usize::from(table.rollup));
        rollup.is_some_and(|rollup| rollup.granularities.contains(&table.granularity))
    }

    /// Whether a bucket has rows here.
    fn is_live(&self, table: TableId, bucket: Bucket) -> bool {
        let end = table.granularity.end(bucket);
        !self.lateness.state(end, self.at.frontier).is_finalized()
    }

    /// Takes the next published rows of a bucket, in the order of their numbers at their owners.
    /// Nothing if the bucket is final.
    ///
    /// # Errors
    /// When a key comes twice, or a share has more rows than it may have.
    pub fn rows(
        &mut self,
        stage: u8,
        table: TableId,
        bucket: Bucket,
        rows: &[LoadedRow<N, M>],
    ) -> Result<(), String> {
        if !self.is_live(table, bucket) {
            return Ok(());
        }
        for row in rows {
            self.row(stage, table, bucket, row)?;
        }
        Ok(())
    }

    fn row(
        &mut self,
        stage: u8,
        table: TableId,
        bucket: Bucket,
        row: &LoadedRow<N, M>,
    ) -> Result<(), String> {
        let owner = self.owner(row.stable);
        let loaded = &mut self.loaded[owner][usize::from(stage)];
        let epoch = loaded.epoch as u32;
        loaded.table(table, bucket).load(row, epoch)?;
        Ok(())
    }

    /// Takes a section of [`super::AccumulatorImage`], behind its key.
    ///
    /// # Errors
    /// When it is not whole, of another epoch or of another job.
    pub fn image(&mut self, shard: ShardId, section: Reader<'_>) -> Result<(), BrokenSection> {
        let unknown = section.broken("names a table that the job does not have");
        for table in image::read(section, self.at.epoch, N, &self.symbols)? {
            let TableRead { id, bucket, silent } = table;
            if !self.knows(id) {
                return Err(unknown);
            }
            if !self.is_live(id, bucket) {
                continue;
            }
            for words in silent.as_chunks::<N>().0 {
                let key = words.map(|(symbol, _)| symbol);
                let stable = stable_key(words.iter().map(|&(_, stable)| stable));
                self.silent.push(Silent { shard, table: id, bucket, key, stable });
            }
        }
        Ok(())
    }

    /// What each worker's stages begin with. Everything has come.
    ///
    /// # Errors
    /// When the images of accumulators and the rows do not belong together.
    pub fn finish(mut self) -> Result<Vec<[Loaded<N, M>; STAGES]>, BrokenSection> {
        for Silent { shard, table, bucket, key, stable } in std::mem::take(&mut self.silent) {
            let row = LoadedRow { key, stable, version: 0, metrics: M::default() };
            self.row(shard.stage, table, bucket, &row)
                .map_err(|reason| broken(shard.stage, table, bucket, reason))?;
        }
        Ok(self.loaded)
    }
}

fn broken(stage: u8, table: TableId, bucket: Bucket, reason: String) -> BrokenSection {
    let (rollup, width) = (table.rollup, table.granularity.name());
    let section = format!("stage {stage}, rollup {rollup}, {width} {}", bucket.0);
    BrokenSection { section, reason }
}
