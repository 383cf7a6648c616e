//! Reading the sections of a checkpoint in about the order in which they were written. What is hard
//! is that a state has thousands of them, many of a few hundred bytes, and that a bucket takes some
//! ten milliseconds to answer whatever it is asked: one question for each would be a start of a
//! minute. So a question is for a block, and what lies in it is answered from memory.
//!
//! # Promises
//!
//! * What is given is what [`Index::section`] gives, its checksum compared.
//! * At most [`BLOCKS_MAX`] blocks of [`BLOCK_BYTES`] are held, and read in vain at most one block
//!   for each section.

use super::{
    pack::{Index, PackName, Place},
    store::{Store, StoreError, Unread},
};
use bytes::Bytes;
use std::{collections::VecDeque, ops::Range};

/// What is read at a time; a section that is larger is read alone.
const BLOCK_BYTES: u64 = 1 << 20;
/// A loader goes through several packs side by side, and through the parts of several workers.
const BLOCKS_MAX: usize = 16;

/// Reads sections of packs, for one loader.
pub(crate) struct Ahead<'a> {
    store: &'a dyn Store,
    /// The one that was read last is last.
    blocks: VecDeque<Block>,
}

struct Block {
    pack: String,
    at: u64,
    bytes: Bytes,
}

impl Block {
    fn part(&self, pack: &str, range: &Range<u64>) -> Option<Bytes> {
        let end = self.at + self.bytes.len() as u64;
        let has = self.pack == pack && self.at <= range.start && range.end <= end;
        has.then(|| {
            let (from, upto) = (range.start - self.at, range.end - self.at);
            self.bytes.slice(from as usize..upto as usize)
        })
    }
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(store: &'a dyn Store) -> Ahead<'a> {
        Ahead { store, blocks: VecDeque::new() }
    }

    /// Reads a section and checks it.
    ///
    /// # Errors
    /// What is wrong with it, and where, or that the store does not give it.
    pub(crate) fn section(
        &mut self,
        index: &Index,
        key: &[u8],
        place: &Place,
    ) -> Result<Bytes, Unread> {
        let pack = &index.packs[usize::from(place.pack)];
        let range = place.at..place.at + u64::from(place.bytes);
        let bytes = self.read(pack, range)?;
        Ok(index.checked(key, place, bytes)?)
    }

    fn read(&mut self, pack: &PackName, range: Range<u64>) -> Result<Bytes, StoreError> {
        if let Some(part) = self.blocks.iter().find_map(|block| block.part(&pack.name, &range)) {
            return Ok(part);
        }
        let end = pack.bytes.min(range.start + BLOCK_BYTES).max(range.end);
        let bytes = self.store.read(&pack.name, range.start..end)?;
        let part = bytes.slice(..(range.end - range.start) as usize);
        if bytes.len() > part.len() {
            if self.blocks.len() == BLOCKS_MAX {
                self.blocks.pop_front();
            }
            self.blocks.push_back(Block { pack: pack.name.clone(), at: range.start, bytes });
        }
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::checkpoint::{
        pack::{PackOf, PackWriter},
        store::{Listed, NewObject, Objects},
        tests::simulated::repeat,
    };
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts what is read.
    struct Counted(Objects, AtomicU64);

    impl Store for Counted {
        fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
            self.0.create(name)
        }

        fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
            self.0.publish(name, bytes)
        }

        fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read(name, range)
        }

        fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
            self.0.list(folder)
        }

        fn delete(&self, name: &str) -> Result<(), StoreError> {
            self.0.delete(name)
        }
    }

    #[test]
    fn what_is_read_ahead_is_what_is_read_alone() {
        let (mut random, _) = repeat("what_is_read_ahead_is_what_is_read_alone");
        let dir = tempfile::tempdir().unwrap();
        let store = Counted(Objects::in_dir(dir.path()).unwrap(), AtomicU64::new(0));
        let mut index = Index::default();
        for epoch in 1..4_u64 {
            let of = PackOf { epoch, generation: 1, writer: 0 };
            let mut pack = PackWriter::create(&store, of).unwrap();
            for number in 0..2_000_u64 {
                // Few are larger than a block, some are empty.
                let most = if random.chance(0.001) { 3 * BLOCK_BYTES } else { 2_000 };
                let mut section = vec![epoch as u8; random.below(most) as usize];
                if let Some(first) = section.first_mut() {
                    *first = number as u8;
                }
                if epoch == 1 || random.chance(0.3) {
                    pack.section(&number.to_be_bytes(), &section).unwrap();
                }
            }
            index = pack.seal(&index, |_| true).unwrap().index;
        }
        let mut ahead = Ahead::new(&store);
        let mut sections: Vec<_> = index.sections.iter().collect();
        for is_shuffled in [false, true] {
            if is_shuffled {
                for at in (1..sections.len()).rev() {
                    sections.swap(at, random.below(at as u64 + 1) as usize);
                }
            }
            for (key, place) in &sections {
                let alone = index.section(&store, key, place).unwrap();
                assert_eq!(ahead.section(&index, key, place).unwrap(), alone, "{place:?}");
            }
            assert!(ahead.blocks.len() <= BLOCKS_MAX);
        }
        drop(ahead);
        store.1.store(0, Ordering::Relaxed);
        let mut ahead = Ahead::new(&store);
        for (key, place) in &index.sections {
            ahead.section(&index, key, place).unwrap();
        }
        let (reads, bytes) = (store.1.load(Ordering::Relaxed), index.bytes_named());
        let large = index.sections.values().filter(|place| u64::from(place.bytes) > BLOCK_BYTES);
        let most = bytes / BLOCK_BYTES + 3 * large.count() as u64 + 10;
        assert!(reads <= most, "{reads} reads for {} sections", index.sections.len());

        // A wrong byte is found in a block as it is in a section.
        let (key, place) = index.sections.iter().find(|(_, place)| place.bytes > 1).unwrap();
        let path = dir.path().join(&index.packs[usize::from(place.pack)].name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[place.at as usize + 1] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = Ahead::new(&store).section(&index, key, place).unwrap_err().to_string();
        assert_eq!(error, index.section(&store, key, place).unwrap_err().to_string());
        assert!(error.contains("checksum"), "{error}");
    }
}
