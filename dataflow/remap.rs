//! Reading the remap topic: the rows that count, in order, and where the next one will be.
//!
//! Rows are read forwards only, from a row that is known to count: the origin, or the one that a
//! checkpoint names. What follows it counts or is void by [`RemapRow::follows`], and a reader that
//! begins elsewhere could take a zombie's row for the truth. In a log that no other process appends
//! to there are no void rows, and one that is found there is damage.
//!
//! In one that others append to, a message that is no row of ours is void as well: somebody's stray
//! line must not end every process that reads on to it, now and at every start. Whether it is one
//! its content alone says, so all readers go on with the same rows. What is of a newer version than
//! this program knows is no stray message but a row that may count, and nobody reads past it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use trueup_operators::{
    log::{Foreign, Frame, Log, LogError, Topic},
    remap::{REMAP_VERSION, RemapRow},
    time::Epoch,
};

/// Bytes of remap rows read from the log at a time: some hundred epochs.
const READ_BYTES: usize = 64 << 10;

/// A row that counts, and how far the remap topic was read with it.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The row.
    pub row: Arc<RemapRow>,
    /// Where to read on: behind the row, and behind what was found to be void after it.
    pub next: u64,
    /// The offset behind the row itself; 0 of the origin.
    pub behind: u64,
}

impl Cursor {
    /// Before the first row of a log.
    pub fn origin(log: &dyn Log) -> Cursor {
        let row = RemapRow::origin(
            log.partitions(Topic::Events),
            log.partitions(Topic::Verdicts),
            log.partitions(Topic::Metadata),
        );
        Cursor::of(row, 0)
    }

    /// A row, and the offset behind it.
    pub(crate) fn of(row: RemapRow, behind: u64) -> Cursor {
        Cursor { row: Arc::new(row), next: behind, behind }
    }

    /// The row at an offset of a log that no other process appends to: there every row counts.
    ///
    /// # Errors
    /// When it cannot be read or is no row.
    pub(crate) fn at(log: &dyn Log, offset: u64) -> Result<Cursor, LogError> {
        let frames = log.read(Topic::Remap, 0, offset, offset + 1, READ_BYTES)?;
        let frame = frames.first().ok_or_else(|| LogError::Unavailable {
            reason: format!("the remap topic gave no row at {offset}"),
        })?;
        Ok(Cursor::of(decode(frame)?, frame.next))
    }

    /// Reads on, up to an offset, as far as one read of the log goes: the rows that count, each
    /// with the offset behind it. Empty does not mean that nothing more is there, but
    /// [`Cursor::next`] at the offset does.
    ///
    /// # Errors
    /// When the topic cannot be read, or holds what is no row and is not void.
    pub fn advance(&mut self, log: &dyn Log, upto: u64) -> Result<Vec<Cursor>, LogError> {
        if self.next >= upto {
            return Ok(Vec::new());
        }
        let frames = log.read(Topic::Remap, 0, self.next, upto, READ_BYTES)?;
        // Behind the last frame there is nothing before `upto`, if the log gave none.
        let Some(last) = frames.last() else {
            self.next = upto;
            return Ok(Vec::new());
        };
        let end = last.next;
        let mut rows = Vec::with_capacity(frames.len());
        for frame in &frames {
            let Some(row) = row(log, frame)? else { continue };
            if row.follows(&self.row) {
                *self = Cursor::of(row, frame.next);
                rows.push(self.clone());
            } else if !log.is_shared() {
                let (found, last) = (row.epoch, self.row.epoch);
                return Err(corrupt(frame, format!("epoch {found} comes after epoch {last}")));
            }
        }
        self.next = end;
        Ok(rows)
    }

    /// The last row of the log that counts.
    ///
    /// # Errors
    /// When the topic cannot be read, or holds what is no row and is not void.
    pub fn tip(&self, log: &dyn Log) -> Result<Cursor, LogError> {
        let end = end(log);
        let mut tip = self.clone();
        if !log.is_shared() && end > self.next {
            return Cursor::at(log, end - 1);
        }
        while tip.next < end {
            tip.advance(log, end)?;
        }
        Ok(tip)
    }

    /// The last row from here on whose epoch is at most `upto`.
    ///
    /// # Errors
    /// When the topic cannot be read, or holds what is no row and is not void.
    pub(crate) fn last_before(&self, log: &dyn Log, upto: Epoch) -> Result<Cursor, LogError> {
        let (end, mut read, mut last) = (end(log), self.clone(), self.clone());
        while read.next < end && last.row.epoch < upto {
            let rows = read.advance(log, end)?;
            last = rows.into_iter().rfind(|cursor| cursor.row.epoch <= upto).unwrap_or(last);
        }
        Ok(last)
    }
}

/// The end of the remap topic.
pub(crate) fn end(log: &dyn Log) -> u64 {
    log.ends(Topic::Remap).first().map_or(0, |end| end.offset)
}

/// The greatest generation that a row from an offset on was written in, or 0: of the rows that
/// count and of those that do not. A writer that begins with a greater one is behind nobody.
/// `None`: it was told to stop.
///
/// # Errors
/// As [`Cursor::advance`].
pub(crate) fn newest_generation(
    log: &dyn Log,
    from: u64,
    is_stopping: impl Fn() -> bool,
) -> Result<Option<u64>, LogError> {
    let (mut at, end, mut newest) = (from.max(log.first(Topic::Remap, 0)), end(log), 0);
    while at < end {
        if is_stopping() {
            return Ok(None);
        }
        let frames = log.read(Topic::Remap, 0, at, end, READ_BYTES)?;
        for frame in &frames {
            let written = row(log, frame)?.map_or(0, |row| row.writer.generation);
            newest = newest.max(written);
        }
        at = frames.last().map_or(end, |last| last.next);
    }
    Ok(Some(newest))
}

/// The row that a frame of the remap topic is. `None`: it is void, whoever reads it; only in a log
/// that others append to.
///
/// # Errors
/// When it is of a version that this program does not know; in a log that nobody else appends to,
/// when it is no row.
pub(crate) fn row(log: &dyn Log, frame: &Frame) -> Result<Option<RemapRow>, LogError> {
    if let Some(version) = newer(frame) {
        let reason = format!(
            "the message at offset {} of the remap topic has schema version {version}, and this \
             program knows none above {REMAP_VERSION}: it may define an epoch, so nothing is read \
             past it; run the newer program that wrote it",
            frame.offset
        );
        return Err(LogError::Invalid { reason });
    }
    if !log.is_shared() {
        return decode(frame).map(Some);
    }
    let read = match &frame.foreign {
        None => RemapRow::decode(&frame.payload),
        Some(foreign) => Err(foreign.to_string()),
    };
    match read {
        Ok(row) => Ok(Some(row)),
        Err(reason) => {
            stray(frame.offset, &reason);
            Ok(None)
        }
    }
}

/// The version of what says that it is of a newer one.
fn newer(frame: &Frame) -> Option<u16> {
    match frame.foreign {
        Some(Foreign::UnknownSchema { version, .. }) => Some(version),
        _ => Some(frame.schema_version).filter(|&version| version > REMAP_VERSION),
    }
}

/// Says once of a message that it is none of ours: several parts of a process read the topic.
fn stray(offset: u64, reason: &str) {
    static SAID_BELOW: AtomicU64 = AtomicU64::new(0);
    if SAID_BELOW.fetch_max(offset + 1, Ordering::Relaxed) <= offset {
        metrics::counter!("trueup_foreign_remap_messages_total").increment(1);
        tracing::warn!(offset, reason, "a message in the remap topic is none of ours, and void");
    }
}

fn decode(frame: &Frame) -> Result<RemapRow, LogError> {
    RemapRow::decode(&frame.payload).map_err(|reason| corrupt(frame, reason))
}

fn corrupt(frame: &Frame, reason: String) -> LogError {
    LogError::Corrupt { file: "topic remap".into(), at: frame.offset, reason }
}

#[cfg(test)]
pub(crate) mod tests;
