//! From a hash to the number of an entry in a [`super::ring::Ring`], in 32 bits an entry.
//!
//! A slot holds a fingerprint of the hash and the low bits of the entry's number: 12 + 20 bits up
//! to a million entries; beyond that each doubling moves one bit from the fingerprint to the
//! number. The entries of a ring have consecutive numbers, so the low bits and the ring's head
//! give the whole number back. What the fingerprint says is confirmed by looking at the entry: the
//! index never decides on its own.
//!
//! Any number of buckets is possible, because a hash finds its home by multiplication and not by a
//! mask. That is what staggering needs: each of the 256 indexes of a worker starts at a different
//! size between 8 and 16 and doubles from there, so at any time a few are about to grow and never
//! all in one epoch. An index grows at 11 entries a bucket of 15 and then has 5.5; over time that
//! is 8.1 bytes an entry.

use super::lanes::{Bucket, SLOTS};

/// Entries a bucket at which the index grows. Just before, one probe in nine goes on to a second
/// line, which is its neighbour; at 12 it would be one in five, at 13 two in five.
const FILL_MAX: usize = 11;
/// Entries a bucket below which the index shrinks when it is rebuilt anyway or has been swept.
const FILL_MIN: usize = 2;
/// The fewest buckets of an index that holds anything, before staggering.
const STEP_MIN: u32 = 3;
/// Number bits of a small index.
const NUMBER_BITS_MIN: u32 = 20;
/// Number bits of the largest index; four are left for the fingerprint.
const NUMBER_BITS_MAX: u32 = 28;

/// The index of one ring.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Box<[Bucket]>,
    len: usize,
    number_bits: u32,
    /// 0..256: how far between two powers of two this index's sizes are.
    stagger: u8,
}

impl Index {
    /// An empty index without memory.
    pub(super) fn new(stagger: u8) -> Index {
        Index { buckets: Box::default(), len: 0, number_bits: NUMBER_BITS_MIN, stagger }
    }

    /// How many entries it holds.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether one more entry needs a [`Index::rebuild`] first, given how many numbers the ring
    /// spans.
    #[inline(always)]
    pub(super) fn is_full(&self, span: u64) -> bool {
        self.len >= self.buckets.len() * FILL_MAX || span >> self.number_bits != 0
    }

    /// Whether a rebuild would free half of the memory or more.
    pub(super) fn is_sparse(&self) -> bool {
        self.buckets.len() > self.size(STEP_MIN) && self.len < self.buckets.len() * FILL_MIN
    }

    /// Memory of the index.
    pub(super) fn bytes(&self) -> usize {
        size_of_val::<[Bucket]>(&self.buckets)
    }

    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        ((u64::from(hash as u32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() { 0 } else { at + 1 }
    }

    /// The fingerprint in its place in a slot; never zero, so no slot in use is zero.
    #[inline(always)]
    fn tag(&self, hash: u64) -> u32 {
        let tag = (hash >> 32) as u32 & !self.number_mask();
        if tag == 0 { 1 << self.number_bits } else { tag }
    }

    #[inline(always)]
    fn number_mask(&self) -> u32 {
        (1 << self.number_bits) - 1
    }

    /// Asks for the line that a hash has its home in.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        crate::prefetch::read(&self.buckets, self.home(hash));
    }

    /// The number of the entry with this hash that `confirm` takes. `head` is the ring's.
    #[inline(always)]
    pub(super) fn find(
        &self,
        hash: u64,
        head: u64,
        mut confirm: impl FnMut(u64) -> bool,
    ) -> Option<u64> {
        if self.buckets.is_empty() {
            return None;
        }
        let (tag, mask) = (self.tag(hash), self.number_mask());
        let mut at = self.home(hash);
        loop {
            let bucket = &self.buckets[at];
            let mut hits = bucket.matches(!mask, tag);
            while hits != 0 {
                let low = bucket.slot(hits.trailing_zeros());
                let number = head + u64::from(low.wrapping_sub(head as u32) & mask);
                if confirm(number) {
                    return Some(number);
                }
                hits &= hits - 1;
            }
            if bucket.passed() == 0 {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Adds an entry that is not in it. The caller has seen that it is not full.
    #[inline(always)]
    pub(super) fn insert(&mut self, hash: u64, number: u64) {
        let slot = self.tag(hash) | (number as u32 & self.number_mask());
        let mut at = self.home(hash);
        loop {
            let empties = self.buckets[at].empties();
            if empties != 0 {
                self.buckets[at].set(empties.trailing_zeros(), slot);
                break;
            }
            self.buckets[at].pass();
            at = self.after(at);
        }
        self.len += 1;
    }

    /// Where the entry of this hash and number is: how many buckets from home, bucket and slot.
    #[inline(always)]
    fn locate(&self, hash: u64, number: u64) -> Option<(usize, usize, u32)> {
        if self.buckets.is_empty() {
            return None;
        }
        let slot = self.tag(hash) | (number as u32 & self.number_mask());
        let (mut at, mut steps) = (self.home(hash), 0);
        loop {
            let bucket = &self.buckets[at];
            let hits = bucket.matches(u32::MAX, slot);
            if hits != 0 {
                return Some((steps, at, hits.trailing_zeros()));
            }
            if bucket.passed() == 0 {
                return None;
            }
            at = self.after(at);
            steps += 1;
        }
    }

    /// Takes an entry out; nothing happens if it is not in it.
    #[inline(always)]
    pub(super) fn remove(&mut self, hash: u64, number: u64) {
        let Some((steps, at, i)) = self.locate(hash, number) else { return };
        self.buckets[at].set(i, 0);
        let mut over = self.home(hash);
        for _ in 0..steps {
            self.buckets[over].unpass();
            over = self.after(over);
        }
        self.len -= 1;
    }

    /// Gives an entry another number. `false`: there is no such entry.
    #[inline(always)]
    pub(super) fn renumber(&mut self, hash: u64, number: u64, new: u64) -> bool {
        let Some((_, at, i)) = self.locate(hash, number) else { return false };
        let slot = self.tag(hash) | (new as u32 & self.number_mask());
        self.buckets[at].set(i, slot);
        true
    }

    fn size(&self, step: u32) -> usize {
        ((256 + usize::from(self.stagger)) << step) >> 8
    }

    /// Makes it anew, sized for `room` entries and an eighth more, out of a ring that spans `span`
    /// numbers, from `entries` with their hashes.
    pub(super) fn rebuild(
        &mut self,
        room: usize,
        span: u64,
        entries: impl Iterator<Item = (u64, u64)>,
    ) {
        let room = room + room / 8 + 1;
        // A ring has at most 2²⁸ entries, so a step is always found.
        let step = (STEP_MIN..NUMBER_BITS_MAX).find(|&step| self.size(step) * FILL_MAX >= room);
        let buckets = self.size(step.unwrap_or(NUMBER_BITS_MAX));
        // As many numbers as will fit, so that it is the filling that asks for the next rebuild.
        let numbers = ((buckets * SLOTS) as u64).max(span * 2 + 2);
        let bits = numbers.next_power_of_two().trailing_zeros();
        self.number_bits = bits.clamp(NUMBER_BITS_MIN, NUMBER_BITS_MAX);
        self.buckets = vec![Bucket::EMPTY; buckets].into_boxed_slice();
        self.len = 0;
        for (hash, number) in entries {
            self.insert(hash, number);
        }
    }

    /// What must hold whatever happened; for tests.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let used: u32 = self.buckets.iter().map(|b| SLOTS as u32 - b.empties().count_ones()).sum();
        assert_eq!(used as usize, self.len, "slots in use");
        if self.len == 0 {
            assert!(self.buckets.iter().all(|b| b.passed() == 0), "passed over by nobody");
        }
    }
}
