//! What a set of tables can be asked, without the type parameters of the dataflow that fills them.
//!
//! Every answer is of **one epoch over all tables**, named in the answer. A question that names no
//! epoch is answered at the newest one that all workers have delivered. A question that names an
//! older one is answered while the history still reaches back to it.

use crate::{
    block::RowBlock,
    catalog::{Catalog, ViewId},
};
use std::{ops::Range, sync::Arc};
use tokio::sync::watch;
use trueup_operators::{
    change::{Counts, Incident},
    event::{Fate, Position},
    feed::EpochTimes,
    symbols::Symbols,
    time::{Bucket, BucketState, Epoch, Granularity, Lateness, format_rfc3339},
};

/// Why a read cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No epoch has been delivered by all workers yet.
    #[error("no epoch is complete yet")]
    NotReady,
    /// The epoch is older than the history that is kept.
    #[error("epoch {epoch} is gone; the history begins with epoch {first}")]
    Gone {
        /// What was asked for.
        epoch: Epoch,
        /// The oldest epoch that can be read.
        first: Epoch,
    },
    /// The place is one of views that are gone.
    #[error("the rows were numbered anew since the page before this one was read")]
    Renumbered,
    /// The epoch is not complete yet.
    #[error("epoch {epoch} is not complete yet; the newest one is {visible}")]
    Ahead {
        /// What was asked for.
        epoch: Epoch,
        /// The newest epoch that can be read.
        visible: Epoch,
    },
    /// The read named no epoch, and each that it chose went out of the history before it was done.
    #[error("the views moved on {tries} times before the answer was complete")]
    Overtaken {
        /// How often it began.
        tries: u32,
    },
    /// The answer has more rows than allowed.
    #[error("the answer has more than {rows_max} rows")]
    TooManyRows {
        /// The limit.
        rows_max: usize,
    },
    /// The answer would look at more rows than allowed.
    #[error("the answer needs more than {scan_rows_max} rows to be read")]
    TooMuchToRead {
        /// The limit.
        scan_rows_max: u64,
    },
    /// One row over a range was asked for, and a part of the range has left the view.
    #[error(
        "the range needs what is kept by {} from {}, and that begins at {}",
        granularity.name(), format_rfc3339(*start_us), format_rfc3339(*kept_from_us)
    )]
    NotKept {
        /// The table that was to be read.
        granularity: Granularity,
        /// From here on.
        start_us: i64,
        /// What it still has.
        kept_from_us: i64,
    },
}

/// Which rows: all that have each of these values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A dimension's place in the rollup, and its text; empty for an absent value.
    pub dimensions: Vec<(usize, String)>,
    /// The first bucket and the one after the last; for tables only.
    pub buckets: Option<Range<Bucket>>,
    /// The bucket's state; for tables only.
    pub state: Option<BucketState>,
    /// The event's fate; for lists of events only.
    pub fate: Option<Fate>,
    /// Rows whose bucket leaves the view because of its age are not taken away: their last
    /// difference leads to what they were then, final. For differences of tables only; a snapshot
    /// has what is in the view.
    pub leavers_stay: bool,
}

/// Buckets of one table.
pub type Span = (Granularity, Range<Bucket>);

/// How the buckets of a sum become rows. A row that would add up several buckets of which some have
/// left the view is never less than it says: the row is left out, or the sum refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Each bucket is one.
    Each,
    /// All buckets together are one.
    One,
    /// All buckets together with these, which follow them in time: a range whose ends are read by
    /// minute and its middle by day.
    Joined(Vec<Span>),
    /// Each bucket of the range belongs to a slot with a start of its own: local days.
    Mapped {
        /// The slot of each bucket, from the first bucket of the range on.
        slot_of: Vec<u32>,
        /// The first instant of each slot, µs.
        starts_us: Vec<i64>,
    },
}

/// A sum over a table: what reports ask.
#[derive(Clone, Debug)]
pub struct SumQuery {
    /// The rollup's number.
    pub rollup: u16,
    /// Which of its tables.
    pub granularity: Granularity,
    /// The first bucket, and the one after the last.
    pub buckets: Range<Bucket>,
    /// Which rows; its `buckets` are ignored.
    pub filter: Filter,
    /// The dimensions that stay, by their place in the rollup, in the order of the answer's keys.
    pub by: Vec<usize>,
    /// How buckets become rows.
    pub slots: Slots,
    /// Only buckets that are final.
    pub finalized_only: bool,
    /// More rows than this are an error.
    pub rows_max: usize,
    /// More rows read than this are an error.
    pub scan_rows_max: u64,
    /// The epoch; the newest when absent.
    pub epoch: Option<Epoch>,
}

impl SumQuery {
    /// Everything that is read, in the order of time.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut spans = vec![(self.granularity, self.buckets.clone())];
        if let Slots::Joined(more) = &self.slots {
            spans.extend_from_slice(more);
        }
        spans
    }
}

/// The answer to a [`SumQuery`].
#[derive(Clone, Debug)]
pub struct Summed {
    /// The epoch that it is of.
    pub at: EpochTimes,
    /// Rows sorted by start, then by the texts of the dimensions in the order of `by`. A row's
    /// version is the sum of the versions of the rows that it adds up, so it grows with each
    /// published change; its state is the least final one.
    pub rows: RowBlock,
}

/// Where a page of a table goes on: an opaque token to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The bucket.
    pub bucket: Bucket,
    /// The worker whose rows come next.
    pub shard: u32,
    /// How many rows of it are done.
    pub row: u32,
    /// The views whose rows have these numbers: others number them anew.
    pub run: u32,
}

/// Rows of a table, in the order of buckets; within a bucket in no particular order, but the same
/// in every read of the epoch.
#[derive(Clone, Debug)]
pub struct Page {
    /// The epoch that it is of.
    pub at: EpochTimes,
    /// The rows.
    pub rows: RowBlock,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Place>,
}

/// The place of an incident in the order of all: epoch, then position in the log.
pub type IncidentKey = (Epoch, Position);

/// Events that did not count, newest first.
#[derive(Clone, Debug)]
pub struct IncidentPage {
    /// The epoch that it is of.
    pub at: EpochTimes,
    /// The events, with their place in the order.
    pub incidents: Vec<(IncidentKey, Incident)>,
    /// How many there ever were, kept or not, of the fates that were asked for.
    pub total: u64,
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With a snapshot of this epoch, or of the newest.
    Snapshot(Option<Epoch>),
    /// With what changed after this epoch, or after the newest.
    After(Option<Epoch>),
    /// With what changed after the first of two epochs, up to the second: so several views are
    /// brought to one epoch. From there on to the newest, as ever.
    Between(Epoch, Epoch),
}

/// What a step of a subscription brought. The rows are in the block or list that was passed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the subscriber is at the newest epoch.
    Idle,
    /// Rows on the way to an epoch; more of it follow.
    More(EpochTimes),
    /// The last rows on the way to an epoch, perhaps none: the subscriber is at it.
    Reached(EpochTimes),
}

/// A subscription: brings its subscriber from the epoch where it is to the newest one by the
/// consolidated difference, whether that is one epoch away or a thousand.
pub trait Follow: Send {
    /// Goes on by about `rows_max` rows, or by fewer, even none, when few of those that it looked
    /// at match: how many these are is bounded as well. `rows` is reset and filled when the view is
    /// a table, `incidents` cleared and filled when it is a list of events.
    ///
    /// # Errors
    /// `Gone` when the subscriber was slower than the history is long. It must start anew.
    fn step(
        &mut self,
        rows_max: usize,
        rows: &mut RowBlock,
        incidents: &mut Vec<(i8, Incident)>,
    ) -> Result<Step, ReadError>;

    /// The epoch that was reached last.
    fn at(&self) -> Option<EpochTimes>;

    /// Whether what [`Follow::step`] brings belongs to the snapshot.
    fn in_snapshot(&self) -> bool;
}

/// What the views take in memory, by part, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Rows of all tables, present or not.
    pub rows: usize,
    /// What the rows take.
    pub rows_bytes: usize,
    /// What the index by first dimension takes.
    pub index_bytes: usize,
    /// What the history of recent epochs takes.
    pub history_bytes: usize,
    /// What the lists of events take.
    pub incidents_bytes: usize,
}

/// Tables that are kept by epoch and can be read at one.
pub trait Tables: Send + Sync + 'static {
    /// Which views there are.
    fn catalog(&self) -> &Catalog;

    /// The texts behind symbols.
    fn symbols(&self) -> &Symbols;

    /// The spans that decide a bucket's state.
    fn lateness(&self) -> Lateness;

    /// The newest epoch that every worker has delivered.
    fn visible(&self) -> Option<EpochTimes>;

    /// Wakes whoever waits for a newer epoch. Holds the newest one.
    fn watch(&self) -> watch::Receiver<Option<Epoch>>;

    /// The oldest epoch that can be read.
    fn first_epoch(&self) -> Option<Epoch>;

    /// The first instant of which a granularity still has rows, at an epoch.
    fn kept_from_us(&self, granularity: Granularity, at: EpochTimes) -> i64;

    /// A sum over a table.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn sum(&self, query: &SumQuery) -> Result<Summed, ReadError>;

    /// Rows of a table, from a place on, about `rows_max` of them. A page may have fewer rows than
    /// asked for, even none, and still have a next one: how many rows it looks at is bounded.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn page(
        &self,
        view: ViewId,
        filter: &Filter,
        epoch: Option<Epoch>,
        from: Option<Place>,
        rows_max: usize,
    ) -> Result<Page, ReadError>;

    /// Events that came to one of `fates`, newest first, before a key.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn incidents(
        &self,
        fates: &[Fate],
        epoch: Option<Epoch>,
        before: Option<IncidentKey>,
        rows_max: usize,
    ) -> Result<IncidentPage, ReadError>;

    /// The first epoch of which an event may be listed that did not count; `None` when none is. An
    /// event of an epoch before can be in no list.
    fn first_listed(&self) -> Option<Epoch>;

    /// Begins a subscription.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn follow(
        self: Arc<Self>,
        view: ViewId,
        filter: Filter,
        start: Start,
    ) -> Result<Box<dyn Follow>, ReadError>;

    /// How many events came to which end, up to the newest epoch.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn counts(&self) -> Result<(EpochTimes, Counts), ReadError>;

    /// How many rows each view has at the newest epoch, by its number.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn row_counts(&self) -> Result<(EpochTimes, Vec<u64>), ReadError>;

    /// What the views take in memory.
    fn memory(&self) -> Memory;

    /// A hash of all differences of an epoch over all tables that depends on nothing but texts and
    /// figures, so that runs with other numbers of workers agree. `None` when the setting is off
    /// or the epoch is not kept or not complete.
    fn epoch_hash(&self, epoch: Epoch) -> Option<u64>;
}
