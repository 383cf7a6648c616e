//! Every (topic, partition) of the journal as one small number, a *slot*, so that tables of
//! partitions are plain vectors: events 0…n−1, then one slot for each other topic.
//!
//! A slot lives in memory only. Files name topic and partition, so that a topic that is added
//! later moves nothing on disk.

use trueup_operators::log::Topic;

/// How topics and partitions are numbered in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    events: u16,
}

impl Slots {
    /// With so many partitions of events; every other topic has one.
    pub(crate) const fn new(events: u16) -> Slots {
        Slots { events }
    }

    /// How many partitions a topic has.
    pub(crate) const fn partitions(self, topic: Topic) -> u16 {
        match topic {
            Topic::Events => self.events,
            Topic::Verdicts | Topic::Metadata | Topic::Remap => 1,
        }
    }

    /// How many slots there are.
    pub(crate) fn count(self) -> usize {
        Topic::ALL.iter().map(|&topic| usize::from(self.partitions(topic))).sum()
    }

    /// The first slot of a topic.
    fn base(self, topic: Topic) -> usize {
        Topic::ALL
            .iter()
            .take_while(|&&before| before != topic)
            .map(|&before| usize::from(self.partitions(before)))
            .sum()
    }

    /// The slot of a partition; `None` if the topic has no such partition.
    pub(crate) fn slot(self, topic: Topic, partition: u16) -> Option<usize> {
        (partition < self.partitions(topic)).then(|| self.base(topic) + usize::from(partition))
    }

    /// All partitions, in the order of their slots.
    pub(crate) fn all(self) -> impl Iterator<Item = (Topic, u16)> {
        Topic::ALL.into_iter().flat_map(move |topic| {
            (0..self.partitions(topic)).map(move |partition| (topic, partition))
        })
    }
}

/// The inverse of `topic as u8`.
pub(crate) fn topic_from_code(code: u8) -> Option<Topic> {
    Topic::ALL.into_iter().find(|&topic| topic as u8 == code)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn slots_number_all_partitions_without_gaps() {
        for events in [1, 4, 256] {
            let slots = Slots::new(events);
            assert_eq!(slots.all().count(), slots.count());
            for (slot, (topic, partition)) in slots.all().enumerate() {
                assert_eq!(slots.slot(topic, partition), Some(slot));
                assert_eq!(topic_from_code(topic as u8), Some(topic));
            }
            assert_eq!(slots.slot(Topic::Events, events), None);
            assert_eq!(slots.slot(Topic::Remap, 1), None);
        }
    }
}
