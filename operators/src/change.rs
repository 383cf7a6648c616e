//! What the dataflow tells the sinks: per worker and epoch, which rows changed from what to what,
//! which events did not count and why, and how many of each. A sink gets everything of an epoch in
//! one call, so all views advance together.

use crate::{
    event::{Fate, Position},
    feed::ImageKind,
    metrics::Group,
    symbols::Symbol,
    time::{Bucket, Epoch, Granularity, LogTime},
};
use serde::{Deserialize, Serialize};

/// A row's dimensions: symbols in the order of the rollup's dimensions, [`crate::symbols::ABSENT`]
/// behind the last. The first is what reports ask for (the campaign).
pub type Key<const N: usize> = [Symbol; N];

/// Whether two keys are the same. A loop that the compiler unrolls: `==` on arrays of a generic
/// length is a call of `memcmp`, which the hot path feels.
#[inline(always)]
pub fn same_key<const N: usize>(a: &Key<N>, b: &Key<N>) -> bool {
    let mut difference = 0;
    for i in 0..N {
        difference |= a[i] ^ b[i];
    }
    difference == 0
}

/// A table of a rollup: its position in the job's list of rollups, and the granularity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId {
    /// Which rollup.
    pub rollup: u16,
    /// Which of its tables.
    pub granularity: Granularity,
}

/// One row that is another than before the epoch: −old +new.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change<const N: usize, M> {
    /// The row's number within (worker, table, bucket): dense, from 0, stable while it lives. A
    /// view can store rows by it without hashing.
    pub row: u32,
    /// How often the row had changed before. 0: the row is new, `old` is the zero.
    pub old_version: u32,
    /// The row's dimensions.
    pub key: Key<N>,
    /// What it was; not in the view if it had no records.
    pub old: M,
    /// What it is; not in the view if it has no records.
    pub new: M,
}

/// All changes of one bucket of a table in an epoch, by one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes<const N: usize, M> {
    /// Which table.
    pub table: TableId,
    /// Which bucket of it.
    pub bucket: Bucket,
    /// Its changed rows, each once.
    pub changes: Vec<Change<N, M>>,
}

/// An event that did not count and that someone may ask for: a conflict, a quarantined or a too
/// late event. (Duplicates are only counted.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Why.
    pub fate: Fate,
    /// Where the event is in the log.
    pub position: Position,
    /// When the log took it.
    pub log_time: LogTime,
}

/// How many events of an epoch came to which end, and what became of its verdicts. Additive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Events by [`Fate`].
    pub fates: [u64; 5],
    /// Counted events whose minute had ended at their log time.
    pub late: u64,
    /// Verdicts read.
    pub verdicts: u64,
    /// Events whose standing a verdict changed: taken out, or put back.
    pub retractions: u64,
    /// Verdicts that came after the correction horizon of their event; they change nothing.
    pub verdicts_too_late: u64,
    /// Rows whose figures left their range or were zero in count but not in money. Never silent.
    pub arithmetic_errors: u64,
    /// Sums that were folded into an `(other)` row because the rollup's table was full.
    pub folded: u64,
}

impl Counts {
    /// How many numbers they are.
    pub const NUMBERS: usize = 11;

    /// As numbers, in the order in which they are written down and told.
    pub fn numbers(&self) -> [u64; Counts::NUMBERS] {
        let &Counts {
            fates: [counted, duplicate, conflict, quarantined, too_late],
            late,
            verdicts,
            retractions,
            verdicts_too_late,
            arithmetic_errors,
            folded,
        } = self;
        [
            counted,
            duplicate,
            conflict,
            quarantined,
            too_late,
            late,
            verdicts,
            retractions,
            verdicts_too_late,
            arithmetic_errors,
            folded,
        ]
    }

    /// The inverse of [`Counts::numbers`].
    pub fn of_numbers(numbers: [u64; Counts::NUMBERS]) -> Counts {
        let [
            counted,
            duplicate,
            conflict,
            quarantined,
            too_late,
            late,
            verdicts,
            retractions,
            verdicts_too_late,
            arithmetic_errors,
            folded,
        ] = numbers;
        Counts {
            fates: [counted, duplicate, conflict, quarantined, too_late],
            late,
            verdicts,
            retractions,
            verdicts_too_late,
            arithmetic_errors,
            folded,
        }
    }

    /// Adds another.
    pub fn add(&mut self, other: &Counts) {
        for (a, b) in self.fates.iter_mut().zip(other.fates) {
            *a += b;
        }
        self.late += other.late;
        self.verdicts += other.verdicts;
        self.retractions += other.retractions;
        self.verdicts_too_late += other.verdicts_too_late;
        self.arithmetic_errors += other.arithmetic_errors;
        self.folded += other.folded;
    }
}

/// Everything that one worker has to say about one epoch.
#[derive(Clone, Debug)]
pub struct Commit<const N: usize, M> {
    /// The epoch. Epochs come in order; an epoch without changes comes too.
    pub epoch: Epoch,
    /// Changed rows.
    pub changes: Vec<Changes<N, M>>,
    /// Events that did not count, in the order of (partition, offset, row) within the worker.
    pub incidents: Vec<Incident>,
    /// How many of each.
    pub counts: Counts,
    /// Whether an image is to be taken of what the sink holds after this epoch. Never of what a
    /// worker of another process said: its own process takes that.
    pub image: Option<ImageKind>,
}

/// Where results go: what one worker says, in one process. Called by a worker's thread once an
/// epoch, in order: in each process by that of the worker with the same thread number.
pub trait Sink<const N: usize, M: Group>: 'static {
    /// Takes an epoch that is complete on all workers of all processes.
    fn commit(&mut self, commit: Commit<N, M>);
}
