//! One cache line of the index: 15 slots and a count, compared all at once.
//!
//! A bucket is what one memory access brings, so everything that a probe needs is in it. A slot of
//! zero is empty. The sixteenth word counts the entries that passed over this bucket while it was
//! full: a probe goes on to the next bucket only while the count is not zero, and removing an
//! entry lowers the counts that inserting it raised. So there are no tombstones to clean up.
//!
//! The comparison is AVX2 where the build has it (`.cargo/config.toml` sets x86-64-v3) and a plain
//! loop elsewhere; both are tested against each other. This is the only file of the ledger with
//! `unsafe` in it.

/// Slots in a bucket; one of its sixteen words is the count.
pub(super) const SLOTS: usize = 15;
const SLOTS_MASK: u32 = (1 << SLOTS) - 1;

/// A cache line of the index.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    words: [u32; 16],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// Nothing in it, nothing passed over it.
    pub(super) const EMPTY: Bucket = Bucket { words: [0; 16] };

    /// Bit *i* is set when `slot[i] & mask == tag`.
    #[inline(always)]
    pub(super) fn matches(&self, mask: u32, tag: u32) -> u32 {
        #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
        return self.matches_avx2(mask, tag) & SLOTS_MASK;
        #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
        return self.matches_plain(mask, tag) & SLOTS_MASK;
    }

    /// Bit *i* is set when slot *i* is empty.
    #[inline(always)]
    pub(super) fn empties(&self) -> u32 {
        self.matches(u32::MAX, 0)
    }

    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    #[inline(always)]
    fn matches_avx2(&self, mask: u32, tag: u32) -> u32 {
        use std::arch::x86_64::{
            __m256i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_load_si256,
            _mm256_movemask_ps, _mm256_set1_epi32,
        };
        // SAFETY: AVX2 is a feature of this build. `words` is 64 bytes, aligned to 64, so both
        // loads of 32 bytes are inside it and aligned.
        unsafe {
            let line = self.words.as_ptr().cast::<__m256i>();
            let mask = _mm256_set1_epi32(mask as i32);
            let tag = _mm256_set1_epi32(tag as i32);
            let half = |at: *const __m256i| {
                let equal = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_load_si256(at), mask), tag);
                _mm256_movemask_ps(_mm256_castsi256_ps(equal)) as u32
            };
            half(line) | half(line.add(1)) << 8
        }
    }

    #[cfg(any(test, not(all(target_arch = "x86_64", target_feature = "avx2"))))]
    fn matches_plain(&self, mask: u32, tag: u32) -> u32 {
        let equal = |(i, word): (usize, &u32)| u32::from(word & mask == tag) << i;
        self.words.iter().enumerate().map(equal).fold(0, |all, bit| all | bit)
    }

    #[inline(always)]
    pub(super) fn slot(&self, i: u32) -> u32 {
        self.words[(i & 15) as usize]
    }

    #[inline(always)]
    pub(super) fn set(&mut self, i: u32, slot: u32) {
        self.words[(i & 15) as usize] = slot;
    }

    /// How many entries passed over this bucket and are still in a later one.
    #[inline(always)]
    pub(super) fn passed(&self) -> u32 {
        self.words[SLOTS]
    }

    #[inline(always)]
    pub(super) fn pass(&mut self) {
        self.words[SLOTS] += 1;
    }

    #[inline(always)]
    pub(super) fn unpass(&mut self) {
        self.words[SLOTS] -= 1;
    }
}

/// Asks for the cache line at an address, to write to it. With 256 places to append to, one append
/// in two would otherwise wait for memory.
#[inline(always)]
pub(super) fn prefetch_to_write<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and cannot fault, whatever the address is.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lanes_agree_with_the_plain_loop() {
        let mut state = 0x5EED_u64;
        for _ in 0..2_000 {
            let mut bucket = Bucket::EMPTY;
            for word in &mut bucket.words {
                state = crate::hash::mix(state, 1);
                // Few values, so that slots are equal to one another and to zero.
                *word = (state as u32 & 0x3) << 20 | (state >> 40) as u32 & 0x3;
            }
            for (mask, tag) in [(u32::MAX, 0), (0xFFF0_0000, 0x0020_0000), (u32::MAX, 1 << 20)] {
                let plain = bucket.matches_plain(mask, tag) & SLOTS_MASK;
                assert_eq!(bucket.matches(mask, tag), plain, "{bucket:?}");
            }
        }
    }

    #[test]
    fn the_count_is_no_slot() {
        let mut bucket = Bucket::EMPTY;
        assert_eq!(bucket.empties(), SLOTS_MASK);
        bucket.pass();
        assert_eq!((bucket.matches(u32::MAX, 1), bucket.passed()), (0, 1));
        bucket.unpass();
        assert_eq!(bucket.passed(), 0);
    }
}
