//! What recent epochs changed, by worker: the commits themselves, kept as they came. Rows hold only
//! the newest values, so a read at an older epoch takes the changes after it back, and a
//! subscriber's difference is read off the commits alone.
//!
//! A commit is never changed once it is here and is handed out by reference, so nobody holds the
//! shard's lock while looking through it.
//!
//! Limits: bytes and age (in log time), or twice the bytes while a read holds an epoch; but never
//! less than [`EPOCHS_MIN`] epochs, nor an epoch that is not visible yet: while workers are at
//! different epochs, reads of the older need them.

use std::{collections::VecDeque, sync::Arc};
use trueup_operators::{
    change::{Change, Changes, Commit, Counts, Incident, TableId},
    time::{Bucket, Epoch},
};

/// So many newest visible epochs are kept whatever they take, so that a read that began is not
/// overtaken at once when epochs are as large as the limit.
const EPOCHS_MIN: usize = 4;

/// One epoch of one worker.
#[derive(Debug)]
pub(crate) struct Past<const N: usize, M> {
    pub(crate) epoch: Epoch,
    /// Sorted by table and bucket.
    pub(crate) changes: Vec<Changes<N, M>>,
    /// How many more rows are present, by place in `changes`.
    pub(crate) more_rows: Vec<i32>,
    pub(crate) incidents: Vec<Incident>,
    pub(crate) counts: Counts,
    bytes: usize,
}

impl<const N: usize, M: trueup_operators::metrics::Group> Past<N, M> {
    pub(crate) fn new(mut commit: Commit<N, M>) -> Self {
        commit.changes.sort_by_key(|c| (c.table, c.bucket));
        let more_rows = commit.changes.iter().map(|c| more_rows(&c.changes)).collect();
        let changed: usize = commit.changes.iter().map(|c| c.changes.capacity()).sum();
        let bytes = size_of::<Self>()
            + commit.changes.capacity() * size_of::<Changes<N, M>>()
            + changed * size_of::<Change<N, M>>()
            + commit.incidents.capacity() * size_of::<Incident>();
        Past {
            epoch: commit.epoch,
            changes: commit.changes,
            more_rows,
            incidents: commit.incidents,
            counts: commit.counts,
            bytes,
        }
    }

    /// The places in `changes` that are about a bucket of a table.
    fn places(&self, table: TableId, bucket: Bucket) -> std::ops::Range<usize> {
        let begin = self.changes.partition_point(|c| (c.table, c.bucket) < (table, bucket));
        let same = |c: &&Changes<N, M>| (c.table, c.bucket) == (table, bucket);
        begin..begin + self.changes[begin..].iter().take_while(same).count()
    }

    /// The changes of a bucket of a table, in the order they were made.
    pub(crate) fn of_bucket(
        &self,
        table: TableId,
        bucket: Bucket,
    ) -> impl DoubleEndedIterator<Item = &Change<N, M>> {
        self.changes[self.places(table, bucket)].iter().flat_map(|c| &c.changes)
    }

    /// The buckets of a table that were changed.
    pub(crate) fn buckets(&self, table: TableId) -> impl Iterator<Item = Bucket> {
        let begin = self.changes.partition_point(|c| c.table < table);
        self.changes[begin..].iter().take_while(move |c| c.table == table).map(|c| c.bucket)
    }
}

fn more_rows<const N: usize, M: trueup_operators::metrics::Group>(changes: &[Change<N, M>]) -> i32 {
    let more = |c: &Change<N, M>| {
        i32::from(c.new.records() != 0) - i32::from(c.old_version > 0 && c.old.records() != 0)
    };
    changes.iter().map(more).sum()
}

/// The recent epochs of one worker.
#[derive(Debug)]
pub(crate) struct History<const N: usize, M> {
    epochs: VecDeque<Arc<Past<N, M>>>,
    bytes: usize,
    /// Everything after this epoch is kept. `None` before the first commit, if nothing was loaded.
    first: Option<Epoch>,
}

impl<const N: usize, M: trueup_operators::metrics::Group> History<N, M> {
    pub(crate) fn new() -> Self {
        History { epochs: VecDeque::new(), bytes: 0, first: None }
    }

    /// Begins after an epoch that a checkpoint holds.
    pub(crate) fn begin_after(&mut self, epoch: Epoch) {
        self.first = Some(epoch);
    }

    /// The oldest epoch that can be read.
    pub(crate) fn first(&self) -> Option<Epoch> {
        self.first
    }

    /// The newest epoch that was committed.
    pub(crate) fn last(&self) -> Option<Epoch> {
        self.epochs.back().map(|p| p.epoch)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the next epoch.
    ///
    /// # Panics
    /// When it is not newer than the last: a worker delivered an epoch twice, and every figure
    /// from here on would be wrong.
    pub(crate) fn push(&mut self, past: Arc<Past<N, M>>) {
        if let Some(last) = self.last().or(self.first) {
            assert!(past.epoch > last, "epoch {} was committed after epoch {last}", past.epoch);
        }
        self.first.get_or_insert(past.epoch);
        self.bytes += past.bytes;
        self.epochs.push_back(past);
    }

    /// Takes out the oldest epochs while more than `bytes_max` are held or they are older than
    /// `too_old`, but none that is newer than the [`EPOCHS_MIN`]-newest up to `visible`; and up to
    /// twice the bytes none that a read at the epoch `held` needs.
    pub(crate) fn evict(
        &mut self,
        visible: Option<Epoch>,
        bytes_max: usize,
        too_old: Option<Epoch>,
        held: Option<Epoch>,
    ) -> Vec<Arc<Past<N, M>>> {
        let mut out = Vec::new();
        let Some(visible) = visible else { return out };
        let mut spare =
            self.epochs.partition_point(|p| p.epoch <= visible).saturating_sub(EPOCHS_MIN);
        while spare > 0
            && let Some(oldest) = self.epochs.front()
            && (self.bytes > bytes_max || too_old.is_some_and(|e| oldest.epoch <= e))
            && (self.bytes / 2 > bytes_max || held.is_none_or(|e| oldest.epoch <= e))
            && let Some(oldest) = self.epochs.pop_front()
        {
            spare -= 1;
            self.bytes -= oldest.bytes;
            self.first = Some(oldest.epoch);
            out.push(oldest);
        }
        out
    }

    /// The epochs after `after`, up to `upto`, oldest first.
    pub(crate) fn between(
        &self,
        after: Epoch,
        upto: Epoch,
    ) -> impl DoubleEndedIterator<Item = &Arc<Past<N, M>>> {
        let begin = self.epochs.partition_point(|p| p.epoch <= after);
        let end = self.epochs.partition_point(|p| p.epoch <= upto).max(begin);
        self.epochs.range(begin..end)
    }
}
