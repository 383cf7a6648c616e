//! Giving back the log's space. Age and size say what may go (`[log] retention`, and
//! `retention_bytes_max`); what can go is what no start and no retraction will ever read again:
//!
//! * a start reads what comes after the *oldest* checkpoint that is kept, so that the newest may be
//!   broken; nothing goes while there are fewer than two;
//! * a verdict reads its event back as long as the ledger remembers it ([`Lateness::forgotten`]),
//!   and a ledger that was loaded from the oldest checkpoint remembers longest;
//! * the definition of the epochs is needed from the oldest checkpoint on, and, to know what is
//!   forgotten, as far back as the ledger remembers;
//! * an event that did not count (quarantined, in conflict, too late) is nowhere but in the log,
//!   and can be asked for while a list names it: lists are bounded by number, not by age, so it
//!   keeps its segment, and all that come after, for `retention_listed` and no longer. Size deletes
//!   it all the same when nothing else is left; that is said, and counted. What is listed of it
//!   then has no `event`;
//! * metadata is in no checkpoint and always needed: what only an old frame says is appended again
//!   (`Collector::renew_metadata`), so that a campaign of last year keeps no segment.
//!
//! `verify` and `replay` begin at the beginning of the log, so they refuse one that was shortened.

use crate::{checkpoint::manifest::At, open_log::OpenLog, remap::Cursor};
use std::collections::VecDeque;
use trueup_collector::Collector;
use trueup_log::Retention;
use trueup_operators::{
    log::{Log, LogError, Topic},
    remap::{RemapRow, Upto},
    time::{Epoch, Lateness, LogTime},
};

/// What may be deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Segments older than this, µs of log time.
    pub(crate) age_us_max: i64,
    /// The same, of those in which listed events are.
    pub(crate) listed_us_max: i64,
    /// The oldest segments, while all are larger than this.
    pub(crate) bytes_max: Option<u64>,
}

/// Shortens a log, now and then.
pub(crate) struct Shortening {
    lateness: Lateness,
    keep: Keep,
    /// To the newest row of which everything is forgotten by the ledger.
    forgotten: Option<Reading>,
    /// To the newest row of which nothing is listed either.
    unlisted: Option<Reading>,
}

/// How far the remap topic was read.
struct Reading {
    cursor: Cursor,
    /// Rows that were read and are not past yet.
    ahead: VecDeque<Cursor>,
    /// The newest row that is past.
    past: Option<Cursor>,
}

impl Shortening {
    /// So much may go.
    pub(crate) fn new(lateness: Lateness, keep: Keep) -> Shortening {
        Shortening { lateness, keep, forgotten: None, unlisted: None }
    }

    /// Deletes what may and can go, given the oldest checkpoint that is kept, the first epoch of
    /// which an event is listed, and who has the metadata; how many segments.
    ///
    /// # Errors
    /// When the log cannot be read or written, or a file cannot be deleted; another time it may be.
    pub(crate) fn shorten(
        &mut self,
        log: &OpenLog,
        oldest: &At,
        first_listed: Option<Epoch>,
        collector: &Collector,
    ) -> Result<u64, LogError> {
        if log.log().is_shared() {
            return Ok(0);
        }
        let Some(forgotten) = self.forgotten(&**log.log(), oldest)? else { return Ok(0) };
        let Keep { age_us_max, bytes_max, .. } = self.keep;
        let mut old = LogTime(oldest.row.latest().0.saturating_sub(age_us_max));
        if bytes_max.is_some_and(|bytes_max| log.held_bytes() > bytes_max) {
            old = old.max(forgotten.row.latest());
        }
        collector.renew_metadata(log.log().offset_at(Topic::Metadata, 0, old)?)?;
        let metadata = collector.metadata_needed_from();
        let covered = |past: &Cursor, topic, partition| match topic {
            Topic::Metadata => metadata,
            _ => covered(topic, partition, oldest, past),
        };
        let mut segments = 0;
        if let Some(unlisted) = self.unlisted(&**log.log(), oldest, first_listed)? {
            let policy = Retention { age_us_max: Some(age_us_max), bytes_max };
            segments += log.retain(policy, false, |t, p| covered(&unlisted, t, p))?;
        }
        let policy = Retention { age_us_max: None, bytes_max };
        let listed = log.retain(policy, true, |t, p| covered(&forgotten, t, p))?;
        if listed > 0 {
            tracing::warn!(
                segments = listed,
                bytes_max,
                "`log.retention_bytes_max` deleted segments with events that are still listed; \
                 these can no longer be shown"
            );
        }
        Ok(segments + listed)
    }

    /// The newest row of which a ledger that is loaded from a checkpoint remembers nothing.
    fn forgotten(&mut self, log: &dyn Log, oldest: &At) -> Result<Option<Cursor>, LogError> {
        let is_past = |row: &RemapRow| is_forgotten(self.lateness, row, oldest);
        Reading::go_on(&mut self.forgotten, log, oldest.remap_offset, is_past)
    }

    /// The same, and either nothing of it is listed or it is so old that this does not matter.
    fn unlisted(
        &mut self,
        log: &dyn Log,
        oldest: &At,
        first_listed: Option<Epoch>,
    ) -> Result<Option<Cursor>, LogError> {
        let too_old = oldest.row.latest().0.saturating_sub(self.keep.listed_us_max);
        let is_past = |row: &RemapRow| {
            let listed = first_listed.is_some_and(|first| row.epoch >= first);
            is_forgotten(self.lateness, row, oldest) && (!listed || row.latest().0 < too_old)
        };
        Reading::go_on(&mut self.unlisted, log, oldest.remap_offset, is_past)
    }
}

fn is_forgotten(lateness: Lateness, row: &RemapRow, oldest: &At) -> bool {
    lateness.forgotten(row.latest(), oldest.frontier_before)
}

impl Reading {
    fn begin(log: &dyn Log) -> Result<Reading, LogError> {
        let first = log.first(Topic::Remap, 0);
        let cursor = if first == 0 { Cursor::origin(log) } else { Cursor::at(log, first)? };
        Ok(Reading { cursor, ahead: VecDeque::new(), past: None })
    }

    /// Reads on, up to an offset, over the rows that are past; the last of them.
    fn go_on(
        reading: &mut Option<Reading>,
        log: &dyn Log,
        upto: u64,
        is_past: impl Fn(&RemapRow) -> bool,
    ) -> Result<Option<Cursor>, LogError> {
        // Size may have deleted what was to be read next.
        let kept = reading.take().filter(|read| read.cursor.next >= log.first(Topic::Remap, 0));
        let read = match kept {
            Some(read) => reading.insert(read),
            None => reading.insert(Reading::begin(log)?),
        };
        loop {
            if read.ahead.is_empty() && read.cursor.next < upto {
                read.ahead.extend(read.cursor.advance(log, upto)?);
            }
            match read.ahead.front() {
                Some(next) if is_past(&next.row) => read.past = read.ahead.pop_front(),
                _ => return Ok(read.past.clone()),
            }
        }
    }
}

/// The offset below which a partition is not needed, but of metadata.
fn covered(topic: Topic, partition: u16, oldest: &At, past: &Cursor) -> u64 {
    let of = |uptos: &[Upto]| uptos.get(usize::from(partition)).map_or(0, |upto| upto.offset);
    match topic {
        Topic::Events => of(&oldest.row.events).min(of(&past.row.events)),
        Topic::Verdicts => of(&oldest.row.verdicts),
        Topic::Metadata => 0,
        Topic::Remap => (oldest.remap_offset - 1).min(past.next - 1),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use trueup_log::{Fsync, Journal, Settings};
    use trueup_operators::{
        log::{Append, append_and_wait},
        remap::REMAP_VERSION,
        time::SECOND_US,
    };

    const LATENESS: Lateness = Lateness {
        allowed_lateness_us: SECOND_US,
        correction_horizon_us: 2 * SECOND_US,
        future_skew_us_max: SECOND_US,
    };
    const EPOCHS: u64 = 300;

    /// The row of an epoch, which ends at its second.
    fn row(epoch: u64) -> RemapRow {
        let upto = Upto { offset: 10 * epoch, log_time: LogTime(epoch as i64 * SECOND_US) };
        let origin = RemapRow::origin(1, 1, 1);
        RemapRow { epoch, events: vec![upto], verdicts: vec![upto], metadata: vec![upto], ..origin }
    }

    fn log_of_rows(dir: &std::path::Path) -> Journal {
        let settings = Settings {
            partitions: 1,
            segment_bytes_max: 16 << 10,
            fsync: Fsync::Never,
            ..Settings::default()
        };
        let (log, _) = Journal::open(dir, settings, trueup_log::system_clock()).unwrap();
        for epoch in 1..=EPOCHS {
            let payload = row(epoch).encode().into();
            let (topic, schema_version) = (Topic::Remap, REMAP_VERSION);
            let frame = Append { topic, partition: 0, schema_version, records: 1, payload };
            append_and_wait(&log, vec![frame]).unwrap();
        }
        log
    }

    fn at(epoch: u64) -> At {
        let frontier_before = row(epoch - 1).frontier();
        At { row: row(epoch), frontier_before, remap_offset: epoch }
    }

    fn shortening(listed_s: i64) -> Shortening {
        let listed_us_max = listed_s * SECOND_US;
        Shortening::new(LATENESS, Keep { age_us_max: 0, listed_us_max, bytes_max: None })
    }

    #[test]
    fn what_is_listed_is_kept_for_a_while_and_what_the_ledger_remembers_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of_rows(dir.path());
        let oldest = at(EPOCHS);
        let epoch = |past: Option<Cursor>| past.map(|past| past.row.epoch);
        let forgotten = epoch(shortening(1_000).forgotten(&log, &oldest).unwrap()).unwrap();
        // 64 s of retention, and at most two slices of a second.
        assert!((EPOCHS - 70..EPOCHS - 64).contains(&forgotten), "{forgotten}");
        let while_listed = |listed_s, first_listed| {
            epoch(shortening(listed_s).unlisted(&log, &oldest, first_listed).unwrap())
        };
        assert_eq!(while_listed(1_000, None), Some(forgotten));
        assert_eq!(while_listed(1_000, Some(1)), None);
        assert_eq!(while_listed(1_000, Some(100)), Some(99));
        assert_eq!(while_listed(1_000, Some(EPOCHS)), Some(forgotten));
        assert_eq!(while_listed(150, Some(100)), Some(149), "so old that it may go");
        assert_eq!(while_listed(10, Some(1)), Some(forgotten), "never what is remembered");
    }

    #[test]
    fn who_reads_behind_what_size_deleted_goes_on_where_the_log_begins() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of_rows(dir.path());
        let mut shortening = shortening(1_000);
        let past = shortening.unlisted(&log, &at(50), Some(1)).unwrap();
        assert!(past.is_none());
        let policy = Retention { age_us_max: None, bytes_max: Some(0) };
        log.retain(policy, |topic, _| if topic == Topic::Remap { 200 } else { 0 }).unwrap();
        let first = log.first(Topic::Remap, 0);
        assert!(first > 50, "{first}");
        let past = shortening.unlisted(&log, &at(EPOCHS), Some(220)).unwrap();
        assert_eq!(past.map(|past| past.row.epoch), Some(219));
    }
}
