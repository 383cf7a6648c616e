//! The lists of events that did not count, one per fate and worker: append-only, in the order of
//! (epoch, position in the log), the newest kept. With those that were quarantined go messages of
//! other topics of a shared log that are none of ours; their positions say so.
//!
//! What is *in the view* does not depend on the number of workers: at an epoch it is the newest
//! `incidents_max` of all workers together. So each list keeps its own newest `incidents_max` of
//! the oldest readable epoch, and [`cut`] finds where the view begins. An event that is pushed out
//! leaves the view as a difference like any other.

use crate::{segment::Segment, tables::IncidentKey};
use std::collections::VecDeque;
use trueup_operators::{
    change::Incident,
    event::{Fate, Position},
    time::Epoch,
};

/// Reads an event of the log back as JSON: views remember where an event is, not all it said.
pub trait ReadEvents: Send + Sync + 'static {
    /// The event at a position, as its sender would recognise it; or the message.
    ///
    /// # Errors
    /// Why it cannot be read any more.
    fn event_json(&self, position: Position) -> Result<serde_json::Value, String>;
}

/// The fates whose events are listed, in the order of [`Lists`].
pub(crate) const LISTED: [Fate; 4] =
    [Fate::TooLate, Fate::Conflict, Fate::Quarantined, Fate::Duplicate];

/// How many of them keep what they name in the log. A copy does not: what it says stands in the
/// first of its kind as well, and there is one in nearly every segment.
pub(crate) const KEEPING: usize = 3;

/// Where a fate's list is. `None`: such events are only counted.
pub(crate) fn list_of(fate: Fate) -> Option<usize> {
    LISTED.iter().position(|&f| f == fate)
}

/// An entry of a list.
pub(crate) type Entry = (Epoch, Incident);

/// Entries in a part of a list, which is what an image shares and a checkpoint replaces. Few in
/// tests, so that short lists have several.
pub(crate) const PART_ENTRIES: usize = if cfg!(test) { 8 } else { 4_096 };

/// One worker's events of one fate.
#[derive(Debug, Default)]
pub(crate) struct List {
    /// Full but for the last.
    parts: VecDeque<Segment<Entry>>,
    /// The number of the first of them.
    first_part: u32,
    /// How many entries of the first part are dropped.
    skip: usize,
    dropped: u64,
}

/// The lists of one worker.
pub(crate) type Lists = [List; LISTED.len()];

pub(crate) fn key(entry: &Entry) -> IncidentKey {
    (entry.0, entry.1.position)
}

impl List {
    /// A list of which only these entries, oldest first, are left; so many were dropped before.
    pub(crate) fn of(entries: Vec<Entry>, dropped: u64) -> List {
        let parts = entries.chunks(PART_ENTRIES).map(|part| Segment::Own(part.to_vec()));
        List { parts: parts.collect(), first_part: 0, skip: 0, dropped }
    }

    pub(crate) fn push(&mut self, epoch: Epoch, incident: Incident) {
        debug_assert!(
            self.len()
                .checked_sub(1)
                .is_none_or(|last| { key(self.get(last)) <= (epoch, incident.position) }),
            "incidents come in the order of their positions"
        );
        if self.parts.back().is_none_or(|part| part.as_slice().len() == PART_ENTRIES) {
            self.parts.push_back(Segment::new());
        }
        if let Some(part) = self.parts.back_mut() {
            part.to_mut().push((epoch, incident));
        }
    }

    /// How many there are.
    fn len(&self) -> usize {
        let Some(last) = self.parts.back() else { return 0 };
        (self.parts.len() - 1) * PART_ENTRIES + last.as_slice().len() - self.skip
    }

    fn get(&self, at: usize) -> &Entry {
        let at = at + self.skip;
        &self.parts[at / PART_ENTRIES].as_slice()[at % PART_ENTRIES]
    }

    /// How many entries, from the oldest on, are of this kind; the others come after them.
    fn partition_point(&self, is_before: impl Fn(&Entry) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if is_before(self.get(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Forgets what is not in the view at `first`, the oldest readable epoch, nor later.
    pub(crate) fn trim(&mut self, first: Epoch, incidents_max: usize) {
        let readable = self.partition_point(|e| e.0 <= first);
        let surplus = readable.saturating_sub(incidents_max);
        self.dropped += surplus as u64;
        self.skip += surplus;
        while self.skip >= PART_ENTRIES {
            self.parts.pop_front();
            self.first_part += 1;
            self.skip -= PART_ENTRIES;
        }
    }

    /// The epoch of the oldest entry.
    pub(crate) fn first(&self) -> Option<Epoch> {
        (self.len() > 0).then(|| self.get(0).0)
    }

    /// How many there ever were up to an epoch.
    pub(crate) fn total(&self, epoch: Epoch) -> u64 {
        self.dropped + self.partition_point(|e| e.0 <= epoch) as u64
    }

    /// How many of epochs `from..=to` there are.
    fn between(&self, from: Epoch, to: Epoch) -> usize {
        let end = self.partition_point(|e| e.0 <= to);
        end.saturating_sub(self.partition_point(|e| e.0 < from))
    }

    /// Appends up to `max` entries with `from <= key < to`, oldest first.
    pub(crate) fn range(
        &self,
        from: IncidentKey,
        to: IncidentKey,
        max: usize,
        out: &mut Vec<Entry>,
    ) {
        let begin = self.partition_point(|e| key(e) < from);
        let end = self.partition_point(|e| key(e) < to).max(begin);
        out.extend((begin..end).take(max).map(|at| *self.get(at)));
    }

    /// Appends up to `max` entries with `from <= key < to`, newest first.
    pub(crate) fn newest(
        &self,
        from: IncidentKey,
        to: IncidentKey,
        max: usize,
        out: &mut Vec<Entry>,
    ) {
        let begin = self.partition_point(|e| key(e) < from);
        let end = self.partition_point(|e| key(e) < to).max(begin);
        out.extend((begin..end).rev().take(max).map(|at| *self.get(at)));
    }

    /// How many there ever were.
    pub(crate) fn total_ever(&self) -> u64 {
        self.dropped + self.len() as u64
    }

    /// Its parts with their numbers, for an image. The first may begin with dropped entries.
    pub(crate) fn parts_mut(&mut self) -> impl Iterator<Item = (u32, &mut Segment<Entry>)> {
        (self.first_part..).zip(&mut self.parts)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(Segment::bytes).sum()
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

    /// More entries than a part has, trimmed across its bounds.
    #[test]
    fn lists_of_many_parts_are_as_one() {
        const ENTRIES: u64 = 5 * PART_ENTRIES as u64 + 3;
        let mut list = List::default();
        for offset in 0..ENTRIES {
            list.push(offset / 3, incident(offset));
        }
        let at = |offset: u64| (offset / 3, incident(offset));
        for epoch in 0..=ENTRIES / 3 {
            list.trim(epoch, 5);
            let readable = (3 * (epoch + 1)).min(ENTRIES);
            let first = readable.saturating_sub(5);
            assert_eq!(list.total(epoch), readable);
            let begin = (first / PART_ENTRIES as u64) as u32;
            assert_eq!(list.parts_mut().next().map(|(number, _)| number), Some(begin));
            for max in [1, 7, 100] {
                let (mut oldest, mut newest) = (Vec::new(), Vec::new());
                list.range(first_of(0), first_of(Epoch::MAX), max, &mut oldest);
                list.newest(first_of(0), first_of(Epoch::MAX), max, &mut newest);
                assert_eq!(oldest, (first..ENTRIES).take(max).map(at).collect::<Vec<_>>());
                assert_eq!(newest, (first..ENTRIES).rev().take(max).map(at).collect::<Vec<_>>());
            }
        }
        assert_eq!(list.total_ever(), ENTRIES);
    }

    #[test]
    fn trimming_keeps_what_the_oldest_readable_epoch_shows() {
        let mut list = List::default();
        for epoch in 0..10 {
            list.push(epoch, incident(epoch));
        }
        assert_eq!(List::default().first(), None);
        list.trim(6, 3);
        assert_eq!(list.first(), Some(4));
        assert_eq!((list.get(0).0, list.len()), (4, 6));
        assert_eq!((list.total(6), list.total(9)), (7, 10));
        assert_eq!(cut(6, 3, |f| f(&list)), (4, incident(4).position));
    }
}
