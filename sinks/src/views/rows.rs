//! The rows of one bucket of a table, as one worker delivers them: stored by the row number that
//! the worker gave, so that writing hashes nothing.
//!
//! Rows lie in segments of [`SEGMENT_ROWS`]: a bucket that grows to a quarter of a million rows is
//! never copied, and a bucket with ten rows takes only what it needs. An image shares segments
//! ([`crate::segment`]) and says which of them have changed.
//!
//! A number may be given again to another key when its row died. The index then lists the row
//! under both keys, and who reads by index looks at the key as well.

use super::postings::Postings;
use crate::segment::Segment;
use trueup_operators::{
    change::{Change, Key},
    metrics::Group,
    prefetch,
    time::Epoch,
};

/// Rows in a segment. A power of two; few in tests, so that small buckets have several.
pub(crate) const SEGMENT_ROWS: usize = if cfg!(test) { 16 } else { 4_096 };
/// How far ahead of its use a row is asked for.
const PREFETCH_ROWS: usize = 8;

/// A row as it is stored: with four dimensions and the ad job's metrics a cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(64))]
pub(crate) struct Row<const N: usize, M> {
    pub(crate) key: Key<N>,
    /// How often it was published. 0: the number was never used.
    pub(crate) version: u32,
    pub(crate) metrics: M,
}

impl<const N: usize, M: Group> Row<N, M> {
    pub(crate) fn absent() -> Self {
        Row { key: [0; N], version: 0, metrics: M::default() }
    }

    /// What the row was before a change.
    pub(crate) fn before(change: &Change<N, M>) -> Self {
        Row { key: change.key, version: change.old_version, metrics: change.old }
    }

    /// What the row is after a change.
    pub(crate) fn after(change: &Change<N, M>) -> Self {
        let version = change.old_version.saturating_add(1);
        Row { key: change.key, version, metrics: change.new }
    }

    /// Whether it is in the view.
    #[inline]
    pub(crate) fn is_present(&self) -> bool {
        self.version > 0 && self.metrics.records() != 0
    }
}

/// One bucket of a table of one worker.
#[derive(Debug)]
pub(crate) struct Rows<const N: usize, M> {
    segments: Vec<Segment<Row<N, M>>>,
    len: usize,
    postings: Postings,
    /// The last epoch that changed something here.
    pub(crate) changed: Epoch,
    /// How many rows are present.
    pub(crate) present: i64,
}

impl<const N: usize, M: Group> Rows<N, M> {
    pub(crate) fn new() -> Self {
        Rows { segments: Vec::new(), len: 0, postings: Postings::default(), changed: 0, present: 0 }
    }

    /// How many numbers were given, which is the length of a scan.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, row: u32) -> Option<&Row<N, M>> {
        let row = row as usize;
        self.segments.get(row / SEGMENT_ROWS)?.as_slice().get(row % SEGMENT_ROWS)
    }

    #[inline]
    fn prefetch(&self, row: u32) {
        let row = row as usize;
        if let Some(segment) = self.segments.get(row / SEGMENT_ROWS) {
            prefetch::read(segment.as_slice(), row % SEGMENT_ROWS);
        }
    }

    /// Makes the changes of an epoch.
    pub(crate) fn apply(&mut self, changes: &[Change<N, M>]) {
        for (i, change) in changes.iter().enumerate() {
            if let Some(ahead) = changes.get(i + PREFETCH_ROWS) {
                self.prefetch(ahead.row);
            }
            self.set(change);
        }
    }

    fn set(&mut self, change: &Change<N, M>) {
        let at = change.row as usize;
        if at >= self.len {
            self.grow(at + 1);
        }
        let row = &mut self.segments[at / SEGMENT_ROWS].to_mut()[at % SEGMENT_ROWS];
        let (was_used, old_first) = (row.version > 0, row.key[0]);
        *row = Row::after(change);
        let first = change.key[0];
        if !was_used || (old_first != first && !self.postings.holds(first, change.row)) {
            self.postings.push(first, change.row);
        }
    }

    fn grow(&mut self, len: usize) {
        while self.len < len {
            if self.len.is_multiple_of(SEGMENT_ROWS) {
                self.segments.push(Segment::new());
            }
            let begin = self.len % SEGMENT_ROWS;
            let more = (SEGMENT_ROWS - begin).min(len - self.len);
            self.segments[self.len / SEGMENT_ROWS].to_mut().resize(begin + more, Row::absent());
            self.len += more;
        }
    }

    /// Appends a row of a checkpoint.
    pub(crate) fn load(&mut self, row: Row<N, M>) {
        if self.len.is_multiple_of(SEGMENT_ROWS) {
            self.segments.push(Segment::new());
        }
        self.segments[self.len / SEGMENT_ROWS].to_mut().push(row);
        self.postings.push(row.key[0], self.len as u32);
        self.present += i64::from(row.is_present());
        self.len += 1;
    }

    /// The segments, for an image.
    pub(crate) fn segments_mut(&mut self) -> &mut [Segment<Row<N, M>>] {
        &mut self.segments
    }

    /// Appends rows `from..from + max` with their numbers.
    pub(crate) fn copy(&self, from: usize, max: usize, out: &mut Vec<(u32, Row<N, M>)>) {
        let end = self.len.min(from.saturating_add(max));
        let mut at = from;
        while at < end {
            let segment = self.segments[at / SEGMENT_ROWS].as_slice();
            let begin = at % SEGMENT_ROWS;
            let take = (segment.len() - begin).min(end - at);
            let rows = segment[begin..begin + take].iter();
            out.extend(rows.zip(at as u32..).map(|(row, number)| (number, *row)));
            at += take;
        }
    }

    /// Appends the rows of these numbers.
    pub(crate) fn copy_numbers(&self, numbers: &[u32], out: &mut Vec<(u32, Row<N, M>)>) {
        for (i, &number) in numbers.iter().enumerate() {
            if let Some(&ahead) = numbers.get(i + PREFETCH_ROWS) {
                self.prefetch(ahead);
            }
            out.push((number, self.get(number).copied().unwrap_or(Row::absent())));
        }
    }

    pub(crate) fn postings(&self) -> &Postings {
        &self.postings
    }

    pub(crate) fn rows_bytes(&self) -> usize {
        self.segments.iter().map(Segment::bytes).sum()
    }
}
