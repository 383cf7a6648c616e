//! `trueup verify`: the same answers, found another way. It reads the log from its first frame,
//! cuts it into epochs as the remap log says, and does to every event what the documentation says
//! that is done to it: plainly, in one thread, in order, with maps of texts. It shares no code
//! with the ledger, the sums or the views, so a mistake there does not repeat here; what it does
//! share is what defines the data: the log trait, the remap format, the column names, the stored
//! form of a verdict, and the rules of time ([`Lateness`]).
//!
//! # What it must agree with, to the micro
//!
//! * the six figures of every row of every view, the version and the state of the row;
//! * which events were set aside, and why;
//! * how many events came to which end.
//!
//! A row's *version* counts the epochs over which its exact figures changed (thousandths of a
//! micro and invalid conversions too, though no view shows them), so an epoch in which −1 and +1
//! meet is not counted: this is why the cut into epochs has to be the live one's.
//!
//! # Limits
//!
//! Memory grows with the events inside the horizon (some 250 bytes each) and with the rows of all
//! buckets (some 110 each, and 250 more when they are handed over), and with the newest events of
//! each fate that did not count, a million of each at most; an event of ADS-1 takes some
//! 7 µs, most of it waiting for memory: it is a check, run beside a server, not a part of one. A
//! log whose first frames have been deleted cannot be recomputed and is refused. A frame that
//! cannot be read stops it: guessing would make the check worthless.

mod aside;
mod compare;
mod frames;
mod rows;
mod served;
mod standing;
#[cfg(test)]
mod tests;

pub use aside::{Asides, SetAside};
pub use compare::{
    Cell, Comparison, DIFFERENCES_MAX, Difference, Filter, What, compare, compare_counts,
    compare_events,
};

pub use served::{Served, ServedEvents, served, served_events};

use crate::remap;
use rows::Rows;
use standing::Book;
use std::collections::{BTreeMap, VecDeque};
use trueup_operators::{
    change::Counts,
    log::{Frame, Log, LogError, Topic},
    remap::{RemapRow, Upto},
    rollup::RollupSpec,
    time::{BucketState, Epoch, Lateness, LogTime},
};

/// How many bytes of frames are read at once.
const READ_BYTES_MAX: usize = 16 << 20;

/// The columns of [`RowFigures::figures`], in order.
pub const FIGURES: [&str; 6] =
    ["impressions", "clicks", "conversions", "invalidImpressions", "invalidClicks", "spendMicros"];

/// A row's bucket start in µs and its dimensions in the order of its rollup; `""` is absent.
pub type RowKey = (i64, Vec<String>);
/// The rows of a view.
pub type ViewRows = BTreeMap<RowKey, RowFigures>;
/// Views by name.
pub type Views = BTreeMap<String, ViewRows>;

/// What a row of a view says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFigures {
    /// In the order of [`FIGURES`].
    pub figures: [i64; 6],
    /// How many epochs changed it.
    pub version: u32,
    /// Of its bucket.
    pub state: BucketState,
}

/// Everything as of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Recomputed {
    /// The epoch.
    pub epoch: Epoch,
    /// What the log was complete to at its end.
    pub frontier: LogTime,
    /// The rows of every view.
    pub views: Views,
    /// The names of the dimensions of every view.
    pub dimensions: BTreeMap<String, Vec<String>>,
    /// The events that did not count, and messages that are none of ours.
    pub asides: Asides,
    /// How many of each.
    pub counts: Counts,
}

/// What a job's answers depend on beside the log.
#[derive(Clone, Debug)]
pub struct VerifySettings {
    /// The spans of time that the job ran with.
    pub lateness: Lateness,
    /// Its rollups, in its order.
    pub rollups: Vec<RollupSpec>,
}

/// Why it could not be recomputed. (That is not the same as a difference.)
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The log said no.
    #[error("{} cannot be read: {source}", topic.name())]
    Log {
        /// Which topic.
        topic: Topic,
        /// What the log said.
        source: LogError,
    },
    /// A frame is not what its topic holds.
    #[error("{} partition {partition} offset {offset}: {reason}", topic.name())]
    Frame {
        /// Which topic.
        topic: Topic,
        /// Its partition.
        partition: u16,
        /// The frame.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The beginning of the log is gone.
    #[error(
        "{} partition {partition} begins at offset {first}: what was deleted cannot be recomputed; \
         verify from a log that is whole (the lake, a mirror)",
        topic.name()
    )]
    Deleted {
        /// Which topic.
        topic: Topic,
        /// Its partition.
        partition: u16,
        /// The first offset that is still there.
        first: u64,
    },
    /// There is no such epoch.
    #[error("epoch {wanted} is not in the log, which ends with epoch {last}")]
    NoSuchEpoch {
        /// What was asked for.
        wanted: Epoch,
        /// The last that the remap log has.
        last: Epoch,
    },
    /// Remap rows do not follow one another.
    #[error("the remap log has epoch {found} where epoch {expected} belongs: {reason}")]
    Remap {
        /// Which epoch was due.
        expected: Epoch,
        /// Which came.
        found: Epoch,
        /// What else is wrong.
        reason: &'static str,
    },
    /// A rollup names something that events do not have.
    #[error("rollup `{rollup}` names the dimension `{dimension}`, which events do not have")]
    Dimension {
        /// The rollup.
        rollup: String,
        /// The dimension.
        dimension: String,
    },
    /// A rollup has more dimensions than a key has words.
    #[error("rollup `{rollup}` has {found} dimensions, {most} are the most")]
    TooManyDimensions {
        /// The rollup.
        rollup: String,
        /// How many it has.
        found: usize,
        /// How many it may have.
        most: usize,
    },
}

/// Recomputes everything up to an epoch, or to the last one.
///
/// # Errors
/// When the log cannot be read as a whole.
pub fn recompute(
    log: &dyn Log,
    settings: &VerifySettings,
    upto: Option<Epoch>,
) -> Result<Recomputed, VerifyError> {
    let mut run = Recomputation::new(log, settings)?;
    while upto.is_none_or(|upto| run.epoch() < upto) {
        if run.advance()?.is_none() {
            break;
        }
    }
    match upto {
        Some(wanted) if run.epoch() < wanted => {
            Err(VerifyError::NoSuchEpoch { wanted, last: run.epoch() })
        }
        _ => Ok(run.recomputed()),
    }
}

/// A recomputation under way, epoch by epoch.
pub struct Recomputation<'a> {
    log: &'a dyn Log,
    lateness: Lateness,
    remap: RemapReader<'a>,
    /// The last epoch that was done.
    done: RemapRow,
    book: Book,
    rows: Rows,
}

impl<'a> Recomputation<'a> {
    /// Before the first epoch.
    ///
    /// # Errors
    /// When the log does not begin at its beginning, or a rollup has an unknown dimension.
    pub fn new(
        log: &'a dyn Log,
        settings: &VerifySettings,
    ) -> Result<Recomputation<'a>, VerifyError> {
        // Of a log that others share the first row says where epochs begin.
        if !log.is_shared() {
            check_beginning(log, Topic::Events, |_| 0)?;
            check_beginning(log, Topic::Verdicts, |_| 0)?;
        }
        check_beginning(log, Topic::Remap, |_| 0)?;
        let partitions = |topic| log.partitions(topic);
        Ok(Recomputation {
            log,
            lateness: settings.lateness,
            remap: RemapReader { log, at: 0, waiting: VecDeque::new() },
            done: RemapRow::origin(
                partitions(Topic::Events),
                partitions(Topic::Verdicts),
                partitions(Topic::Metadata),
            ),
            book: Book::new(settings.lateness),
            rows: Rows::new(&settings.rollups)?,
        })
    }

    /// The last epoch that was done; 0 before the first.
    pub fn epoch(&self) -> Epoch {
        self.done.epoch
    }

    /// Does the next epoch. `None`: there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn advance(&mut self) -> Result<Option<Epoch>, VerifyError> {
        let next = loop {
            let Some(next) = self.remap.next()? else { return Ok(None) };
            // Of a log that others share: rows of a writer that was superseded are void.
            let (new, old) = (next.writer, self.done.writer);
            let superseded = new != old && new.generation <= old.generation;
            if !self.log.is_shared() || (!superseded && next.epoch == self.done.epoch + 1) {
                break next;
            }
        };
        self.check_successor(&next)?;
        if self.done.epoch == 0 && self.log.is_shared() {
            let begins = |of: &[Upto], p: u16| match next.begins {
                true => of.get(usize::from(p)).map_or(0, |upto| upto.offset),
                false => 0,
            };
            check_beginning(self.log, Topic::Events, |p| begins(&next.events, p))?;
            check_beginning(self.log, Topic::Verdicts, |p| begins(&next.verdicts, p))?;
        }
        let times = next.times(&self.done);
        self.book.open(times);
        if next.begins {
            self.book.judge();
            self.rows.epoch(&self.book.take_changes());
            self.done = next;
            return Ok(Some(self.done.epoch));
        }
        for partition in 0..next.events.len() {
            let range = self.between(&self.done.events, &next.events, partition);
            self.each_frame(Topic::Events, partition as u16, range, |this, frame| {
                let Recomputation { book, rows, log, .. } = this;
                // Anyone can write to a shared topic, so all of a frame is looked at first: what is
                // no batch of events counts as one thing that was set aside.
                let is_foreign = log.is_shared()
                    && (frame.foreign.is_some()
                        || frames::events(frame, rows.texts(), |_| {}).is_err());
                if is_foreign {
                    book.foreign(frame);
                    return Ok(());
                }
                frames::events(frame, rows.texts(), |row| book.event(frame, &row))
            })?;
        }
        for partition in 0..next.verdicts.len() {
            let range = self.between(&self.done.verdicts, &next.verdicts, partition);
            self.each_frame(Topic::Verdicts, partition as u16, range, |this, frame| {
                match frames::verdicts(frame) {
                    Ok(verdicts) => this.book.verdicts(frame, verdicts),
                    // It is no event, so it is listed and counts as none.
                    Err(_) if this.log.is_shared() => this.book.listed(Topic::Verdicts, frame),
                    Err(reason) => return Err(reason),
                }
                Ok(())
            })?;
        }
        // Of metadata only what is none of ours is looked at, as far as it is there.
        for partition in 0..if self.log.is_shared() { next.metadata.len() } else { 0 } {
            let mut range = self.between(&self.done.metadata, &next.metadata, partition);
            let partition = partition as u16;
            if range.from < range.to {
                range.from = range.from.max(self.log.first(Topic::Metadata, partition));
            }
            self.each_frame(Topic::Metadata, partition, range, |this, frame| {
                if frame.foreign.is_some() {
                    this.book.listed(Topic::Metadata, frame);
                }
                Ok(())
            })?;
        }
        self.book.judge();
        self.rows.epoch(&self.book.take_changes());
        self.done = next;
        Ok(Some(self.done.epoch))
    }

    /// Everything as of the last epoch that was done.
    pub fn recomputed(&self) -> Recomputed {
        let frontier = self.done.frontier();
        let mut counts = self.book.counts;
        counts.folded = self.rows.folded;
        Recomputed {
            epoch: self.done.epoch,
            frontier,
            views: self.rows.views(&self.lateness, frontier),
            dimensions: self.rows.dimensions(),
            asides: self.book.asides.clone(),
            counts,
        }
    }

    /// A partition that is new has been complete to what all others were.
    fn between(&self, before: &[Upto], after: &[Upto], partition: usize) -> Range {
        let new = Upto { offset: 0, log_time: self.done.frontier() };
        let before = before.get(partition).unwrap_or(&new);
        let after = after[partition];
        let log_times = (before.log_time, after.log_time);
        Range { from: before.offset, to: after.offset, log_times }
    }

    fn check_successor(&self, next: &RemapRow) -> Result<(), VerifyError> {
        let expected = self.done.epoch + 1;
        let wrong = |reason| VerifyError::Remap { expected, found: next.epoch, reason };
        if next.epoch != expected {
            return Err(wrong("epochs follow one another without gaps"));
        }
        for (before, after) in
            [(&self.done.events, &next.events), (&self.done.verdicts, &next.verdicts)]
        {
            if before.len() > after.len() {
                return Err(wrong("partitions are missing"));
            }
            if before.iter().zip(after).any(|(b, a)| a.offset < b.offset || a.log_time < b.log_time)
            {
                return Err(wrong("an offset or a log time goes back"));
            }
        }
        Ok(())
    }

    fn each_frame(
        &mut self,
        topic: Topic,
        partition: u16,
        Range { mut from, to, log_times: (least, most) }: Range,
        mut take: impl FnMut(&mut Self, &Frame) -> Result<(), String>,
    ) -> Result<(), VerifyError> {
        let mut last = least;
        while from < to {
            let mut frames = self
                .log
                .read(topic, partition, from, to, READ_BYTES_MAX)
                .map_err(|source| VerifyError::Log { topic, source })?;
            for frame in &mut frames {
                let offset = frame.offset;
                let wrong = |reason| VerifyError::Frame { topic, partition, offset, reason };
                // Offsets of a log that others share may have gaps.
                if offset != from && !(self.log.is_shared() && offset > from) {
                    return Err(wrong(format!("the log gave this frame for offset {from}")));
                }
                // Whatever a broker's clock says: neither older than the frame before, or than the
                // epoch before was complete to, nor younger than this epoch is complete to.
                if frame.log_time > most {
                    frame.log_time = most;
                }
                if frame.log_time < last {
                    frame.log_time = last;
                }
                last = frame.log_time;
                take(self, frame).map_err(wrong)?;
                from = frame.next;
            }
            if frames.is_empty() && self.log.is_shared() {
                return Ok(());
            }
            if frames.is_empty() {
                let reason = "the log gave no frame".to_owned();
                return Err(VerifyError::Frame { topic, partition, offset: from, reason });
            }
        }
        Ok(())
    }
}

/// Checks that a topic has everything from where it is to be read on.
fn check_beginning(
    log: &dyn Log,
    topic: Topic,
    from: impl Fn(u16) -> u64,
) -> Result<(), VerifyError> {
    for partition in 0..log.partitions(topic) {
        let first = log.first(topic, partition);
        if first > from(partition) {
            return Err(VerifyError::Deleted { topic, partition, first });
        }
    }
    Ok(())
}

/// What an epoch holds of a partition.
struct Range {
    from: u64,
    to: u64,
    /// The log times that the epoch before was complete to, and that this one is.
    log_times: (LogTime, LogTime),
}

/// Reads the remap log, some rows ahead.
struct RemapReader<'a> {
    log: &'a dyn Log,
    at: u64,
    waiting: VecDeque<RemapRow>,
}

impl RemapReader<'_> {
    fn next(&mut self) -> Result<Option<RemapRow>, VerifyError> {
        let topic = Topic::Remap;
        while self.waiting.is_empty() {
            let end = self.log.ends(topic).first().map_or(0, |end| end.offset);
            if self.at == end {
                return Ok(None);
            }
            let frames = self
                .log
                .read(topic, 0, self.at, end, READ_BYTES_MAX)
                .map_err(|source| VerifyError::Log { topic, source })?;
            // Behind the last frame there is nothing before the end, if the log gave none.
            self.at = frames.last().map_or(end, |last| last.next);
            for frame in frames {
                let row = remap::row(self.log, &frame);
                let row = row.map_err(|source| VerifyError::Log { topic, source })?;
                self.waiting.extend(row);
            }
        }
        Ok(self.waiting.pop_front())
    }
}
