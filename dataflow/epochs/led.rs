//! Epochs in a cluster: one process decides, the others take what it says.
//!
//! A member is fed exactly the rows that the leader is fed, in the same order, with the same images
//! to take. It neither reads nor closes the remap topic: two readers of one topic could be at
//! different ends of it, and an image is nothing that a topic says. How many epochs are under way
//! is bounded where they are fed: the leader goes on when all processes have delivered. A member
//! that does not know of all that a row names yet, because it asked the brokers before the leader
//! did or got no answer, waits until it does.

use super::{Epochs, Feeder, LOOK, Plan, cut::all_ends};
use crate::{
    remap::Cursor,
    words::{self, Said},
};
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Instant,
};
use trueup_operators::{
    feed::{EpochTimes, ImageKind},
    log::{Log, Topic},
    remap::RemapRow,
};

/// An epoch that the leader feeds to all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fed {
    /// Its row.
    pub(crate) row: RemapRow,
    /// The offset in the remap topic behind it.
    pub(crate) next: u64,
    /// Whether an image is taken of the state at its end.
    pub(crate) image: Option<ImageKind>,
}

/// A member's end of the feed.
pub(crate) struct Led {
    pub(crate) fed: Receiver<Fed>,
}

impl Epochs {
    /// Tells the members which epoch comes next. `false`: the run is over.
    pub(super) fn lead(&self, plan: &Plan, next: u64) -> bool {
        let Some(generation) = self.seat.generation() else { return true };
        let fed = Fed { row: (*plan.row).clone(), next, image: plan.image };
        words::say(generation, 1..generation.processes(), &Said::Fed(fed));
        generation.failure().is_none()
    }

    /// The feeding loop of a member, after the row it was opened from.
    pub(crate) fn follow(
        self: &Arc<Self>,
        led: &Led,
        mut read: Cursor,
        feeders: &[Feeder],
        announce: impl Fn(EpochTimes),
    ) {
        self.seat.commit(read.row.epoch);
        let mut looked = None::<Instant>;
        // What the leader says, until this process's log is as far.
        let mut due = None::<Fed>;
        loop {
            if looked.is_none_or(|looked| looked.elapsed() >= self.settings.tick) {
                *self.shared_ends.lock() = Arc::new(all_ends(&*self.log));
                looked = Some(Instant::now());
            }
            let fed = match due.take() {
                Some(fed) => Ok(fed),
                None => led.fed.recv_timeout(LOOK),
            };
            {
                let mut state = self.state.lock();
                if state.stopping || state.fault.is_some() {
                    return;
                }
                let visible = self.visible();
                state.see(visible);
            }
            match fed {
                Ok(fed) if !reaches(&*self.log, &fed.row) => {
                    due = Some(fed);
                    std::thread::sleep(LOOK);
                }
                Ok(fed) => {
                    if !self.take(&fed, &mut read, feeders, &announce) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The generation is over.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Feeds what the leader says. `false`: the run is over.
    fn take(
        &self,
        fed: &Fed,
        read: &mut Cursor,
        feeders: &[Feeder],
        announce: &impl Fn(EpochTimes),
    ) -> bool {
        if !fed.row.follows(&read.row) {
            let (epoch, last) = (fed.row.epoch, read.row.epoch);
            self.fail(format!("the leader feeds epoch {epoch} after epoch {last}"));
            return false;
        }
        let next = Cursor::of(fed.row.clone(), fed.next);
        let before = std::mem::replace(read, next).row;
        announce(read.row.times(&before));
        if let (Some(kind), Some(checkpoints)) = (fed.image, &self.checkpoints) {
            checkpoints.marked(read, &before, kind);
        }
        self.state.lock().closed = read.clone();
        self.give(feeders, &Plan { before, row: Arc::clone(&read.row), image: fed.image })
    }
}

/// Whether this process knows of everything that a row names. The leader may have heard of it
/// sooner, and a broker that does not answer says nothing.
fn reaches(log: &dyn Log, row: &RemapRow) -> bool {
    [(Topic::Events, &row.events), (Topic::Verdicts, &row.verdicts)].into_iter().all(
        |(topic, upto)| {
            let ends = log.ends(topic);
            ends.len() >= upto.len()
                && ends.iter().zip(upto).all(|(end, upto)| end.offset >= upto.offset)
        },
    )
}
