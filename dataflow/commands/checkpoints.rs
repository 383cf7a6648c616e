//! What `doctor` says of checkpoints: it reads every section of every one and compares the
//! checksums, and changes nothing.
//!
//! A server may run meanwhile, which deletes a checkpoint as soon as enough newer ones are durable.
//! So one that cannot be read is looked for again: if it is no longer listed it was deleted, which
//! is no fault, and those that were published since are looked at instead.

use super::Failure;
use crate::{
    checkpoint::{
        keeper::{Sections, manifests, read_manifest},
        manifest::{At, Manifest, ManifestName},
        pack::PackOf,
        store::{Objects, Store, StoreError},
    },
    config::Config,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::UNIX_EPOCH,
};
use trueup_operators::time::format_rfc3339;

/// What there is.
pub(super) struct Found {
    /// No checkpoint is broken.
    pub(super) are_well: bool,
    /// Each of them, newest first; and packs that none names.
    pub(super) told: Value,
    /// Where in the log those are that are not broken, newest first.
    pub(super) places: Vec<At>,
}

/// Looks at the checkpoints of an installation.
///
/// # Errors
/// When their place cannot be read.
pub(super) fn look(config: &Config, installation: &str) -> Result<Found, Failure> {
    let place = &config.checkpoint.store;
    let unreadable = |e| Failure::Use(format!("the checkpoints cannot be read: {e}"));
    let store = Objects::open_existing(&config.data_dir, place).map_err(unreadable)?;
    let Some(store) = store else {
        return Ok(Found { are_well: true, told: json!([]), places: Vec::new() });
    };
    look_at(&store, installation).map_err(unreadable)
}

/// Looks at all checkpoints of a store.
fn look_at(store: &dyn Store, installation: &str) -> Result<Found, StoreError> {
    let mut seen = BTreeMap::new();
    let mut unseen = manifests(store)?;
    while let Some(name) = unseen.pop() {
        let one = Seen::of(store, name, installation);
        if one.place.is_ok() {
            seen.insert(name, one);
            continue;
        }
        let listed = manifests(store)?;
        if listed.contains(&name) {
            seen.insert(name, one);
        } else {
            // The oldest of those that are there is looked at next.
            seen.retain(|name, _| listed.contains(name));
            unseen = listed.into_iter().filter(|name| !seen.contains_key(name)).collect();
        }
    }
    let named: BTreeSet<&str> = seen.values().flat_map(Seen::packs).collect();
    let newest_first = || seen.iter().rev();
    let mut told: Vec<Value> = newest_first().map(|(name, one)| one.tell(*name)).collect();
    // Of a writer that did not come to its end, or is at it now: the next checkpoint deletes them.
    let packs = store.list("packs")?;
    let orphans = packs.iter().filter(|pack| PackOf::of_name(&pack.name).is_some());
    told.extend(
        orphans
            .filter(|pack| !named.contains(&*pack.name))
            .map(|pack| json!({ "unnamedPack": pack.name, "bytes": pack.bytes })),
    );
    let are_well = seen.values().all(|one| one.place.is_ok());
    let places = newest_first().filter_map(|(_, one)| one.place.clone().ok()).collect();
    Ok(Found { are_well, told: Value::Array(told), places })
}

/// A checkpoint that was looked at.
struct Seen {
    /// None if it cannot be read.
    manifest: Option<Manifest>,
    /// Where in the log it is, or what is wrong with it.
    place: Result<At, String>,
}

impl Seen {
    fn of(store: &dyn Store, name: ManifestName, installation: &str) -> Seen {
        match read_manifest(store, name) {
            Ok(manifest) => {
                let place = check(store, &manifest, installation);
                Seen { manifest: Some(manifest), place }
            }
            Err(unread) => Seen { manifest: None, place: Err(unread.to_string()) },
        }
    }

    /// The packs that it names.
    fn packs(&self) -> impl Iterator<Item = &str> {
        self.manifest.iter().flat_map(|manifest| {
            let packs = manifest.packs.iter().map(|pack| &*pack.name);
            packs.chain(manifest.parts.iter().map(|part| &*part.pack))
        })
    }

    fn tell(&self, name: ManifestName) -> Value {
        tell(name, self.manifest.as_ref(), self.place.as_ref().err())
    }
}

fn check(store: &dyn Store, manifest: &Manifest, installation: &str) -> Result<At, String> {
    if manifest.installation != installation {
        return Err(format!("it is of the installation {}", manifest.installation));
    }
    let read = Sections::open(store, manifest).and_then(|sections| sections.check(store));
    read.map_err(|unread| unread.to_string())?;
    manifest.at()
}

fn tell(name: ManifestName, manifest: Option<&Manifest>, broken: Option<&String>) -> Value {
    let now_us = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as i64);
    json!({
        "manifest": name.to_string(),
        "epoch": name.epoch,
        "generation": name.generation,
        "valid": broken.is_none(),
        "broken": broken,
        "takenAt": manifest.map(|m| format_rfc3339(m.taken_at_us)),
        "ageSeconds": manifest.map(|m| (now_us - m.taken_at_us).max(0) as f64 / 1e6),
        "sections": manifest.map(|m| m.sections),
        "bytesLive": manifest.map(|m| m.bytes_live),
        "bytesNamed": manifest.map(Manifest::bytes_named),
        "packs": manifest.map(|m| m.packs.len()),
        "chain": manifest.map(|m| m.chain),
        "workers": manifest.map(|m| m.workers),
        "tookMs": manifest.map(|m| m.took_ms),
        "pauseMs": manifest.map(|m| m.pause_us as f64 / 1e3),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::checkpoint::{
        keeper::Keeper,
        store::{Listed, NewObject},
        tests::{claim, state, take},
    };
    use bytes::Bytes;
    use parking_lot::Mutex;
    use std::{ops::Range, sync::Arc};

    const INSTALLATION: &str = "7f0c";

    /// A store with a server that publishes one more checkpoint when a pack is read.
    struct Served {
        store: Arc<dyn Store>,
        keeper: Mutex<Option<Keeper>>,
    }

    impl Served {
        fn new(dir: &std::path::Path) -> Served {
            let store: Arc<dyn Store> = Arc::new(Objects::open(dir, "checkpoints").unwrap());
            let mut keeper = claim(&store);
            for epoch in [3, 5] {
                take(&mut keeper, epoch, &state(8, epoch as u8), None).unwrap();
            }
            Served { store, keeper: Mutex::new(Some(keeper)) }
        }
    }

    impl Store for Served {
        fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
            self.store.create(name)
        }
        fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
            self.store.publish(name, bytes)
        }
        fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
            let keeper = if name.starts_with("packs/") { self.keeper.lock().take() } else { None };
            if let Some(mut keeper) = keeper {
                take(&mut keeper, 9, &state(8, 9), None).unwrap();
            }
            self.store.read(name, range)
        }
        fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
            self.store.list(folder)
        }
        fn delete(&self, name: &str) -> Result<(), StoreError> {
            self.store.delete(name)
        }
    }

    fn epochs(found: &Found) -> Vec<(u64, bool)> {
        let told = found.told.as_array().unwrap().iter();
        told.map(|one| (one["epoch"].as_u64().unwrap(), one["valid"].as_bool().unwrap())).collect()
    }

    #[test]
    fn a_checkpoint_that_a_server_deletes_meanwhile_is_not_broken() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(dir.path());
        let found = look_at(&served, INSTALLATION).unwrap();
        assert!(served.keeper.lock().is_none(), "one more was published");
        assert!(found.are_well, "{}", found.told);
        assert_eq!(epochs(&found), [(9, true), (5, true)]);
        let places: Vec<u64> = found.places.iter().map(|at| at.row.epoch).collect();
        assert_eq!(places, [9, 5]);
    }

    #[test]
    fn one_that_is_listed_and_has_lost_a_pack_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(dir.path());
        *served.keeper.lock() = None;
        let oldest = manifests(&served).unwrap().pop().unwrap();
        let manifest = read_manifest(&served, oldest).unwrap();
        served.delete(&manifest.packs[0].name).unwrap();
        let found = look_at(&served, INSTALLATION).unwrap();
        assert!(!found.are_well);
        assert_eq!(epochs(&found), [(5, true), (3, false)]);
    }
}
