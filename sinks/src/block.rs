//! Rows on their way out, column by column: what a read of any table yields, whatever the key's
//! width and the group behind it. One block is reused for many reads; it allocates nothing per row.

use trueup_operators::{symbols::Symbol, time::BucketState};

/// Some rows of one table, or of a sum over one.
///
/// Invariants: every column has [`RowBlock::len`] entries, `keys` has `key_width` and `values` has
/// `value_width` times as many.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowBlock {
    key_width: usize,
    value_width: usize,
    starts_us: Vec<i64>,
    keys: Vec<Symbol>,
    values: Vec<i64>,
    versions: Vec<u64>,
    states: Vec<BucketState>,
    diffs: Vec<i8>,
    folded: Vec<bool>,
}

/// One row of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowRef<'a> {
    /// The first instant of the row's bucket, µs since 1970.
    pub start_us: i64,
    /// Its dimensions.
    pub key: &'a [Symbol],
    /// Its figures, in the order of the group's columns.
    pub values: &'a [i64],
    /// How many published changes made it.
    pub version: u64,
    /// What may still happen to its bucket.
    pub state: BucketState,
    /// +1: the row is, or appears. −1: it disappears.
    pub diff: i8,
    /// Whether it is what folded of its first dimension. An event may have the text `(other)` of
    /// its own, so that the dimensions do not tell.
    pub folded: bool,
}

impl RowBlock {
    /// An empty block for rows of this shape.
    pub fn new(key_width: usize, value_width: usize) -> RowBlock {
        RowBlock { key_width, value_width, ..RowBlock::default() }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.starts_us.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts_us.is_empty()
    }

    /// Removes all rows, keeps the memory, and takes on a shape.
    pub fn reset(&mut self, key_width: usize, value_width: usize) {
        (self.key_width, self.value_width) = (key_width, value_width);
        self.starts_us.clear();
        self.keys.clear();
        self.values.clear();
        self.versions.clear();
        self.states.clear();
        self.diffs.clear();
        self.folded.clear();
    }

    /// A row by its place.
    ///
    /// # Panics
    /// When there are not so many rows.
    pub fn row(&self, i: usize) -> RowRef<'_> {
        RowRef {
            start_us: self.starts_us[i],
            key: &self.keys[i * self.key_width..(i + 1) * self.key_width],
            values: &self.values[i * self.value_width..(i + 1) * self.value_width],
            version: self.versions[i],
            state: self.states[i],
            diff: self.diffs[i],
            folded: self.folded[i],
        }
    }

    /// All rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = RowRef<'_>> {
        (0..self.len()).map(|i| self.row(i))
    }

    /// Appends a row. `values` appends exactly as many figures as the block's rows have.
    pub(crate) fn push(
        &mut self,
        start_us: i64,
        key: &[Symbol],
        values: impl FnOnce(&mut Vec<i64>),
        version: u64,
        state: BucketState,
        (diff, folded): (i8, bool),
    ) {
        debug_assert_eq!(key.len(), self.key_width);
        self.starts_us.push(start_us);
        self.keys.extend_from_slice(key);
        values(&mut self.values);
        self.versions.push(version);
        self.states.push(state);
        self.diffs.push(diff);
        self.folded.push(folded);
        debug_assert_eq!(self.values.len(), self.starts_us.len() * self.value_width);
    }

    /// Removes all rows and takes on the shape of another block.
    pub(crate) fn reset_like(&mut self, other: &RowBlock) {
        self.reset(other.key_width, other.value_width);
    }

    /// Appends a row of a block of the same shape, with another difference.
    pub(crate) fn copy(&mut self, row: &RowRef<'_>, diff: i8) {
        let values = |to: &mut Vec<i64>| to.extend_from_slice(row.values);
        self.push(row.start_us, row.key, values, row.version, row.state, (diff, row.folded));
    }
}
