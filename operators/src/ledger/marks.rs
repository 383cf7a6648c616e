//! When what was learnt is forgotten. A queue is filled in the order of epochs, so it is enough to
//! note, for each slice of log time, where in the queue the slice ends; forgetting is then one
//! comparison a slice. Used alike by rows, members of groups and verdicts, which is why they all
//! forget in the same epoch.

use crate::{
    section::{BrokenSection, Reader},
    time::{Lateness, LogTime},
};
use std::collections::VecDeque;

/// Bytes of a mark in an image.
pub(super) const MARK_BYTES: usize = 16;

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
        self.drop_while(|latest| lateness.forgotten(latest, frontier))
    }

    /// Up to where the slices lie that are `past`, which are no longer noted; `None`: none is.
    pub(super) fn drop_while(&mut self, past: impl Fn(LogTime) -> bool) -> Option<u64> {
        let mut end = None;
        while let Some(mark) = self.0.front()
            && past(mark.latest)
        {
            end = Some(mark.end);
            self.0.pop_front();
        }
        end
    }

    /// The latest log time of the slice in which an entry was learnt; `None`: it is still open.
    pub(super) fn latest_of(&self, entry: u64) -> Option<LogTime> {
        let slice = self.0.partition_point(|mark| mark.end <= entry);
        self.0.get(slice).map(|mark| mark.latest)
    }

    /// Up to where the slices end that are noted: `(latest, end)`, oldest first.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (LogTime, u64)> {
        self.0.iter().map(|mark| (mark.latest, mark.end))
    }

    /// Appends the marks; how many is for the caller to say.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for mark in &self.0 {
            out.extend(mark.latest.0.to_le_bytes());
            out.extend(mark.end.to_le_bytes());
        }
    }

    /// Reads so many marks of a queue up to `tail`.
    ///
    /// # Errors
    /// When the section is cut short, or they do not ascend.
    pub(super) fn read(
        count: usize,
        tail: u64,
        reader: &mut Reader<'_>,
    ) -> Result<Marks, BrokenSection> {
        let mut marks = VecDeque::with_capacity(count);
        for i in 0..count {
            let mark = Mark { latest: LogTime(reader.i64()?), end: reader.u64()? };
            let after = |last: &Mark| last.latest < mark.latest && last.end < mark.end;
            if mark.end > tail || !marks.back().is_none_or(after) {
                let (Mark { latest, end }, of) = (mark, marks.back());
                let reason = format!("mark {i} is {latest:?} at {end} of {tail}, after {of:?}");
                return Err(reader.broken(reason));
            }
            marks.push_back(mark);
        }
        Ok(Marks(marks))
    }

    /// Memory of the marks.
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Mark>()
    }
}
