//! A hash of every epoch's differences, for proving that runs with other numbers of workers, after
//! a crash, or of a replay, published the same.
//!
//! It is a sum of one hash per row that appears less one per row that disappears, so it depends
//! neither on the order of rows nor on who delivers them; and it is over texts, so symbols and row
//! numbers do not matter. Off by default: it costs some 30 ns a changed row.

use parking_lot::Mutex;
use std::collections::VecDeque;
use trueup_operators::{
    change::{Commit, TableId},
    hash::mix,
    metrics::Group,
    symbols::Symbols,
    time::{Bucket, Epoch, Granularity},
};

use super::rows::Row;

/// For so many newest epochs the hashes are kept: a day and more at ten epochs a second.
const EPOCHS_MAX: usize = 1 << 20;

/// One worker's hashes, and the symbols that it knows.
#[derive(Debug, Default)]
struct Part {
    epochs: VecDeque<(Epoch, u64)>,
    stables: Vec<u64>,
    columns: Vec<i64>,
}

/// The hashes of recent epochs.
#[derive(Debug)]
pub(crate) struct Digests(Vec<Mutex<Part>>);

impl Digests {
    pub(crate) fn new(workers: usize) -> Digests {
        Digests((0..workers).map(|_| Mutex::default()).collect())
    }

    pub(crate) fn add<const N: usize, M: Group>(
        &self,
        worker: usize,
        commit: &Commit<N, M>,
        symbols: &Symbols,
    ) {
        let mut part = self.0[worker].lock();
        let known = part.stables.len();
        symbols.stable_since(known, &mut part.stables);
        let mut sum = 0_u64;
        for changes in &commit.changes {
            let seed = seed_of(changes.table, changes.bucket);
            for change in &changes.changes {
                sum = sum
                    .wrapping_add(part.row(seed, &Row::after(change)))
                    .wrapping_sub(part.row(seed, &Row::before(change)));
            }
        }
        for incident in &commit.incidents {
            let p = incident.position;
            let place = mix(p.offset, u64::from(p.partition) << 16 | u64::from(p.row));
            let what = mix(incident.log_time.0 as u64, incident.fate as u64);
            sum = sum.wrapping_add(mix(place, what));
        }
        part.epochs.push_back((commit.epoch, sum));
        if part.epochs.len() > EPOCHS_MAX {
            part.epochs.pop_front();
        }
    }

    pub(crate) fn get(&self, epoch: Epoch) -> Option<u64> {
        self.0.iter().try_fold(0_u64, |sum, part| {
            let part = part.lock();
            let at = part.epochs.binary_search_by_key(&epoch, |e| e.0).ok()?;
            Some(sum.wrapping_add(part.epochs[at].1))
        })
    }
}

impl Part {
    /// The hash of a row, 0 when it is not in the view.
    fn row<const N: usize, M: Group>(&mut self, seed: u64, row: &Row<N, M>) -> u64 {
        if !row.is_present() {
            return 0;
        }
        self.columns.clear();
        row.metrics.columns(&mut self.columns);
        let key = row.key.iter().fold(seed, |h, &s| mix(h, self.stables[s as usize]));
        let figures = self.columns.iter().fold(key, |h, &v| mix(h, v as u64));
        mix(figures, u64::from(row.version))
    }
}

fn seed_of(table: TableId, bucket: Bucket) -> u64 {
    let width = match table.granularity {
        Granularity::Minute => 1,
        Granularity::Hour => 2,
        Granularity::Day => 3,
    };
    mix(u64::from(table.rollup) << 8 | width, bucket.0 as u64)
}
