//! (being written)

use crate::{
    change::{Counts, Incident},
    feed::Located,
};
use std::sync::Arc;

/// How an event stands in the views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Standing {
    /// It is in no row.
    Absent = 0,
    /// It counts, and costs what it costs.
    Valid = 1,
    /// It counts among the invalid ones, and costs nothing.
    Invalid = 2,
}

/// A row of a batch whose standing changed: −`was` +`is`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDelta {
    /// The row of the batch.
    pub row: u16,
    /// How it stood.
    pub was: Standing,
    /// How it stands now.
    pub is: Standing,
}

/// What the ledger says about a batch: which of its events now stand how. Batches that were read
/// back for a verdict come in the same form as those that just arrived.
#[derive(Debug)]
pub struct Ledgered<B> {
    /// The batch; `None` for what is only counted.
    pub batch: Option<Arc<Located<B>>>,
    /// Its rows whose standing changed, ascending.
    pub rows: Vec<RowDelta>,
    /// Its rows that someone may ask for although they do not count.
    pub incidents: Vec<Incident>,
    /// How many of each.
    pub counts: Counts,
}
