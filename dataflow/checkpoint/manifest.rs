//! The manifest of a checkpoint: a small JSON object that makes it one. What the packs hold becomes
//! a checkpoint when its manifest is published, in one step, and it is one as long as the manifest
//! is there.
//!
//! ```json
//! {"crc32c":"1a2b3c4d","manifest":{
//!   "format":1,
//!   "installation":"7f0c…",            whose data directory
//!   "generation":7, "epoch":4711,      in this order the newest checkpoint is found
//!   "remapRow":"0100…",                the row of the epoch, as the remap topic has it, in hex
//!   "frontierBeforeUs":17…,            what the epoch before was complete to
//!   "remapOffset":4711,                where the remap topic goes on after the row
//!   "decided":{…},                     the settings that decide figures
//!   "rollups":[…],                     the job's rollups, in the order of their numbers
//!   "workers":2,                       how many there were
//!   "chain":3,                         how many increments lie on the last whole checkpoint
//!   "parts":[{"writer":0,"pack":"packs/…","at":…,"bytes":…,"crc":…}],   each writer's index
//!   "packs":[{"name":"packs/…","bytes":…}],            all packs that sections lie in
//!   "figures":{"replay":"4711-8-…","seen":true},    whose they are since the last replay
//!   "sections":1234, "bytesLive":…, "bytesWritten":…, "takenAtUs":…, "tookMs":…, "pauseUs":…
//! }}
//! ```
//!
//! The checksum is of the bytes of the inner object, from `{` to `}`.

use super::pack::{INDEX_BYTES_MAX, Index, IndexPlace, PACKS_MAX, PackOf, hex};
use super::store::{Store, Unread};
use crate::{decided::Decided, engine::EngineSettings};
use serde::{Deserialize, Serialize};
use trueup_operators::{
    feed::EpochTimes,
    remap::RemapRow,
    rollup::RollupSpec,
    time::{Epoch, LogTime},
};

/// The version of the format above.
const FORMAT: u32 = 1;
/// The most bytes of a manifest.
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// The most writers of a checkpoint: processes of a cluster.
const PARTS_MAX: usize = 1_024;
/// What a manifest begins with, up to its checksum.
const BEGIN: &str = r#"{"crc32c":""#;
/// What is between the checksum and the inner object.
const MIDDLE: &str = r#"","manifest":"#;

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The installation, in hex.
    pub installation: String,
    /// The generation that wrote it.
    pub generation: u64,
    /// The epoch whose end it shows.
    pub epoch: Epoch,
    /// The epoch's remap row, encoded, in hex.
    remap_row: String,
    frontier_before_us: i64,
    /// The offset of the remap topic after the row.
    pub remap_offset: u64,
    /// The settings that decided its figures.
    pub decided: Decided,
    /// The rollups, by number.
    pub rollups: Vec<RollupSpec>,
    /// How many workers had the state.
    pub workers: usize,
    /// How many increments lie on the last whole checkpoint; 0: it is whole.
    pub chain: u32,
    /// Where each writer's index is.
    pub parts: Vec<Part>,
    /// All packs that live sections lie in.
    pub packs: Vec<Pack>,
    /// How many live sections there are.
    pub sections: u64,
    /// Their bytes.
    pub bytes_live: u64,
    /// Bytes that were written for this checkpoint.
    pub bytes_written: u64,
    /// When it was taken, by the wall clock: for people, it decides nothing.
    pub taken_at_us: i64,
    /// How long it took, from the end of the epoch to the publishing.
    pub took_ms: u64,
    /// The longest that it held a worker up.
    pub pause_us: u64,
    /// Whose figures it has, if there was a replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
}

/// Whose figures a checkpoint has, since the last replay that was taken up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Figures {
    /// The replay.
    pub replay: String,
    /// Whether its epoch was shown with them. What a replay has found is of an epoch that was shown
    /// with others.
    pub seen: bool,
}

/// A writer's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    /// Which writer.
    pub writer: u32,
    /// The pack that ends with its index.
    pub pack: String,
    at: u64,
    bytes: u64,
    crc: u32,
}

/// A pack that a checkpoint needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pack {
    /// The object.
    pub name: String,
    /// Its bytes up to its index.
    pub bytes: u64,
}

/// What a checkpoint is of.
#[derive(Clone, Debug)]
pub struct Of {
    /// The installation, in hex.
    pub installation: String,
    /// The settings that decide figures.
    pub decided: Decided,
    /// The rollups, by number.
    pub rollups: Vec<RollupSpec>,
    /// How the job runs now.
    pub engine: EngineSettings,
}

/// Where in the log a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The row of its epoch.
    pub row: RemapRow,
    /// What the epoch before was complete to.
    pub frontier_before: LogTime,
    /// The offset of the remap topic after the row.
    pub remap_offset: u64,
}

impl At {
    /// The times of the epoch.
    pub fn times(&self) -> EpochTimes {
        EpochTimes {
            epoch: self.row.epoch,
            frontier_before: self.frontier_before,
            frontier: self.row.frontier(),
            latest: self.row.latest(),
        }
    }
}

/// How taking it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// When it was taken, µs since 1970.
    pub at_us: i64,
    /// How long it took.
    pub took_ms: u64,
    /// The longest that it held a worker up.
    pub pause_us: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

impl Part {
    /// A writer's, by what its pack ends with.
    pub fn new(writer: u32, index: &Index, place: IndexPlace) -> Part {
        let pack = index.packs.last().map(|pack| pack.name.clone()).unwrap_or_default();
        Part { writer, pack, at: place.at, bytes: place.bytes, crc: place.crc }
    }

    /// Where the index is.
    pub fn place(&self) -> IndexPlace {
        IndexPlace { at: self.at, bytes: self.bytes, crc: self.crc }
    }

    /// Reads the index.
    ///
    /// # Errors
    /// What is wrong with it, or that the store does not give it.
    pub fn index(&self, store: &dyn Store) -> Result<Index, Unread> {
        Index::read(store, &self.pack, self.place())
    }
}

impl Manifest {
    /// Of a generation's checkpoint, from each writer's index and where that is.
    pub fn new(
        of: &Of,
        generation: u64,
        at: &At,
        chain: u32,
        parts: &[(u32, &Index, IndexPlace)],
        taken: Taken,
    ) -> Manifest {
        let indexes = || parts.iter().map(|(_, index, _)| *index);
        let packs = indexes().flat_map(|index| &index.packs);
        let mut packs: Vec<Pack> =
            packs.map(|pack| Pack { name: pack.name.clone(), bytes: pack.bytes }).collect();
        packs.sort();
        packs.dedup();
        let part =
            |&(writer, index, place): &(u32, &Index, IndexPlace)| Part::new(writer, index, place);
        Manifest {
            format: FORMAT,
            installation: of.installation.clone(),
            generation,
            epoch: at.row.epoch,
            remap_row: hex(&at.row.encode()),
            frontier_before_us: at.frontier_before.0,
            remap_offset: at.remap_offset,
            decided: of.decided.clone(),
            rollups: of.rollups.clone(),
            // Each process has so many.
            workers: of.engine.workers * parts.len(),
            chain,
            parts: parts.iter().map(part).collect(),
            packs,
            sections: indexes().map(|index| index.sections.len() as u64).sum(),
            bytes_live: indexes().map(Index::bytes_live).sum(),
            bytes_written: taken.bytes_written,
            taken_at_us: taken.at_us,
            took_ms: taken.took_ms,
            pause_us: taken.pause_us,
            figures: None,
        }
    }

    /// The object's name.
    pub fn name(&self) -> String {
        ManifestName { generation: self.generation, epoch: self.epoch }.to_string()
    }

    /// Where in the log it is.
    ///
    /// # Errors
    /// When its row cannot be read.
    pub fn at(&self) -> Result<At, String> {
        let row = unhex(&self.remap_row).ok_or("its remap row is not in hex")?;
        let row = RemapRow::decode(&row)?;
        let frontier_before = LogTime(self.frontier_before_us);
        Ok(At { row, frontier_before, remap_offset: self.remap_offset })
    }

    /// Bytes of the packs that it needs.
    pub fn bytes_named(&self) -> u64 {
        self.packs.iter().map(|pack| pack.bytes).sum()
    }

    /// The bytes of the object.
    ///
    /// # Errors
    /// When it would be larger than a manifest may be.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let inner = serde_json::to_string(self).map_err(|e| e.to_string())?;
        let crc = crc32c::crc32c(inner.as_bytes());
        let bytes = format!("{BEGIN}{crc:08x}{MIDDLE}{inner}}}").into_bytes();
        match bytes.len() as u64 <= MANIFEST_BYTES_MAX {
            true => Ok(bytes),
            false => Err(format!("the manifest would have {} bytes", bytes.len())),
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, String> {
        let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let (crc, inner) = text
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix('}')?.split_once(MIDDLE))
            .ok_or("it does not begin or end as a manifest")?;
        let found = format!("{:08x}", crc32c::crc32c(inner.as_bytes()));
        if crc != found {
            return Err(format!("its checksum is {found}, it says {crc}"));
        }
        // The version first: another one may have other fields.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } = serde_json::from_str(inner).map_err(|e| e.to_string())?;
        if format != FORMAT {
            return Err(format!("it has format {format}, known is {FORMAT}"));
        }
        let manifest: Manifest = serde_json::from_str(inner).map_err(|e| e.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether it is one that can be, by itself: [`Manifest::decode`] looks, and so does who was
    /// told a manifest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let At { row, .. } = self.at()?;
        let within = (1..=PARTS_MAX).contains(&self.parts.len())
            && (1..=PARTS_MAX * PACKS_MAX).contains(&self.packs.len())
            && self.parts.iter().all(|part| part.bytes <= INDEX_BYTES_MAX);
        if !within {
            let (parts, packs) = (self.parts.len(), self.packs.len());
            return Err(format!("it names {parts} parts and {packs} packs"));
        }
        if row.epoch != self.epoch {
            return Err(format!("it is of epoch {}, its row of {}", self.epoch, row.epoch));
        }
        let named = self.packs.iter().map(|pack| &pack.name);
        let mut named = named.chain(self.parts.iter().map(|part| &part.pack));
        match named.find(|name| PackOf::of_name(name).is_none()) {
            Some(name) => Err(format!("it names the pack `{name}`, which is no name of one")),
            None => Ok(()),
        }
    }
}

/// The name of a manifest. Ordered: the greatest is the newest, whoever wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManifestName {
    /// The writer's generation.
    pub generation: u64,
    /// The epoch.
    pub epoch: Epoch,
}

impl std::fmt::Display for ManifestName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "manifests/{:020}-{}.json", self.epoch, self.generation)
    }
}

impl ManifestName {
    /// The inverse of its text.
    pub fn parse(name: &str) -> Option<ManifestName> {
        let stem = name.strip_prefix("manifests/")?.strip_suffix(".json")?;
        let (epoch, generation) = stem.split_once('-')?;
        let parsed =
            ManifestName { generation: generation.parse().ok()?, epoch: epoch.parse().ok()? };
        (parsed.to_string() == name).then_some(parsed)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    pairs.iter().map(|&[high, low]| Some((digit(high)? * 16 + digit(low)?) as u8)).collect()
}
