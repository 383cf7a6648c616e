//! Packs: the files that hold the state itself. A pack is one object of many *sections*; a section
//! is a piece of state that is written, replaced and loaded as one (a part of a vnode's rows, a
//! segment of a bucket, what only an accumulator knows). A section's key says which piece; what its
//! bytes mean is known to the operator that wrote it.
//!
//! An *increment* holds only the sections that have changed. So a pack ends with an index of the
//! whole state, also of the sections that lie in older packs: whoever has the newest pack's index
//! knows every live section and needs no other index, and a section that is in no index is gone.
//! That is what takes the place of tombstones.
//!
//! Where the index of a pack is, how long, and its checksum, says the manifest. A pack without a
//! manifest is of a writer that did not come to its end, and is deleted.
//!
//! # Format, version 1, little-endian
//!
//! ```text
//! 0   [u8; 8]  "TUPPACK1"
//! 8   u64      epoch
//! 16  u64      generation
//! 24  u32      writer
//! 28  u32      crc32c of bytes 0..28
//! 32  sections, one behind the other, each as its operator wrote it
//! ..  index
//! ```
//!
//! The index:
//!
//! ```text
//! 0   u32      packs that are named: p; the last one is this pack
//! 4   u32      sections: s
//! 8   p × { u16 bytes, UTF-8 name, u64 bytes of the pack up to its index }
//! ..  s × {
//!         u8   bytes of the key: k, at least 1
//!         u8   0
//!         u16  number of the pack
//!         u32  crc32c of the section
//!         u64  where the section is in the pack
//!         u32  bytes of the section
//!         k    the key
//!     }        ascending by key
//! ```
//!
//! # Limits
//!
//! [`KEY_BYTES_MAX`], [`SECTION_BYTES_MAX`], [`INDEX_BYTES_MAX`], [`PACKS_MAX`]. Writing beyond one
//! is an error, and so is reading.

use super::store::{NewObject, Store, StoreError, Unread};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The first bytes of a pack.
const MAGIC: [u8; 8] = *b"TUPPACK1";
/// The bytes before the first section.
pub(super) const HEADER_BYTES: u64 = 32;
/// The bytes of an index entry without its key.
const ENTRY_BYTES: usize = 20;
/// The most bytes of a key.
pub const KEY_BYTES_MAX: usize = 255;
/// The most bytes of a section: it is held in memory while it is written and loaded.
/// The ledger's are the largest: a vnode that is full has 700 MB.
pub const SECTION_BYTES_MAX: usize = 1 << 30;
/// The most bytes of an index: some ten million sections.
pub const INDEX_BYTES_MAX: u64 = 512 << 20;
/// The most packs that a checkpoint lies in.
pub const PACKS_MAX: usize = 4_096;
/// Sections are collected up to this much before they are given to the store.
const WRITE_BYTES: usize = 1 << 20;

/// Which piece of the state.
pub type Key = Box<[u8]>;

/// Where a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of its pack in the index.
    pub pack: u16,
    /// Its checksum.
    pub crc: u32,
    /// Where it begins in the pack.
    pub at: u64,
    /// How long it is.
    pub bytes: u32,
}

/// A pack as an index names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackName {
    /// The object.
    pub name: String,
    /// Its bytes up to its index.
    pub bytes: u64,
}

/// All live sections of a writer, and the packs that they lie in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// By number.
    pub packs: Vec<PackName>,
    /// By key.
    pub sections: BTreeMap<Key, Place>,
}

/// Where an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexPlace {
    /// Where it begins in its pack.
    pub at: u64,
    /// How long it is.
    pub bytes: u64,
    /// Its checksum.
    pub crc: u32,
}

/// Why a pack cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The store cannot.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something is larger than it may be.
    #[error("{what} has {found}; at most {most} are possible")]
    TooLarge {
        /// What.
        what: String,
        /// How large it is.
        found: u64,
        /// How large it may be.
        most: u64,
    },
}

/// Who writes a pack, and of which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOf {
    /// The epoch.
    pub epoch: u64,
    /// The writer's generation.
    pub generation: u64,
    /// Which process of the generation.
    pub writer: u32,
}

impl PackOf {
    /// The object's name.
    pub fn name(&self) -> String {
        let PackOf { epoch, generation, writer } = self;
        format!("packs/{epoch:020}-{generation}-{writer}.pack")
    }

    /// The inverse of [`PackOf::name`].
    pub fn of_name(name: &str) -> Option<PackOf> {
        let mut parts = name.strip_prefix("packs/")?.strip_suffix(".pack")?.split('-');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let of = PackOf {
            epoch: number()?,
            generation: number()?,
            writer: u32::try_from(number()?).ok()?,
        };
        (of.name() == name).then_some(of)
    }

    fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(self.epoch.to_le_bytes());
        header.extend(self.generation.to_le_bytes());
        header.extend(self.writer.to_le_bytes());
        header.extend(crc32c::crc32c(&header).to_le_bytes());
        header
    }
}

/// A pack that is being written: memory for what the store has under way, and for the index.
pub struct PackWriter<'a> {
    of: PackOf,
    object: Box<dyn NewObject + 'a>,
    waiting: Vec<u8>,
    /// The bytes of the pack so far.
    bytes: u64,
    written: BTreeMap<Key, Place>,
}

/// A pack that is durable.
#[derive(Debug)]
pub struct Sealed {
    /// Its index, which has become the writer's.
    pub index: Index,
    /// Where that is.
    pub place: IndexPlace,
}

impl<'a> PackWriter<'a> {
    /// Begins a pack.
    ///
    /// # Errors
    /// When the store cannot.
    pub fn create(store: &'a dyn Store, of: PackOf) -> Result<PackWriter<'a>, PackError> {
        let object = store.create(&of.name())?;
        let waiting = of.header();
        let bytes = waiting.len() as u64;
        Ok(PackWriter { of, object, waiting, bytes, written: BTreeMap::new() })
    }

    /// Appends a section. One that was given before for the same key is forgotten.
    ///
    /// # Errors
    /// When it, or its key, is too large, or the store cannot take it.
    pub fn section(&mut self, key: &[u8], section: &[u8]) -> Result<(), PackError> {
        at_most("a section's key", key.len() as u64, KEY_BYTES_MAX as u64)?;
        at_most("a section", section.len() as u64, SECTION_BYTES_MAX as u64)?;
        let crc = crc32c::crc32c(section);
        let place = Place { pack: 0, crc, at: self.bytes, bytes: section.len() as u32 };
        self.bytes += section.len() as u64;
        self.written.insert(key.into(), place);
        self.waiting.extend_from_slice(section);
        if self.waiting.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// The bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a section of this key was given.
    pub fn has(&self, key: &[u8]) -> bool {
        self.written.contains_key(key)
    }

    fn flush(&mut self) -> Result<(), PackError> {
        let bytes = std::mem::take(&mut self.waiting);
        Ok(self.object.write(Bytes::from(bytes))?)
    }

    /// Ends the pack with the index of all live sections: those of `before` that `lives` says are
    /// still there, and those of this pack. Packs that no section lies in any more are not named.
    ///
    /// # Errors
    /// When there is too much of something, or the store cannot make the pack durable.
    pub fn seal(
        mut self,
        before: &Index,
        lives: impl Fn(&[u8]) -> bool,
    ) -> Result<Sealed, PackError> {
        let index = self.index(before, lives)?;
        let encoded = index.encode();
        at_most("the index of a checkpoint", encoded.len() as u64, INDEX_BYTES_MAX)?;
        let crc = crc32c::crc32c(&encoded);
        let place = IndexPlace { at: self.bytes, bytes: encoded.len() as u64, crc };
        self.waiting.extend(encoded);
        self.flush()?;
        self.object.finish()?;
        Ok(Sealed { index, place })
    }

    fn index(&mut self, before: &Index, lives: impl Fn(&[u8]) -> bool) -> Result<Index, PackError> {
        let written = std::mem::take(&mut self.written);
        let kept = |key: &&Key| lives(key) && !written.contains_key(*key);
        let mut index = Index::default();
        let mut numbers: BTreeMap<u16, u16> = BTreeMap::new();
        for key in before.sections.keys().filter(kept) {
            let place = before.sections[key];
            let number = *numbers.entry(place.pack).or_insert_with(|| {
                index.packs.push(before.packs[usize::from(place.pack)].clone());
                (index.packs.len() - 1) as u16
            });
            index.sections.insert(key.clone(), Place { pack: number, ..place });
        }
        at_most("a checkpoint", index.packs.len() as u64 + 1, PACKS_MAX as u64)?;
        let own = index.packs.len() as u16;
        index.packs.push(PackName { name: self.of.name(), bytes: self.bytes });
        index
            .sections
            .extend(written.into_iter().map(|(key, place)| (key, Place { pack: own, ..place })));
        Ok(index)
    }
}

fn at_most(what: &str, found: u64, most: u64) -> Result<(), PackError> {
    if found <= most {
        return Ok(());
    }
    Err(PackError::TooLarge { what: what.to_owned(), found, most })
}

impl Index {
    /// Bytes of all live sections.
    pub fn bytes_live(&self) -> u64 {
        self.sections.values().map(|place| u64::from(place.bytes)).sum()
    }

    /// Bytes of the packs that they lie in.
    pub fn bytes_named(&self) -> u64 {
        self.packs.iter().map(|pack| pack.bytes).sum()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((self.packs.len() as u32).to_le_bytes());
        bytes.extend((self.sections.len() as u32).to_le_bytes());
        for PackName { name, bytes: pack_bytes } in &self.packs {
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(pack_bytes.to_le_bytes());
        }
        for (key, place) in &self.sections {
            bytes.extend([key.len() as u8, 0]);
            bytes.extend(place.pack.to_le_bytes());
            bytes.extend(place.crc.to_le_bytes());
            bytes.extend(place.at.to_le_bytes());
            bytes.extend(place.bytes.to_le_bytes());
            bytes.extend(&key[..]);
        }
        bytes
    }

    /// Reads what a pack ends with.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    fn decode(bytes: &[u8]) -> Result<Index, String> {
        let mut reader = Reader { bytes, at: 0 };
        let (packs, sections) = (reader.number::<4>()? as usize, reader.number::<4>()? as usize);
        if packs == 0 || packs > PACKS_MAX || sections > bytes.len() / ENTRY_BYTES {
            return Err(format!("names {packs} packs and {sections} sections"));
        }
        let mut index = Index::default();
        for _ in 0..packs {
            let name_bytes = reader.number::<2>()? as usize;
            let name = std::str::from_utf8(reader.take(name_bytes)?).map_err(|e| e.to_string())?;
            if PackOf::of_name(name).is_none() {
                return Err(format!("names the pack `{name}`, which is no name of one"));
            }
            let bytes = reader.number::<8>()?;
            index.packs.push(PackName { name: name.to_owned(), bytes });
        }
        for _ in 0..sections {
            let (key, place) = reader.entry(&index.packs)?;
            let last = index.sections.last_key_value();
            if last.is_some_and(|(last, _)| *last >= key) {
                return Err("its keys do not ascend".to_owned());
            }
            index.sections.insert(key, place);
        }
        if reader.at != bytes.len() {
            return Err(format!("has {} bytes and ends at byte {}", bytes.len(), reader.at));
        }
        Ok(index)
    }

    /// Reads the index of a pack.
    ///
    /// # Errors
    /// What is wrong with it, or that the store does not give it.
    pub fn read(store: &dyn Store, pack: &str, place: IndexPlace) -> Result<Index, Unread> {
        let end = place.at.checked_add(place.bytes).filter(|_| place.bytes <= INDEX_BYTES_MAX);
        let end = end.ok_or_else(|| format!("{pack}: its index has {} bytes", place.bytes))?;
        let bytes = store.read(pack, place.at..end)?;
        if crc32c::crc32c(&bytes) != place.crc {
            return Err(format!("{pack}: the checksum of its index is wrong").into());
        }
        let index = Index::decode(&bytes).map_err(|e| format!("{pack}: its index {e}"))?;
        match index.packs.last() {
            Some(last) if last.name == pack && last.bytes == place.at => Ok(index),
            _ => Err(format!("{pack}: its index is of another pack").into()),
        }
    }

    /// Reads a section and checks it.
    ///
    /// # Errors
    /// What is wrong with it, and where, or that the store does not give it.
    pub fn section(&self, store: &dyn Store, key: &[u8], place: &Place) -> Result<Bytes, Unread> {
        let pack = &self.packs[usize::from(place.pack)].name;
        let end = place.at + u64::from(place.bytes);
        let bytes = store.read(pack, place.at..end)?;
        Ok(self.checked(key, place, bytes)?)
    }

    /// The bytes that were read of a section, if they are what was written.
    ///
    /// # Errors
    /// When they are not.
    pub(crate) fn checked(&self, key: &[u8], place: &Place, bytes: Bytes) -> Result<Bytes, String> {
        if crc32c::crc32c(&bytes) == place.crc {
            return Ok(bytes);
        }
        let pack = &self.packs[usize::from(place.pack)].name;
        let (at, key) = (place.at, hex(key));
        Err(format!("{pack}: the checksum of section {key} at byte {at} is wrong"))
    }

    /// Whether each pack is there, with the header that its name says.
    ///
    /// # Errors
    /// What is wrong with which pack, or that the store does not say.
    pub fn check_packs(&self, store: &dyn Store) -> Result<(), Unread> {
        for pack in &self.packs {
            let header = store.read(&pack.name, 0..HEADER_BYTES)?;
            if PackOf::of_name(&pack.name).is_none_or(|of| of.header() != header[..]) {
                return Err(format!("{}: its header is not that of its name", pack.name).into());
            }
        }
        Ok(())
    }
}

/// Bytes as text.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads an index from its begin to its end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let taken = self.bytes[self.at..].get(..bytes);
        let taken = taken.ok_or_else(|| format!("is cut short at byte {}", self.at))?;
        self.at += bytes;
        Ok(taken)
    }

    /// A number of `N` bytes, at most eight.
    fn number<const N: usize>(&mut self) -> Result<u64, String> {
        let mut word = [0; 8];
        word[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(word))
    }

    fn entry(&mut self, packs: &[PackName]) -> Result<(Key, Place), String> {
        let (key_bytes, _) = (self.number::<1>()? as usize, self.number::<1>()?);
        let place = Place {
            pack: self.number::<2>()? as u16,
            crc: self.number::<4>()? as u32,
            at: self.number::<8>()?,
            bytes: self.number::<4>()? as u32,
        };
        let key: Key = self.take(key_bytes)?.into();
        let within = packs.get(usize::from(place.pack)).is_some_and(|pack| {
            let end = place.at.checked_add(place.bytes.into());
            place.at >= HEADER_BYTES && end.is_some_and(|end| end <= pack.bytes)
        });
        if !within || key.is_empty() || place.bytes as usize > SECTION_BYTES_MAX {
            return Err(format!("has an entry for {} that cannot be: {place:?}", hex(&key)));
        }
        Ok((key, place))
    }
}
