//! Giving back the log's space. Age says what may go (`[log] retention`); what can go is what no
//! start and no retraction will ever read again:
//!
//! * a start reads what comes after the *oldest* checkpoint that is kept, so that the newest may be
//!   broken; nothing goes while there are fewer than two;
//! * a verdict reads its event back as long as the ledger remembers it ([`Lateness::forgotten`]),
//!   and a ledger that was loaded from the oldest checkpoint remembers longest;
//! * the definition of the epochs is needed from the oldest checkpoint on, and, to know what is
//!   forgotten, as far back as the ledger remembers;
//! * metadata is in no checkpoint and always needed: what only an old frame says is appended again
//!   (`Collector::renew_metadata`), so that a campaign of last year keeps no segment.
//!
//! `verify` and `replay` begin at the beginning of the log, so they refuse one that was shortened.

use crate::{checkpoint::manifest::At, open_log::OpenLog, remap::Cursor};
use std::collections::VecDeque;
use trueup_collector::Collector;
use trueup_operators::{
    log::{Log, LogError, Topic},
    remap::{RemapRow, Upto},
    time::{Lateness, LogTime},
};

/// Shortens a log, now and then.
pub(crate) struct Shortening {
    lateness: Lateness,
    age_us_max: i64,
    read: Option<Reading>,
}

/// How far the remap topic was read.
struct Reading {
    cursor: Cursor,
    /// Rows that were read and are not forgotten yet.
    ahead: VecDeque<Cursor>,
    /// The newest row of which everything is forgotten.
    forgotten: Option<Cursor>,
}

impl Shortening {
    /// What is older than `age_us_max` may go.
    pub(crate) fn new(lateness: Lateness, age_us_max: i64) -> Shortening {
        Shortening { lateness, age_us_max, read: None }
    }

    /// Deletes what may and can go, given the oldest checkpoint that is kept and who has the
    /// metadata; how many segments.
    ///
    /// # Errors
    /// When the log cannot be read or written, or a file cannot be deleted; another time it may be.
    pub(crate) fn shorten(
        &mut self,
        log: &OpenLog,
        oldest: &At,
        collector: &Collector,
    ) -> Result<u64, LogError> {
        if log.log().is_shared() {
            return Ok(0);
        }
        let Some(forgotten) = self.forgotten(&**log.log(), oldest)? else { return Ok(0) };
        let old = LogTime(oldest.row.latest().0.saturating_sub(self.age_us_max));
        collector.renew_metadata(log.log().offset_at(Topic::Metadata, 0, old)?)?;
        let metadata = collector.metadata_needed_from();
        let covered = |topic, partition| match topic {
            Topic::Metadata => metadata,
            _ => covered(topic, partition, oldest, &forgotten),
        };
        log.retain(self.age_us_max, covered)
    }

    /// The newest row of which a ledger that is loaded from a checkpoint remembers nothing.
    fn forgotten(&mut self, log: &dyn Log, oldest: &At) -> Result<Option<Cursor>, LogError> {
        let read = match &mut self.read {
            Some(read) => read,
            None => self.read.insert(Reading::begin(log)?),
        };
        loop {
            if read.ahead.is_empty() && read.cursor.next < oldest.remap_offset {
                read.ahead.extend(read.cursor.advance(log, oldest.remap_offset)?);
            }
            let is_forgotten =
                |row: &RemapRow| self.lateness.forgotten(row.latest(), oldest.frontier_before);
            match read.ahead.front() {
                Some(next) if is_forgotten(&next.row) => read.forgotten = read.ahead.pop_front(),
                _ => return Ok(read.forgotten.clone()),
            }
        }
    }
}

impl Reading {
    fn begin(log: &dyn Log) -> Result<Reading, LogError> {
        let first = log.first(Topic::Remap, 0);
        let cursor = if first == 0 { Cursor::origin(log) } else { Cursor::at(log, first)? };
        Ok(Reading { cursor, ahead: VecDeque::new(), forgotten: None })
    }
}

/// The offset below which a partition is not needed, but of metadata.
fn covered(topic: Topic, partition: u16, oldest: &At, forgotten: &Cursor) -> u64 {
    let of = |uptos: &[Upto]| uptos.get(usize::from(partition)).map_or(0, |upto| upto.offset);
    match topic {
        Topic::Events => of(&oldest.row.events).min(of(&forgotten.row.events)),
        Topic::Verdicts => of(&oldest.row.verdicts),
        Topic::Metadata => 0,
        Topic::Remap => (oldest.remap_offset - 1).min(forgotten.next - 1),
    }
}
