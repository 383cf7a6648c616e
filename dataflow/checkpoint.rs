//! Checkpoints: the state at the end of an epoch, so that a start reads it and then only the part
//! of the log that came after, and so that older parts of the log may go.
//!
//! What is hard about them is not the writing but the not trusting: any of it may be cut short, be
//! of another data directory, come from a process that was thought dead. So a checkpoint is a
//! function of the log and of nothing else, everything in it has a checksum, whoever loads it
//! compares all of them, and the one before is always still there.
//!
//! ```text
//! <data_dir>/checkpoints/
//!   generations/<20 digits>                     who may write: an empty object, see `keeper`
//!   packs/<epoch>-<generation>-<writer>.pack    sections of state, see `pack`
//!   manifests/<epoch>-<generation>.json         what makes packs a checkpoint, see `manifest`
//!   replays/<epoch>-<generation>-<writer>.json  what a replay offers, see `offer`
//!   figures/<20 digits>                         which generation took one up: an empty object
//!   conditional/1                               in a bucket: it overwrites nothing, see `bucket`
//! ```
//!
//! There is no object that says which manifest is the newest: listing them says it, and an object
//! that is overwritten is one more thing that can be torn or be overwritten by a zombie.

mod ahead;
#[cfg(feature = "s3")]
mod bucket;
pub mod keeper;
pub mod manifest;
pub mod offer;
pub mod pack;
pub(crate) mod parts;
pub(crate) mod pieces;
pub(crate) mod start;
pub mod store;
pub(crate) mod taking;

#[cfg(test)]
pub(crate) mod tests;

pub use start::{LoadError, LoadedFrom};
pub use taking::{Checkpoints, Status};

use keeper::KeepSettings;
use std::time::Duration;

/// When checkpoints are taken and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSettings {
    /// How often one is taken, by the wall clock: it decides no figure. Zero: none is taken, and
    /// none is loaded.
    pub interval: Duration,
    /// How many are kept; at least [`keeper::KEPT_MIN`].
    pub kept: usize,
    /// Every which is whole; the others are what has changed.
    pub whole_every: u32,
}

impl Default for CheckpointSettings {
    /// Every 30 seconds, two are kept, every tenth is whole.
    fn default() -> Self {
        CheckpointSettings { interval: Duration::from_secs(30), kept: 2, whole_every: 10 }
    }
}

impl CheckpointSettings {
    /// Without checkpoints.
    pub const OFF: CheckpointSettings =
        CheckpointSettings { interval: Duration::ZERO, kept: 2, whole_every: 1 };

    /// Whether there are any.
    pub fn is_on(&self) -> bool {
        !self.interval.is_zero()
    }

    pub(crate) fn keep(&self) -> KeepSettings {
        KeepSettings { kept: self.kept, whole_every: self.whole_every }
    }
}
