//! Events to the owners of their ids, where the log's partitions do not follow from the ids: in a
//! topic that others write to, or that got more partitions than it had.
//!
//! All copies of an event must meet in one ledger, and in the same order in every run. So a worker
//! that has read its partitions of an epoch gives its batches to all workers, as references; a
//! worker feeds an epoch when it has those of all, sorted by partition and offset, and its ledger
//! takes the rows whose vnode it owns. Batches are decoded once, by who read them.
//!
//! A worker gives one [`Parcel`] an epoch to each worker, so what waits is bounded by the epochs
//! under way.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    thread::Thread,
};
use trueup_operators::{feed::Located, time::Epoch};

type Batches<B> = Vec<Arc<Located<B>>>;

/// What one worker has read of an epoch.
struct Parcel<B> {
    epoch: Epoch,
    batches: Batches<B>,
}

/// One worker's place in the exchange.
pub(crate) struct Shuffle<B> {
    to: Vec<Sender<Parcel<B>>>,
    from: Receiver<Parcel<B>>,
    threads: Arc<Vec<OnceLock<Thread>>>,
    /// What has come of epochs that are not whole: how many parcels, and what was in them.
    waiting: BTreeMap<Epoch, (usize, Batches<B>)>,
}

/// The places of all workers of a process.
pub(crate) fn places<B>(workers: usize) -> Vec<Shuffle<B>> {
    let threads: Arc<Vec<OnceLock<Thread>>> =
        Arc::new((0..workers).map(|_| OnceLock::new()).collect());
    let (to, from): (Vec<_>, Vec<_>) = (0..workers).map(|_| channel()).unzip();
    let place = |from| Shuffle {
        to: to.clone(),
        from,
        threads: Arc::clone(&threads),
        waiting: BTreeMap::new(),
    };
    from.into_iter().map(place).collect()
}

impl<B> Shuffle<B> {
    /// Says which thread this worker is, to be woken when something comes.
    pub(crate) fn enter(&self, worker: usize) {
        // Whoever is not known yet has not parked either.
        let _known = self.threads[worker].set(std::thread::current());
    }

    /// Gives what was read of an epoch to all. A worker that has ended takes nothing more.
    pub(crate) fn give(&self, epoch: Epoch, batches: &[Arc<Located<B>>]) {
        for (to, thread) in self.to.iter().zip(self.threads.iter()) {
            let _ended = to.send(Parcel { epoch, batches: batches.to_vec() });
            if let Some(thread) = thread.get() {
                thread.unpark();
            }
        }
    }

    /// All batches of an epoch in the order in which they are to be entered, once they are there.
    pub(crate) fn take(&mut self, epoch: Epoch) -> Option<Batches<B>> {
        while let Ok(mut parcel) = self.from.try_recv() {
            let (parcels, batches) = self.waiting.entry(parcel.epoch).or_default();
            *parcels += 1;
            batches.append(&mut parcel.batches);
        }
        if self.waiting.get(&epoch)?.0 < self.to.len() {
            return None;
        }
        let (_, mut batches) = self.waiting.remove(&epoch)?;
        batches.sort_by_key(|located| (located.partition, located.offset));
        Some(batches)
    }
}
