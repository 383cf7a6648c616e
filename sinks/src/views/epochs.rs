//! Which epochs there are, when they were in log time, and which one may be read.
//!
//! An epoch is visible when it was announced and every worker has delivered it. Workers are at
//! different epochs for moments; what is visible never goes back.

use crate::tables::ReadError;
use parking_lot::RwLock;
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::sync::watch;
use trueup_operators::{feed::EpochTimes, time::Epoch};

/// The epochs of all workers of a process.
#[derive(Debug)]
pub(crate) struct Epochs {
    /// The times of the epochs that can be read or will be, oldest first.
    announced: RwLock<VecDeque<EpochTimes>>,
    /// By worker: the last epoch that it delivered, plus one.
    committed: Box<[AtomicU64]>,
    /// By worker: the oldest epoch that its history reaches back to.
    first: Box<[AtomicU64]>,
    visible: watch::Sender<Option<Epoch>>,
}

impl Epochs {
    pub(crate) fn new(workers: usize) -> Epochs {
        let zeros = || (0..workers).map(|_| AtomicU64::new(0)).collect();
        Epochs {
            announced: RwLock::default(),
            committed: zeros(),
            first: zeros(),
            visible: watch::Sender::new(None),
        }
    }

    /// Takes the times of the next epoch. Telling an epoch again changes nothing.
    pub(crate) fn announce(&self, times: EpochTimes) {
        {
            let mut announced = self.announced.write();
            if announced.back().is_some_and(|last| last.epoch >= times.epoch) {
                return;
            }
            announced.push_back(times);
        }
        self.publish();
    }

    /// Begins with an epoch that a checkpoint holds: it is visible, and nothing before it.
    pub(crate) fn begin_with(&self, times: EpochTimes) {
        for (first, committed) in self.first.iter().zip(&self.committed) {
            first.store(times.epoch, Ordering::Release);
            committed.store(times.epoch + 1, Ordering::SeqCst);
        }
        self.announce(times);
    }

    /// A worker has delivered an epoch; its history reaches back to `first`.
    pub(crate) fn commit(&self, worker: usize, epoch: Epoch, first: Epoch) {
        self.first[worker].store(first, Ordering::Release);
        // Sequentially consistent with the loads of `publish`: of two workers that deliver last at
        // once, at least one must see the other, or nobody would make the epoch visible.
        self.committed[worker].store(epoch + 1, Ordering::SeqCst);
        self.publish();
        if worker == 0 {
            self.forget();
        }
    }

    fn publish(&self) {
        let delivered = self.committed.iter().map(|c| c.load(Ordering::SeqCst)).min().unwrap_or(0);
        let Some(delivered) = delivered.checked_sub(1) else { return };
        let announced = self.announced.read().back().map(|t| t.epoch);
        let Some(epoch) = announced.map(|a| a.min(delivered)) else { return };
        self.visible.send_if_modified(|visible| {
            let newer = visible.is_none_or(|v| epoch > v);
            if newer {
                *visible = Some(epoch);
            }
            newer
        });
    }

    /// Drops the times of epochs that no worker's history reaches back to.
    fn forget(&self) {
        let Some(first) = self.first.iter().map(|f| f.load(Ordering::Acquire)).min() else {
            return;
        };
        let mut announced = self.announced.write();
        let gone = announced.partition_point(|t| t.epoch < first);
        announced.drain(..gone);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        self.visible.subscribe()
    }

    pub(crate) fn visible(&self) -> Option<Epoch> {
        *self.visible.borrow()
    }

    /// The oldest epoch that every worker's history reaches back to.
    pub(crate) fn first_readable(&self) -> Option<Epoch> {
        self.visible()?;
        self.first.iter().map(|f| f.load(Ordering::Acquire)).max()
    }

    /// The times of an epoch to be read; of the newest when none is named.
    pub(crate) fn at(&self, epoch: Option<Epoch>) -> Result<EpochTimes, ReadError> {
        let visible = self.visible().ok_or(ReadError::NotReady)?;
        let epoch = epoch.unwrap_or(visible);
        if epoch > visible {
            return Err(ReadError::Ahead { epoch, visible });
        }
        let first = self.first_readable().ok_or(ReadError::NotReady)?;
        if epoch < first {
            return Err(ReadError::Gone { epoch, first });
        }
        let announced = self.announced.read();
        let found = announced.partition_point(|t| t.epoch < epoch);
        announced
            .get(found)
            .filter(|t| t.epoch == epoch)
            .copied()
            .ok_or(ReadError::Gone { epoch, first })
    }

    /// The newest epoch whose log time is at least `age_us` before that of epoch `upto`.
    pub(crate) fn older_than(&self, upto: Epoch, age_us: i64) -> Option<Epoch> {
        let announced = self.announced.read();
        let end = announced.partition_point(|t| t.epoch <= upto);
        let now = announced.get(end.checked_sub(1)?)?.frontier.0;
        // Frontiers never decrease, so the old ones are in front.
        let old = announced.partition_point(|t| t.frontier.0 <= now.saturating_sub(age_us));
        announced.get(old.checked_sub(1)?).map(|t| t.epoch)
    }

    /// The times of the oldest epoch that is not older than `epoch`.
    pub(crate) fn from(&self, epoch: Epoch) -> Option<EpochTimes> {
        let announced = self.announced.read();
        announced.get(announced.partition_point(|t| t.epoch < epoch)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trueup_operators::time::LogTime;

    /// Waits until all have come as often as this one; spins, so that all go on at one moment.
    fn meet(arrived: &AtomicU64, times: u64) {
        arrived.fetch_add(1, Ordering::AcqRel);
        while arrived.load(Ordering::Acquire) < times {
            std::hint::spin_loop();
        }
    }

    /// Whoever delivers last makes the epoch visible, also when two are last at once.
    #[test]
    fn an_epoch_that_all_have_delivered_is_visible() {
        const WORKERS: u64 = 2;
        const EPOCHS: u64 = 50_000;
        let epochs = Epochs::new(WORKERS as usize);
        for epoch in 1..=EPOCHS {
            let at = LogTime(epoch as i64);
            let times = EpochTimes { epoch, frontier: at, frontier_before: at, latest: at };
            epochs.announce(times);
        }
        let (arrived, missed) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for worker in 0..WORKERS as usize {
                let (epochs, arrived, missed) = (&epochs, &arrived, &missed);
                scope.spawn(move || {
                    for epoch in 1..=EPOCHS {
                        meet(arrived, (2 * epoch - 1) * WORKERS);
                        epochs.commit(worker, epoch, 0);
                        meet(arrived, 2 * epoch * WORKERS);
                        let is_missed = epochs.visible() != Some(epoch);
                        missed.fetch_add(u64::from(is_missed), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(missed.into_inner(), 0, "of {EPOCHS} epochs, seen by each of {WORKERS}");
    }
}
