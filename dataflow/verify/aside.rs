//! Events that did not count, as they are found in the log: how many came to which end, and the
//! newest of them one by one. A server lists no more than [`INCIDENTS_MAX`] of a fate, but a log
//! may hold any number, of copies above all: a day that was sent again is a copy in whole. So
//! older ones are only counted.

use std::collections::VecDeque;
use trueup_operators::{
    event::{Fate, Position},
    time::LogTime,
};
use trueup_sinks::INCIDENTS_MAX;

/// An event that does not count but can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Why.
    pub fate: Fate,
    /// Where it is in the log.
    pub position: Position,
    /// When the log took it.
    pub log_time: LogTime,
    /// Its id.
    pub event_id: String,
}

/// Events that did not count, by fate. Each list is in the order of epochs, partitions, offsets
/// and rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asides {
    of: [List; Fate::ALL.len()],
    listed_max: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct List {
    total: u64,
    newest: VecDeque<SetAside>,
}

impl Default for Asides {
    fn default() -> Asides {
        Asides::of_at_most(INCIDENTS_MAX)
    }
}

impl Asides {
    fn of_at_most(listed_max: usize) -> Asides {
        Asides { of: Default::default(), listed_max }
    }

    /// Adds one that came after all that are there.
    pub fn push(&mut self, aside: SetAside) {
        let list = &mut self.of[aside.fate as usize];
        list.total += 1;
        list.newest.push_back(aside);
        if list.newest.len() > self.listed_max {
            list.newest.pop_front();
        }
    }

    /// How many came to this end.
    pub fn total(&self, fate: Fate) -> u64 {
        self.of[fate as usize].total
    }

    /// The newest of them, oldest first.
    pub fn newest(&self, fate: Fate) -> impl Iterator<Item = &SetAside> {
        self.of[fate as usize].newest.iter()
    }

    /// The newest of every fate.
    pub fn iter(&self) -> impl Iterator<Item = &SetAside> {
        self.of.iter().flat_map(|list| &list.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_ones_are_counted_and_not_kept() {
        let mut asides = Asides::of_at_most(2);
        let copy = |offset| SetAside {
            fate: Fate::Duplicate,
            position: Position { partition: 0, offset, row: 0 },
            log_time: LogTime(0),
            event_id: offset.to_string(),
        };
        asides.push(SetAside { fate: Fate::Conflict, ..copy(0) });
        (1..6).for_each(|offset| asides.push(copy(offset)));
        assert_eq!((asides.total(Fate::Duplicate), asides.total(Fate::Conflict)), (5, 1));
        let kept: Vec<_> = asides.newest(Fate::Duplicate).map(|a| a.position.offset).collect();
        assert_eq!(kept, [4, 5]);
        assert_eq!(asides.iter().count(), 3);
    }
}
