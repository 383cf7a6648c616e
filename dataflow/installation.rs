//! The identity that the processes of a cluster share: with it go the name of the installation,
//! which checkpoints carry, and the key that ids are hashed with. Each process has it in its own
//! data directory; the one that counts is an object beside the checkpoints, made by whoever is
//! first.
//!
//! ```text
//! identity/1    as the file `identity` of a data directory
//! ```
//!
//! It holds the secret key, so whoever reads the place of the checkpoints can compare ids with
//! guesses: the place is to be guarded like a data directory.

use crate::{
    checkpoint::store::{Objects, Store, StoreError},
    host::HostError,
};
use std::path::Path;
use trueup_log::Identity;
use trueup_operators::log::LogError;

const FOLDER: &str = "identity";
const NAME: &str = "identity/1";
/// More than an identity has.
const BYTES_MAX: u64 = 4_096;

/// Gives the directory the identity that is in the store, and the store this directory's if it has
/// none yet. `place` as [`Objects::open`] takes it.
///
/// # Errors
/// When either cannot be read or written, or the directory has another identity.
pub(crate) fn share(dir: &Path, place: &str, partitions: u16) -> Result<(), HostError> {
    let store = Objects::open(dir, place)?;
    let agree = |own: &str| {
        agree(&store, own).map_err(|e| LogError::Unavailable {
            reason: format!("the identity of the cluster: {e}"),
        })
    };
    Identity::of_cluster(dir, partitions, agree)?;
    Ok(())
}

/// The one that counts.
fn agree(store: &dyn Store, own: &str) -> Result<String, StoreError> {
    match store.publish(NAME, own.as_bytes().to_vec()) {
        Ok(()) | Err(StoreError::Exists { .. }) => {}
        Err(error) => return Err(error),
    }
    let failed = |reason: &str| StoreError::Failed { name: NAME.into(), reason: reason.into() };
    let listed = store.list(FOLDER)?.into_iter().find(|listed| listed.name == NAME);
    let listed = listed.ok_or_else(|| StoreError::Missing { name: NAME.into() })?;
    if listed.bytes > BYTES_MAX {
        return Err(failed("is too large for an identity"));
    }
    let bytes = store.read(NAME, 0..listed.bytes)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| failed("is no text"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_decides_and_a_stranger_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let store = place.path().to_str().unwrap();
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let identity = |dir: &Path| Identity::of_directory(dir, 4).unwrap();
        share(dirs[0].path(), store, 4).unwrap();
        share(dirs[1].path(), store, 4).unwrap();
        share(dirs[1].path(), store, 4).unwrap();
        let [first, second] = [&dirs[0], &dirs[1]].map(|dir| identity(dir.path()));
        assert_eq!(first.installation, second.installation);
        assert_eq!(first.hash_key.0, second.hash_key.0);

        let stranger = identity(dirs[2].path());
        let error = share(dirs[2].path(), store, 4).unwrap_err().to_string();
        assert!(error.contains(&stranger.installation_hex()), "{error}");
        assert!(error.contains(&first.installation_hex()), "{error}");
    }
}
