//! Up to which epoch the whole cluster is: each process says up to where its own workers have
//! delivered, the leader takes the least, and that is what readers anywhere may see.
//!
//! Both numbers only grow, so the newest says all that the ones before it said: they travel in
//! pulses, at once when they change and with each heartbeat, and are never queued.
//!
//! ```text
//! Pulse:  u64 committed   by the sender; 0 is none
//!         u64 visible     what the sender knows of; only the leader's counts
//! ```
//!
//! # Promises
//!
//! * `visible` never passes what any process has committed, and never goes back.
//! * It is the leader's word: a process sees an epoch no earlier than the leader has it from all.

use super::frame::{invalid, number};
use parking_lot::{Condvar, Mutex};
use std::{
    io,
    time::{Duration, Instant},
};
use trueup_operators::time::Epoch;

struct State {
    /// By process.
    committed: Vec<Epoch>,
    /// By process: its workers have come to their end.
    done: Vec<bool>,
    visible: Epoch,
}

/// What each process has committed, as this one knows it.
pub(super) struct Upto {
    me: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Tells the peers at once.
    pulse: Box<dyn Fn() + Send + Sync>,
}

/// The process that decides what is visible.
const LEADER: usize = 0;

impl Upto {
    pub(super) fn new(me: usize, processes: usize, pulse: Box<dyn Fn() + Send + Sync>) -> Upto {
        let (committed, done) = (vec![0; processes], vec![false; processes]);
        let state = Mutex::new(State { committed, done, visible: 0 });
        Upto { me, state, changed: Condvar::new(), pulse }
    }

    /// This process has committed up to an epoch.
    pub(super) fn commit(&self, epoch: Epoch) {
        let mut state = self.state.lock();
        if epoch <= state.committed[self.me] {
            return;
        }
        state.committed[self.me] = epoch;
        self.decide(&mut state);
        drop(state);
        (self.pulse)();
    }

    /// The body of a pulse.
    pub(super) fn said(&self) -> Vec<u8> {
        let state = self.state.lock();
        [state.committed[self.me], state.visible].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    /// A pulse of a peer.
    pub(super) fn heard(&self, process: usize, body: &[u8]) -> io::Result<()> {
        let (committed, rest) = number(body)?;
        let (visible, rest) = number(rest)?;
        if !rest.is_empty() {
            return Err(invalid(format!("a pulse has {} bytes too many", rest.len())));
        }
        let mut state = self.state.lock();
        if committed < state.committed[process] {
            let before = state.committed[process];
            return Err(invalid(format!("epoch {committed} is committed after {before} was")));
        }
        state.committed[process] = committed;
        let before = state.visible;
        if process == LEADER && visible > before {
            state.visible = visible;
            self.changed.notify_all();
        }
        self.decide(&mut state);
        let news = self.me == LEADER && state.visible > before;
        drop(state);
        if news {
            (self.pulse)();
        }
        Ok(())
    }

    /// The leader's decision.
    fn decide(&self, state: &mut State) {
        let least = state.committed.iter().copied().min().unwrap_or(0);
        if self.me == LEADER && least > state.visible {
            state.visible = least;
            self.changed.notify_all();
        }
    }

    pub(super) fn done(&self, process: usize) {
        self.state.lock().done[process] = true;
        self.changed.notify_all();
    }

    /// A process that has heard it of all says so.
    pub(super) fn all_done(&self) {
        self.state.lock().done.fill(true);
        self.changed.notify_all();
    }

    pub(super) fn is_all_done(&self) -> bool {
        self.state.lock().done.iter().all(|done| *done)
    }

    /// Waits until all processes are done, no longer than `patience`.
    pub(super) fn wait_done(&self, patience: Duration, over: impl Fn() -> bool) -> bool {
        self.wait(patience, over, |state| state.done.iter().all(|done| *done))
    }

    pub(super) fn visible(&self) -> Epoch {
        self.state.lock().visible
    }

    pub(super) fn committed(&self) -> Vec<Epoch> {
        self.state.lock().committed.clone()
    }

    /// Waits until an epoch is visible, no longer than `patience`; whether it is.
    pub(super) fn wait_visible(
        &self,
        epoch: Epoch,
        patience: Duration,
        over: impl Fn() -> bool,
    ) -> bool {
        self.wait(patience, over, |state| state.visible >= epoch)
    }

    /// Wakes who waits, to see that the generation is over.
    pub(super) fn wake(&self) {
        drop(self.state.lock());
        self.changed.notify_all();
    }

    fn wait(
        &self,
        patience: Duration,
        over: impl Fn() -> bool,
        is: impl Fn(&State) -> bool,
    ) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while !is(&state) && !over() {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        is(&state)
    }
}

#[cfg(test)]
mod tests;
