//! The last operator: hands a sink everything of an epoch in one call, when the epoch is complete
//! on all workers, and every epoch in order, the empty ones too. So all views of a worker advance
//! together, and a reader can tell "nothing changed" from "nothing came".

use crate::{
    accumulate::{Said, Times},
    change::{Commit, Sink},
    metrics::Group,
    time::Epoch,
};
use std::{cell::Cell, collections::BTreeMap, rc::Rc};
use timely::dataflow::{StreamVec, channels::pact::Pipeline, operators::Operator};

/// The last epoch that a [`commit`] has handed over.
pub type Committed = Rc<Cell<Epoch>>;

/// Hands over epochs from the one after `committed` on.
pub fn commit<const N: usize, M: Group>(
    said: StreamVec<'_, Epoch, Said<N, M>>,
    mut sink: impl Sink<N, M>,
    times: Times,
    committed: Committed,
) {
    let mut open: BTreeMap<Epoch, Commit<N, M>> = BTreeMap::new();
    said.sink(Pipeline, "Commit", move |(input, frontier)| {
        input.for_each(|capability, said| {
            let Some(&epoch) = capability.least() else { return };
            let commit = open.entry(epoch).or_insert_with(|| empty(epoch));
            for said in said.drain(..) {
                match said {
                    Said::Changes(changes) => commit.changes.push(changes),
                    Said::Counts(counts) => commit.counts.add(&counts),
                    Said::Incidents(mut incidents) => commit.incidents.append(&mut incidents),
                }
            }
        });
        let complete = |epoch: &Epoch| !frontier.less_equal(epoch);
        // An input that is closed is complete for ever; only epochs that were fed count.
        let fed = times.borrow().last_key_value().map_or(0, |(&epoch, _)| epoch);
        while committed.get() < fed && complete(&(committed.get() + 1)) {
            let epoch = committed.get() + 1;
            let mut commit = open.remove(&epoch).unwrap_or_else(|| empty(epoch));
            commit.image = times.borrow().get(&epoch).and_then(|under_way| under_way.image);
            commit.incidents.sort_by_key(|incident| incident.position);
            sink.commit(commit);
            committed.set(epoch);
        }
    });
}

fn empty<const N: usize, M>(epoch: Epoch) -> Commit<N, M> {
    Commit {
        epoch,
        changes: Vec::new(),
        incidents: Vec::new(),
        counts: Default::default(),
        image: None,
    }
}
