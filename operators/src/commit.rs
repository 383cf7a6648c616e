//! The last operator: hands sinks everything of an epoch in one call, when the epoch is complete
//! on all workers of all processes, and every epoch in order, the empty ones too. So all views
//! advance together, and a reader can tell "nothing changed" from "nothing came".
//!
//! # Every process has all views
//!
//! A worker has one sink per process: the one of process *q* gets what the worker with this thread
//! number in process *q* said, with the row numbers that it gave. So the sinks of a process's
//! workers together hold what all workers of the job said, and the process answers every read by
//! itself, also while a peer is away. What crosses is drawn in [`told`]. In a job of one process
//! nothing is wrapped and nothing is exchanged.
//!
//! ```text
//!                    process 0                       process 1
//!                    worker 0       worker 1         worker 2       worker 3
//! has the sinks for  workers 0, 2   workers 1, 3     workers 0, 2   workers 1, 3
//! ```
//!
//! A checkpoint of a process is of its own workers' state, so only the sink for the worker itself
//! is asked for images.

pub mod told;

use crate::{
    accumulate::{Said, Times},
    change::{Commit, Sink},
    metrics::Group,
    sum::crossing::Crossing,
    time::Epoch,
};
use std::{cell::Cell, collections::BTreeMap, rc::Rc, sync::Arc};
use timely::{
    dataflow::{
        StreamVec,
        channels::pact::{Exchange, Pipeline},
        operators::Operator,
    },
    progress::frontier::MutableAntichain,
};
use told::{Told, tell};

/// The last epoch that a [`commit`] has handed over.
pub type Committed = Rc<Cell<Epoch>>;

/// Hands over epochs from the one after `committed` on, each to all of the worker's sinks, one per
/// process in the order of processes; then `committed` is that epoch.
///
/// # Panics
/// When there is not one sink per process: as many as `crossing`'s workers of a process go into all
/// workers of the job. While it runs, when a peer says that it is a worker that it cannot be.
pub fn commit<const N: usize, M: Group>(
    said: StreamVec<'_, Epoch, Said<N, M>>,
    sinks: Vec<impl Sink<N, M>>,
    crossing: Crossing,
    times: Times,
    committed: Committed,
) {
    let (me, peers) = (said.scope().index(), said.scope().peers());
    let (processes, threads) = (sinks.len(), crossing.threads());
    assert_eq!(processes * threads, peers, "{processes} sinks a worker, {threads} workers each");
    let mut epochs = Epochs { own: me / threads, sinks, times, committed, open: BTreeMap::new() };
    if processes == 1 {
        said.sink(Pipeline, "Commit", move |(input, frontier)| {
            input.for_each(|capability, said| {
                let Some(&epoch) = capability.least() else { return };
                let commits = epochs.open(epoch);
                said.drain(..).for_each(|said| add(&mut commits[0], said));
            });
            epochs.hand_over(frontier);
        });
        return;
    }
    let symbols = Arc::clone(crossing.symbols());
    let mut named = Vec::new();
    let to = Exchange::new(|told: &Told<N, M>| u64::from(told.to));
    tell(said, &crossing).sink(to, "Commit", move |(input, frontier)| {
        input.for_each(|capability, told| {
            let Some(&epoch) = capability.least() else { return };
            let commits = epochs.open(epoch);
            for told in told.drain(..) {
                let from = told.from as usize;
                let is_known = from < peers && from % threads == me % threads;
                assert!(is_known, "worker {me} of {peers} is told something by worker {from}");
                let commit = &mut commits[from / threads];
                told.arrive(&symbols, &mut named).into_iter().for_each(|said| add(commit, said));
            }
        });
        epochs.hand_over(frontier);
    });
}

/// The epochs that are not handed over yet, and where they go.
struct Epochs<S, const N: usize, M> {
    /// The process of this worker.
    own: usize,
    /// By process.
    sinks: Vec<S>,
    times: Times,
    committed: Committed,
    /// By process.
    open: BTreeMap<Epoch, Vec<Commit<N, M>>>,
}

impl<S: Sink<N, M>, const N: usize, M: Group> Epochs<S, N, M> {
    fn open(&mut self, epoch: Epoch) -> &mut [Commit<N, M>] {
        let processes = self.sinks.len();
        self.open.entry(epoch).or_insert_with(|| empty(epoch, processes))
    }

    /// Hands over what is complete.
    fn hand_over(&mut self, frontier: &MutableAntichain<Epoch>) {
        let complete = |epoch: &Epoch| !frontier.less_equal(epoch);
        // An input that is closed is complete for ever; only epochs that were fed count.
        let fed = self.times.borrow().last_key_value().map_or(0, |(&epoch, _)| epoch);
        while self.committed.get() < fed && complete(&(self.committed.get() + 1)) {
            let epoch = self.committed.get() + 1;
            let commits = self.open.remove(&epoch);
            let mut commits = commits.unwrap_or_else(|| empty(epoch, self.sinks.len()));
            let under_way = self.times.borrow().get(&epoch).copied();
            commits[self.own].image = under_way.and_then(|under_way| under_way.image);
            for (sink, mut commit) in self.sinks.iter_mut().zip(commits) {
                commit.incidents.sort_by_key(|incident| incident.position);
                sink.commit(commit);
            }
            self.committed.set(epoch);
        }
    }
}

/// Puts what a worker says behind what it said of the epoch before.
fn add<const N: usize, M>(commit: &mut Commit<N, M>, said: Said<N, M>) {
    match said {
        Said::Changes(mut changes) => match commit.changes.last_mut() {
            // The changes of a bucket were cut on their way.
            Some(last) if (last.table, last.bucket) == (changes.table, changes.bucket) => {
                last.changes.append(&mut changes.changes);
            }
            _ => commit.changes.push(changes),
        },
        Said::Counts(counts) => commit.counts.add(&counts),
        Said::Incidents(mut incidents) => commit.incidents.append(&mut incidents),
    }
}

/// An epoch of which nothing was said.
fn empty<const N: usize, M>(epoch: Epoch, processes: usize) -> Vec<Commit<N, M>> {
    let nothing = |_| Commit {
        epoch,
        changes: Vec::new(),
        incidents: Vec::new(),
        counts: Default::default(),
        image: None,
    };
    (0..processes).map(nothing).collect()
}
