//! What one worker delivered: its rows, its history, its lists of events and its counts, under one
//! lock that the worker takes once an epoch and readers take for [`READ_ROWS`] rows at a time.
//!
//! # Reading at an epoch
//!
//! The worker may be ahead of the epoch that is read, and goes on while a read runs. A
//! [`BucketReader`] copies rows in short holds of the lock, and with them takes references to the
//! commits that it has not looked at. Then, without the lock, it notes what the rows of its bucket
//! were before every change of those commits, and puts that in place of what it copied. The rows it
//! returns are those of its epoch, however often the worker commits in between.

use super::{
    history::{History, Past},
    rows::{Row, Rows},
};
use crate::{catalog::Catalog, incidents, incidents::Lists, tables::ReadError};
use hashbrown::HashMap;
use parking_lot::RwLock;
use std::{collections::BTreeMap, ops::Range, sync::Arc};
use trueup_operators::{
    change::{Change, Counts, TableId},
    metrics::Group,
    rollup::RollupSpec,
    symbols::Symbol,
    time::{Bucket, Epoch, Granularity},
};

/// The most rows that are read under one hold of the lock: some 10 µs, and the copy stays in the
/// cache.
pub(crate) const READ_ROWS: usize = 1_024;

/// The buckets of one table of one worker.
pub(crate) type Buckets<const N: usize, M> = BTreeMap<Bucket, Rows<N, M>>;

/// One worker's part of everything.
#[derive(Debug)]
pub(crate) struct State<const N: usize, M> {
    /// By [`Catalog::slot`].
    pub(crate) tables: Vec<Buckets<N, M>>,
    pub(crate) history: History<N, M>,
    pub(crate) lists: Lists,
    /// Up to the last commit.
    pub(crate) counts: Counts,
}

/// [`State`] and its lock.
#[derive(Debug)]
pub(crate) struct Shard<const N: usize, M>(pub(crate) RwLock<State<N, M>>);

impl<const N: usize, M: Group> Shard<N, M> {
    pub(crate) fn new(rollups: &[RollupSpec]) -> Self {
        let tables = rollups.len() * Granularity::ALL.len();
        Shard(RwLock::new(State {
            tables: (0..tables).map(|_| BTreeMap::new()).collect(),
            history: History::new(),
            lists: Lists::default(),
            counts: Counts::default(),
        }))
    }

    /// The buckets of a table in a range.
    pub(crate) fn buckets(&self, table: TableId, range: &Range<Bucket>) -> Vec<Bucket> {
        if range.start >= range.end {
            return Vec::new();
        }
        let state = self.0.read();
        state.tables[Catalog::slot(table)].range(range.clone()).map(|(&b, _)| b).collect()
    }

    /// The commits after an epoch, up to another.
    pub(crate) fn between(
        &self,
        after: Epoch,
        upto: Epoch,
    ) -> Result<Vec<Arc<Past<N, M>>>, ReadError> {
        let state = self.0.read();
        state.check(after)?;
        Ok(state.history.between(after, upto).map(Arc::clone).collect())
    }
}

impl<const N: usize, M: Group> State<N, M> {
    /// Makes everything that an epoch brings.
    pub(crate) fn apply(&mut self, past: &Arc<Past<N, M>>) {
        for (changes, &more_rows) in past.changes.iter().zip(&past.more_rows) {
            let rows = self.tables[Catalog::slot(changes.table)]
                .entry(changes.bucket)
                .or_insert_with(Rows::new);
            rows.apply(&changes.changes);
            rows.changed = past.epoch;
            rows.present += i64::from(more_rows);
        }
        for incident in &past.incidents {
            if let Some(list) = incidents::list_of(incident.fate) {
                self.lists[list].push(past.epoch, *incident);
            }
        }
        self.counts.add(&past.counts);
        self.history.push(Arc::clone(past));
    }

    /// Whether what came after an epoch can be taken back.
    pub(crate) fn check(&self, epoch: Epoch) -> Result<(), ReadError> {
        match self.history.first() {
            Some(first) if epoch < first => Err(ReadError::Gone { epoch, first }),
            Some(_) => Ok(()),
            None => Err(ReadError::NotReady),
        }
    }

    /// Drops the buckets that `is_gone` at the oldest readable epoch.
    pub(crate) fn drop_buckets(
        &mut self,
        slot: usize,
        is_gone: impl Fn(Bucket) -> bool,
    ) -> Vec<Rows<N, M>> {
        let buckets = &mut self.tables[slot];
        let mut out = Vec::new();
        while let Some(oldest) = buckets.first_entry()
            && is_gone(*oldest.key())
        {
            out.push(oldest.remove());
        }
        out
    }

    /// The counts of events up to an epoch.
    pub(crate) fn counts_at(&self, epoch: Epoch) -> Result<Counts, ReadError> {
        self.check(epoch)?;
        let mut newer = Counts::default();
        for past in self.history.between(epoch, Epoch::MAX) {
            newer.add(&past.counts);
        }
        Ok(minus(self.counts, &newer))
    }
}

/// Takes back what was added.
fn minus(mut counts: Counts, newer: &Counts) -> Counts {
    for (a, b) in counts.fates.iter_mut().zip(newer.fates) {
        *a -= b;
    }
    counts.late -= newer.late;
    counts.verdicts -= newer.verdicts;
    counts.retractions -= newer.retractions;
    counts.verdicts_too_late -= newer.verdicts_too_late;
    counts.arithmetic_errors -= newer.arithmetic_errors;
    counts.folded -= newer.folded;
    counts
}

/// Up to which epoch rows were copied, and the commits that are not noted yet.
type Newer<const N: usize, M> = (Epoch, Vec<Arc<Past<N, M>>>);

/// Rows by number as they were, where they were not what they are.
type Undo<const N: usize, M> = HashMap<u32, Row<N, M>>;

/// What rows were before the oldest of these changes, of those that `concerns` a reader.
fn take_back<'a, const N: usize, M: Group>(
    commits: impl DoubleEndedIterator<Item = &'a Arc<Past<N, M>>>,
    table: TableId,
    bucket: Bucket,
    concerns: impl Fn(&Change<N, M>) -> bool,
) -> Undo<N, M> {
    let mut undo = Undo::new();
    // Newest first: what stays is what the oldest change found.
    for past in commits.rev() {
        for change in past.of_bucket(table, bucket).rev().filter(|c| concerns(c)) {
            undo.insert(change.row, Row::before(change));
        }
    }
    undo
}

/// Which rows of a bucket a reader wants to see at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All.
    All,
    /// Those that have, or once had, this first dimension.
    First(Symbol),
}

impl Reach {
    /// Whether a change can concern a reader. When a row number went from one key to another, the
    /// changes of each stand under its own key, and the first after an epoch says what the row was
    /// under that key: nothing, if it was the other's. So a reader of one key needs no other's.
    #[inline]
    pub(crate) fn takes<const N: usize, M>(self, change: &Change<N, M>) -> bool {
        match self {
            Reach::All => true,
            Reach::First(symbol) => change.key[0] == symbol,
        }
    }
}

/// Reads the rows of one bucket at one epoch.
pub(crate) struct BucketReader<'a, const N: usize, M> {
    shard: &'a Shard<N, M>,
    table: TableId,
    bucket: Bucket,
    reach: Reach,
    epoch: Epoch,
    /// What the rows were that were changed after the epoch and up to `noted`.
    undo: Undo<N, M>,
    noted: Epoch,
    numbers: Vec<u32>,
}

impl<'a, const N: usize, M: Group> BucketReader<'a, N, M> {
    pub(crate) fn new(
        shard: &'a Shard<N, M>,
        table: TableId,
        bucket: Bucket,
        epoch: Epoch,
        reach: Reach,
    ) -> Result<Self, ReadError> {
        shard.0.read().check(epoch)?;
        let (undo, numbers) = (Undo::new(), Vec::new());
        Ok(BucketReader { shard, table, bucket, reach, epoch, undo, noted: epoch, numbers })
    }

    /// Appends up to [`READ_ROWS`] rows from a place on, with their numbers, absent rows as well.
    /// Returns the place after them; `None` at the end.
    pub(crate) fn read(
        &mut self,
        from: u32,
        out: &mut Vec<(u32, Row<N, M>)>,
    ) -> Result<Option<u32>, ReadError> {
        let begin = out.len();
        let newer = {
            let state = self.shard.0.read();
            state.check(self.noted)?;
            let Some(rows) = state.tables[Catalog::slot(self.table)].get(&self.bucket) else {
                // Dropped: then nobody may read the epoch any more, or it never had the bucket.
                return state.check(self.epoch).map(|()| None);
            };
            match self.reach {
                Reach::All => rows.copy(from as usize, READ_ROWS, out),
                Reach::First(symbol) => {
                    self.numbers.clear();
                    rows.postings().read(symbol, from as usize, READ_ROWS, &mut self.numbers);
                    rows.copy_numbers(&self.numbers, out);
                }
            }
            self.newer(&state, rows.changed)
        };
        self.note(newer);
        self.put_back(&mut out[begin..]);
        let read = out.len() - begin;
        Ok((read == READ_ROWS).then(|| from + read as u32))
    }

    /// Appends the rows of these numbers, at most [`READ_ROWS`], absent rows as well.
    pub(crate) fn fetch(
        &mut self,
        numbers: &[u32],
        out: &mut Vec<(u32, Row<N, M>)>,
    ) -> Result<(), ReadError> {
        let begin = out.len();
        let newer = {
            let state = self.shard.0.read();
            state.check(self.noted)?;
            let Some(rows) = state.tables[Catalog::slot(self.table)].get(&self.bucket) else {
                state.check(self.epoch)?;
                out.extend(numbers.iter().map(|&n| (n, Row::absent())));
                return Ok(());
            };
            rows.copy_numbers(numbers, out);
            self.newer(&state, rows.changed)
        };
        self.note(newer);
        self.put_back(&mut out[begin..]);
        Ok(())
    }

    /// The commits that rows show which were copied under this hold of the lock, and that the
    /// reader has not noted: up to which epoch, and those that may have changed the bucket.
    fn newer(&self, state: &State<N, M>, changed: Epoch) -> Newer<N, M> {
        let last = state.history.last().unwrap_or(self.noted);
        let newer = (changed > self.noted).then(|| state.history.between(self.noted, last));
        (last, newer.into_iter().flatten().map(Arc::clone).collect())
    }

    /// Notes what newer commits found, without the lock: there may be many changes.
    fn note(&mut self, (last, newer): Newer<N, M>) {
        let reach = self.reach;
        for (number, row) in take_back(newer.iter(), self.table, self.bucket, |c| reach.takes(c)) {
            // What is noted already was found by an older change.
            self.undo.entry(number).or_insert(row);
        }
        self.noted = self.noted.max(last);
    }

    fn put_back(&self, rows: &mut [(u32, Row<N, M>)]) {
        if self.undo.is_empty() {
            return;
        }
        for (number, row) in rows {
            if let Some(old) = self.undo.get(number) {
                *row = *old;
            }
        }
    }
}
