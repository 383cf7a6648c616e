//! The order of things when a checkpoint is written, and what may be deleted: every instant between
//! two operations on the store is one at which the machine may stop, and at each there is a
//! checkpoint that can be loaded.
//!
//! 1. *Claim*. A writer first makes the object `generations/<n>`, one above all that are there, by
//!    compare-and-set: of two that start at once, one takes the next number. From then on every
//!    older writer that looks finds out that it is *fenced*, and writes nothing more.
//! 2. *Pack*. It becomes durable; nothing names it yet.
//! 3. *Fence*. The writer looks whether a newer generation has claimed.
//! 4. *Manifest*. Published by compare-and-set: from here on there is a new checkpoint.
//! 5. *Garbage*. Manifests beyond the newest `kept` go, then packs that no manifest names.
//!
//! # Why a zombie does no harm
//!
//! A writer of an older generation may be stopped between 3 and 4, for an hour, and go on. Its
//! manifest is then published, but the newest is the greatest (generation, epoch), so it is never
//! newer than one of a younger generation. While there is none of those, it is as good as any: what
//! is in a checkpoint follows from the log up to its remap row, and a loader compares that row with
//! the log's. After it comes 5, and then it looks at 3 and stops. So after a claim at most one more
//! manifest of an older generation appears, and at most one more time garbage goes: with `kept` ≥ 2
//! the manifest that was the newest at the claim, from which the younger generation starts, is
//! still there afterwards. A pack is named only by manifests of its own generation (the first
//! checkpoint of each is whole), and a writer deletes only packs of its own and of older
//! generations; so what a younger one has under way or keeps, a zombie never touches.
//!
//! # Which ones are kept
//!
//! The newest `kept` manifests that are not known to be broken: one that was found broken at the
//! start does not push a good one out.

use super::{
    manifest::{At, MANIFEST_BYTES_MAX, Manifest, ManifestName, Of, Taken},
    pack::{Index, PackError, PackOf, PackWriter, Sealed},
    store::{Listed, Store, StoreError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The least that `kept` may be; see above.
pub const KEPT_MIN: usize = 2;
/// Which process of a generation writes: there is one.
const WRITER: u32 = 0;

/// How many checkpoints there are, and what they consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepSettings {
    /// How many are kept; at least [`KEPT_MIN`].
    pub kept: usize,
    /// Every which is whole.
    pub whole_every: u32,
}

/// Why a checkpoint was not published.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A newer generation has begun; this one must not write any more.
    #[error(
        "generation {own} is fenced: generation {newer} has begun. This process writes no more \
         checkpoints; end it, if it still runs"
    )]
    Fenced {
        /// One's own.
        own: u64,
        /// The newest.
        newer: u64,
    },
    /// The pack cannot be written.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The store cannot.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest cannot be written.
    #[error("{0}")]
    Manifest(String),
}

/// A checkpoint that is under way.
pub struct Taking<'a> {
    /// Its sections go here.
    pub pack: PackWriter<'a>,
    whole: bool,
}

/// A checkpoint whose pack is durable, and which nothing names yet.
#[derive(Debug)]
pub struct Packed {
    sealed: Sealed,
    whole: bool,
    bytes_written: u64,
}

/// What a checkpoint that was published came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// The checkpoint.
    pub manifest: Manifest,
    /// What went, and what did not.
    pub garbage: Garbage,
}

/// What was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Manifests.
    pub manifests: usize,
    /// Packs.
    pub packs: usize,
    /// Why some of it is still there; it goes the next time.
    pub failed: Option<String>,
}

/// Writes the checkpoints of one generation.
pub struct Keeper {
    store: Arc<dyn Store>,
    settings: KeepSettings,
    of: Of,
    generation: u64,
    /// What the last checkpoint of this generation consists of.
    index: Index,
    chain: u32,
    /// The next one is whole: there is none yet, or something failed since.
    whole_next: bool,
    /// Manifests that were found broken.
    broken: BTreeSet<ManifestName>,
}

impl Keeper {
    /// Claims the next generation. Before a manifest to start from is looked for: see above.
    ///
    /// # Errors
    /// When the store cannot.
    pub fn claim(
        store: Arc<dyn Store>,
        settings: KeepSettings,
        of: Of,
    ) -> Result<Keeper, CheckpointError> {
        let newest = newest_generation(&*store)?;
        for generation in newest + 1.. {
            match store.publish(&generation_name(generation), Vec::new()) {
                Err(StoreError::Exists { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    let keeper = Keeper {
                        store,
                        settings: KeepSettings { kept: settings.kept.max(KEPT_MIN), ..settings },
                        of,
                        generation,
                        index: Index::default(),
                        chain: 0,
                        whole_next: true,
                        broken: BTreeSet::new(),
                    };
                    return Ok(keeper);
                }
            }
        }
        unreachable!("there are 2⁶⁴ generations")
    }

    /// Which generation this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A manifest cannot be loaded: it counts for nothing, and goes with the next checkpoint.
    pub fn condemn(&mut self, broken: ManifestName) {
        self.broken.insert(broken);
    }

    /// Whether the next checkpoint has to be whole: an increment has nothing to lie on, so many lie
    /// on the last whole one already, or more than half of what would be kept is dead.
    pub fn wants_whole(&self) -> bool {
        self.whole_next
            || self.chain + 1 >= self.settings.whole_every
            || self.index.bytes_live() < self.index.bytes_named() / 2
    }

    /// The images since the last checkpoint are lost: the next one has to be whole.
    pub fn missed(&mut self) {
        self.whole_next = true;
    }

    /// Begins the checkpoint of an epoch. `whole`: all sections will come, not only changed ones.
    ///
    /// # Errors
    /// When the store cannot.
    pub fn begin(&self, epoch: u64, whole: bool) -> Result<Taking<'_>, CheckpointError> {
        let of = PackOf { epoch, generation: self.generation, writer: WRITER };
        let pack = PackWriter::create(&*self.store, of)?;
        Ok(Taking { pack, whole })
    }

    /// Ends the pack. `lives` says of a section of an older pack whether it is still there; of a
    /// whole checkpoint none is.
    ///
    /// # Errors
    /// When the pack cannot be made durable.
    pub fn seal(
        &self,
        taking: Taking<'_>,
        lives: impl Fn(&[u8]) -> bool,
    ) -> Result<Packed, CheckpointError> {
        let Taking { pack, whole } = taking;
        let sealed = pack.seal(&self.index, |key| !whole && lives(key))?;
        let bytes_written = sealed.place.at + sealed.place.bytes;
        Ok(Packed { sealed, whole, bytes_written })
    }

    /// Publishes what was sealed, and deletes what is garbage then. Whatever fails, the next
    /// checkpoint is whole; only what is garbage may stay without harm.
    ///
    /// # Errors
    /// When this generation is fenced, or the store cannot.
    pub fn publish(
        &mut self,
        packed: Packed,
        at: &At,
        taken: Taken,
    ) -> Result<Published, CheckpointError> {
        self.whole_next = true;
        self.check_fence()?;
        let Packed { sealed, whole, bytes_written } = packed;
        let chain = if whole { 0 } else { self.chain + 1 };
        let parts = [(WRITER, &sealed.index, sealed.place)];
        let taken = Taken { bytes_written, ..taken };
        let manifest = Manifest::new(&self.of, self.generation, at, chain, &parts, taken);
        let bytes = manifest.encode().map_err(CheckpointError::Manifest)?;
        match self.store.publish(&manifest.name(), bytes) {
            // Only who has the same generation could have been first.
            Err(StoreError::Exists { .. }) => {
                let (own, newer) = (self.generation, self.generation);
                return Err(CheckpointError::Fenced { own, newer });
            }
            published => published?,
        }
        self.index = sealed.index;
        self.chain = chain;
        self.whole_next = false;
        Ok(Published { manifest, garbage: self.collect() })
    }

    /// Where in the log the oldest checkpoint is that is kept. `None` while there are fewer than
    /// [`KEPT_MIN`] that are not known to be broken: then nothing may depend on one alone.
    ///
    /// # Errors
    /// When the manifests cannot be read.
    pub fn oldest(&self) -> Result<Option<At>, String> {
        let names = manifests(&*self.store).map_err(|e| e.to_string())?;
        let good = names.into_iter().filter(|name| !self.broken.contains(name));
        let kept: Vec<ManifestName> = good.take(self.settings.kept).collect();
        match kept.last() {
            Some(&oldest) if kept.len() >= KEPT_MIN => {
                read_manifest(&*self.store, oldest)?.at().map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What the last checkpoint of this generation consists of.
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn check_fence(&self) -> Result<(), CheckpointError> {
        let newer = newest_generation(&*self.store)?;
        match newer > self.generation {
            false => Ok(()),
            true => Err(CheckpointError::Fenced { own: self.generation, newer }),
        }
    }

    fn collect(&self) -> Garbage {
        let mut garbage = Garbage::default();
        if let Err(reason) = self.collect_into(&mut garbage) {
            garbage.failed = Some(reason);
        }
        garbage
    }

    fn collect_into(&self, garbage: &mut Garbage) -> Result<(), String> {
        let mut left = self.settings.kept;
        let mut named: BTreeSet<String> = BTreeSet::new();
        for name in manifests(&*self.store).map_err(|e| e.to_string())? {
            if left == 0 || self.broken.contains(&name) {
                self.store.delete(&name.to_string()).map_err(|e| e.to_string())?;
                garbage.manifests += 1;
                continue;
            }
            // One that cannot be read now may be readable later: then it names packs.
            let manifest = read_manifest(&*self.store, name)?;
            named.extend(manifest.packs.into_iter().map(|pack| pack.name));
            named.extend(manifest.parts.into_iter().map(|part| part.pack));
            left -= 1;
        }
        self.collect_objects(&named, garbage).map_err(|e| e.to_string())
    }

    /// Packs that no manifest names, and claims that are not the newest.
    fn collect_objects(
        &self,
        named: &BTreeSet<String>,
        garbage: &mut Garbage,
    ) -> Result<(), StoreError> {
        for Listed { name, .. } in self.store.list("packs")? {
            let of = PackOf::of_name(&name);
            if of.is_some_and(|of| of.generation <= self.generation) && !named.contains(&name) {
                self.store.delete(&name)?;
                garbage.packs += 1;
            }
        }
        for Listed { name, .. } in self.store.list("generations")? {
            if generation_of(&name).is_some_and(|generation| generation < self.generation) {
                self.store.delete(&name)?;
            }
        }
        Ok(())
    }
}

fn generation_name(generation: u64) -> String {
    format!("generations/{generation:020}")
}

fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix("generations/")?.parse().ok()
}

/// The newest generation that has claimed, or that anything is of.
fn newest_generation(store: &dyn Store) -> Result<u64, StoreError> {
    let claimed = store.list("generations")?;
    let claimed = claimed.iter().filter_map(|listed| generation_of(&listed.name)).max();
    let published = manifests(store)?.first().map(|name| name.generation);
    Ok(claimed.max(published).unwrap_or(0))
}

/// All manifests, newest first.
///
/// # Errors
/// When the store cannot say.
pub fn manifests(store: &dyn Store) -> Result<Vec<ManifestName>, StoreError> {
    let listed = store.list("manifests")?;
    let mut names: Vec<ManifestName> =
        listed.iter().filter_map(|listed| ManifestName::parse(&listed.name)).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// Reads a manifest and checks it by itself.
///
/// # Errors
/// What is wrong with it.
pub fn read_manifest(store: &dyn Store, name: ManifestName) -> Result<Manifest, String> {
    let text = name.to_string();
    let listed = store.list("manifests").map_err(|e| e.to_string())?;
    let listed = listed.into_iter().find(|listed| listed.name == text);
    let bytes = listed.ok_or_else(|| format!("{text}: is missing"))?.bytes;
    if bytes > MANIFEST_BYTES_MAX {
        return Err(format!("{text}: has {bytes} bytes, more than a manifest may have"));
    }
    let bytes = store.read(&text, 0..bytes).map_err(|e| e.to_string())?;
    let manifest = Manifest::decode(&bytes).map_err(|e| format!("{text}: {e}"))?;
    match manifest.generation == name.generation && manifest.epoch == name.epoch {
        true => Ok(manifest),
        false => Err(format!("{text}: is the manifest of another checkpoint")),
    }
}

/// The sections of a checkpoint, of all its writers.
#[derive(Debug)]
pub struct Sections {
    /// An index for each writer.
    pub indexes: Vec<Index>,
}

impl Sections {
    /// Reads the indexes that a manifest names, and looks whether the packs are there.
    ///
    /// # Errors
    /// What is missing or broken.
    pub fn open(store: &dyn Store, manifest: &Manifest) -> Result<Sections, String> {
        let indexes = manifest.parts.iter().map(|part| part.index(store));
        let indexes = indexes.collect::<Result<Vec<Index>, String>>()?;
        let named: BTreeMap<&str, u64> =
            manifest.packs.iter().map(|pack| (pack.name.as_str(), pack.bytes)).collect();
        for index in &indexes {
            index.check_packs(store)?;
            for pack in &index.packs {
                if named.get(pack.name.as_str()) != Some(&pack.bytes) {
                    return Err(format!("{}: the manifest says otherwise", pack.name));
                }
            }
        }
        let found: u64 = indexes.iter().map(|index| index.sections.len() as u64).sum();
        if found != manifest.sections {
            return Err(format!("{found} sections of {} are there", manifest.sections));
        }
        Ok(Sections { indexes })
    }

    /// Reads everything, and compares each checksum.
    ///
    /// # Errors
    /// What is broken first.
    pub fn check(&self, store: &dyn Store) -> Result<(), String> {
        for index in &self.indexes {
            for (key, place) in &index.sections {
                index.section(store, key, place)?;
            }
        }
        Ok(())
    }
}
