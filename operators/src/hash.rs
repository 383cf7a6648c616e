//! Hashes that are stored or that decide where something goes. They must be the same in every
//! build and on every machine, so none of them comes from the standard library.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use xxhash_rust::xxh3::xxh3_64;

/// The 128-bit keyed hash of an id. Ids are compared by it alone: two of 2⁴⁰ ids meet with
/// probability 2⁻⁴⁹, and without the key nobody can make two that meet.
pub type IdHash = [u8; 16];

/// How many vnodes the ids are divided into. A vnode is the unit of ownership, growth and
/// checkpoint; a partition holds whole vnodes.
pub const VNODES: usize = 256;

/// The secret of an installation, kept in its data directory. Whoever has it can tell whether a
/// guessed user id or IP is the one behind a stored hash.
#[derive(Clone, Copy)]
pub struct HashKey(pub [u8; 16]);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(…)")
    }
}

impl HashKey {
    /// SipHash-1-3 with 128 bits of output, domain-separated by `what` so that a user id and an
    /// event id of the same text have different hashes.
    #[inline]
    pub fn hash(&self, what: Domain, bytes: &[u8]) -> IdHash {
        let mut key = self.0;
        key[0] ^= what as u8;
        let mut hasher = SipHasher13::new_with_key(&key);
        hasher.write(bytes);
        hasher.finish128().as_bytes()
    }
}

/// What a keyed hash is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Domain {
    /// An event id.
    Event = 0,
    /// An impression id.
    Impression = 1,
    /// A user id.
    User = 2,
    /// An IP address.
    Ip = 3,
}

/// The vnode of an id: the top bits of its hash.
#[inline]
pub const fn vnode(id: &IdHash) -> usize {
    id[15] as usize
}

/// The partition that holds a vnode, so that all copies of an event meet in one partition.
#[inline]
pub const fn partition_of_vnode(vnode: usize, partitions: u16) -> u16 {
    (vnode % partitions as usize) as u16
}

/// The partition that an id belongs to.
#[inline]
pub const fn partition(id: &IdHash, partitions: u16) -> u16 {
    partition_of_vnode(vnode(id), partitions)
}

/// An unkeyed, stable 64-bit hash, for payloads and for spreading keys over workers.
#[inline]
pub fn stable(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// A fast stable mixer of two words (the splitmix64 finaliser over their fold).
#[inline]
pub const fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.rotate_left(32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
