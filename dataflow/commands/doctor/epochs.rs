//! What `doctor` says of the remap topic: whether its rows can be read, follow one another without
//! a gap, and name only what the log has and a start would still find.
//!
//! Two things make that less than simple. A log may have been cut below what a checkpoint covers,
//! its remap rows as well; then the walk begins where a checkpoint that is whole says. And in a log
//! that others append to there may be rows of a writer that was superseded, and what is no row at
//! all: they are void and no damage, but a row that is further than the next epoch is, whoever
//! wrote it.

use crate::{
    checkpoint::manifest::At,
    remap::{self, Cursor},
};
use std::{fmt, time::Duration};
use trueup_operators::{
    log::{Frame, Log, LogError, Topic},
    remap::{RemapRow, Upto},
    time::Epoch,
};

/// Bytes of rows read at a time.
const READ_BYTES: usize = 64 << 10;
/// Ends of a shared log may be as old as this; a row may be younger.
const ENDS_AGE_MAX: Duration = Duration::from_millis(250);

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Epochs {
    /// The epoch behind which the rows were looked at: 0, or that of a checkpoint.
    pub(super) after: Epoch,
    /// The last one.
    pub(super) last: Epoch,
    /// Messages between them that do not count: rows of writers that were superseded, and strays.
    pub(super) void: u64,
}

impl fmt::Display for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Epochs { after, last, void } = self;
        match last - after {
            0 => write!(f, "epochs       none after {after}")?,
            _ => write!(f, "epochs       {} to {last}, one after another", after + 1)?,
        }
        if *after > 0 {
            write!(f, "; {after} and those before are in a checkpoint")?;
        }
        if *void > 0 {
            write!(f, "; {void} messages are void: of writers that were superseded, or no rows")?;
        }
        Ok(())
    }
}

/// Looks at all rows that the log has. `places` are those of the checkpoints that are whole, newest
/// first: they were listed before the log was opened, so the log must have what they name.
///
/// # Errors
/// What is wrong: with which epoch, or where.
pub(super) fn check(log: &dyn Log, places: &[At]) -> Result<Epochs, Wrong> {
    let mut walk = Walk::begin(log, places)?;
    let end = remap::end(log);
    while walk.at.next < end {
        let frames = log.read(Topic::Remap, 0, walk.at.next, end, READ_BYTES)?;
        for frame in &frames {
            walk.take(frame)?;
        }
        walk.at.next = frames.last().map_or(end, |frame| frame.next);
    }
    if let Some(beyond) = places.iter().find(|place| place.remap_offset > end) {
        return damaged(format!(
            "the checkpoint of epoch {} is behind offset {} of the remap topic, which ends at \
             {end}",
            beyond.row.epoch,
            beyond.remap_offset - 1
        ));
    }
    check_ends(log, &walk.at.row)?;
    check_held(log, places.first().map(|place| &place.row), walk.first.as_ref())?;
    Ok(Epochs { after: walk.after, last: walk.at.row.epoch, void: walk.void })
}

/// Why the rows are not well.
#[derive(Debug)]
pub(super) enum Wrong {
    /// They are not what was written, or the log does not go with them.
    Damaged(String),
    /// They could not be read: nobody knows.
    Unread(String),
}

impl Wrong {
    /// Whether nobody knows.
    pub(super) fn is_unread(&self) -> bool {
        matches!(self, Wrong::Unread(_))
    }

    /// Why.
    pub(super) fn reason(&self) -> &str {
        match self {
            Wrong::Damaged(reason) | Wrong::Unread(reason) => reason,
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_unread() { "NOT READ" } else { "DAMAGED " };
        write!(f, "{what} {}", self.reason())
    }
}

impl From<LogError> for Wrong {
    fn from(error: LogError) -> Wrong {
        match error {
            LogError::Away { .. } | LogError::Unavailable { .. } | LogError::Busy { .. } => {
                Wrong::Unread(error.to_string())
            }
            error => Wrong::Damaged(error.to_string()),
        }
    }
}

fn damaged<T>(reason: String) -> Result<T, Wrong> {
    Err(Wrong::Damaged(reason))
}

/// The rows so far.
struct Walk<'a> {
    log: &'a dyn Log,
    places: &'a [At],
    /// The last row that counts, and where to read on.
    at: Cursor,
    after: Epoch,
    /// The row of epoch 1, if the walk came by it.
    first: Option<RemapRow>,
    void: u64,
}

impl<'a> Walk<'a> {
    /// At the beginning of the log, or at the oldest checkpoint behind which it has all rows.
    fn begin(log: &'a dyn Log, places: &'a [At]) -> Result<Walk<'a>, Wrong> {
        let first = log.first(Topic::Remap, 0);
        let at = if first == 0 {
            Cursor::origin(log)
        } else {
            let Some(place) = places.iter().rev().find(|place| place.remap_offset >= first) else {
                return damaged(format!(
                    "the remap topic begins at offset {first}, and no checkpoint that is whole has \
                     what was before"
                ));
            };
            Cursor::of(place.row.clone(), place.remap_offset)
        };
        let after = at.row.epoch;
        Ok(Walk { log, places, at, after, first: None, void: 0 })
    }

    fn take(&mut self, frame: &Frame) -> Result<(), Wrong> {
        let offset = frame.offset;
        let wrong =
            |reason: String| damaged(format!("offset {offset} of the remap topic: {reason}"));
        let Some(row) = remap::row(self.log, frame)? else {
            self.void += 1;
            return Ok(());
        };
        let last = &*self.at.row;
        if row.follows(last) {
            if let Err(reason) = goes_on(last, &row) {
                return wrong(format!("epoch {}: {reason}", row.epoch));
            }
            if row.epoch == 1 {
                self.first = Some(row.clone());
            }
            self.at.row = row.into();
        } else if row.epoch > last.epoch + 1 || !self.log.is_shared() {
            return wrong(format!("epoch {} comes after epoch {}", row.epoch, last.epoch));
        } else {
            self.void += 1;
        }
        let place = self.places.iter().find(|place| place.remap_offset == frame.next);
        match place.filter(|place| place.row != *self.at.row) {
            Some(place) => wrong(format!(
                "it is not the row that the checkpoint of epoch {} has; that is of another log",
                place.row.epoch
            )),
            None => Ok(()),
        }
    }
}

/// Whether no partition is missing or goes back.
fn goes_on(last: &RemapRow, row: &RemapRow) -> Result<(), String> {
    for (topic, old, new) in [
        (Topic::Events, &last.events, &row.events),
        (Topic::Verdicts, &last.verdicts, &row.verdicts),
        (Topic::Metadata, &last.metadata, &row.metadata),
    ] {
        let name = topic.name();
        if new.len() < old.len() {
            return Err(format!("{name} have {} partitions, before {}", new.len(), old.len()));
        }
        let back =
            |(old, new): (&Upto, &Upto)| new.offset < old.offset || new.log_time < old.log_time;
        if let Some(partition) = old.iter().zip(new).position(back) {
            return Err(format!("partition {partition} of {name} goes back"));
        }
    }
    Ok(())
}

/// Whether the log has all that a row names. What is behind the ends of a shared log may have come
/// since they were asked for.
fn check_ends(log: &dyn Log, last: &RemapRow) -> Result<(), Wrong> {
    let beyond = || {
        [
            (Topic::Events, &last.events),
            (Topic::Verdicts, &last.verdicts),
            (Topic::Metadata, &last.metadata),
        ]
        .into_iter()
        .find_map(|(topic, uptos)| {
            let ends = log.ends(topic);
            let end = |partition: usize| ends.get(partition).map_or(0, |end| end.offset);
            let mut beyond = uptos.iter().enumerate().filter(|(p, upto)| upto.offset > end(*p));
            beyond.next().map(|(partition, upto)| {
                format!(
                    "epoch {} ends at offset {} of partition {partition} of {}, the log at {}",
                    last.epoch,
                    upto.offset,
                    topic.name(),
                    end(partition)
                )
            })
        })
    };
    let Some(_) = beyond() else { return Ok(()) };
    std::thread::sleep(ENDS_AGE_MAX);
    beyond().map_or(Ok(()), damaged)
}

/// Whether the log still has all that a start would read: what comes behind the newest checkpoint
/// that is whole, or, without one, what the first epoch has. (What others deleted of a shared log
/// before that was never seen.)
fn check_held(
    log: &dyn Log,
    covered: Option<&RemapRow>,
    first: Option<&RemapRow>,
) -> Result<(), Wrong> {
    let Some(row) = covered.or(first) else { return Ok(()) };
    let is_from_origin = covered.is_none() && !row.begins;
    for topic in [Topic::Events, Topic::Verdicts] {
        for partition in 0..log.partitions(topic) {
            let upto = if is_from_origin { 0 } else { row.upto(topic, partition).offset };
            let held = log.first(topic, partition);
            if held > upto {
                return damaged(format!(
                    "partition {partition} of {} begins at offset {held}; no checkpoint that is \
                     whole covers what was there from {upto} on",
                    topic.name()
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
