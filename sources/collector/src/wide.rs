//! 32 bytes at a time: the two questions that the scanner asks all day. With AVX2 each is a few
//! instructions; the other version answers the same, byte by byte, on any machine.

#[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
mod by_machine {
    use std::arch::x86_64::{
        __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_set1_epi8,
    };

    #[inline(always)]
    fn load(bytes: &[u8]) -> __m256i {
        assert!(bytes.len() >= 32);
        // SAFETY: 32 bytes are there, and the load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// Which of 32 bytes are `"`, `\` or below 0x20: the lowest bit is the first byte.
    #[inline(always)]
    pub(crate) fn special_mask(window: &[u8]) -> u32 {
        let bytes = load(window);
        // SAFETY: only built where AVX2 is assumed; the instructions touch registers.
        unsafe {
            let quote = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'"' as i8));
            let escape = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'\\' as i8));
            let low = _mm256_min_epu8(bytes, _mm256_set1_epi8(0x1f));
            let control = _mm256_cmpeq_epi8(low, bytes);
            _mm256_movemask_epi8(_mm256_or_si256(_mm256_or_si256(quote, escape), control)) as u32
        }
    }

    /// Whether the first `len` of 32 bytes are the same.
    #[inline(always)]
    pub(crate) fn first_bytes_equal(a: &[u8], b: &[u8; 32], len: u8) -> bool {
        // SAFETY: as above.
        let equal = unsafe { _mm256_movemask_epi8(_mm256_cmpeq_epi8(load(a), load(b))) as u32 };
        equal.trailing_ones() >= u32::from(len)
    }
}

#[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
pub(crate) use by_machine::{first_bytes_equal, special_mask};

#[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
pub(crate) use by_hand::{first_bytes_equal, special_mask};

#[cfg(any(test, not(all(target_arch = "x86_64", target_feature = "avx2"))))]
mod by_hand {
    pub(crate) fn special_mask(window: &[u8]) -> u32 {
        window[..32]
            .iter()
            .enumerate()
            .fold(0, |mask, (i, &b)| mask | u32::from(b == b'"' || b == b'\\' || b < 0x20) << i)
    }

    pub(crate) fn first_bytes_equal(a: &[u8], b: &[u8; 32], len: u8) -> bool {
        a[..len as usize] == b[..len as usize]
    }
}

#[cfg(test)]
mod tests {
    use trueup_operators::hash::mix;

    #[test]
    fn both_versions_agree() {
        for seed in 0..20_000u64 {
            let mut a = [0u8; 32];
            for (i, byte) in a.iter_mut().enumerate() {
                // Mostly text, now and then any byte.
                let random = mix(seed, i as u64);
                *byte = if random >> 60 == 0 { random as u8 } else { b'a' + (random % 26) as u8 };
            }
            assert_eq!(super::special_mask(&a), super::by_hand::special_mask(&a), "{a:?}");
            let mut b = a;
            let len = (mix(seed, 77) % 33) as u8;
            b[(mix(seed, 78) % 32) as usize] ^= (mix(seed, 79) % 2) as u8;
            assert_eq!(
                super::first_bytes_equal(&a, &b, len),
                super::by_hand::first_bytes_equal(&a, &b, len)
            );
        }
    }
}
