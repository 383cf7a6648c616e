//! What flows from the log into the dataflow: for each epoch, on each worker, first an
//! [`Feed::Open`] with the epoch's times, then the worker's frames as batches, in the order of
//! their offsets. A record of the stream is a whole batch; no event is ever a record.

use crate::{
    change::Incident,
    event::{EventBatch, Position, Target},
    hash::IdHash,
    time::{Epoch, LogTime},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The log times of an epoch, from its remap row: the only clock that operators have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochTimes {
    /// Which epoch.
    pub epoch: Epoch,
    /// What the log was complete to at the end of the epoch before: the minimum over partitions.
    pub frontier_before: LogTime,
    /// What it is complete to at the end of this one.
    pub frontier: LogTime,
    /// The latest log time of this epoch: the maximum over partitions.
    pub latest: LogTime,
}

/// What an image of an operator's state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// All of it.
    Whole,
    /// What has changed since the image before.
    Increment,
}

/// A decoded frame and where it came from.
#[derive(Debug)]
pub struct Located<B> {
    /// The partition of the events topic.
    pub partition: u16,
    /// The frame's offset.
    pub offset: u64,
    /// The frame's log time.
    pub log_time: LogTime,
    /// Its events.
    pub batch: B,
}

impl<B: EventBatch> Located<B> {
    /// Where a row is.
    #[inline]
    pub fn position(&self, row: usize) -> Position {
        Position { partition: self.partition, offset: self.offset, row: row as u16 }
    }
}

/// A record of the event stream.
#[derive(Debug)]
pub enum Feed<B> {
    /// The epoch begins on this worker. Sent to every worker, events or not.
    Open(EpochTimes),
    /// A frame of the epoch.
    Batch(Arc<Located<B>>),
    /// A message of a shared log that is none of ours: only to be told of. One of the events topic
    /// counts as one event; in other topics are no events.
    Foreign(Incident),
}

impl<B> Clone for Feed<B> {
    fn clone(&self) -> Self {
        match self {
            Feed::Open(times) => Feed::Open(*times),
            Feed::Batch(batch) => Feed::Batch(Arc::clone(batch)),
            Feed::Foreign(incident) => Feed::Foreign(*incident),
        }
    }
}

/// A verdict as it travels: what the ledger needs of it, and where the rest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The worker that it goes to; a verdict on an impression goes to each.
    pub worker: u32,
    /// What `hash` is of.
    pub target: Target,
    /// The keyed hash of the event id or impression id.
    pub hash: IdHash,
    /// Invalid, or valid (again).
    pub invalid: bool,
    /// The latest wins.
    pub decided_at_us: i64,
    /// When the log took it.
    pub log_time: LogTime,
    /// Its frame in the verdicts topic, and its place in it: breaks ties, the later one wins.
    pub arrival: (u64, u32),
}

/// Reads events back by their position: the ledger remembers where an event is, not all it said.
/// What is behind it (a cache over the log) is the runtime's; the log never changes, so this is as
/// deterministic as memory.
pub trait ReadBack<B>: 'static {
    /// The frame of a position that was read before, with its rows up to that one.
    ///
    /// # Errors
    /// When the log cannot give it any more: the run cannot go on, and must not guess.
    fn read_back(&mut self, position: Position) -> Result<Arc<Located<B>>, String>;
}
