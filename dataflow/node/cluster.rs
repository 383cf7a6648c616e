//! What a node knows of the other processes of its cluster. Any of them may take what all of them
//! have to remember, so it asks them how full they are.

use crate::{WorkerMemory, host::Host};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How full the fullest other process is, as last heard.
#[derive(Default)]
pub(super) struct Elsewhere {
    bytes: AtomicU64,
    nearly_full: AtomicBool,
}

impl Elsewhere {
    /// Asks them. What was heard before stays while nobody answers.
    pub(super) fn look(&self, host: &Host) {
        let Some(workers) = host.fullest_other() else { return };
        let bytes: usize = workers.iter().map(WorkerMemory::bytes).sum();
        self.bytes.store(bytes as u64, Ordering::Relaxed);
        let nearly_full = workers.iter().any(|worker| worker.ledger_nearly_full);
        self.nearly_full.store(nearly_full, Ordering::Relaxed);
    }

    /// What its workers hold.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether a ledger of any holds nearly all events that it can.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.nearly_full.load(Ordering::Relaxed)
    }
}
