//! Bytes that were good, changed a little: what finds more than random bytes do.

use trueup_generator::random::Random;

/// Cuts, doubles, swaps, or overwrites some bytes. Leaves at least one.
pub(crate) fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64) as usize;
        let end = (at + random.below(12) as usize).min(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at.max(1)),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => bytes[at] = random.bits() as u8,
            _ => bytes[at] = *random.pick(b"{}[]\",:\\0e-"),
        }
        if bytes.is_empty() {
            bytes.push(b' ');
        }
    }
}
