//! The rows of one bucket of a table at their owner: an index over dense rows, what changed in the
//! epoch under way, and the shares that are full. What is hard here is the cost of a sum (two cache
//! misses, asked for ahead), and that which keys fold must not depend on the order of arrival.

use super::load::LoadedRow;
use crate::{
    change::{Change, Key, TableId, same_key},
    metrics::Group,
    prefetch,
    rollup::ROWS_MAX_MAX,
    sum::{SHARES, Stables, Sum, hash_key, share_of},
    symbols::Symbols,
    time::Bucket,
};
use std::collections::{HashMap, HashSet};

/// The rows of one bucket.
pub(super) struct Table<const N: usize, M> {
    pub(super) id: TableId,
    pub(super) bucket: Bucket,
    /// 0: empty; else 6 bits of the hash above 26 bits of place + 1.
    index: Vec<u32>,
    pub(super) rows: Vec<Row<N, M>>,
    /// Rows touched in this epoch and what they were before it.
    changed: Vec<(u32, M)>,
    pub(super) touched: bool,
    /// How many rows there were before this epoch.
    pub(super) rows_before: usize,
    /// Sums of this epoch whose key has no row and whose share was full before it.
    pub(super) homeless: HashMap<Key<N>, M>,
    /// The most rows of a share.
    share_rows_max: u32,
    /// Rows by share. Within an epoch a share may have more than it may keep.
    share_rows: Box<[u32; SHARES]>,
    /// Places of rows that came to nothing in their first epoch: never said, but they are there and
    /// count in their share. Some may have been said since.
    silent: Vec<u32>,
    /// Shares that were full before this epoch, a bit each.
    full: u64,
    /// Shares that have more rows than they may keep, a bit each.
    pub(super) overfull: u64,
}

/// A row. With four dimensions and [`crate::metrics::Metrics`] it is a cache line, and lies in one:
/// a vector's memory begins anywhere, and then every row would be two.
#[repr(align(64))]
pub(super) struct Row<const N: usize, M> {
    pub(super) key: Key<N>,
    metrics: M,
    /// How often it has changed.
    version: u32,
    /// The low bits of the last epoch that touched it.
    touched: u32,
}

const _: () = assert!(size_of::<Row<4, crate::metrics::Metrics>>() == 64);

/// How far ahead of its use a changed row is asked for.
const AHEAD: usize = 8;

// A bit of a `u64` each.
const _: () = assert!(SHARES == 64);
const PLACE_BITS: u32 = 26;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
const _: () = assert!(ROWS_MAX_MAX + (1 << 20) < PLACE_MASK);

/// The most rows of a share of a table with `rows_max` rows.
pub const fn share_rows_max(rows_max: u32) -> u32 {
    rows_max.div_ceil(SHARES as u32)
}

impl<const N: usize, M: Group> Table<N, M> {
    pub(super) fn new(id: TableId, bucket: Bucket, rows_max: u32) -> Self {
        Table {
            id,
            bucket,
            index: if rows_max == 0 { Vec::new() } else { vec![0; 64] },
            rows: Vec::new(),
            changed: Vec::new(),
            touched: false,
            rows_before: 0,
            homeless: HashMap::new(),
            share_rows_max: share_rows_max(rows_max),
            share_rows: Box::new([0; SHARES]),
            silent: Vec::new(),
            full: 0,
            overfull: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.index.capacity() * size_of::<u32>()
            + self.rows.capacity() * size_of::<Row<N, M>>()
            + self.changed.capacity() * size_of::<(u32, M)>()
    }

    fn slot(&self, hash: u64) -> usize {
        (hash >> (64 - self.index.len().trailing_zeros())) as usize
    }

    #[inline]
    pub(super) fn prefetch_index(&self, hash: u64) {
        prefetch::read(&self.index, self.slot(hash));
    }

    #[inline]
    pub(super) fn prefetch_row(&self, hash: u64) {
        let slot = self.index[self.slot(hash)];
        prefetch::read(&self.rows, (slot & PLACE_MASK).wrapping_sub(1) as usize);
    }

    /// Adds a sum to its row, a new one if its share is not full. `false`: a figure stands at its
    /// limit.
    #[inline]
    pub(super) fn add(
        &mut self,
        hash: u64,
        sum: &Sum<N, M>,
        epoch: u32,
        stables: &Stables,
    ) -> bool {
        let mask = self.index.len() - 1;
        let mark = (hash as u32) << PLACE_BITS;
        let mut at = self.slot(hash);
        loop {
            let slot = self.index[at];
            if slot == 0 {
                break;
            }
            if slot & !PLACE_MASK == mark {
                let place = (slot & PLACE_MASK) - 1;
                let row = &mut self.rows[place as usize];
                if same_key(&row.key, &sum.key) {
                    if row.touched != epoch {
                        row.touched = epoch;
                        self.changed.push((place, row.metrics));
                    }
                    return row.metrics.add(&sum.metrics);
                }
            }
            at = (at + 1) & mask;
        }
        let share = share_of(stables.of_key(&sum.key));
        if self.full >> share & 1 == 1 {
            return self.homeless.entry(sum.key).or_default().add(&sum.metrics);
        }
        self.share_rows[share] += 1;
        if self.share_rows[share] > self.share_rows_max {
            self.overfull |= 1 << share;
        }
        self.insert(hash, sum.key, sum.metrics, epoch);
        true
    }

    fn insert(&mut self, hash: u64, key: Key<N>, metrics: M, epoch: u32) {
        self.changed.push((self.rows.len() as u32, M::default()));
        self.house(hash, Row { key, metrics, version: 0, touched: epoch });
    }

    /// Gives a row the next place.
    fn house(&mut self, hash: u64, row: Row<N, M>) {
        if self.rows.len() * 3 >= self.index.len() * 2 {
            self.grow();
        }
        let mask = self.index.len() - 1;
        let mut at = self.slot(hash);
        while self.index[at] != 0 {
            at = (at + 1) & mask;
        }
        self.rows.push(row);
        self.index[at] = (hash as u32) << PLACE_BITS | self.rows.len() as u32;
    }

    /// Puts in a row as a checkpoint of epoch `epoch` has it; its place. A row without a version is
    /// one that was never said.
    ///
    /// # Errors
    /// When there is such a row, or its share may not have so many.
    pub(super) fn load(&mut self, row: &LoadedRow<N, M>, epoch: u32) -> Result<u32, String> {
        let LoadedRow { key, stable, metrics, version } = *row;
        let hash = hash_key(&key, Bucket(0));
        if self.holds(hash, &key) {
            return Err("a key has two rows in the bucket".to_owned());
        }
        let (share, rows_max) = (share_of(stable), self.share_rows_max);
        if self.share_rows[share] >= rows_max {
            return Err(format!("share {share} of the bucket has more than {rows_max} rows"));
        }
        self.share_rows[share] += 1;
        if self.share_rows[share] == rows_max {
            self.full |= 1 << share;
        }
        let place = self.rows.len() as u32;
        if version == 0 {
            self.silent.push(place);
        }
        self.house(hash, Row { key, metrics, version, touched: epoch });
        Ok(place)
    }

    fn holds(&self, hash: u64, key: &Key<N>) -> bool {
        let (mask, mark) = (self.index.len() - 1, (hash as u32) << PLACE_BITS);
        let mut at = self.slot(hash);
        while self.index[at] != 0 {
            let slot = self.index[at];
            let place = (slot & PLACE_MASK) as usize - 1;
            if slot & !PLACE_MASK == mark && same_key(&self.rows[place].key, key) {
                return true;
            }
            at = (at + 1) & mask;
        }
        false
    }

    /// The keys of the rows that were never said, in the order of their places.
    pub(super) fn silent(&mut self) -> impl Iterator<Item = &Key<N>> {
        let Table { silent, rows, .. } = self;
        silent.retain(|&place| rows[place as usize].version == 0);
        silent.iter().map(|&place| &rows[place as usize].key)
    }

    #[cold]
    fn grow(&mut self) {
        self.index = vec![0; self.index.len() * 2];
        self.reindex();
    }

    /// Fills an empty index.
    fn reindex(&mut self) {
        let mask = self.index.len() - 1;
        for place in 0..self.rows.len() {
            let hash = hash_key(&self.rows[place].key, Bucket(0));
            let mut at = self.slot(hash);
            while self.index[at] != 0 {
                at = (at + 1) & mask;
            }
            self.index[at] = (hash as u32) << PLACE_BITS | (place as u32 + 1);
        }
    }

    /// Takes out what has no room: the sums of the homeless, and of each overfull share the new
    /// rows that come last by (stable hash, texts). A share overflows once in the life of its
    /// bucket, so that rebuilding the index does not matter.
    pub(super) fn fold(&mut self, stables: &Stables, symbols: &Symbols) -> Vec<(Key<N>, M)> {
        let mut folded: Vec<(Key<N>, M)> = self.homeless.drain().collect();
        if self.overfull == 0 {
            return folded;
        }
        let losers = self.losers(stables, symbols);
        let mut kept = self.rows_before;
        for place in self.rows_before..self.rows.len() {
            if losers.contains(&place) {
                folded.push((self.rows[place].key, self.rows[place].metrics));
            } else {
                self.rows.swap(kept, place);
                kept += 1;
            }
        }
        self.rows.truncate(kept);
        self.changed.retain(|&(place, _)| (place as usize) < self.rows_before);
        self.changed.extend((self.rows_before..kept).map(|place| (place as u32, M::default())));
        for share in 0..SHARES {
            if self.overfull >> share & 1 == 1 {
                self.share_rows[share] = self.share_rows_max;
            }
        }
        self.full |= self.overfull;
        self.overfull = 0;
        self.index.fill(0);
        self.reindex();
        folded
    }

    /// The places of new rows that their overfull shares may not keep.
    fn losers(&self, stables: &Stables, symbols: &Symbols) -> HashSet<usize> {
        let mut candidates: Vec<(usize, u64, usize)> = (self.rows_before..self.rows.len())
            .map(|place| (stables.of_key(&self.rows[place].key), place))
            .map(|(stable, place)| (share_of(stable), stable, place))
            .filter(|&(share, ..)| self.overfull >> share & 1 == 1)
            .collect();
        candidates.sort_by(|a, b| {
            let texts = |place: usize| self.rows[place].key.map(|symbol| symbols.text(symbol));
            (a.0, a.1).cmp(&(b.0, b.1)).then_with(|| texts(a.2).cmp(&texts(b.2)))
        });
        let mut losers = HashSet::new();
        for share in candidates.chunk_by(|a, b| a.0 == b.0) {
            let excess = (self.share_rows[share[0].0] - self.share_rows_max) as usize;
            losers.extend(share[share.len() - excess..].iter().map(|&(_, _, place)| place));
        }
        losers
    }

    /// What changed in this epoch, and how many rows have money but no records.
    pub(super) fn changes(&mut self) -> (Vec<Change<N, M>>, u64) {
        let mut errors = 0;
        let mut changes = Vec::with_capacity(self.changed.len());
        for (i, &(place, old)) in self.changed.iter().enumerate() {
            if let Some(&(ahead, _)) = self.changed.get(i + AHEAD) {
                prefetch::read(&self.rows, ahead as usize);
            }
            let row = &mut self.rows[place as usize];
            if row.metrics == old {
                if place as usize >= self.rows_before {
                    self.silent.push(place);
                }
                continue;
            }
            let (key, new, old_version) = (row.key, row.metrics, row.version);
            row.version += 1;
            errors += u64::from(new.records() == 0 && new != M::default());
            changes.push(Change { row: place, old_version, key, old, new });
        }
        self.changed.clear();
        if self.changed.capacity() > 4 * changes.len().max(1024) {
            self.changed.shrink_to(changes.len());
        }
        (changes, errors)
    }
}
