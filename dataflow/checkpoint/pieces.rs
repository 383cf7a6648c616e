//! What the operators hand over, as sections of a pack. A section's key begins with a byte that
//! says whose it is; what follows is the operator's own.
//!
//! ```text
//! 1  u8 vnode, u64 epoch (big-endian)  a vnode of the ledger: a whole part, or one that continues
//!                                      the parts of earlier epochs  operators/src/ledger/image.rs
//! 2  16 bytes, a `SectionKey`          of accumulators and views    operators/src/section.rs
//! 3                                    what all ledgers know alike  operators/src/ledger/image.rs
//! ```

use super::{
    pack::{Key, PackError},
    taking::{Piece, Put},
};
use std::{collections::HashSet, sync::Arc};
use trueup_operators::{
    accumulate::AccumulatorImage,
    feed::ImageKind,
    ledger::LedgerImage,
    metrics::Group,
    section::{Part, SectionKey, ShardId},
    symbols::Symbols,
    time::Epoch,
};
use trueup_sinks::ShardImage;

/// The first byte of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Whose {
    /// A vnode of the ledger.
    Vnode = 1,
    /// Accumulators and views.
    Rows = 2,
    /// What all ledgers know alike.
    Impressions = 3,
}

impl Whose {
    /// Of a key.
    pub(super) fn of(key: &[u8]) -> Option<Whose> {
        match key.first()? {
            1 => Some(Whose::Vnode),
            2 => Some(Whose::Rows),
            3 => Some(Whose::Impressions),
            _ => None,
        }
    }
}

fn rows_key(key: &SectionKey) -> Vec<u8> {
    let mut bytes = vec![Whose::Rows as u8];
    bytes.extend(key.encode());
    bytes
}

/// What the keys of a vnode's parts begin with; their order is that of the epochs.
pub(super) fn vnode_prefix(vnode: usize) -> [u8; 2] {
    [Whose::Vnode as u8, vnode as u8]
}

fn vnode_key(vnode: usize, epoch: Epoch) -> Vec<u8> {
    let mut bytes = vnode_prefix(vnode).to_vec();
    bytes.extend(epoch.to_be_bytes());
    bytes
}

/// Which sections of earlier checkpoints are still part of the state.
#[derive(Debug, Default)]
pub(crate) struct Live {
    keys: HashSet<Key>,
    /// Vnodes whose earlier parts are.
    vnodes: HashSet<u8>,
}

impl Live {
    /// A section is.
    pub(super) fn add(&mut self, key: impl Into<Key>) {
        self.keys.insert(key.into());
    }

    /// Whether a section is.
    pub(super) fn has(&self, key: &[u8]) -> bool {
        let continued = || match key {
            [first, vnode, ..] => *first == Whose::Vnode as u8 && self.vnodes.contains(vnode),
            _ => false,
        };
        self.keys.contains(key) || continued()
    }
}

/// A ledger: the vnodes that its worker owns.
pub(crate) struct LedgerPiece {
    pub(crate) image: LedgerImage,
    pub(crate) epoch: Epoch,
    pub(crate) vnodes: Vec<usize>,
    /// Whether it says what all ledgers know alike; one of them does.
    pub(crate) speaks_for_all: bool,
}

impl Piece for LedgerPiece {
    fn live(&self, live: &mut Live) {
        if self.image.kind() == ImageKind::Increment {
            live.vnodes.extend(self.vnodes.iter().map(|&vnode| vnode as u8));
        }
    }

    fn write(self: Box<Self>, put: &mut Put<'_>) -> Result<(), PackError> {
        let mut section = Vec::new();
        for &vnode in &self.vnodes {
            section.clear();
            self.image.write_vnode(vnode, &mut section);
            put(&vnode_key(vnode, self.epoch), &section)?;
        }
        if self.speaks_for_all {
            section.clear();
            self.image.write_impressions(&mut section);
            put(&[Whose::Impressions as u8], &section)?;
        }
        Ok(())
    }
}

/// The rows of a view's shard.
impl<const N: usize, M: Group> Piece for ShardImage<N, M> {
    fn live(&self, live: &mut Live) {
        self.keys().for_each(|key| live.add(rows_key(&key)));
    }

    fn write(self: Box<Self>, put: &mut Put<'_>) -> Result<(), PackError> {
        ShardImage::write(*self, |key, section| put(&rows_key(&key), section))
    }
}

/// What an accumulator knows; always whole.
pub(crate) struct AccumulatorPiece {
    pub(crate) image: AccumulatorImage,
    pub(crate) shard: ShardId,
    pub(crate) symbols: Arc<Symbols>,
}

impl Piece for AccumulatorPiece {
    fn live(&self, live: &mut Live) {
        let key = SectionKey { shard: self.shard, part: Part::Accumulator };
        live.add(rows_key(&key));
    }

    fn write(self: Box<Self>, put: &mut Put<'_>) -> Result<(), PackError> {
        let (key, section) = self.image.section(self.shard, &self.symbols);
        put(&rows_key(&key), &section)
    }
}
