//! How far the views are behind the log, in bytes: what senders are told to wait by, so it may
//! neither miss what came nor count what was there before.
//!
//! A log of our own is measured by what it has *taken*, up to the end of the newest epoch that is
//! visible and up to now. What it *holds* would not do: retention makes that less, by segments that
//! are far larger than what waits, and for as long as it takes to fill them again nobody would seem
//! to be behind.
//!
//! Of a log that others append to, offsets are counted instead, each by about what it takes; they
//! only ascend, whatever its brokers delete. What was there at the start is nobody's fault.

use super::{Epochs, State, cut};
use std::sync::Arc;
use trueup_operators::{log::Log, remap::RemapRow, time::Epoch};

/// How far the views are behind the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// The last epoch that is durable.
    pub closed: Epoch,
    /// The last epoch that every view shows.
    pub visible: Epoch,
    /// Bytes of events and verdicts appended since the server started that no view shows yet.
    pub bytes: u64,
    /// Whether what was in the log at the start is all visible.
    pub caught_up: bool,
}

/// Bytes of events and verdicts that a log of our own has taken; never less than before. Of a
/// shared one nothing: it is not asked for what nobody uses.
pub(super) fn bytes_taken(log: &dyn Log) -> u64 {
    match log.is_shared() {
        true => 0,
        false => cut::READ.into_iter().map(|topic| log.bytes_taken(topic)).sum(),
    }
}

impl Epochs {
    /// How far the views are behind.
    pub fn lag(&self) -> Lag {
        let visible = self.visible();
        // Before the lock: both may have to wait for others.
        let bytes = match self.log.is_shared() {
            true => self.bytes_unseen(&self.visible_row()),
            false => bytes_taken(&*self.log),
        };
        let mut state = self.state.lock();
        state.see(visible);
        Lag {
            closed: state.closed.row.epoch,
            visible,
            // Of a shared log nothing was noted that could be taken off.
            bytes: bytes.saturating_sub(state.bytes_visible),
            caught_up: visible >= state.recovered_to,
        }
    }

    /// Whether so much waits that an epoch closes before its tick.
    pub(super) fn heavy(&self, state: &State) -> bool {
        let bytes = match self.log.is_shared() {
            true => {
                let ends = Arc::clone(&self.shared_ends.lock());
                cut::bytes_behind(&*self.log, &state.closed.row, &ends)
            }
            false => {
                let closed = state.bytes.back().map_or(state.bytes_visible, |b| b.1);
                bytes_taken(&*self.log).saturating_sub(closed)
            }
        };
        bytes >= self.settings.epoch_bytes_max
    }

    /// Bytes that came to a shared log since the start and that a row does not have, without asking
    /// anyone who may not answer.
    fn bytes_unseen(&self, row: &RemapRow) -> u64 {
        let ends = Arc::clone(&self.shared_ends.lock());
        let behind = cut::bytes_behind(&*self.log, row, &ends);
        // What was there at the start is nobody's fault.
        behind.saturating_sub(cut::bytes_behind(&*self.log, row, &self.ends_at_start))
    }
}
