//! Views: every table of every rollup in memory, as the workers deliver their differences, read at
//! one epoch.
//!
//! # Why it is hard
//!
//! Writing must cost next to nothing (a row is stored by the number that its worker gave it, under
//! a lock that is taken once an epoch), and still every answer must be of *one* epoch over all
//! tables and workers, although workers are at different epochs for moments and go on while a slow
//! reader reads. Keeping each row's versions would double the memory and cost every write. So rows
//! hold only the newest values, and recent commits, which carry the old values, are kept in a
//! ring: a read at an epoch takes back what came after it (`shard`). The same ring answers
//! `asOfEpoch` and gives subscribers the consolidated difference between any two epochs in it
//! (`follow`): a live tick, a slow reader and a resume are one algorithm.
//!
//! # What a row of a view is
//!
//! Its bucket, dimensions, figures, version, and the *state* of its bucket, which is a column like
//! any other: when the log-time frontier takes a bucket from provisional to settling, all its rows
//! change, and subscribers see that. A row without records is not in the view. A bucket leaves the
//! view [`ViewSettings::retention_us`] after it became final.
//!
//! # Limits
//!
//! Rows are bounded by each rollup's `rows_max` and the retention; the history by bytes and age,
//! or by twice the bytes while a sum that was overtaken twice holds its epoch; the lists of events
//! by `incidents_max` each. A reader that is slower than the history gets [`ReadError::Gone`]; it
//! never stops a worker for longer than it takes to copy 1,024 rows.
//!
//! # Images
//!
//! At an epoch that is marked for it, a shard gives an image of all that it holds (`image`): a
//! reference to each segment of rows, taken under the same hold of the lock as the epoch's changes,
//! and written by another thread while readers and the worker go on. `load` is the way back, for
//! any number of workers.

mod digest;
mod epochs;
mod follow;
mod history;
mod image;
mod load;
mod postings;
mod read;
mod rows;
mod shard;
#[cfg(test)]
mod tests;

use crate::{
    block::RowBlock,
    catalog::{Catalog, View, ViewId, ViewKind},
    incidents::{KEEPING, List},
    tables::{
        Filter, Follow, IncidentKey, IncidentPage, Memory, Page, Place, ReadError, Start, SumQuery,
        Summed, Tables,
    },
};
use digest::Digests;
use epochs::Epochs;
use history::Past;
pub use image::ShardImage;
pub use load::Loader;
use parking_lot::Mutex;
use shard::Shard;
use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::Arc,
};
use tokio::sync::watch;
use trueup_operators::{
    change::{Commit, Counts, Sink, TableId},
    event::Fate,
    feed::EpochTimes,
    metrics::Group,
    rollup::{self, RollupSpec},
    symbols::Symbols,
    time::{Bucket, BucketState, DAY_US, Epoch, Granularity, Lateness, LogTime, MINUTE_US},
};

/// How often a sum begins anew when the history went past its epoch.
const TRIES_MAX: u32 = 3;

/// How much the views keep.
#[derive(Clone, Debug)]
pub struct ViewSettings {
    /// How many sinks deliver: one a worker, or more when a worker's results leave by several
    /// operators. A row belongs to one of them.
    pub workers: usize,
    /// The job's rollups; a table's rollup number is a place in this list.
    pub rollups: Vec<RollupSpec>,
    /// The spans that decide a bucket's state.
    pub lateness: Lateness,
    /// The most bytes that recent epochs may take, over all workers.
    pub history_bytes_max: usize,
    /// How far back recent epochs may reach, in log time.
    pub history_us_max: i64,
    /// How many events of each fate the lists keep.
    pub incidents_max: usize,
    /// How long, after it became final, a bucket stays: by minute, hour and day, in log time.
    pub retention_us: [i64; 3],
    /// Whether to hash every epoch, for comparing runs.
    pub digests: bool,
}

/// How many events of each fate are listed, unless a job says otherwise.
pub const INCIDENTS_MAX: usize = 1_000_000;

impl ViewSettings {
    /// The settings of a job that says no more than this.
    pub fn new(workers: usize, rollups: Vec<RollupSpec>, lateness: Lateness) -> ViewSettings {
        ViewSettings {
            workers,
            rollups,
            lateness,
            history_bytes_max: 256 << 20,
            history_us_max: 10 * MINUTE_US,
            incidents_max: INCIDENTS_MAX,
            retention_us: [3 * DAY_US, 35 * DAY_US, 400 * DAY_US],
            digests: false,
        }
    }

    /// Buckets of this width that begin before this instant, µs, are not kept any more when the
    /// log is complete to `frontier`.
    pub fn kept_from_us(&self, granularity: Granularity, frontier: LogTime) -> i64 {
        let width = granularity.width_us();
        // A bucket is kept while its end is after this.
        frontier.0.saturating_sub(self.kept_us(granularity)).div_euclid(width) * width
    }

    /// How long after its end a bucket is kept, in log time.
    fn kept_us(&self, granularity: Granularity) -> i64 {
        let after_final = match granularity {
            Granularity::Minute => self.retention_us[0],
            Granularity::Hour => self.retention_us[1],
            Granularity::Day => self.retention_us[2],
        };
        self.lateness.correction_horizon_us + after_final
    }
}

/// All views of a job: what the workers fill and readers read.
pub struct Views<const N: usize, M> {
    settings: ViewSettings,
    catalog: Catalog,
    symbols: Arc<Symbols>,
    epochs: Epochs,
    shards: Vec<Shard<N, M>>,
    digests: Option<Digests>,
    /// The epochs that sums hold.
    held: Mutex<Vec<Epoch>>,
    /// Tells these views from all others, so that no place in others is taken for one in these.
    run: u32,
}

/// Holds an epoch as long as it lives.
struct Held<'a> {
    held: &'a Mutex<Vec<Epoch>>,
    epoch: Epoch,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(at) = held.iter().position(|&epoch| epoch == self.epoch) {
            held.swap_remove(at);
        }
    }
}

impl<const N: usize, M> std::fmt::Debug for Views<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let views = self.catalog.views().len();
        write!(f, "Views {{ views: {views}, visible: {:?} }}", self.epochs.visible())
    }
}

impl<const N: usize, M: Group> Views<N, M> {
    /// Empty views.
    pub fn new(settings: ViewSettings, symbols: Arc<Symbols>) -> Arc<Views<N, M>> {
        Arc::new(Views {
            catalog: Catalog::new(settings.rollups.clone(), M::COLUMNS),
            symbols,
            epochs: Epochs::new(settings.workers),
            shards: (0..settings.workers).map(|_| Shard::new(&settings.rollups)).collect(),
            digests: settings.digests.then(|| Digests::new(settings.workers)),
            held: Mutex::default(),
            run: RandomState::new().build_hasher().finish() as u32,
            settings,
        })
    }

    /// Tells the log times of the next epoch. Comes before any worker's commit of it; telling it
    /// again changes nothing, so that every worker may.
    pub fn announce(&self, times: EpochTimes) {
        self.epochs.announce(times);
    }

    /// Loads a checkpoint of the epoch `at` into views that are still empty.
    ///
    /// # Panics
    /// When there are not [`STAGES`] sinks a worker.
    pub fn load(self: &Arc<Self>, at: EpochTimes) -> Loader<N, M> {
        Loader::new(Arc::clone(self), at)
    }

    /// Where one worker delivers.
    ///
    /// # Panics
    /// When there are not so many workers in the settings.
    pub fn shard(self: &Arc<Self>, worker: usize) -> ShardSink<N, M> {
        assert!(worker < self.shards.len(), "worker {worker} of {}", self.shards.len());
        ShardSink { views: Arc::clone(self), worker, on_image: Box::new(|_image| {}) }
    }

    /// What may still happen to a bucket at an epoch; `None` when it has left the view.
    fn state(&self, table: Granularity, bucket: Bucket, at: EpochTimes) -> Option<BucketState> {
        let end = table.end(bucket);
        if at.frontier.0 >= end.0.saturating_add(self.settings.kept_us(table)) {
            return None;
        }
        Some(self.settings.lateness.state(end, at.frontier))
    }

    fn dimensions(&self, table: TableId) -> usize {
        self.catalog.dimensions(table).len()
    }

    fn view(&self, view: ViewId) -> &View {
        &self.catalog.views()[usize::from(view.0)]
    }

    fn try_sum(&self, query: &SumQuery, is_held: bool) -> Result<Summed, ReadError> {
        let at = self.epochs.at(query.epoch)?;
        let _held = is_held.then(|| self.hold(at.epoch));
        read::sum(self, query, at)
    }

    /// Keeps the history from going past an epoch, within limits.
    fn hold(&self, epoch: Epoch) -> Held<'_> {
        self.held.lock().push(epoch);
        Held { held: &self.held, epoch }
    }

    fn commit(&self, worker: usize, commit: Commit<N, M>) -> Option<ShardImage<N, M>> {
        let (epoch, kind, shard) = (commit.epoch, commit.image, &self.shards[worker]);
        if let Some(digests) = &self.digests {
            digests.add(worker, &commit, &self.symbols);
        }
        let past = Arc::new(Past::new(commit));
        let visible = self.epochs.visible();
        let too_old = visible.and_then(|v| self.epochs.older_than(v, self.settings.history_us_max));
        let bytes_max = self.settings.history_bytes_max / self.settings.workers;
        let held = self.held.lock().iter().min().copied();
        let mut state = shard.0.write();
        state.apply(&past);
        let old_epochs = state.history.evict(visible, bytes_max, too_old, held);
        let first = state.history.first().unwrap_or(epoch);
        let mut old_rows = Vec::new();
        if let Some(times) = self.epochs.from(first).filter(|t| t.epoch == first) {
            for table in rollup::tables(&self.settings.rollups) {
                let is_gone = |b| self.state(table.granularity, b, times).is_none();
                old_rows.append(&mut state.drop_buckets(Catalog::slot(table), is_gone));
            }
        }
        for list in &mut state.lists {
            list.trim(first, self.settings.incidents_max);
        }
        let image = kind.map(|kind| self.image(worker, epoch, kind, &mut state));
        drop(state);
        self.epochs.commit(worker, epoch, first);
        // Freed here, after readers were let in again.
        drop((old_epochs, old_rows));
        image
    }
}

/// Where images of a shard go.
type OnImage<const N: usize, M> = Box<dyn FnMut(ShardImage<N, M>) + Send>;

/// One worker's way in.
pub struct ShardSink<const N: usize, M> {
    views: Arc<Views<N, M>>,
    worker: usize,
    on_image: OnImage<N, M>,
}

impl<const N: usize, M> std::fmt::Debug for ShardSink<N, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardSink {{ worker: {} }}", self.worker)
    }
}

impl<const N: usize, M> ShardSink<N, M> {
    /// Says where the images go that a commit asks for; without it, nowhere. Called by the
    /// worker's thread, which must not write the image itself.
    pub fn on_image(mut self, on_image: impl FnMut(ShardImage<N, M>) + Send + 'static) -> Self {
        self.on_image = Box::new(on_image);
        self
    }
}

impl<const N: usize, M: Group> Sink<N, M> for ShardSink<N, M> {
    fn commit(&mut self, commit: Commit<N, M>) {
        if let Some(image) = self.views.commit(self.worker, commit) {
            (self.on_image)(image);
        }
    }
}

impl<const N: usize, M: Group> Tables for Views<N, M> {
    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    fn lateness(&self) -> Lateness {
        self.settings.lateness
    }

    fn visible(&self) -> Option<EpochTimes> {
        self.epochs.at(None).ok()
    }

    fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        self.epochs.watch()
    }

    fn first_epoch(&self) -> Option<Epoch> {
        self.epochs.first_readable()
    }

    fn kept_from_us(&self, granularity: Granularity, at: EpochTimes) -> i64 {
        self.settings.kept_from_us(granularity, at.frontier)
    }

    fn sum(&self, query: &SumQuery) -> Result<Summed, ReadError> {
        for tries in 1..=TRIES_MAX {
            // Not from the start: history costs memory, and few sums are ever overtaken.
            match self.try_sum(query, tries == TRIES_MAX) {
                // It began at an epoch of its own choice, so it may choose a newer one.
                Err(ReadError::Gone { .. }) if query.epoch.is_none() => {}
                result => return result,
            }
        }
        Err(ReadError::Overtaken { tries: TRIES_MAX })
    }

    fn page(
        &self,
        view: ViewId,
        filter: &Filter,
        epoch: Option<Epoch>,
        from: Option<Place>,
        rows_max: usize,
    ) -> Result<Page, ReadError> {
        if from.is_some_and(|place| place.run != self.run) {
            return Err(ReadError::Renumbered);
        }
        let at = self.epochs.at(epoch)?;
        match self.view(view).kind {
            ViewKind::Table(table) => read::page(self, table, filter, at, from, rows_max),
            ViewKind::Events(_) => Ok(Page { at, rows: RowBlock::default(), next: None }),
        }
    }

    fn incidents(
        &self,
        fates: &[Fate],
        epoch: Option<Epoch>,
        before: Option<IncidentKey>,
        rows_max: usize,
    ) -> Result<IncidentPage, ReadError> {
        read::incidents(self, fates, self.epochs.at(epoch)?, before, rows_max)
    }

    fn first_listed(&self) -> Option<Epoch> {
        let first = |shard: &Shard<N, M>| {
            let state = shard.0.read();
            state.lists[..KEEPING].iter().filter_map(List::first).min()
        };
        self.shards.iter().filter_map(first).min()
    }

    fn follow(
        self: Arc<Self>,
        view: ViewId,
        filter: Filter,
        start: Start,
    ) -> Result<Box<dyn Follow>, ReadError> {
        match self.view(view).kind {
            ViewKind::Table(table) => {
                Ok(Box::new(follow::TableFollower::new(self, table, filter, start)?))
            }
            ViewKind::Events(fates) => {
                let fates = match filter.fate {
                    Some(fate) => vec![fate],
                    None => fates.to_vec(),
                };
                Ok(Box::new(follow::EventFollower::new(self, fates, start)?))
            }
        }
    }

    fn counts(&self) -> Result<(EpochTimes, Counts), ReadError> {
        let at = self.epochs.at(None)?;
        let mut counts = Counts::default();
        for shard in &self.shards {
            counts.add(&shard.0.read().counts_at(at.epoch)?);
        }
        Ok((at, counts))
    }

    fn row_counts(&self) -> Result<(EpochTimes, Vec<u64>), ReadError> {
        read::row_counts(self)
    }

    fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        for shard in &self.shards {
            let state = shard.0.read();
            for rows in state.tables.iter().flat_map(|t| t.values()) {
                memory.rows += rows.len();
                memory.rows_bytes += rows.rows_bytes();
                memory.index_bytes += rows.postings().bytes();
            }
            memory.history_bytes += state.history.bytes();
            memory.incidents_bytes += state.lists.iter().map(|l| l.bytes()).sum::<usize>();
        }
        memory
    }

    fn epoch_hash(&self, epoch: Epoch) -> Option<u64> {
        self.digests.as_ref()?.get(epoch)
    }
}
