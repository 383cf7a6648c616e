//! Who a data directory is: the file `identity`, created once and never changed. It holds the
//! secret key of the ids' hashes, so it is readable by its owner only, and it belongs in every
//! backup: without it the ids of the journal can never be compared with new ones.
//!
//! ```text
//! trueup identity 1
//! installation 7f0c…            16 bytes, in hex; may be shown
//! journal 90ab…                 8 bytes that every frame carries
//! hash_key 55d1…                16 bytes, secret
//! partitions 4                  of the events topic
//! crc32c 1a2b3c4d               of all bytes above this line
//! ```
//!
//! The partition of an event follows from its id and the number of partitions, so that number can
//! never change: all copies of an event must meet in one partition.

use crate::{
    disk::{Access, Disk, RealDisk, create_whole, read_small},
    recover::cannot_read,
};
use std::{io::ErrorKind, path::Path};
use trueup_operators::{
    hash::HashKey,
    log::{LogError, PARTITIONS_MAX},
};

const FILE: &str = "identity";
const FIRST_LINE: &str = "trueup identity 1";
const FILE_BYTES_MAX: u64 = 4_096;

/// What is fixed when a data directory is created.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Names the installation; random, no secret.
    pub installation: [u8; 16],
    /// The key of all stored hashes of ids.
    pub hash_key: HashKey,
    /// How many partitions the events topic has.
    pub partitions: u16,
    pub(crate) journal: u64,
}

impl Identity {
    /// The one of a directory that holds no embedded log, made if it is not there: for a log that
    /// is elsewhere. Whoever calls this has seen to it that no other process does so at the same
    /// time.
    ///
    /// # Errors
    /// When it cannot be read or made, or is damaged.
    pub fn of_directory(dir: &Path, partitions: u16) -> Result<Identity, LogError> {
        let disk = RealDisk;
        if let Some(identity) = Identity::load(&disk, dir)? {
            return Ok(identity);
        }
        let identity = Identity::random(partitions)?;
        identity.store(&disk, dir)?;
        Ok(identity)
    }

    /// The one of a directory, if it has one.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn existing(dir: &Path) -> Result<Option<Identity>, LogError> {
        Identity::load(&RealDisk, dir)
    }

    /// The one that several directories share: `agree` is told this directory's, or a new one, as
    /// text, and says the one that counts, as text, which is stored here.
    ///
    /// # Errors
    /// As [`Identity::of_directory`], what `agree` says, and when the directory has another one.
    pub fn of_cluster(
        dir: &Path,
        partitions: u16,
        agree: impl FnOnce(&str) -> Result<String, LogError>,
    ) -> Result<Identity, LogError> {
        let disk = RealDisk;
        std::fs::create_dir_all(dir).map_err(|error| LogError::Unavailable {
            reason: format!("{} cannot be made: {error}", dir.display()),
        })?;
        let own = Identity::load(&disk, dir)?;
        let offered = own.map_or_else(|| Identity::random(partitions), Ok)?;
        let shared = Identity::parse(&agree(&offered.text())?).map_err(|reason| {
            LogError::Invalid { reason: format!("the shared identity {reason}") }
        })?;
        match own {
            None => shared.store(&disk, dir)?,
            Some(own) if own.installation == shared.installation => {}
            Some(own) => {
                let (own, shared) = (own.installation_hex(), shared.installation_hex());
                let reason = format!(
                    "{} is of installation {own}, the cluster's is {shared}: give this process a \
                     new directory, or the cluster another place for its checkpoints",
                    dir.display()
                );
                return Err(LogError::Invalid { reason });
            }
        }
        Ok(shared)
    }

    /// The installation's name in hex.
    pub fn installation_hex(&self) -> String {
        hex(&self.installation)
    }

    /// A new one, from the system's randomness.
    pub(crate) fn random(partitions: u16) -> Result<Identity, LogError> {
        let mut bytes = [0; 40];
        getrandom::fill(&mut bytes).map_err(|error| LogError::Unavailable {
            reason: format!("the system gives no randomness for a new identity: {error}"),
        })?;
        Ok(Identity {
            installation: crate::format::part(&bytes, 0),
            hash_key: HashKey(crate::format::part(&bytes, 16)),
            partitions,
            journal: u64::from_le_bytes(crate::format::part(&bytes, 32)),
        })
    }

    /// Reads the one of a data directory; `None` if it has none.
    pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, LogError> {
        let path = dir.join(FILE);
        let damaged = |reason: String| LogError::Corrupt {
            file: path.display().to_string(),
            at: 0,
            reason: format!("{reason}; restore the file from a backup"),
        };
        let bytes = match disk.open(&path, Access::Read) {
            Ok(file) => read_small(&*file, FILE_BYTES_MAX),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        let bytes = bytes.map_err(|error| match error.kind() {
            ErrorKind::InvalidData => damaged(error.to_string()),
            _ => cannot_read(&path, 0, &error),
        })?;
        let text = str::from_utf8(&bytes).map_err(|_| damaged("is no text".into()))?;
        Identity::parse(text).map(Some).map_err(damaged)
    }

    /// Stores a new one.
    pub(crate) fn store(&self, disk: &dyn Disk, dir: &Path) -> Result<(), LogError> {
        let path = dir.join(FILE);
        create_whole(disk, &path, self.text().as_bytes()).map_err(|error| LogError::Unavailable {
            reason: format!("{} cannot be created: {error}", path.display()),
        })
    }

    fn text(&self) -> String {
        let body = format!(
            "{FIRST_LINE}\ninstallation {}\njournal {:016x}\nhash_key {}\npartitions {}\n",
            hex(&self.installation),
            self.journal,
            hex(&self.hash_key.0),
            self.partitions
        );
        format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()))
    }

    fn parse(text: &str) -> Result<Identity, String> {
        let (body, sum) = text.rsplit_once("crc32c ").ok_or("the line `crc32c` is missing")?;
        if sum.trim_end() != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
            return Err("its checksum does not match".into());
        }
        let mut lines = body.lines();
        let first = lines.next().unwrap_or_default();
        if first != FIRST_LINE {
            return Err(format!("begins with {first:?}; this build knows {FIRST_LINE:?} only"));
        }
        let mut value = |key: &str| {
            let line = lines.next().and_then(|line| line.split_once(' '));
            line.filter(|(found, _)| *found == key)
                .map(|(_, value)| value.to_owned())
                .ok_or_else(|| format!("the line `{key}` is missing"))
        };
        let installation = bytes_of_hex(&value("installation")?)?;
        let journal = u64::from_be_bytes(bytes_of_hex(&value("journal")?)?);
        let hash_key = HashKey(bytes_of_hex(&value("hash_key")?)?);
        let partitions = value("partitions")?;
        let partitions = partitions
            .parse()
            .ok()
            .filter(|count| (1..=PARTITIONS_MAX).contains(count))
            .ok_or_else(|| format!("{partitions:?} partitions are not 1 to {PARTITIONS_MAX}"))?;
        Ok(Identity { installation, hash_key, partitions, journal })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of_hex<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let wrong = || format!("expected {N} bytes in hex");
    if text.len() != 2 * N || !text.is_ascii() {
        return Err(wrong());
    }
    let mut out = [0; N];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_identity_comes_back_and_any_changed_byte_is_seen() {
        let identity = Identity::random(7).unwrap();
        let text = identity.text();
        let back = Identity::parse(&text).unwrap();
        assert_eq!(back.installation, identity.installation);
        assert_eq!(back.hash_key.0, identity.hash_key.0);
        assert_eq!((back.partitions, back.journal), (7, identity.journal));
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Identity::parse(&changed).is_err(), "byte {at}");
        }
        assert!(Identity::parse("").is_err());
    }

    #[test]
    fn two_identities_differ_and_the_key_is_not_shown() {
        let (a, b) = (Identity::random(1).unwrap(), Identity::random(1).unwrap());
        assert_ne!(a.installation, b.installation);
        assert_ne!(a.hash_key.0, b.hash_key.0);
        assert!(!format!("{a:?}").contains(&format!("{:?}", a.hash_key.0)));
    }
}
