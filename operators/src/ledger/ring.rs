//! A queue of fixed-size entries that never moves what it holds. Entries are numbered from 0 in
//! the order of their arrival; they are appended at the tail and dropped from the head, and in
//! between they are read and written by number.
//!
//! Rows are kept this way because a ledger forgets in the order in which it learnt: growing is
//! adding a chunk, forgetting is giving chunks back, and neither copies a row. Chunks go through a
//! [`Pool`] that all queues of a worker share, so what one vnode forgets another one fills.
//!
//! # Sharing
//!
//! An image of the queue ([`Ring::share`]) refers to the full chunks and copies only the last one,
//! so it is taken in a time that goes by chunks and not by entries. While an image refers to a
//! chunk, the chunk is not changed: whoever changes an entry in it gets a copy of the chunk first,
//! once. Neither appending nor dropping copies anything. A chunk that no image refers to costs
//! those who read and write it one branch.

use super::lanes::prefetch_to_write;
use std::{collections::VecDeque, ops::Deref, sync::Arc};

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

    /// Takes a chunk back; one that an image still refers to is the image's from now on.
    fn give(&mut self, chunk: Chunk<T>) {
        let chunk = match chunk {
            Chunk::Own(chunk) => Some(chunk),
            Chunk::Shared(chunk) => Arc::try_unwrap(chunk).ok(),
        };
        if let Some(mut chunk) = chunk
            && self.free.len() < POOL_CHUNKS_MAX
        {
            chunk.clear();
            self.free.push(chunk);
        }
    }

    /// Memory of the free chunks.
    pub(super) fn bytes(&self) -> usize {
        self.free.len() * CHUNK * size_of::<T>() + self.free.capacity() * size_of::<Vec<T>>()
    }
}

/// A full chunk.
#[derive(Debug)]
enum Chunk<T> {
    /// No image refers to it.
    Own(Vec<T>),
    /// An image refers to it, or did.
    Shared(Arc<Vec<T>>),
}

impl<T> Deref for Chunk<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Chunk::Own(entries) => entries,
            Chunk::Shared(entries) => entries,
        }
    }
}

impl<T: Copy> Chunk<T> {
    fn share(&mut self) -> Arc<Vec<T>> {
        let shared = match std::mem::replace(self, Chunk::Own(Vec::new())) {
            Chunk::Own(entries) => Arc::new(entries),
            Chunk::Shared(entries) => entries,
        };
        *self = Chunk::Shared(Arc::clone(&shared));
        shared
    }

    #[inline(always)]
    fn entries_mut(&mut self) -> &mut [T] {
        if let Chunk::Shared(_) = self {
            self.unshare();
        }
        match self {
            Chunk::Own(entries) => entries,
            // Just made one's own.
            Chunk::Shared(_) => &mut [],
        }
    }

    /// Makes it one's own: by a copy, if an image still refers to it.
    #[cold]
    #[inline(never)]
    fn unshare(&mut self) {
        if let Chunk::Shared(entries) = std::mem::replace(self, Chunk::Own(Vec::new())) {
            *self = Chunk::Own(Arc::try_unwrap(entries).unwrap_or_else(|e| e.to_vec()));
        }
    }
}

/// Entries of a queue as they were when the image was taken, whatever became of the queue since.
#[derive(Debug)]
pub(super) struct Part<T> {
    /// The number of the first entry of the image.
    from: u64,
    /// The number of the first entry of `chunks`, at most `from`.
    base: u64,
    chunks: Vec<Arc<Vec<T>>>,
    last: Vec<T>,
}

impl<T> Part<T> {
    /// The number of the first entry.
    pub(super) fn first(&self) -> u64 {
        self.from
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.chunks.len() * CHUNK + self.last.len() - self.skip()
    }

    /// How many entries of the first chunk are before the first one.
    fn skip(&self) -> usize {
        (self.from - self.base) as usize
    }

    /// The entries with their numbers, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let entries = self.chunks.iter().flat_map(|c| c.iter()).chain(&self.last);
        (self.from..).zip(entries.skip(self.skip()))
    }

    /// Memory that the image alone holds.
    pub(super) fn bytes(&self) -> usize {
        let alone = self.chunks.iter().filter(|c| Arc::strong_count(c) == 1).count();
        (alone * CHUNK + self.last.capacity()) * size_of::<T>()
            + self.chunks.capacity() * size_of::<Arc<Vec<T>>>()
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
    full: VecDeque<Chunk<T>>,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Ring::starting_at(0)
    }
}

impl<T> Ring<T> {
    /// An empty queue whose first entry will have this number.
    pub(super) fn starting_at(number: u64) -> Self {
        let (last, full) = (Vec::new(), VecDeque::new());
        Ring { last, last_from: number, head: number, base: number, full }
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
        &mut self.full[at / CHUNK].entries_mut()[at % CHUNK]
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
            self.full.push_back(Chunk::Own(full));
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
        let full = self.full.iter().map(|chunk| &chunk[..]);
        let chunks = full.chain([&self.last[..]]).skip(skip / CHUNK);
        let entries = chunks.flatten().skip(skip % CHUNK);
        entries.enumerate().map(move |(i, entry)| (number + i as u64, entry))
    }

    /// An image of the entries from a number in `head..=tail` on.
    pub(super) fn share(&mut self, from: u64) -> Part<T> {
        let skipped = ((from - self.base) as usize / CHUNK).min(self.full.len());
        let chunks: Vec<_> = self.full.range_mut(skipped..).map(Chunk::share).collect();
        let of_last = from.saturating_sub(self.last_from) as usize;
        let last = self.last[of_last..].to_vec();
        let base = if chunks.is_empty() { from } else { self.base + (skipped * CHUNK) as u64 };
        Part { from, base, chunks, last }
    }

    /// Memory of the queue, free places included, and what images refer to as well.
    pub(super) fn bytes(&self) -> usize {
        let entries = self.full.len() * CHUNK + self.last.capacity();
        entries * size_of::<T>() + self.full.capacity() * size_of::<Chunk<T>>()
    }
}
