//! The place of a process among those that run a job together: which workers are its own, and what
//! it says to the others. A process that runs alone has the only seat, and nobody to speak to.
//!
//! Workers are numbered through: worker *w* is thread *w* mod *threads* of process *w* div
//! *threads*. Partition *p* belongs to worker *p* mod *peers*, wherever that is.

use crate::{checkpoint::start::Place, cluster::Generation};
use std::{fmt, ops::Range, sync::Arc};
use trueup_operators::time::Epoch;

/// The process that closes epochs, feeds them to all, and publishes checkpoints.
pub(crate) const LEADER: usize = 0;

/// Which of all workers run in this process.
#[derive(Clone)]
pub(crate) struct Seat {
    threads: usize,
    generation: Option<Arc<Generation>>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {}", self.process(), self.processes())
    }
}

impl Seat {
    /// Of a process that runs alone, with so many workers.
    pub(crate) fn alone(threads: usize) -> Seat {
        Seat { threads, generation: None }
    }

    /// In a generation, whose processes have so many workers each.
    pub(crate) fn among(generation: Arc<Generation>, threads: usize) -> Seat {
        Seat { threads, generation: Some(generation) }
    }

    /// The others, if there are any.
    pub(crate) fn generation(&self) -> Option<&Arc<Generation>> {
        self.generation.as_ref()
    }

    /// This process.
    pub(crate) fn process(&self) -> usize {
        self.generation.as_ref().map_or(LEADER, |generation| generation.process())
    }

    /// How many processes there are.
    pub(crate) fn processes(&self) -> usize {
        self.generation.as_ref().map_or(1, |generation| generation.processes())
    }

    /// Workers of each process.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Its place, as a start from a checkpoint asks for it.
    pub(crate) fn place(&self) -> Place {
        let (process, processes) = (self.process(), self.processes());
        Place { process, processes, threads: self.threads }
    }

    /// Workers of all processes.
    pub(crate) fn peers(&self) -> usize {
        self.place().peers()
    }

    /// The workers of this process.
    pub(crate) fn own(&self) -> Range<usize> {
        self.place().own()
    }

    /// Whether it closes epochs.
    pub(crate) fn leads(&self) -> bool {
        self.process() == LEADER
    }

    /// The process of a worker.
    pub(crate) fn process_of(&self, worker: usize) -> usize {
        worker / self.threads
    }

    /// This process has delivered up to an epoch.
    pub(crate) fn commit(&self, epoch: Epoch) {
        if let Some(generation) = &self.generation {
            generation.commit(epoch);
        }
    }

    /// Up to which epoch all other processes have delivered, as far as is known here. Alone there
    /// are none, and nobody is behind.
    pub(crate) fn delivered_everywhere(&self) -> Epoch {
        self.generation.as_ref().map_or(Epoch::MAX, |generation| generation.visible())
    }
}
