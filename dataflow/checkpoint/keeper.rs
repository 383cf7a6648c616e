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
//! # Several processes
//!
//! The processes of a generation share the store. Each writes a pack of its own state, with its own
//! number as the writer; process 0 *leads*: it claims the generation, which it was given a number
//! for, and does 3 to 5 alone. Step 2 is then that all packs are durable. A *member* seals its
//! pack, tells the leader where the index is, and waits whether that was published; it publishes
//! nothing and deletes nothing.
//!
//! No pack that a member has under way is garbage, because there is one checkpoint at a time: the
//! leader comes to 5 only after every member has answered for the epoch, and marks the next epoch
//! after 5. So while it collects, no process of its generation is writing, and a pack of its
//! generation that no manifest names is of an epoch that failed. Members of older generations may
//! still be writing; what they write is named by no manifest that could be the newest.
//!
//! An increment lies on what the manifest before names. When something failed anywhere, the leader
//! chooses a whole one for all; a member that has nothing to lie on refuses an increment
//! ([`CheckpointError::NothingBefore`]), and the leader compares what each index names with the
//! manifest before ([`super::parts`]).
//!
//! # Which ones are kept
//!
//! The newest `kept` manifests that are not known to be broken, and broken ones between them: one
//! that was found broken at the start does not push a good one out, and goes with the good ones of
//! its age.

use super::{
    ahead::Ahead,
    manifest::{At, Figures, MANIFEST_BYTES_MAX, Manifest, ManifestName, Of, Part, Taken},
    offer::{self, OfferName},
    pack::{Index, PackError, PackOf, PackWriter, Sealed},
    parts,
    store::{Listed, Store, StoreError, Unread},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The least that `kept` may be; see above.
pub const KEPT_MIN: usize = 2;
/// Which process of a generation leads: it alone publishes and deletes.
pub const LEADER: u32 = 0;

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
    /// An increment was asked for, and there is nothing that it could lie on.
    #[error("an increment has nothing to lie on in process {writer}; the next one is whole")]
    NothingBefore {
        /// Which process.
        writer: u32,
    },
    /// A process has no part of it, or one that cannot be named.
    #[error("the part of process {writer}: {reason}")]
    Part {
        /// Which process.
        writer: u32,
        /// What is wrong.
        reason: String,
    },
    /// A member was asked to publish.
    #[error("process {writer} publishes no checkpoint; the leader of the cluster does")]
    NotLeader {
        /// Which process.
        writer: u32,
    },
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

impl Packed {
    /// Where its index is.
    pub fn part(&self, writer: u32) -> Part {
        Part::new(writer, &self.sealed.index, self.sealed.place)
    }

    /// Bytes that were written.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written
    }
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

/// Writes the checkpoints of one generation, or one process's part of them.
pub struct Keeper {
    store: Arc<dyn Store>,
    settings: KeepSettings,
    of: Of,
    generation: u64,
    writer: u32,
    /// What the last checkpoint of this generation consists of, of this writer's part.
    index: Index,
    /// The last checkpoint of this generation.
    last: Option<Manifest>,
    /// The next one is whole: there is none yet, or something failed since.
    whole_next: bool,
    /// Manifests that were found broken.
    broken: BTreeSet<ManifestName>,
    /// Whose figures the checkpoints have, since the last replay.
    figures: Option<Figures>,
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
                Ok(()) => return Ok(Keeper::new(store, settings, of, generation, LEADER)),
            }
        }
        unreachable!("there are 2⁶⁴ generations")
    }

    /// Claims the generation of this number, which the processes of a cluster have agreed on: to
    /// lead it. Before a manifest to start from is looked for, as [`Keeper::claim`].
    ///
    /// # Errors
    /// `Fenced` when it was claimed before, or a newer one; else when the store cannot, and then
    /// the number is spent.
    pub fn claim_as(
        store: Arc<dyn Store>,
        settings: KeepSettings,
        of: Of,
        generation: u64,
    ) -> Result<Keeper, CheckpointError> {
        let newer = newest_generation(&*store)?;
        if newer >= generation {
            return Err(CheckpointError::Fenced { own: generation, newer });
        }
        match store.publish(&generation_name(generation), Vec::new()) {
            Err(StoreError::Exists { .. }) => {
                Err(CheckpointError::Fenced { own: generation, newer: generation })
            }
            Err(error) => Err(error.into()),
            Ok(()) => Ok(Keeper::new(store, settings, of, generation, LEADER)),
        }
    }

    /// Writes a member's part in a generation that the leader claims. Touches nothing.
    pub fn join(
        store: Arc<dyn Store>,
        settings: KeepSettings,
        of: Of,
        generation: u64,
        writer: u32,
    ) -> Keeper {
        Keeper::new(store, settings, of, generation, writer)
    }

    /// Writes what a replay has found, to be offered. Touches nothing.
    ///
    /// # Errors
    /// When the store cannot say which generation runs.
    pub fn offering(
        store: Arc<dyn Store>,
        settings: KeepSettings,
        of: Of,
    ) -> Result<Keeper, CheckpointError> {
        let (generation, writer) = offer::writer(&*store)?;
        Ok(Keeper::new(store, settings, of, generation, writer))
    }

    fn new(
        store: Arc<dyn Store>,
        settings: KeepSettings,
        of: Of,
        generation: u64,
        writer: u32,
    ) -> Keeper {
        Keeper {
            store,
            settings: KeepSettings { kept: settings.kept.max(KEPT_MIN), ..settings },
            of,
            generation,
            writer,
            index: Index::default(),
            last: None,
            whole_next: true,
            broken: BTreeSet::new(),
            figures: None,
        }
    }

    /// Whose figures the run has that it writes for: those of what it began with.
    pub fn set_figures(&mut self, figures: Option<Figures>) {
        self.figures = figures;
    }

    /// Whether the run began with what a replay has found and nobody has seen.
    pub fn begins_a_replay(&self) -> bool {
        self.figures.as_ref().is_some_and(|figures| !figures.seen)
    }

    /// Which generation this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Which process of it this is.
    pub fn writer(&self) -> u32 {
        self.writer
    }

    /// A manifest cannot be loaded: it counts for nothing. It goes when as many newer good ones are
    /// there as are kept, as any other: what could not be read once need not be broken.
    pub fn condemn(&mut self, broken: ManifestName) {
        self.broken.insert(broken);
    }

    /// Whether the next checkpoint has to be whole: an increment has nothing to lie on, so many lie
    /// on the last whole one already, or more than half of what would be kept is dead.
    pub fn wants_whole(&self) -> bool {
        self.whole_next
            || self.last.as_ref().is_none_or(|last| {
                last.chain + 1 >= self.settings.whole_every
                    || last.bytes_live < last.bytes_named() / 2
            })
    }

    /// The images since the last checkpoint are lost: the next one has to be whole.
    pub fn missed(&mut self) {
        self.whole_next = true;
    }

    /// Begins the checkpoint of an epoch. `whole`: all sections will come, not only changed ones.
    ///
    /// # Errors
    /// When an increment would have nothing to lie on, or the store cannot.
    pub fn begin(&self, epoch: u64, whole: bool) -> Result<Taking<'_>, CheckpointError> {
        if self.whole_next && !whole {
            return Err(CheckpointError::NothingBefore { writer: self.writer });
        }
        let of = PackOf { epoch, generation: self.generation, writer: self.writer };
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
        self.publish_all(packed, &[], at, taken)
    }

    /// The same, with the parts of all members, which have sealed them; `taken.bytes_written` is
    /// what they have written. What the store has of each part is read and checked first.
    ///
    /// # Errors
    /// When a part is not what its writer says or not of this checkpoint, this generation is
    /// fenced, or the store cannot.
    pub fn publish_all(
        &mut self,
        packed: Packed,
        members: &[Part],
        at: &At,
        taken: Taken,
    ) -> Result<Published, CheckpointError> {
        self.whole_next = true;
        if self.writer != LEADER {
            return Err(CheckpointError::NotLeader { writer: self.writer });
        }
        if !members.is_empty() {
            // A younger generation deletes what this one has not named: not the members' fault.
            self.check_fence()?;
        }
        let own = packed.part(self.writer);
        let Packed { sealed, whole, bytes_written } = packed;
        let before = self.last.as_ref().filter(|_| !whole);
        let chain = before.map_or(0, |last| last.chain + 1);
        let indexes = parts::read(&*self.store, self.generation, at.row.epoch, members, before)?;
        parts::check(before, &own, &sealed.index, members, &indexes)?;
        let mut all = vec![(LEADER, &sealed.index, sealed.place)];
        let read = members.iter().zip(&indexes);
        all.extend(read.map(|(part, index)| (part.writer, index, part.place())));
        let taken = Taken { bytes_written: bytes_written + taken.bytes_written, ..taken };
        let mut manifest = Manifest::new(&self.of, self.generation, at, chain, &all, taken);
        manifest.figures = self.figures.clone().map(|figures| Figures { seen: true, ..figures });
        self.publish_manifest(&manifest)?;
        self.index = sealed.index;
        self.last = Some(manifest.clone());
        self.whole_next = false;
        Ok(Published { manifest, garbage: self.collect() })
    }

    /// Offers what was sealed; see [`super::offer`].
    ///
    /// # Errors
    /// When the store cannot.
    pub fn offer(
        &self,
        packed: &Packed,
        at: &At,
        taken: Taken,
    ) -> Result<(Manifest, OfferName), CheckpointError> {
        let parts = [(self.writer, &packed.sealed.index, packed.sealed.place)];
        let manifest = Manifest::new(&self.of, self.generation, at, 0, &parts, taken);
        let name = offer::publish(&*self.store, &manifest, self.writer)?;
        Ok((manifest, name))
    }

    /// What was sealed is not offered.
    ///
    /// # Errors
    /// When the store cannot; then it is garbage that the next generation deletes.
    pub fn withdraw(&self, packed: &Packed) -> Result<(), CheckpointError> {
        Ok(self.store.delete(&packed.part(self.writer).pack)?)
    }

    fn publish_manifest(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let bytes = manifest.encode().map_err(CheckpointError::Manifest)?;
        self.check_fence()?;
        match self.store.publish(&manifest.name(), bytes.clone()) {
            Err(StoreError::Exists { .. }) => self.own_or_fenced(&manifest.name(), &bytes),
            published => Ok(published?),
        }
    }

    /// There was a manifest of this name. It may be one's own: a service whose answer was lost is
    /// asked again. Else only who has the same generation could have been first.
    fn own_or_fenced(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let there = self.store.list("manifests")?.into_iter().find(|there| there.name == name);
        let there = there.ok_or_else(|| StoreError::Missing { name: name.to_owned() })?;
        let is_own =
            there.bytes == bytes.len() as u64 && self.store.read(name, 0..there.bytes)? == bytes;
        let (own, newer) = (self.generation, self.generation);
        is_own.then_some(()).ok_or(CheckpointError::Fenced { own, newer })
    }

    /// The leader has published what this member sealed: the next increment lies on it.
    ///
    /// # Errors
    /// When the manifest does not name that; the next checkpoint has to be whole.
    pub fn published(&mut self, packed: Packed, manifest: &Manifest) -> Result<(), String> {
        self.whole_next = true;
        let own = packed.part(self.writer);
        if !manifest.parts.contains(&own) {
            let (name, writer) = (manifest.name(), self.writer);
            return Err(format!("{name} does not name what process {writer} has sealed for it"));
        }
        self.index = packed.sealed.index;
        self.last = Some(manifest.clone());
        self.whole_next = false;
        Ok(())
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
            Some(_) if kept.len() >= KEPT_MIN => {
                // A replay's may be of an older epoch than those before it.
                let at = |&name: &ManifestName| Ok(read_manifest(&*self.store, name)?.at()?);
                let kept = kept.iter().map(at).collect::<Result<Vec<At>, Unread>>();
                let kept = kept.map_err(|unread| unread.to_string())?;
                Ok(kept.into_iter().min_by_key(|at| at.remap_offset))
            }
            _ => Ok(None),
        }
    }

    /// What the last checkpoint of this generation consists of, of this writer's part.
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
            if left == 0 {
                self.store.delete(&name.to_string()).map_err(|e| e.to_string())?;
                garbage.manifests += 1;
                continue;
            }
            let is_broken = self.broken.contains(&name);
            let manifest = match read_manifest(&*self.store, name) {
                Ok(manifest) => manifest,
                Err(_) if is_broken => continue,
                // One that cannot be read now may be readable later: then it names packs.
                Err(unread) => return Err(unread.to_string()),
            };
            named.extend(manifest.packs.into_iter().map(|pack| pack.name));
            named.extend(manifest.parts.into_iter().map(|part| part.pack));
            left -= usize::from(!is_broken);
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

/// The newest generation that has claimed, or that a manifest is of: the next has a greater number.
///
/// # Errors
/// When the store cannot say.
pub fn newest_generation(store: &dyn Store) -> Result<u64, StoreError> {
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
/// What is wrong with it, or that the store does not give it.
pub fn read_manifest(store: &dyn Store, name: ManifestName) -> Result<Manifest, Unread> {
    let text = name.to_string();
    let listed = store.list("manifests")?;
    let listed = listed.into_iter().find(|listed| listed.name == text);
    let bytes = listed.ok_or_else(|| format!("{text}: is missing"))?.bytes;
    if bytes > MANIFEST_BYTES_MAX {
        let reason = format!("{text}: has {bytes} bytes, more than a manifest may have");
        return Err(reason.into());
    }
    let bytes = store.read(&text, 0..bytes)?;
    let manifest = Manifest::decode(&bytes).map_err(|e| format!("{text}: {e}"))?;
    match manifest.generation == name.generation && manifest.epoch == name.epoch {
        true => Ok(manifest),
        false => Err(format!("{text}: is the manifest of another checkpoint").into()),
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
    /// What is missing or broken, or that the store does not say.
    pub fn open(store: &dyn Store, manifest: &Manifest) -> Result<Sections, Unread> {
        let indexes = manifest.parts.iter().map(|part| part.index(store));
        let indexes = indexes.collect::<Result<Vec<Index>, Unread>>()?;
        let named: BTreeMap<&str, u64> =
            manifest.packs.iter().map(|pack| (pack.name.as_str(), pack.bytes)).collect();
        for index in &indexes {
            index.check_packs(store)?;
            for pack in &index.packs {
                if named.get(pack.name.as_str()) != Some(&pack.bytes) {
                    return Err(format!("{}: the manifest says otherwise", pack.name).into());
                }
            }
        }
        let found: u64 = indexes.iter().map(|index| index.sections.len() as u64).sum();
        if found != manifest.sections {
            return Err(format!("{found} sections of {} are there", manifest.sections).into());
        }
        Ok(Sections { indexes })
    }

    /// Reads everything, and compares each checksum.
    ///
    /// # Errors
    /// What is broken first, or that the store does not give it.
    pub fn check(&self, store: &dyn Store) -> Result<(), Unread> {
        let mut ahead = Ahead::new(store);
        for index in &self.indexes {
            for (key, place) in &index.sections {
                ahead.section(index, key, place)?;
            }
        }
        Ok(())
    }
}
