//! Views and accumulators as a checkpoint has them, for any number of workers. Sections come one at
//! a time and in any order; a row goes to the shard that owns its key now, gets the next number
//! there, and its accumulator, if its bucket is not final, has it under the same number
//! ([`Loading`]).
//!
//! # Promises
//!
//! * The epoch of the checkpoint can be read and followed at once, and no older one.
//! * Everything that the states of the shards name has come once, or there is an error that names
//!   what is missing, twice there, or not part of the state.
//! * Memory: a row twice (view and accumulator), each list at most twice its limit, one section.

use super::{
    Views,
    image::{ListState, keys},
    rows::{Row, Rows, SEGMENT_ROWS},
    shard::Buckets,
};
use crate::{
    catalog::Catalog,
    incidents::{Entry, LISTED, List, PART_ENTRIES, key},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use trueup_operators::{
    accumulate::{Loaded, LoadedRow, Loading, STAGES},
    change::{Counts, Incident, TableId},
    event::Position,
    feed::EpochTimes,
    metrics::Group,
    section::{BrokenSection, Part, Reader, SectionKey, ShardId},
    sum::stable_key,
    symbols::Symbol,
    time::{Bucket, LogTime},
};

/// The bytes of a bucket in a state.
const BUCKET_BYTES: usize = 12;
/// How many lists there were when a state did not say it.
const LISTS_BEFORE: usize = 3;
/// The bytes of an entry of a list.
const ENTRY_BYTES: usize = 28;

/// The lists of all shards together.
type Listed = [Vec<Entry>; LISTED.len()];

/// What the state of a shard names.
struct Named {
    /// How many workers there were.
    workers: u16,
    buckets: Vec<(TableId, Bucket, u32)>,
    lists: [ListState; LISTED.len()],
}

impl Named {
    /// The sections that there have to be.
    fn keys(&self, shard: ShardId) -> impl Iterator<Item = SectionKey> {
        let accumulator = SectionKey { shard, part: Part::Accumulator };
        keys(shard, &self.buckets, &self.lists).chain([accumulator])
    }
}

/// Takes the sections of a checkpoint.
pub struct Loader<const N: usize, M> {
    views: Arc<Views<N, M>>,
    at: EpochTimes,
    accumulators: Loading<N, M>,
    /// By shard, by [`Catalog::slot`].
    tables: Vec<Vec<Buckets<N, M>>>,
    listed: Listed,
    /// How many entries there ever were.
    totals: [u64; LISTED.len()],
    counts: Counts,
    states: BTreeMap<ShardId, Named>,
    taken: BTreeSet<SectionKey>,
}

impl<const N: usize, M> std::fmt::Debug for Loader<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (epoch, sections) = (self.at.epoch, self.taken.len());
        write!(f, "Loader {{ epoch: {epoch}, sections: {sections} }}")
    }
}

impl<const N: usize, M: Group> Loader<N, M> {
    pub(super) fn new(views: Arc<Views<N, M>>, at: EpochTimes) -> Self {
        let (shards, settings) = (views.shards.len(), &views.settings);
        assert!(shards.is_multiple_of(STAGES), "{shards} sinks, {STAGES} a worker");
        let accumulators = Loading::new(
            settings.rollups.clone(),
            settings.lateness,
            at,
            shards / STAGES,
            Arc::clone(&views.symbols),
        );
        let slots = views.shards[0].0.read().tables.len();
        let tables = || (0..slots).map(|_| Buckets::new()).collect();
        Loader {
            at,
            accumulators,
            tables: (0..shards).map(|_| tables()).collect(),
            listed: Listed::default(),
            totals: [0; LISTED.len()],
            counts: Counts::default(),
            states: BTreeMap::new(),
            taken: BTreeSet::new(),
            views,
        }
    }

    /// Takes a section: the newest of its key.
    ///
    /// # Errors
    /// When it is not whole, contradicts itself, or is of another epoch or job.
    pub fn take(&mut self, section: &[u8]) -> Result<(), BrokenSection> {
        let (key, reader) = SectionKey::open(section)?;
        if !self.taken.insert(key) {
            return Err(reader.broken("comes twice"));
        }
        match key.part {
            Part::Rows { table, bucket, .. } => self.rows(key.shard, table, bucket, reader),
            Part::State => self.state(key.shard, reader),
            Part::List { list, .. } => self.list(list, reader),
            Part::Accumulator => self.accumulators.image(key.shard, reader),
        }
    }

    fn rows(
        &mut self,
        from: ShardId,
        table: TableId,
        bucket: Bucket,
        mut reader: Reader<'_>,
    ) -> Result<(), BrokenSection> {
        if !self.accumulators.knows(table) {
            return Err(reader.broken("is of a table that the job does not have"));
        }
        let rows = self.read_rows(&mut reader)?;
        self.accumulators
            .rows(from.stage, table, bucket, &rows)
            .map_err(|reason| reader.broken(reason))?;
        for LoadedRow { key, stable, version, metrics } in rows {
            let shard = self.accumulators.owner(stable) * STAGES + usize::from(from.stage);
            self.tables[shard][Catalog::slot(table)]
                .entry(bucket)
                .or_insert_with(Rows::new)
                .load(Row { key, version, metrics });
        }
        Ok(())
    }

    fn read_rows(&self, reader: &mut Reader<'_>) -> Result<Vec<LoadedRow<N, M>>, BrokenSection> {
        let (words, _, bytes) = (reader.u8()?, reader.u8()?, reader.u16()?);
        if (usize::from(words), usize::from(bytes)) != (N, M::BYTES) {
            return Err(reader.broken(format!(
                "has keys of {words} words and metrics of {bytes} bytes, the job's have {N} and {}",
                M::BYTES
            )));
        }
        let (texts, count) = (reader.count(4)?, reader.count(N * 2 + 4 + M::BYTES)?);
        if count > SEGMENT_ROWS {
            return Err(reader.broken(format!("has {count} rows, at most are {SEGMENT_ROWS}")));
        }
        let texts = reader.texts(texts, &self.views.symbols)?;
        let mut rows = Vec::with_capacity(count);
        for number in 0..count {
            rows.push(read_row(reader, &texts, number)?);
        }
        reader.end()?;
        Ok(rows)
    }

    fn state(&mut self, shard: ShardId, mut reader: Reader<'_>) -> Result<(), BrokenSection> {
        let epoch = reader.u64()?;
        if epoch != self.at.epoch {
            let wanted = self.at.epoch;
            return Err(reader.broken(format!("is of epoch {epoch}, the checkpoint of {wanted}")));
        }
        let (workers, listed) = (reader.u16()?, reader.u16()?);
        if shard.worker >= workers {
            return Err(reader.broken(format!("is of one of {workers} workers")));
        }
        let buckets = reader.count(BUCKET_BYTES)?;
        let mut counts = [0; Counts::NUMBERS];
        for count in &mut counts {
            *count = read_total(&mut reader)?;
        }
        let mut lists = [ListState::default(); LISTED.len()];
        let listed = match usize::from(listed) {
            0 => LISTS_BEFORE,
            listed if listed <= LISTED.len() => listed,
            listed => return Err(reader.broken(format!("has {listed} lists"))),
        };
        // Those of a list that there was not yet are as if they had been pushed out of it.
        for (fate, total) in LISTED.iter().zip(&mut self.totals).skip(listed) {
            *total += counts[*fate as usize];
        }
        for (list, total) in lists.iter_mut().zip(&mut self.totals).take(listed) {
            let of = read_total(&mut reader)?;
            let (first_part, parts) = (reader.u32()?, reader.u32()?);
            *list = ListState { total: of, first_part, parts };
            let kept = u64::from(parts) * PART_ENTRIES as u64;
            *total += of;
            // All parts but the last are full, and at least one entry is in that.
            if kept.saturating_sub(PART_ENTRIES as u64) > of {
                return Err(reader.broken(format!("has {parts} parts of a list of {of} entries")));
            }
        }
        let buckets = (0..buckets)
            .map(|_| {
                let (table, bucket) = reader.bucket()?;
                Ok((table, bucket, reader.u32()?))
            })
            .collect::<Result<Vec<_>, _>>()?;
        reader.end()?;
        self.counts.add(&Counts::of_numbers(counts));
        self.states.insert(shard, Named { workers, buckets, lists });
        Ok(())
    }

    fn list(&mut self, list: u8, mut reader: Reader<'_>) -> Result<(), BrokenSection> {
        let Some(&fate) = LISTED.get(usize::from(list)) else {
            return Err(reader.broken("is of a list that there is not"));
        };
        let count = reader.count(ENTRY_BYTES)?;
        if count > PART_ENTRIES {
            return Err(reader.broken(format!("has {count} entries, at most are {PART_ENTRIES}")));
        }
        let into = &mut self.listed[usize::from(list)];
        for _ in 0..count {
            let epoch = reader.u64()?;
            if epoch > self.at.epoch {
                let of = self.at.epoch;
                return Err(reader.broken(format!("has an entry of epoch {epoch}, after {of}")));
            }
            let (offset, log_time) = (reader.u64()?, LogTime(reader.i64()?));
            let position = Position { offset, partition: reader.u16()?, row: reader.u16()? };
            into.push((epoch, Incident { fate, position, log_time }));
        }
        let incidents_max = self.views.settings.incidents_max;
        if into.len() > 2 * incidents_max.max(PART_ENTRIES) {
            keep_newest(into, incidents_max);
        }
        reader.end()
    }

    /// Puts everything in its place: the epoch is visible. What each worker's stages begin with.
    ///
    /// # Errors
    /// When something is missing or does not belong to the rest.
    ///
    /// # Panics
    /// When the views are not empty.
    pub fn finish(mut self) -> Result<Vec<[Loaded<N, M>; STAGES]>, BrokenSection> {
        self.check()?;
        let loaded = self.accumulators.finish()?;
        let views = &self.views;
        let incidents_max = views.settings.incidents_max;
        let lists = std::array::from_fn(|list| {
            let mut kept = std::mem::take(&mut self.listed[list]);
            keep_newest(&mut kept, incidents_max);
            let dropped = self.totals[list].saturating_sub(kept.len() as u64);
            List::of(kept, dropped)
        });
        for (shard, tables) in views.shards.iter().zip(self.tables) {
            let mut state = shard.0.write();
            assert!(state.history.first().is_none(), "views that are loaded are empty");
            state.tables = tables;
            state.history.begin_after(self.at.epoch);
        }
        // Whose they are does not matter: the lists of all shards are one, and so are the counts.
        let mut first = views.shards[0].0.write();
        (first.lists, first.counts) = (lists, self.counts);
        drop(first);
        views.epochs.begin_with(self.at);
        Ok(loaded)
    }

    /// Whether all shards and all that they name have come, and nothing else.
    fn check(&self) -> Result<(), BrokenSection> {
        let broken = |key: SectionKey, reason: String| {
            Err(BrokenSection { section: key.to_string(), reason })
        };
        let workers = self.states.values().map(|named| named.workers).max().unwrap_or(1);
        let mut named = 0;
        for (worker, stage) in (0..workers).flat_map(|w| (0..STAGES).map(move |s| (w, s as u8))) {
            let shard = ShardId { worker, stage };
            let key = SectionKey { shard, part: Part::State };
            let Some(of) = self.states.get(&shard) else { return broken(key, "is missing".into()) };
            if of.workers != workers {
                let reason = format!("is of {} workers, others of {workers}", of.workers);
                return broken(key, reason);
            }
            for key in of.keys(shard) {
                if !self.taken.contains(&key) {
                    return broken(key, "is missing".into());
                }
                named += 1;
            }
        }
        if named == self.taken.len() {
            return Ok(());
        }
        let named: BTreeSet<SectionKey> =
            self.states.iter().flat_map(|(&shard, of)| of.keys(shard)).collect();
        match self.taken.difference(&named).next() {
            Some(&other) => broken(other, "is no part of the state".into()),
            None => Ok(()),
        }
    }
}

/// More of anything than there ever is: sums of so many of these do not overflow.
const TOTAL_MAX: u64 = 1 << 48;

fn read_total(reader: &mut Reader<'_>) -> Result<u64, BrokenSection> {
    let total = reader.u64()?;
    if total > TOTAL_MAX {
        return Err(reader.broken(format!("has a count of {total}, which cannot be")));
    }
    Ok(total)
}

fn read_row<const N: usize, M: Group>(
    reader: &mut Reader<'_>,
    texts: &[(Symbol, u64)],
    number: usize,
) -> Result<LoadedRow<N, M>, BrokenSection> {
    let (mut key, mut stables) = ([0; N], [0; N]);
    for (word, hash) in key.iter_mut().zip(&mut stables) {
        let text = usize::from(reader.u16()?);
        (*word, *hash) = *texts
            .get(text)
            .ok_or_else(|| reader.broken(format!("row {number} names no text {text}")))?;
    }
    let version = reader.u32()?;
    if version == 0 {
        return Err(reader.broken(format!("row {number} was never published")));
    }
    let metrics = M::read(reader.take(M::BYTES)?)
        .ok_or_else(|| reader.broken(format!("row {number} has no metrics that can be read")))?;
    Ok(LoadedRow { key, stable: stable_key(stables), version, metrics })
}

/// Sorts entries, and drops the oldest beyond a number.
fn keep_newest(entries: &mut Vec<Entry>, max: usize) {
    entries.sort_unstable_by_key(key);
    entries.drain(..entries.len().saturating_sub(max));
}
