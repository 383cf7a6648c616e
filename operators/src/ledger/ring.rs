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
/// vnodes, smaller ones are allocated more often; 256 and 1,024 measure the same.
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

/// The queue. Invariant: `chunks` hold the entries `base..tail`, each chunk but the last full, and
/// `base ≤ head ≤ tail`, `head - base < CHUNK`.
#[derive(Debug)]
pub(super) struct Ring<T> {
    chunks: VecDeque<Vec<T>>,
    base: u64,
    head: u64,
    tail: u64,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Ring { chunks: VecDeque::new(), base: 0, head: 0, tail: 0 }
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
        self.tail
    }

    /// The entry of a number in `head..tail`.
    #[inline(always)]
    pub(super) fn get(&self, number: u64) -> &T {
        let at = (number - self.base) as usize;
        &self.chunks[at / CHUNK][at % CHUNK]
    }

    /// The same, to change it.
    #[inline(always)]
    pub(super) fn get_mut(&mut self, number: u64) -> &mut T {
        let at = (number - self.base) as usize;
        &mut self.chunks[at / CHUNK][at % CHUNK]
    }

    /// Appends; the entry's number is the tail before.
    #[inline(always)]
    pub(super) fn push(&mut self, entry: T, pool: &mut Pool<T>) {
        match self.chunks.back_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(entry),
            _ => self.push_in_new_chunk(entry, pool),
        }
        self.tail += 1;
    }

    #[cold]
    fn push_in_new_chunk(&mut self, entry: T, pool: &mut Pool<T>) {
        let mut chunk = pool.take();
        chunk.push(entry);
        self.chunks.push_back(chunk);
    }

    /// Asks for the line that the next entry goes to.
    #[inline(always)]
    pub(super) fn prefetch_tail(&self) {
        if let Some(chunk) = self.chunks.back() {
            prefetch_to_write(chunk.as_ptr().wrapping_add(chunk.len()));
        }
    }

    /// Drops all entries before a number that is at most the tail.
    pub(super) fn drop_before(&mut self, number: u64, pool: &mut Pool<T>) {
        debug_assert!(self.head <= number && number <= self.tail, "{number} is not in the ring");
        self.head = number;
        while self.head - self.base >= CHUNK as u64 {
            if let Some(chunk) = self.chunks.pop_front() {
                pool.give(chunk);
            }
            self.base += CHUNK as u64;
        }
        // A last chunk that is partly filled but wholly dropped stays, to be filled up.
    }

    /// The entries from a number on, with their numbers, oldest first.
    pub(super) fn iter_from(&self, number: u64) -> impl Iterator<Item = (u64, &T)> {
        let skip = (number - self.base) as usize;
        let chunks = self.chunks.iter().skip(skip / CHUNK);
        let entries = chunks.flatten().skip(skip % CHUNK);
        entries.enumerate().map(move |(i, entry)| (number + i as u64, entry))
    }

    /// Memory of the queue, free places included.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<T>() + self.chunks.capacity() * size_of::<Vec<T>>()
    }
}
