//! The lists of events that did not count, one per fate and worker: append-only, in the order of
//! (epoch, position in the log), the newest kept.
//!
//! What is *in the view* does not depend on the number of workers: at an epoch it is the newest
//! `incidents_max` of all workers together. So each list keeps its own newest `incidents_max` of
//! the oldest readable epoch, and [`cut`] finds where the view begins. An event that is pushed out
//! leaves the view as a difference like any other.

use crate::tables::IncidentKey;
use std::collections::VecDeque;
use trueup_operators::{
    change::Incident,
    event::{Fate, Position},
    time::Epoch,
};

/// Reads an event of the log back as JSON: views remember where an event is, not all it said.
pub trait ReadEvents: Send + Sync + 'static {
    /// The event at a position, as its sender would recognise it.
    ///
    /// # Errors
    /// Why it cannot be read any more.
    fn event_json(&self, position: Position) -> Result<serde_json::Value, String>;
}

/// The fates whose events are listed, in the order of [`Lists`].
pub(crate) const LISTED: [Fate; 3] = [Fate::TooLate, Fate::Conflict, Fate::Quarantined];

/// Where a fate's list is. `None`: such events are only counted.
pub(crate) fn list_of(fate: Fate) -> Option<usize> {
    LISTED.iter().position(|&f| f == fate)
}

/// One worker's events of one fate.
#[derive(Debug, Default)]
pub(crate) struct List {
    entries: VecDeque<(Epoch, Incident)>,
    dropped: u64,
}

/// The lists of one worker.
pub(crate) type Lists = [List; LISTED.len()];

fn key(entry: &(Epoch, Incident)) -> IncidentKey {
    (entry.0, entry.1.position)
}

impl List {
    pub(crate) fn push(&mut self, epoch: Epoch, incident: Incident) {
        debug_assert!(
            self.entries.back().is_none_or(|last| key(last) <= (epoch, incident.position)),
            "incidents come in the order of their positions"
        );
        self.entries.push_back((epoch, incident));
    }

    /// Forgets what is not in the view at `first`, the oldest readable epoch, nor later.
    pub(crate) fn trim(&mut self, first: Epoch, incidents_max: usize) {
        let readable = self.entries.partition_point(|e| e.0 <= first);
        let surplus = readable.saturating_sub(incidents_max);
        self.entries.drain(..surplus);
        self.dropped += surplus as u64;
    }

    /// How many there ever were up to an epoch.
    pub(crate) fn total(&self, epoch: Epoch) -> u64 {
        self.dropped + self.entries.partition_point(|e| e.0 <= epoch) as u64
    }

    /// How many of epochs `from..=to` there are.
    fn between(&self, from: Epoch, to: Epoch) -> usize {
        let end = self.entries.partition_point(|e| e.0 <= to);
        end.saturating_sub(self.entries.partition_point(|e| e.0 < from))
    }

    /// Appends up to `max` entries with `from <= key < to`, oldest first.
    pub(crate) fn range(
        &self,
        from: IncidentKey,
        to: IncidentKey,
        max: usize,
        out: &mut Vec<(Epoch, Incident)>,
    ) {
        let begin = self.entries.partition_point(|e| key(e) < from);
        let end = self.entries.partition_point(|e| key(e) < to).max(begin);
        out.extend(self.entries.range(begin..end.min(begin.saturating_add(max))));
    }

    /// Appends up to `max` entries with `from <= key < to`, newest first.
    pub(crate) fn newest(
        &self,
        from: IncidentKey,
        to: IncidentKey,
        max: usize,
        out: &mut Vec<(Epoch, Incident)>,
    ) {
        let begin = self.entries.partition_point(|e| key(e) < from);
        let end = self.entries.partition_point(|e| key(e) < to).max(begin);
        out.extend(self.entries.range(begin..end).rev().take(max));
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<(Epoch, Incident)>()
    }
}

/// The first key of an epoch.
pub(crate) const fn first_of(epoch: Epoch) -> IncidentKey {
    (epoch, Position { partition: 0, offset: 0, row: 0 })
}

/// Where the view of one fate begins at an epoch: the key of the `incidents_max`-th newest event
/// of all workers, or the least key if there are not so many.
///
/// `with` gives each worker's list to a function and adds up what it says.
pub(crate) fn cut(
    epoch: Epoch,
    incidents_max: usize,
    mut with: impl FnMut(&mut dyn FnMut(&List) -> u64) -> u64,
) -> IncidentKey {
    let total = with(&mut |list| list.total(epoch));
    if total <= incidents_max as u64 {
        return first_of(0);
    }
    // The greatest epoch from which on there are at least so many.
    let (mut low, mut high) = (0, epoch);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if with(&mut |list| list.between(middle, epoch) as u64) >= incidents_max as u64 {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let newer = with(&mut |list| list.between(low + 1, epoch) as u64);
    let of_this = incidents_max as u64 - newer;
    let mut entries = Vec::new();
    with(&mut |list| {
        list.range(first_of(low), first_of(low + 1), usize::MAX, &mut entries);
        0
    });
    let mut keys: Vec<IncidentKey> = entries.iter().map(key).collect();
    keys.sort_unstable();
    // `low` was chosen so that 1 <= of_this <= keys.len(), unless events were forgotten meanwhile,
    // which happens only when the epoch itself is no longer readable.
    let place = keys.len().saturating_sub(of_this as usize);
    keys.get(place).copied().unwrap_or(first_of(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trueup_operators::time::LogTime;

    fn incident(offset: u64) -> Incident {
        let position = Position { partition: 0, offset, row: 0 };
        Incident { fate: Fate::Conflict, position, log_time: LogTime(0) }
    }

    #[test]
    fn the_cut_does_not_depend_on_how_lists_are_divided() {
        for incidents_max in 1..12 {
            let mut one = List::default();
            let mut two = [List::default(), List::default()];
            let mut all = Vec::new();
            for epoch in 0..9 {
                for offset in epoch * 3..epoch * 3 + epoch % 4 {
                    one.push(epoch, incident(offset));
                    two[(offset % 2) as usize].push(epoch, incident(offset));
                    all.push((epoch, incident(offset).position));
                }
                let a = cut(epoch, incidents_max, |f| f(&one));
                let b = cut(epoch, incidents_max, |f| two.iter().map(&mut *f).sum());
                assert_eq!(a, b);
                let expected = all.len().saturating_sub(incidents_max);
                assert_eq!(all.iter().filter(|&&k| k < a).count(), expected, "epoch {epoch}");
            }
        }
    }

    #[test]
    fn trimming_keeps_what_the_oldest_readable_epoch_shows() {
        let mut list = List::default();
        for epoch in 0..10 {
            list.push(epoch, incident(epoch));
        }
        list.trim(6, 3);
        assert_eq!(list.entries.front().map(|e| e.0), Some(4));
        assert_eq!((list.total(6), list.total(9)), (7, 10));
        assert_eq!(cut(6, 3, |f| f(&list)), (4, incident(4).position));
    }
}
