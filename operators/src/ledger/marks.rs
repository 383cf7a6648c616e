//! When what was learnt is forgotten. A queue is filled in the order of epochs, so it is enough to
//! note, for each slice of log time, where in the queue the slice ends; forgetting is then one
//! comparison a slice. Used alike by rows, members of groups and verdicts, which is why they all
//! forget in the same epoch.

use crate::time::{Lateness, LogTime};
use std::collections::VecDeque;

/// The ends of slices in a queue, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(VecDeque<Mark>);

/// Everything before `end` that no earlier mark covers was learnt in the slice of `latest`.
#[derive(Clone, Copy, Debug)]
struct Mark {
    latest: LogTime,
    end: u64,
}

impl Marks {
    /// Ends a slice of which `latest` is any epoch's latest log time, at the queue's `tail`.
    /// A slice that added nothing needs no mark, so there are never more marks than entries.
    pub(super) fn close(&mut self, latest: LogTime, tail: u64) {
        if self.0.back().map_or(tail > 0, |last| last.end < tail) {
            self.0.push_back(Mark { latest, end: tail });
        }
    }

    /// Up to where the queue is forgotten once the log is complete to `frontier`; `None` if nothing
    /// more is.
    pub(super) fn forget(&mut self, lateness: &Lateness, frontier: LogTime) -> Option<u64> {
        let mut end = None;
        while let Some(mark) = self.0.front()
            && lateness.forgotten(mark.latest, frontier)
        {
            end = Some(mark.end);
            self.0.pop_front();
        }
        end
    }

    /// Memory of the marks.
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Mark>()
    }
}
