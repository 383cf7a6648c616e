//! How far the journal is in Kafka, durably, so that a restart goes on where the last run was.
//!
//! # The file `drained`, little-endian
//!
//! ```text
//! 0   u8×4  "tspl"
//! 4   u32   version = 1
//! 8   u64   the journal's offset before which every frame is in Kafka
//! 16  u32   CRC-32C of the bytes before
//! ```
//!
//! It is written beside and renamed over. When it is missing or damaged the drain begins at the
//! first frame that the journal holds: frames are sent twice then, which is harmless, and none is
//! left out, which would not be.

use crate::settings::unavailable;
use std::{
    fs,
    io::ErrorKind,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use trueup_log::replace_file;
use trueup_operators::log::LogError;

/// Its name, beside the journal.
pub(super) const FILE: &str = "drained";
const MAGIC: [u8; 4] = *b"tspl";
const VERSION: u32 = 1;
const BYTES: usize = 20;

/// The position, in memory and on disk.
#[derive(Debug)]
pub(super) struct Drained {
    dir: PathBuf,
    offset: AtomicU64,
    began: u64,
}

impl Drained {
    /// Reads the position, given the offsets that the journal holds.
    pub(super) fn open(dir: &Path, held: RangeInclusive<u64>) -> Result<Drained, LogError> {
        let offset = Drained::read(dir, &held)?.unwrap_or_else(|reason| {
            let path = dir.join(FILE);
            tracing::warn!(path = %path.display(), reason, "all that is held is sent again");
            *held.start()
        });
        Ok(Drained { dir: dir.into(), offset: AtomicU64::new(offset), began: offset })
    }

    /// The position as it is on disk, the first offset that is held if there is no file; or what
    /// is wrong with the file.
    pub(super) fn read(
        dir: &Path,
        held: &RangeInclusive<u64>,
    ) -> Result<Result<u64, String>, LogError> {
        let path = dir.join(FILE);
        let found = match fs::read(&path) {
            Ok(bytes) => decode(&bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(*held.start()),
            Err(error) => {
                return Err(unavailable(format!("{} cannot be read: {error}", path.display())));
            }
        };
        Ok(match found {
            Ok(offset) if held.contains(&offset) => Ok(offset),
            Ok(offset) => {
                let (first, end) = (held.start(), held.end());
                Err(format!("it says {offset}, and the journal has {first}..{end}"))
            }
            Err(reason) => Err(reason.to_owned()),
        })
    }

    /// The offset before which every frame is in Kafka.
    pub(super) fn offset(&self) -> u64 {
        self.offset.load(SeqCst)
    }

    /// How many frames went since the process began.
    pub(super) fn frames(&self) -> u64 {
        self.offset() - self.began
    }

    /// Notes that everything before `offset` is in Kafka. Called by the drain alone.
    pub(super) fn advance(&self, offset: u64) -> Result<(), LogError> {
        replace_file(&self.dir.join(FILE), &encode(offset)).map_err(|error| {
            unavailable(format!("{} cannot be written: {error}", self.dir.display()))
        })?;
        self.offset.store(offset, SeqCst);
        Ok(())
    }
}

fn encode(offset: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..16].copy_from_slice(&offset.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<u64, &'static str> {
    let bytes: &[u8; BYTES] = bytes.try_into().map_err(|_| "it has another length")?;
    let (body, crc) = bytes.split_at(16);
    if crc != crc32c::crc32c(body).to_le_bytes() {
        return Err("its checksum does not match");
    }
    if body[..4] != MAGIC || body[4..8] != VERSION.to_le_bytes() {
        return Err("it is another file, or of another version");
    }
    let mut offset = [0; 8];
    offset.copy_from_slice(&body[8..]);
    Ok(u64::from_le_bytes(offset))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_position_survives_and_a_broken_one_begins_again() {
        let dir = tempfile::tempdir().unwrap();
        let drained = Drained::open(dir.path(), 3..=9).unwrap();
        assert_eq!(drained.offset(), 3, "the first that is held");
        drained.advance(7).unwrap();
        assert_eq!((drained.offset(), drained.frames()), (7, 4));
        let again = Drained::open(dir.path(), 3..=9).unwrap();
        assert_eq!((again.offset(), again.frames()), (7, 0));
        assert_eq!(Drained::open(dir.path(), 8..=9).unwrap().offset(), 8, "deleted meanwhile");
        assert_eq!(Drained::open(dir.path(), 0..=5).unwrap().offset(), 0, "another journal");
        let whole = fs::read(dir.path().join("drained")).unwrap();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            fs::write(dir.path().join("drained"), &broken).unwrap();
            assert_eq!(Drained::open(dir.path(), 3..=9).unwrap().offset(), 3, "byte {at}");
            fs::write(dir.path().join("drained"), &whole[..at]).unwrap();
            assert_eq!(Drained::open(dir.path(), 3..=9).unwrap().offset(), 3, "cut at {at}");
        }
    }
}
