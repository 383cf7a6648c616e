//! How the state that a replay has found comes into the running job: as a checkpoint that is
//! offered, and that the next generation begins with.
//!
//! ```text
//! replay                                            the job
//!   packs/<epoch>-<g>-<writer>.pack   durable
//!   replays/<epoch>-<g>-<writer>.json  its manifest
//!   asks the job to begin anew ───────────────────▶ its generation ends
//!                                                   the next one claims g'
//!                                                   manifests/<epoch>-<g'>.json   published
//!                                                   the offer is deleted
//!                                                   all begin with the newest manifest: that one
//! ```
//!
//! # Why it is hard
//!
//! The job goes on writing checkpoints while a replay is under way, may stop at any instant, and
//! must end up with the replay's figures or with its own, never with some of each, and never go
//! back. One operation decides: the publishing of the manifest in the name of the generation that
//! begins. Before it nothing is loaded from the offer; after it the replay's state is the newest
//! checkpoint, as if that generation had taken it, for this start and for every later
//! one.
//!
//! # Promises
//!
//! * An offer that cannot be read, is of another installation, or names what is missing is refused
//!   and deleted; one whose state turns out not to be loadable is taken back before anything is
//!   shown.
//! * A replay's pack carries the number of the generation after the one that runs, so that one does
//!   not take it for garbage. If another generation begins without the offer, the pack may go; the
//!   offer is then refused, because what it names is missing.
//! * A store that does not answer says nothing of an offer: the start fails, and the offer stays.
//! * An offer that was taken up and could not be deleted is offered again at the next start.
//!   Harmless: it is still a function of the log.
//!
//! * After a generation has begun with it, no start begins with a checkpoint of an older one, whose
//!   figures are others: the object `figures/<g'>` says so. If none of the newer can be loaded, a
//!   start goes through the log from its beginning, or refuses when that is gone.
//!
//! Of several offers the one of the newest epoch counts.

use super::{
    keeper::{CheckpointError, Sections, newest_generation, read_manifest},
    manifest::{Figures, MANIFEST_BYTES_MAX, Manifest, ManifestName, Of},
    store::{Objects, Store, StoreError, Unread},
};
use serde::Serialize;
use std::path::Path;
use trueup_operators::time::Epoch;

/// Writers of offers have numbers that no process of a cluster has.
const WRITER_MIN: u32 = 1 << 31;
const FOLDER: &str = "replays";
const FIGURES: &str = "figures";

/// The name of an offer. Ordered: the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OfferName {
    epoch: Epoch,
    generation: u64,
    writer: u32,
}

impl std::fmt::Display for OfferName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{FOLDER}/{}.json", self.id())
    }
}

impl OfferName {
    /// Of what a writer has found for an epoch.
    pub fn new(epoch: Epoch, generation: u64, writer: u32) -> OfferName {
        OfferName { epoch, generation, writer }
    }

    /// The inverse of its text.
    pub fn parse(name: &str) -> Option<OfferName> {
        let stem = name.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?;
        let mut parts = stem.split('-');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (epoch, generation) = (number()?, number()?);
        let parsed = OfferName { epoch, generation, writer: number()?.try_into().ok()? };
        (parsed.to_string() == name).then_some(parsed)
    }

    /// What status and logs call the replay.
    pub fn id(&self) -> String {
        let OfferName { epoch, generation, writer } = self;
        format!("{epoch:020}-{generation}-{writer}")
    }
}

/// An offer that was not taken up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Which replay's.
    pub id: String,
    /// Why not.
    pub reason: String,
}

/// What a generation found when it began.
#[derive(Debug, Default)]
pub(super) struct Offers {
    /// The checkpoint that one has become, and which replay's it is.
    pub(super) taken_up: Option<(ManifestName, String)>,
    /// The last one that was refused.
    pub(super) refused: Option<Refused>,
}

/// In whose name a replay writes: the generation after the one that runs, and a writer that is
/// nobody else.
///
/// # Errors
/// When the store cannot say, or the system gives no randomness.
pub(super) fn writer(store: &dyn Store) -> Result<(u64, u32), CheckpointError> {
    let mut number = [0; 4];
    getrandom::fill(&mut number).map_err(|e| CheckpointError::Manifest(e.to_string()))?;
    Ok((newest_generation(store)? + 1, WRITER_MIN | u32::from_le_bytes(number)))
}

/// Makes the offer.
///
/// # Errors
/// When the store cannot, or the manifest is too large.
pub(super) fn publish(
    store: &dyn Store,
    manifest: &Manifest,
    writer: u32,
) -> Result<OfferName, CheckpointError> {
    let name = OfferName::new(manifest.epoch, manifest.generation, writer);
    store.publish(&name.to_string(), manifest.encode().map_err(CheckpointError::Manifest)?)?;
    Ok(name)
}

/// Makes what is offered the newest checkpoint, of the generation that begins, and deletes all
/// offers.
///
/// # Errors
/// When the store cannot: the offer stays.
pub(super) fn take_up(store: &dyn Store, of: &Of, generation: u64) -> Result<Offers, StoreError> {
    let listed = store.list(FOLDER)?;
    let mut names: Vec<(OfferName, u64)> = listed
        .iter()
        .filter_map(|listed| Some((OfferName::parse(&listed.name)?, listed.bytes)))
        .collect();
    names.sort_unstable();
    let mut offers = Offers::default();
    for (name, bytes) in names.into_iter().rev() {
        if offers.taken_up.is_none() {
            match read(store, of, name, bytes)? {
                Ok(manifest) => {
                    offers.taken_up =
                        Some((become_newest(store, manifest, name, generation)?, name.id()));
                }
                Err(reason) => {
                    tracing::warn!(id = name.id(), reason, "a replay is not taken up");
                    offers.refused = Some(Refused { id: name.id(), reason });
                }
            }
        }
        store.delete(&name.to_string())?;
    }
    Ok(offers)
}

/// Takes an offer back that nobody was told of. `dir` and `place` as [`Objects::open`] takes them.
///
/// # Errors
/// When the store cannot; when it is taken up already there is nothing to take back.
pub fn withdraw(dir: &Path, place: &str, id: &str) -> Result<(), StoreError> {
    Objects::open(dir, place)?.delete(&format!("{FOLDER}/{id}.json"))
}

/// Whether anything is offered.
///
/// # Errors
/// When the store does not say.
pub(crate) fn is_made(store: &dyn Store) -> Result<bool, StoreError> {
    let listed = store.list(FOLDER)?;
    Ok(listed.iter().any(|listed| OfferName::parse(&listed.name).is_some()))
}

/// A generation has begun with a replay's state: no later start may begin with a checkpoint of an
/// older generation, whose figures are others.
pub(super) fn settle(store: &dyn Store, generation: u64) -> Result<(), StoreError> {
    match store.publish(&figures_name(generation), Vec::new()) {
        Ok(()) | Err(StoreError::Exists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The generation that took up the last replay; 0: there was none.
pub(super) fn settled(store: &dyn Store) -> Result<u64, StoreError> {
    let listed = store.list(FIGURES)?;
    let number = |name: &str| name.strip_prefix(FIGURES)?.strip_prefix('/')?.parse().ok();
    Ok(listed.iter().filter_map(|listed| number(&listed.name)).max().unwrap_or(0))
}

/// Takes back what a generation has taken up and a process cannot load; the replay, if it was one.
pub(super) fn take_back(
    store: &dyn Store,
    name: ManifestName,
) -> Result<Option<String>, StoreError> {
    let figures = match read_manifest(store, name) {
        Ok(manifest) => manifest.figures,
        Err(Unread::Wrong(_)) => None,
        Err(Unread::Store(error)) => return Err(error),
    };
    let Some(Figures { replay, seen: false }) = figures else { return Ok(None) };
    // Last what says that it is to be done: whatever fails before, it is begun again.
    store.delete(&figures_name(name.generation))?;
    store.delete(&name.to_string())?;
    Ok(Some(replay))
}

fn figures_name(generation: u64) -> String {
    format!("{FIGURES}/{generation:020}")
}

fn read(
    store: &dyn Store,
    of: &Of,
    name: OfferName,
    bytes: u64,
) -> Result<Result<Manifest, String>, StoreError> {
    if bytes > MANIFEST_BYTES_MAX {
        return Ok(Err(format!("{name}: has {bytes} bytes, more than a manifest may have")));
    }
    let bytes = store.read(&name.to_string(), 0..bytes)?;
    let manifest = match Manifest::decode(&bytes) {
        Ok(manifest) => manifest,
        Err(reason) => return Ok(Err(format!("{name}: {reason}"))),
    };
    if manifest.installation != of.installation {
        let (found, own) = (&manifest.installation, &of.installation);
        return Ok(Err(format!("it is of the installation {found}, and this is {own}")));
    }
    // Another generation may have taken its pack for garbage.
    match Sections::open(store, &manifest) {
        Ok(_) => Ok(Ok(manifest)),
        Err(Unread::Wrong(reason)) => Ok(Err(reason)),
        Err(Unread::Store(error)) => Err(error),
    }
}

/// From here on every start begins with it.
fn become_newest(
    store: &dyn Store,
    mut manifest: Manifest,
    offer: OfferName,
    generation: u64,
) -> Result<ManifestName, StoreError> {
    manifest.generation = generation;
    manifest.figures = Some(Figures { replay: offer.id(), seen: false });
    let name = ManifestName { generation, epoch: manifest.epoch };
    let failed = |reason| StoreError::Failed { name: name.to_string(), reason };
    store.publish(&name.to_string(), manifest.encode().map_err(failed)?)?;
    Ok(name)
}
