//! One of 256 parts of the ledger: the rows of the ids whose hash ends in the vnode's number, and
//! their index. A vnode is what a worker owns, what a checkpoint writes and what moves when the
//! number of workers changes; nothing in it refers to another vnode.
//!
//! # Forgetting
//!
//! A whole slice of rows, 1/64 of the horizon, is forgotten at one epoch's start. To take them all
//! out of the index then would stop the worker for seconds, so a slice is forgotten by moving
//! `live_from`; from then on no row before it is ever found. *Sweeping* takes such rows out of the
//! index and gives their memory back, a bounded number at a time, and is invisible but for memory:
//! what an epoch yields never depends on how far it has come.

use super::{
    index::Index,
    marks::Marks,
    ring::{Part, Pool, Ring},
    row::{Row, spread},
};
use crate::{
    feed::ImageKind,
    hash::IdHash,
    time::{Lateness, LogTime},
};

/// Rows that are taken out of the index together, so that their lines are asked for in time.
const SWEEP_BLOCK: u64 = 32;

/// The rows of one vnode.
#[derive(Debug)]
pub(super) struct Vnode {
    pub(super) rows: Ring<Row>,
    index: Index,
    /// Rows before this are forgotten. `rows.head() ≤ live_from ≤ rows.tail()`.
    live_from: u64,
    aside: Box<Aside>,
}

/// What no event needs; apart, so that what events need of 256 vnodes stays in the nearest cache.
#[derive(Debug, Default)]
struct Aside {
    marks: Marks,
    /// Rows before this are in the image before. 0 while no increment can follow it.
    imaged_to: u64,
    /// What verdicts have changed of those.
    flips: Vec<Flip>,
}

const _: () = assert!(size_of::<Vnode>() <= 128);

/// A row of an earlier image that a verdict has changed: the low 24 bits of its number, and above
/// them [`Row::judged`]. That is enough because a vnode remembers fewer than 2²⁴ rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flip(pub(super) u32);

impl Flip {
    const NUMBER_BITS: u32 = 24;
    const NUMBER_MASK: u32 = (1 << Self::NUMBER_BITS) - 1;

    fn new(number: u64, judged: u32) -> Flip {
        Flip(number as u32 & Self::NUMBER_MASK | judged << Self::NUMBER_BITS)
    }

    /// The whole number, given that the earlier image ended before `imaged_to`.
    pub(super) fn number(self, imaged_to: u64) -> u64 {
        let back = (imaged_to as u32).wrapping_sub(self.0) & Self::NUMBER_MASK;
        imaged_to.wrapping_sub(u64::from(back))
    }

    pub(super) fn judged(self) -> u32 {
        self.0 >> Self::NUMBER_BITS
    }
}

/// The rows of a vnode as they were.
#[derive(Debug)]
pub(super) struct VnodeImage {
    /// Of a whole image the first row, of an increment what the image before went up to.
    pub(super) from: u64,
    pub(super) live_from: u64,
    /// The live ones of `from` on.
    pub(super) rows: Part<Row>,
    /// In the order in which they happened.
    pub(super) flips: Vec<Flip>,
    pub(super) marks: Marks,
}

/// What became of an event that asked to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is the first with its id, and now has this number.
    New(u64),
    /// The row of this number has its id.
    Known(u64),
    /// It is the first with its id, but the vnode holds as many rows as it may.
    Full,
}

impl Vnode {
    pub(super) fn new(number: usize) -> Vnode {
        Vnode {
            rows: Ring::default(),
            // Neighbours are owned by different workers, so each worker has all sizes.
            index: Index::new(number as u8),
            live_from: 0,
            aside: Box::default(),
        }
    }

    /// A vnode of these rows, the first of them live and numbered `rows.head()`.
    pub(super) fn of_rows(number: usize, rows: Ring<Row>, marks: Marks) -> Vnode {
        let (live_from, imaged_to) = (rows.head(), rows.tail());
        let aside = Box::new(Aside { marks, imaged_to, flips: Vec::new() });
        let mut vnode = Vnode { rows, live_from, aside, ..Vnode::new(number) };
        if imaged_to > live_from {
            vnode.fit(1, &mut Pool::default());
        }
        vnode
    }

    /// The vnode as it is now. The next increment begins here.
    pub(super) fn image(&mut self, kind: ImageKind) -> VnodeImage {
        let flips = std::mem::take(&mut self.aside.flips);
        let (from, flips) = match kind {
            ImageKind::Whole => (self.live_from, Vec::new()),
            ImageKind::Increment => (self.aside.imaged_to, flips),
        };
        let rows = self.rows.share(from.max(self.live_from));
        self.aside.imaged_to = self.rows.tail();
        VnodeImage { from, live_from: self.live_from, rows, flips, marks: self.aside.marks.clone() }
    }

    /// No increment can follow the image before.
    pub(super) fn forget_image(&mut self) {
        self.aside.imaged_to = 0;
        self.aside.flips = Vec::new();
    }

    /// Sets a flag of a row because of a verdict. `true`: it was noted for the next increment.
    pub(super) fn flip(&mut self, number: u64, flag: u32, on: bool) -> bool {
        let row = self.rows.get_mut(number);
        row.set(flag, on);
        if number >= self.aside.imaged_to {
            return false;
        }
        self.aside.flips.push(Flip::new(number, row.judged()));
        true
    }

    /// How many events it remembers.
    pub(super) fn len(&self) -> usize {
        (self.rows.tail() - self.live_from) as usize
    }

    /// The number of the oldest event that it remembers.
    #[inline(always)]
    pub(super) fn live_from(&self) -> u64 {
        self.live_from
    }

    /// Asks for the memory that entering an id will touch.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
        self.rows.prefetch_tail();
    }

    /// The number of the row of an id.
    #[inline(always)]
    pub(super) fn find(&self, hash: u64, id: &IdHash) -> Option<u64> {
        self.index.find(hash, self.rows.head(), |number| {
            // The order matters: whoever is forgotten is not looked at, and most are not found.
            number >= self.live_from && self.rows.get(number).id == *id
        })
    }

    /// Enters a row unless its id is known.
    #[inline(always)]
    pub(super) fn enter(
        &mut self,
        hash: u64,
        row: &Row,
        rows_max: usize,
        pool: &mut Pool<Row>,
    ) -> Entered {
        if let Some(known) = self.find(hash, &row.id) {
            return Entered::Known(known);
        }
        if self.len() >= rows_max {
            return Entered::Full;
        }
        let number = self.rows.tail();
        if self.index.is_full(number - self.rows.head()) {
            self.fit(1, pool);
        }
        self.rows.push(*row, pool);
        self.index.insert(hash, number);
        Entered::New(number)
    }

    /// Makes the index anew for the live rows and `more`, and drops what is forgotten.
    #[cold]
    fn fit(&mut self, more: usize, pool: &mut Pool<Row>) {
        self.rows.drop_before(self.live_from, pool);
        let live = self.rows.iter_from(self.live_from);
        let entries = live.map(|(number, row)| (spread(&row.id), number));
        let live = self.rows.tail() - self.live_from;
        self.index.rebuild(live as usize + more, live, entries);
    }

    /// Sizes the index for this many rows at once.
    pub(super) fn reserve(&mut self, rows: usize, pool: &mut Pool<Row>) {
        if rows > self.len() {
            self.fit(rows - self.len(), pool);
        }
    }

    /// Ends a slice of log time.
    pub(super) fn close_slice(&mut self, latest: LogTime) {
        self.aside.marks.close(latest, self.rows.tail());
    }

    /// Forgets the slices whose time has come.
    pub(super) fn forget(&mut self, lateness: &Lateness, frontier: LogTime) {
        if let Some(end) = self.aside.marks.forget(lateness, frontier) {
            self.live_from = end;
        }
    }

    /// Takes at most about `budget` forgotten rows out; returns how many.
    pub(super) fn sweep(&mut self, budget: u64, pool: &mut Pool<Row>) -> u64 {
        let from = self.rows.head();
        let until = self.live_from.min(from.saturating_add(budget));
        let mut at = from;
        while at < until {
            let end = until.min(at + SWEEP_BLOCK);
            for number in at..end {
                self.index.prefetch(spread(&self.rows.get(number).id));
            }
            for number in at..end {
                self.index.remove(spread(&self.rows.get(number).id), number);
            }
            at = end;
        }
        self.rows.drop_before(until, pool);
        if until > from && until == self.live_from && self.index.is_sparse() {
            self.fit(0, pool);
        }
        until - from
    }

    /// All memory of the vnode, in use or not.
    pub(super) fn bytes(&self) -> usize {
        let flips = size_of::<Aside>() + self.aside.flips.capacity() * size_of::<Flip>();
        self.rows.bytes() + self.index.bytes() + self.aside.marks.bytes() + flips
    }

    /// What must hold whatever happened; for tests.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.index.check();
        assert!(self.rows.head() <= self.live_from && self.live_from <= self.rows.tail());
        assert_eq!(self.index.len() as u64, self.rows.tail() - self.rows.head());
        for (number, row) in self.rows.iter_from(self.live_from) {
            assert_eq!(self.find(spread(&row.id), &row.id), Some(number));
        }
    }
}
