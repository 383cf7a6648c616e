//! Waiting until what was taken is shown. That takes an epoch, and an epoch takes a row of the log;
//! a log may refuse rows for as long as its disk is full, and nothing says when that is over. Who
//! waits then waits in vain: a server that is told to stop would be killed by its supervisor before
//! it has said why it does not end.
//!
//! # Promises
//!
//! * While the log takes rows, who waits waits as long as it has said that it would.
//! * While it refuses them, for [`REFUSED_MAX`] and no longer, and gets the log's own words. The
//!   closing thread tries again at every tick meanwhile, so one good disk in that time is enough.
//!   What is under way, which takes seconds where brokers are away, is waited for.
//! * Who waits for a checkpoint of an epoch that is closed waits for the store alone.

use super::{
    Epochs, LOOK, State,
    cut::{all_ends, covers},
};
use std::time::{Duration, Instant};
use trueup_operators::{log::LogError, time::Epoch};

/// How long who waits for an epoch bears that the log refuses its row.
const REFUSED_MAX: Duration = Duration::from_secs(3);

/// Rows that the log does not take.
pub(super) struct Refused {
    since: Instant,
    reason: String,
}

impl Refused {
    /// One more was refused.
    pub(super) fn note(refused: &mut Option<Refused>, error: &LogError) {
        let since = refused.as_ref().map_or_else(Instant::now, |refused| refused.since);
        *refused = Some(Refused { since, reason: error.to_string() });
    }
}

impl State {
    /// Why who waits since `began` need not wait for an epoch any longer, if that is so.
    fn refused(&self, began: Instant) -> Option<String> {
        let Refused { since, reason } = self.refused.as_ref().filter(|_| !self.appending)?;
        let in_vain = (*since).max(began).elapsed() >= REFUSED_MAX;
        in_vain.then(|| {
            format!(
                "no epoch can be closed: {reason}; what was taken is in the log, and the next \
                 start shows it"
            )
        })
    }
}

impl Epochs {
    /// Waits until everything that was durable when this was called is in the views.
    ///
    /// # Errors
    /// Why the run cannot go on, that the log refuses what would show it, or that it took longer
    /// than `patience`.
    pub fn settle(&self, patience: Duration) -> Result<Epoch, String> {
        let began = Instant::now();
        let until = began + patience;
        let ends = all_ends(&*self.log);
        let mut state = self.state.lock();
        loop {
            if let Some(fault) = &state.fault {
                return Err(fault.clone());
            }
            let covered = covers(&state.closed.row, &ends);
            let closed = state.closed.row.epoch;
            if covered && self.visible() >= closed {
                return Ok(closed);
            }
            if !covered && let Some(refused) = state.refused(began) {
                return Err(refused);
            }
            state.hurry |= !covered;
            let wait = until.min(Instant::now() + LOOK);
            if Instant::now() >= until {
                let visible = self.visible();
                return Err(format!("after {patience:?} epoch {visible} of {closed} is visible"));
            }
            self.changed.wait_until(&mut state, wait);
        }
    }

    /// Takes a checkpoint of the next epoch, which is closed for it; its epoch. `None`: this run
    /// takes none.
    ///
    /// # Errors
    /// Why it was not published, that the log refuses its epoch, or that it took longer than
    /// `patience`.
    pub(crate) fn checkpoint(&self, patience: Duration) -> Result<Option<Epoch>, String> {
        let taken = self.checkpoints.as_ref().filter(|checkpoints| !checkpoints.offers());
        let Some(checkpoints) = taken else { return Ok(None) };
        let (number, began) = (checkpoints.force(), Instant::now());
        self.hurry();
        checkpoints.wait(number, patience, |is_marked| self.in_vain(began, is_marked)).map(Some)
    }

    /// Why who waits since `began` for the checkpoint of an epoch waits in vain: the run cannot go
    /// on, or the log refuses the row of the epoch. Once that `is_marked`, or is closed and about
    /// to be, the log may refuse what it likes: the checkpoint needs no further row. `None`: it may
    /// still come.
    pub(super) fn in_vain(&self, began: Instant, is_marked: bool) -> Option<String> {
        let state = self.state.lock();
        let is_closed = is_marked || state.fed.epoch < state.closed.row.epoch;
        let refused = || if is_closed { None } else { state.refused(began) };
        state.fault.clone().or_else(refused)
    }
}
