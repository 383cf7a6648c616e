//! What `doctor` says of checkpoints: it reads every section of every one and compares the
//! checksums, and changes nothing.

use super::Failure;
use crate::{
    checkpoint::{
        keeper::{Sections, manifests, read_manifest},
        manifest::{At, Manifest, ManifestName},
        pack::PackOf,
        store::{Objects, Store},
    },
    config::Config,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::UNIX_EPOCH};
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
    let (mut are_well, mut told, mut named) = (true, Vec::new(), BTreeSet::new());
    let mut places = Vec::new();
    for name in manifests(&store).map_err(unreadable)? {
        let manifest = read_manifest(&store, name);
        if let Ok(manifest) = &manifest {
            named.extend(manifest.packs.iter().map(|pack| pack.name.clone()));
            named.extend(manifest.parts.iter().map(|part| part.pack.clone()));
        }
        let checked = manifest.as_ref().map_err(|unread| unread.to_string());
        let checked = checked.and_then(|manifest| check(&store, manifest, installation));
        let broken = match checked {
            Ok(place) => {
                places.push(place);
                None
            }
            Err(reason) => Some(reason),
        };
        are_well &= broken.is_none();
        told.push(tell(name, manifest.as_ref().ok(), broken));
    }
    // Of a writer that did not come to its end, or is at it now: the next checkpoint deletes them.
    let packs = store.list("packs").map_err(unreadable)?;
    let orphans = packs.iter().filter(|pack| PackOf::of_name(&pack.name).is_some());
    told.extend(
        orphans
            .filter(|pack| !named.contains(&pack.name))
            .map(|pack| json!({ "unnamedPack": pack.name, "bytes": pack.bytes })),
    );
    Ok(Found { are_well, told: Value::Array(told), places })
}

fn check(store: &dyn Store, manifest: &Manifest, installation: &str) -> Result<At, String> {
    if manifest.installation != installation {
        return Err(format!("it is of the installation {}", manifest.installation));
    }
    let read = Sections::open(store, manifest).and_then(|sections| sections.check(store));
    read.map_err(|unread| unread.to_string())?;
    manifest.at()
}

fn tell(name: ManifestName, manifest: Option<&Manifest>, broken: Option<String>) -> Value {
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
