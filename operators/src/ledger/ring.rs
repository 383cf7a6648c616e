//! A queue of fixed-size entries that never moves what it holds. Entries are numbered from 0 in
//! the order of their arrival; they are appended at the tail and dropped from the head, and in
//! between they are read and written by number.
//!
//! Rows are kept this way because a ledger forgets in the order in which it learnt: growing is
//! adding a chunk, forgetting is giving chunks back, and neither copies a row. Chunks go through a
//! [`Pool`] that all queues of a worker share, so what one vnode forgets another one fills.

use super::lanes::prefetch_to_write;
use std::collections::VecDeque;

/// Entries in a chunk: 8 KiB of rows. Larger chunks waste half of themselves in each of 256
/// vnodes, smaller ones are allocated more often.
pub(super) const CHUNK: usize = 256;

/// How many free chunks a pool keeps (32 MiB of rows); more go back to the allocator.
const POOL_CHUNKS_MAX: usize = 4_096;

/// Chunks that are not in use.
#[derive(Debug)]
pub(super) struct Pool<T> {
    free: Vec<Vec<T>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool { free: Vec::new() }
    }
}

impl<T> Pool<T> {
    fn take(&mut self) -> Vec<T> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK))
    }

    fn give(&mut self, mut chunk: Vec<T>) {
        if self.free.len() < POOL_CHUNKS_MAX {
            chunk.clear();
            self.free.push(chunk);
        }
    }

    /// Memory of the free chunks.
    pub(super) fn bytes(&self) -> usize {
        self.free.len() * CHUNK * size_of::<T>() + self.free.capacity() * size_of::<Vec<T>>()
    }
}

/// The queue. Invariant: `full` and then `last` hold the entries `base..tail`; each of `full` has
/// `CHUNK` entries, and `base ≤ head ≤ tail`. `last` is apart so that appending finds its place
/// without going through the others.
#[derive(Debug)]
pub(super) struct Ring<T> {
    last: Vec<T>,
    /// The number of `last[0]`.
    last_from: u64,
    head: u64,
    base: u64,
    full: VecDeque<Vec<T>>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Ring { last: Vec::new(), last_from: 0, head: 0, base: 0, full: VecDeque::new() }
    }
}

impl<T: Copy> Ring<T> {
    /// The number of the oldest entry.
    #[inline(always)]
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The number that the next entry gets.
    #[inline(always)]
    pub(super) fn tail(&self) -> u64 {
        self.last_from + self.last.len() as u64
    }

    /// The entry of a number in `head..tail`.
    #[inline(always)]
    pub(super) fn get(&self, number: u64) -> &T {
        if number >= self.last_from {
            return &self.last[(number - self.last_from) as usize];
        }
        let at = (number - self.base) as usize;
        &self.full[at / CHUNK][at % CHUNK]
    }

    /// The same, to change it.
    #[inline(always)]
    pub(super) fn get_mut(&mut self, number: u64) -> &mut T {
        if number >= self.last_from {
            return &mut self.last[(number - self.last_from) as usize];
        }
        let at = (number - self.base) as usize;
        &mut self.full[at / CHUNK][at % CHUNK]
    }

    /// Appends; the entry's number is the tail before.
    #[inline(always)]
    pub(super) fn push(&mut self, entry: T, pool: &mut Pool<T>) {
        if self.last.len() >= CHUNK.min(self.last.capacity()) {
            self.begin_chunk(pool);
        }
        self.last.push(entry);
    }

    #[cold]
    #[inline(never)]
    fn begin_chunk(&mut self, pool: &mut Pool<T>) {
        let full = std::mem::replace(&mut self.last, pool.take());
        if !full.is_empty() {
            self.last_from += full.len() as u64;
            self.full.push_back(full);
        }
    }

    /// Asks for the line that the next entry goes to.
    #[inline(always)]
    pub(super) fn prefetch_tail(&self) {
        prefetch_to_write(self.last.as_ptr().wrapping_add(self.last.len()));
    }

    /// Drops all entries before a number that is at most the tail.
    pub(super) fn drop_before(&mut self, number: u64, pool: &mut Pool<T>) {
        debug_assert!(self.head <= number && number <= self.tail(), "{number} is not in the ring");
        self.head = number;
        while self.head - self.base >= CHUNK as u64 {
            // When all full ones are gone, the head is in the last one, which stays to be filled.
            let Some(chunk) = self.full.pop_front() else { break };
            pool.give(chunk);
            self.base += CHUNK as u64;
        }
    }

    /// The entries from a number on, with their numbers, oldest first.
    pub(super) fn iter_from(&self, number: u64) -> impl Iterator<Item = (u64, &T)> {
        let skip = (number - self.base) as usize;
        let chunks = self.full.iter().chain([&self.last]).skip(skip / CHUNK);
        let entries = chunks.flatten().skip(skip % CHUNK);
        entries.enumerate().map(move |(i, entry)| (number + i as u64, entry))
    }

    /// Memory of the queue, free places included.
    pub(super) fn bytes(&self) -> usize {
        let entries = self.full.len() * CHUNK + self.last.capacity();
        entries * size_of::<T>() + self.full.capacity() * size_of::<Vec<T>>()
    }
}
