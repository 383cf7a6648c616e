//! Reading the remap topic: the rows that count, in order, and where the next one will be.
//!
//! Rows are read forwards only, from a row that is known to count: the origin, or the one that a
//! checkpoint names. What follows it counts or is void by [`RemapRow::follows`], and a reader that
//! begins elsewhere could take a zombie's row for the truth. In a log that no other process appends
//! to there are no void rows, and one that is found there is damage.

use std::sync::Arc;
use trueup_operators::{
    log::{Frame, Log, LogError, Topic},
    remap::RemapRow,
};

/// Bytes of remap rows read from the log at a time: some hundred epochs.
const READ_BYTES: usize = 64 << 10;

/// A row that counts, and the offset in the remap topic behind it.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The row.
    pub row: Arc<RemapRow>,
    /// Where to read on.
    pub next: u64,
}

impl Cursor {
    /// Before the first row of a log.
    pub fn origin(log: &dyn Log) -> Cursor {
        let row = RemapRow::origin(
            log.partitions(Topic::Events),
            log.partitions(Topic::Verdicts),
            log.partitions(Topic::Metadata),
        );
        Cursor { row: Arc::new(row), next: 0 }
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
        Ok(Cursor { row: Arc::new(decode(frame)?), next: frame.next })
    }

    /// Reads on, up to an offset, as far as one read of the log goes: the rows that count, each
    /// with the offset behind it. Empty does not mean that nothing more is there, but
    /// [`Cursor::next`] at the offset does.
    ///
    /// # Errors
    /// When the topic cannot be read or holds what is no row.
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
            let row = decode(frame)?;
            if row.follows(&self.row) {
                *self = Cursor { row: Arc::new(row), next: frame.next };
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
    /// When the topic cannot be read or holds what is no row.
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
}

/// The end of the remap topic.
pub(crate) fn end(log: &dyn Log) -> u64 {
    log.ends(Topic::Remap).first().map_or(0, |end| end.offset)
}

fn decode(frame: &Frame) -> Result<RemapRow, LogError> {
    RemapRow::decode(&frame.payload).map_err(|reason| corrupt(frame, reason))
}

fn corrupt(frame: &Frame, reason: String) -> LogError {
    LogError::Corrupt { file: "topic remap".into(), at: frame.offset, reason }
}
