//! The two sides of a row, brought together: a follower says −old and +new, mostly one after the
//! other, but a row that moved to another place of its table is said to go here and to come there,
//! and a message has both.
//!
//! What came alone waits until its bucket is done, so the memory that it takes is bounded by the
//! rows of a bucket that came or went in one step.

use super::shape::{Shape, Texts};
use std::collections::BTreeMap;
use trueup_operators::symbols::Symbols;
use trueup_sinks::{RowBlock, block::RowRef};

/// What a row was and what it is, as texts.
type Sides = (Option<String>, Option<String>);

/// A row that changed: its name, what it was, what it is.
pub(super) struct Pair<'p> {
    pub(super) row: &'p str,
    pub(super) old: Option<&'p str>,
    pub(super) new: Option<&'p str>,
}

/// Brings the rows of a way together.
pub(super) struct Pairs<'s> {
    shape: &'s Shape,
    start_us: i64,
    lone: BTreeMap<String, Sides>,
}

impl<'s> Pairs<'s> {
    pub(super) fn new(shape: &'s Shape) -> Pairs<'s> {
        Pairs { shape, start_us: i64::MIN, lone: BTreeMap::new() }
    }

    /// Takes the next rows, and gives those that are done.
    pub(super) fn take<E>(
        &mut self,
        symbols: &Symbols,
        block: &RowBlock,
        mut each: impl FnMut(Pair<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let texts = Texts::of_block(symbols, block);
        let mut rows = block.rows().peekable();
        while let Some(row) = rows.next() {
            if row.start_us != self.start_us {
                self.finish(&mut each)?;
                self.start_us = row.start_us;
            }
            let name = self.shape.row(&texts, &row);
            let is_other_side = |next: &RowRef<'_>| is_pair(&row, next);
            if let Some(next) = rows.next_if(is_other_side) {
                let (old, new) = (self.shape.figures(&row), self.shape.figures(&next));
                each(Pair { row: &name, old: Some(&old), new: Some(&new) })?;
                continue;
            }
            let sides = self.lone.entry(name).or_default();
            let side = if row.diff < 0 { &mut sides.0 } else { &mut sides.1 };
            *side = Some(self.shape.figures(&row));
        }
        Ok(())
    }

    /// Gives what came alone and was not joined.
    pub(super) fn finish<E>(
        &mut self,
        each: &mut impl FnMut(Pair<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some((row, (old, new))) = self.lone.pop_first() {
            if old != new {
                each(Pair { row: &row, old: old.as_deref(), new: new.as_deref() })?;
            }
        }
        Ok(())
    }
}

/// Whether a row is what another one has become.
fn is_pair(old: &RowRef<'_>, new: &RowRef<'_>) -> bool {
    let is_one = old.start_us == new.start_us && old.key == new.key && old.folded == new.folded;
    old.diff < 0 && new.diff > 0 && is_one
}
