//! Looking for one event by its id: in the ledger, which has an index, and then in the quarantine,
//! which has none: there the newest events are read back, one by one.
//!
//! Not all of them can be: a segment may be deleted, and in a log that others append to a message
//! may be no event at all. Such a one is not what is looked for as far as anyone can tell, and is
//! passed over. But a log that does not answer now, or is damaged, is no reason to say that there
//! is no such event.

use super::{Node, not_now};
use crate::life::Lives;
use trueup_operators::{
    change::Incident,
    event::{Fate, Position},
    hash::IdHash,
    ledger::Entry,
    log::{Log, Topic, read_frame},
    problem::Problem,
    time::LogTime,
};

/// Quarantined events that a search for one id looks at, newest first.
const QUARANTINED_SEARCHED_MAX: usize = 1_000;

/// Where an event is, and what became of it.
pub(super) struct Found {
    pub(super) position: Position,
    /// What the ledger says of it.
    pub(super) entry: Option<Entry>,
    pub(super) fate: Fate,
    /// The log time by which it was judged, where that was listed. That of its frame may be another
    /// one: epochs keep it within their own.
    pub(super) log_time: Option<LogTime>,
}

impl Node {
    /// Where an event is and what became of it, from the ledger or from the quarantine.
    pub(super) fn find(&self, id: IdHash) -> Result<Option<Found>, Problem> {
        let entry = self.host.engine().lookup(id).map_err(|e| not_now(&e))?;
        if let Some(entry) = entry {
            let fate = if entry.too_late { Fate::TooLate } else { Fate::Counted };
            let position = entry.position;
            return Ok(Some(Found { position, entry: Some(entry), fate, log_time: None }));
        }
        let fates = [Fate::Quarantined];
        let newest = self.host.tables().incidents(&fates, None, None, QUARANTINED_SEARCHED_MAX);
        let newest = newest.map_err(|e| not_now(&e.to_string()))?.incidents;
        let newest = newest.into_iter().map(|(_, incident)| incident);
        let found = quarantined(self.log(), &self.lives, id, newest).map_err(|e| not_now(&e))?;
        Ok(found.map(|Incident { fate, position, log_time }| Found {
            position,
            entry: None,
            fate,
            log_time: Some(log_time),
        }))
    }
}

/// The first of these with an id.
fn quarantined(
    log: &dyn Log,
    lives: &Lives,
    id: IdHash,
    incidents: impl IntoIterator<Item = Incident>,
) -> Result<Option<Incident>, String> {
    for incident in incidents {
        match lives.at(incident.position) {
            Ok(recorded) if recorded.id_hash == Some(id) => return Ok(Some(incident)),
            Ok(_) => {}
            Err(_) if is_no_event(log, incident.position) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether no event is at a position for good: it is deleted, or what is there is something else.
fn is_no_event(log: &dyn Log, position: Position) -> bool {
    let (topic, partition) = position.place();
    topic != Topic::Events
        || position.offset < log.first(Topic::Events, partition)
        || read_frame(log, position).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use trueup_generator::{event::Event, frames::Layout};
    use trueup_log::{Fsync, Journal, Retention, Settings, system_clock};
    use trueup_operators::{
        event::EventType,
        hash::Domain,
        log::{Append, append_and_wait},
    };

    #[test]
    fn what_is_deleted_or_no_event_is_passed_over_and_what_cannot_be_read_now_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            partitions: 1,
            segment_bytes_max: 16 << 10,
            fsync: Fsync::Never,
            ..Settings::default()
        };
        let (journal, _) = Journal::open(dir.path(), settings, system_clock()).unwrap();
        let key = journal.identity().hash_key;
        let frame = |id: &str| {
            let event = Event::new(EventType::Click, id.to_owned(), 1_000_000, "camp", "ad");
            Layout { partitions: 1, key }.frames(&[event], 1_000_000).remove(0)
        };
        let foreign = Append { payload: vec![7; 9_000].into(), ..frame("none") };
        for frame in [frame("old"), foreign.clone(), foreign.clone(), foreign, frame("new")] {
            append_and_wait(&journal, vec![frame]).unwrap();
        }
        let all = Retention { age_us_max: None, bytes_max: Some(0) };
        journal.retain(all, |_, _| 2).unwrap();
        assert_eq!(journal.first(Topic::Events, 0), 2);
        let log: Arc<dyn Log> = Arc::new(journal);
        let lives = Lives::new(Arc::clone(&log));
        let find = |id: &str, offsets: &[u64]| {
            let incidents = offsets.iter().map(|&offset| Incident {
                fate: Fate::Quarantined,
                position: Position { partition: 0, offset, row: 0 },
                log_time: LogTime(0),
            });
            let id = key.hash(Domain::Event, id.as_bytes());
            let found = quarantined(&*log, &lives, id, incidents);
            found.map(|found| found.map(|incident| incident.position.offset))
        };
        assert_eq!(find("new", &[0, 1, 2, 3, 4]), Ok(Some(4)));
        assert_eq!(find("old", &[4, 3, 2, 1, 0]), Ok(None));
        assert!(find("old", &[4, 9]).is_err(), "there is nothing at 9 yet");
    }
}
