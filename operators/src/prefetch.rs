//! Asking for memory before it is needed. Every table of the hot path is larger than the caches,
//! so it works in blocks: first it asks for all lines that a block will touch, then it touches
//! them. Without this the ledger takes twice as long. A hint only: it cannot fault, and on
//! machines without the instruction it does nothing.

/// Asks for the cache line of `slice[index]`; nothing if there is no such element.
#[inline(always)]
pub fn read<T>(slice: &[T], index: usize) {
    if index < slice.len() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the address is within the slice, and a prefetch reads nothing anyway.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(slice.as_ptr().add(index).cast());
        }
    }
}
