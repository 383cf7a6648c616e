//! The parts of a checkpoint that several processes take: what a member says when its pack is
//! durable, what the leader answers, and what the leader looks at before it names a part.
//!
//! ```text
//! member                                        leader (process 0)
//!   seals its pack                                seals its own
//!   SealedPart: where its index is, or why not ─▶   all parts are there
//!                                                   reads and checks each index
//!                                                   publishes the manifest, or not
//!   the next increment lies on it, or there  ◀─ Ended: the manifest, or why not
//!   is none: the next one is whole
//! ```
//!
//! What carries the two is no matter of this module. It has to keep the order of what one process
//! says to another; what gets lost ends the generation, and what comes from another generation or
//! for another epoch is dropped by who gets it.
//!
//! # What is checked
//!
//! A manifest that names what is not there, or the same section twice, could not be loaded, and
//! nobody would notice before the next start. So the index of a part is read from the store, at the
//! place that was told, with its checksum; it must be of the pack that this process writes for this
//! epoch; the packs it lies in must be there, and be those that the manifest before names, because
//! all others may be deleted at any time; and no section may be in two parts.
//!
//! # Limits
//!
//! A reason is cut to [`REASON_BYTES_MAX`]. A manifest has at most `MANIFEST_BYTES_MAX` bytes, in
//! practice some kilobytes for each process.

use super::{
    keeper::{CheckpointError, LEADER, Packed},
    manifest::{Manifest, Part},
    pack::{Index, Key, PackOf, hex},
    store::Store,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use trueup_operators::time::Epoch;

/// The most bytes of a reason that is told to another process.
pub(crate) const REASON_BYTES_MAX: usize = 1_024;

/// What a member says of its part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SealedPart {
    /// Its generation.
    pub(crate) generation: u64,
    /// Which checkpoint.
    pub(crate) epoch: Epoch,
    /// Which process.
    pub(crate) writer: u32,
    /// What is durable, or why nothing is.
    pub(crate) sealed: Result<SealedPack, String>,
}

/// A member's pack that is durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SealedPack {
    /// Where its index is.
    pub(crate) part: Part,
    /// Bytes that were written for it.
    pub(crate) bytes_written: u64,
    /// The longest that it held a worker up.
    pub(crate) pause_us: u64,
}

/// How a checkpoint ended, as the leader says it to all members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The leader's generation.
    pub(crate) generation: u64,
    /// Which checkpoint.
    pub(crate) epoch: Epoch,
    /// What was published, or why nothing was.
    pub(crate) result: Result<Box<Manifest>, String>,
    /// A newer generation has begun: there will be no more.
    pub(crate) fenced: bool,
}

impl SealedPack {
    /// Of what a member has sealed.
    pub(super) fn new(packed: &Packed, writer: u32, pause_us: u64) -> SealedPack {
        let (part, bytes_written) = (packed.part(writer), packed.bytes_written());
        SealedPack { part, bytes_written, pause_us }
    }
}

impl Ended {
    /// What was published, if it is a checkpoint of this generation and epoch that can be.
    pub(super) fn checked(&self) -> Result<&Manifest, String> {
        let manifest = self.result.as_deref().map_err(Clone::clone)?;
        if (manifest.generation, manifest.epoch) != (self.generation, self.epoch) {
            let (name, epoch) = (manifest.name(), self.epoch);
            return Err(format!("the leader says of epoch {epoch} that {name} was published"));
        }
        manifest.check()?;
        Ok(manifest)
    }
}

/// The parts of all members of a checkpoint; nothing when there are none.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// By writer.
    pub(super) parts: Vec<Part>,
    /// Bytes that all have written together.
    pub(super) bytes_written: u64,
    /// The longest that any worker was held up.
    pub(super) pause_us: u64,
}

/// What all members have sealed, in the order of their numbers, which is the order in which every
/// later start takes it.
///
/// # Errors
/// What is wrong with the first member that has sealed nothing.
pub(super) fn gather(
    members: impl IntoIterator<Item = SealedPart>,
) -> Result<Gathered, CheckpointError> {
    let mut gathered = Gathered::default();
    for SealedPart { writer, sealed, .. } in members {
        let sealed = sealed.map_err(|reason| CheckpointError::Part { writer, reason })?;
        if sealed.part.writer != writer {
            let reason = format!("says that it is that of process {}", sealed.part.writer);
            return Err(CheckpointError::Part { writer, reason });
        }
        gathered.bytes_written = gathered.bytes_written.saturating_add(sealed.bytes_written);
        gathered.pause_us = gathered.pause_us.max(sealed.pause_us);
        gathered.parts.push(sealed.part);
    }
    gathered.parts.sort_by_key(|part| part.writer);
    Ok(gathered)
}

/// A reason as it is told: not longer than it may be.
pub(super) fn reason(error: impl ToString) -> String {
    let mut reason = error.to_string();
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}

/// Reads the indexes of the members' parts of an epoch. `before`: the manifest that an increment
/// lies on; `None` of a whole checkpoint.
pub(super) fn read(
    store: &dyn Store,
    generation: u64,
    epoch: Epoch,
    members: &[Part],
    before: Option<&Manifest>,
) -> Result<Vec<Index>, CheckpointError> {
    let read = |part: &Part| {
        let wrong = |reason| CheckpointError::Part { writer: part.writer, reason };
        let due = PackOf { epoch, generation, writer: part.writer }.name();
        if part.pack != due || part.writer == LEADER {
            return Err(wrong(format!("is in {}, due is {due}", part.pack)));
        }
        let index = part.index(store).map_err(|unread| wrong(unread.to_string()))?;
        check_base(&index, before).map_err(wrong)?;
        index.check_packs(store).map_err(|unread| wrong(unread.to_string()))?;
        Ok(index)
    };
    members.iter().map(read).collect()
}

/// Whether the parts of all processes can be named together.
pub(super) fn check(
    before: Option<&Manifest>,
    own: &Part,
    own_index: &Index,
    members: &[Part],
    indexes: &[Index],
) -> Result<(), CheckpointError> {
    let wrong = |writer, reason| CheckpointError::Part { writer, reason };
    check_base(own_index, before).map_err(|reason| wrong(own.writer, reason))?;
    if members.is_empty() {
        return Ok(());
    }
    let others = members.iter().zip(indexes).map(|(part, index)| (part.writer, index));
    let all = || [(own.writer, own_index)].into_iter().chain(others.clone());
    let mut keys: Vec<(&Key, u32)> = all()
        .flat_map(|(writer, index)| index.sections.keys().map(move |key| (key, writer)))
        .collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(&[(key, first), (_, writer)]) => {
            let key = hex(key);
            Err(wrong(writer, format!("has the section {key}, which process {first} has too")))
        }
        _ => Ok(()),
    }
}

/// Whether all packs of an index but the last, which is new, are those that the checkpoint before
/// lies in.
fn check_base(index: &Index, before: Option<&Manifest>) -> Result<(), String> {
    let named: BTreeMap<&str, u64> = before
        .into_iter()
        .flat_map(|before| &before.packs)
        .map(|pack| (pack.name.as_str(), pack.bytes))
        .collect();
    let Some((_new, older)) = index.packs.split_last() else {
        return Err("lies in no pack".to_owned());
    };
    match older.iter().find(|pack| named.get(pack.name.as_str()) != Some(&pack.bytes)) {
        None => Ok(()),
        Some(pack) => {
            Err(format!("lies in {}, which the checkpoint before does not name", pack.name))
        }
    }
}
