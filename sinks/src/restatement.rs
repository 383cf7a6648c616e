//! What changed between two sets of views that show the same log otherwise: those that a run has
//! shown, and those of a replay of its log that take their place. Subscribers who have added up the
//! old ones get it as one step.
//!
//! # Why it is hard
//!
//! The two number their rows each in its own way and have no history in common, so nothing but
//! comparing all rows tells. Both hold rows in the order of buckets, so they are read side by side
//! and compared a bucket at a time: what is in memory is one bucket's rows and what changed. The
//! old views are at rest; the new ones go on meanwhile and are read at one epoch, which has to stay
//! in their history until the end.
//!
//! # Promises
//!
//! * The old views at [`Restatement::from`], plus this, are the new ones at [`Restatement::to`],
//!   for each view and each filter.
//! * Bounded: what would hold more than the asked number of rows is [`ReadError::TooManyRows`].

use crate::{
    block::{RowBlock, RowRef},
    catalog::{ViewId, ViewKind},
    tables::{Filter, IncidentKey, Place, ReadError, Step, Tables},
};
use hashbrown::HashMap;
use std::{collections::BTreeMap, ops::Range, sync::Arc};
use trueup_operators::{
    change::Incident,
    event::Fate,
    feed::EpochTimes,
    symbols::{Symbol, Symbols},
    time::{Bucket, EventTime, Granularity},
};

/// Rows, and events that were set aside, that are read at a time.
const PAGE_ROWS: usize = 4_096;
/// A step looks at about this many rows, whether they match or not.
const STEP_ROWS: usize = 1 << 16;

/// What changed from the old views to the new ones.
#[derive(Debug)]
pub struct Restatement {
    from: EpochTimes,
    to: EpochTimes,
    /// By view: −old and +new of a row stand together.
    tables: Vec<RowBlock>,
    events: Vec<(i8, Incident)>,
    changed: u64,
}

impl Restatement {
    /// Compares the newest epoch of each; `old` must be at rest, and both have the same job and the
    /// same symbols. No more than `rows_max` rows and events are held.
    ///
    /// # Errors
    /// `TooManyRows`; `NotReady` when one shows nothing; `Gone` when the new ones have gone on too
    /// far meanwhile.
    pub fn between(
        old: &dyn Tables,
        new: &dyn Tables,
        rows_max: usize,
    ) -> Result<Restatement, ReadError> {
        let from = old.visible().ok_or(ReadError::NotReady)?;
        let to = new.visible().ok_or(ReadError::NotReady)?;
        let mut all = Restatement { from, to, tables: Vec::new(), events: Vec::new(), changed: 0 };
        let mut left = rows_max;
        for view in new.catalog().views() {
            let mut found = RowBlock::default();
            if let ViewKind::Table(_) = view.kind {
                let before = Rows::new(old, view.id, from);
                let after = Rows::new(new, view.id, to);
                all.changed += compare(before, after, &mut found, left)?;
            }
            left = left.checked_sub(found.len()).ok_or(ReadError::TooManyRows { rows_max })?;
            all.tables.push(found);
        }
        all.compare_events(old, new, left)?;
        Ok(all)
    }

    /// The epoch of the old views that it leads from.
    pub fn from(&self) -> EpochTimes {
        self.from
    }

    /// The epoch of the new views that it leads to.
    pub fn to(&self) -> EpochTimes {
        self.to
    }

    /// How many rows are not the same, in all tables.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// What changed of one view, for one subscriber.
    pub fn follow(
        self: &Arc<Self>,
        view: ViewId,
        filter: &Filter,
        tables: &dyn Tables,
    ) -> Restated {
        let (granularity, fates) = match &tables.catalog().views()[usize::from(view.0)].kind {
            ViewKind::Table(table) => (Some(table.granularity), Vec::new()),
            ViewKind::Events(fates) => {
                (None, filter.fate.map_or(fates.to_vec(), |fate| vec![fate]))
            }
        };
        let takes = Takes::new(filter, granularity, tables.symbols());
        Restated { of: Arc::clone(self), view, takes, fates, next: 0 }
    }

    fn compare_events(
        &mut self,
        old: &dyn Tables,
        new: &dyn Tables,
        left: usize,
    ) -> Result<(), ReadError> {
        let before = events(old, self.from)?;
        let mut after = events(new, self.to)?;
        for (key, incident) in before {
            match after.remove(&key) {
                Some(same) if same == incident => {}
                Some(other) => self.events.extend([(-1, incident), (1, other)]),
                None => self.events.push((-1, incident)),
            }
        }
        self.events.extend(after.into_values().map(|incident| (1, incident)));
        match self.events.len() <= left {
            true => Ok(()),
            false => Err(ReadError::TooManyRows { rows_max: left }),
        }
    }
}

/// All events that are listed.
fn events(
    tables: &dyn Tables,
    at: EpochTimes,
) -> Result<BTreeMap<IncidentKey, Incident>, ReadError> {
    let lists = tables.catalog().views().iter().filter_map(|view| match view.kind {
        ViewKind::Events(fates) => Some(fates),
        ViewKind::Table(_) => None,
    });
    let fates: Vec<Fate> = lists.flatten().copied().collect();
    let (mut found, mut before) = (BTreeMap::new(), None);
    loop {
        let page = tables.incidents(&fates, Some(at.epoch), before, PAGE_ROWS)?;
        let Some((key, _)) = page.incidents.last() else { return Ok(found) };
        before = Some(*key);
        found.extend(page.incidents);
    }
}

/// The rows of a table in the order of buckets.
struct Rows<'t> {
    tables: &'t dyn Tables,
    view: ViewId,
    at: EpochTimes,
    page: RowBlock,
    row: usize,
    /// Where the next page begins; none after the last.
    next: Option<Option<Place>>,
}

impl<'t> Rows<'t> {
    fn new(tables: &'t dyn Tables, view: ViewId, at: EpochTimes) -> Rows<'t> {
        Rows { tables, view, at, page: RowBlock::default(), row: 0, next: Some(None) }
    }

    /// The bucket of the next row.
    fn start_us(&mut self) -> Result<Option<i64>, ReadError> {
        while self.row == self.page.len() {
            let Some(from) = self.next else { return Ok(None) };
            let (all, epoch) = (Filter::default(), Some(self.at.epoch));
            let page = self.tables.page(self.view, &all, epoch, from, PAGE_ROWS)?;
            (self.page, self.row, self.next) = (page.rows, 0, page.next.map(Some));
        }
        Ok(Some(self.page.row(self.row).start_us))
    }

    /// The rows of a bucket, if they come next.
    fn take(&mut self, start_us: i64, rows: &mut RowBlock) -> Result<(), ReadError> {
        rows.reset_like(&self.page);
        while self.start_us()? == Some(start_us) {
            rows.copy(&self.page.row(self.row), 1);
            self.row += 1;
        }
        Ok(())
    }
}

/// Appends −old +new of each row that is not the same; how many are not.
fn compare(
    mut old: Rows<'_>,
    mut new: Rows<'_>,
    found: &mut RowBlock,
    rows_max: usize,
) -> Result<u64, ReadError> {
    let (mut before, mut after) = (RowBlock::default(), RowBlock::default());
    let mut changed = 0;
    loop {
        let starts = [old.start_us()?, new.start_us()?];
        let Some(start_us) = starts.into_iter().flatten().min() else { return Ok(changed) };
        old.take(start_us, &mut before)?;
        new.take(start_us, &mut after)?;
        if found.is_empty() {
            let shaped = if before.is_empty() { &after } else { &before };
            found.reset_like(shaped);
        }
        changed += compare_bucket(&before, &after, found);
        if found.len() > rows_max {
            return Err(ReadError::TooManyRows { rows_max });
        }
    }
}

fn compare_bucket(before: &RowBlock, after: &RowBlock, found: &mut RowBlock) -> u64 {
    let key = |row: &RowRef<'_>| (row.key.to_vec(), row.folded);
    let mut olds: HashMap<(Vec<Symbol>, bool), usize> =
        before.rows().enumerate().map(|(i, row)| (key(&row), i)).collect();
    let mut changed = 0;
    for row in after.rows() {
        match olds.remove(&key(&row)).map(|i| before.row(i)) {
            Some(old) if is_same(&old, &row) => continue,
            Some(old) => found.copy(&old, -1),
            None => {}
        }
        found.copy(&row, 1);
        changed += 1;
    }
    let mut gone: Vec<usize> = olds.into_values().collect();
    gone.sort_unstable();
    for &i in &gone {
        found.copy(&before.row(i), -1);
    }
    changed + gone.len() as u64
}

fn is_same(old: &RowRef<'_>, new: &RowRef<'_>) -> bool {
    (old.values, old.version, old.state) == (new.values, new.version, new.state)
}

/// Which rows a subscriber wants.
struct Takes {
    /// None: a text that nothing has.
    dimensions: Option<Vec<(usize, Symbol)>>,
    granularity: Option<Granularity>,
    filter: Filter,
}

impl Takes {
    fn new(filter: &Filter, granularity: Option<Granularity>, symbols: &Symbols) -> Takes {
        let wanted = filter.dimensions.iter();
        let dimensions = wanted.map(|(at, text)| Some((*at, symbols.find(text)?))).collect();
        Takes { dimensions, granularity, filter: filter.clone() }
    }

    fn row(&self, row: &RowRef<'_>) -> bool {
        let Some(dimensions) = &self.dimensions else { return false };
        let bucket = self.granularity.map(|g| g.bucket(EventTime(row.start_us)));
        let is_in = |buckets: &Range<Bucket>| bucket.is_some_and(|b| buckets.contains(&b));
        dimensions.iter().all(|&(at, symbol)| row.key[at] == symbol)
            && self.filter.state.is_none_or(|state| state == row.state)
            && self.filter.buckets.as_ref().is_none_or(is_in)
    }
}

/// Hands out what changed of one view.
pub struct Restated {
    of: Arc<Restatement>,
    view: ViewId,
    takes: Takes,
    fates: Vec<Fate>,
    next: usize,
}

impl Restated {
    /// Goes on by about `rows_max` rows; as [`crate::Follow::step`], and never idle.
    pub fn step(
        &mut self,
        rows_max: usize,
        rows: &mut RowBlock,
        incidents: &mut Vec<(i8, Incident)>,
    ) -> Step {
        let changes = &self.of.tables[usize::from(self.view.0)];
        rows.reset_like(changes);
        incidents.clear();
        let mut looked_at = 0;
        while looked_at < STEP_ROWS && rows.len() + incidents.len() < rows_max.max(1) {
            if self.next < changes.len() {
                let row = changes.row(self.next);
                if self.takes.row(&row) {
                    rows.copy(&row, row.diff);
                }
            } else if let Some((diff, incident)) =
                self.of.events.get(self.next - changes.len()).filter(|_| !self.fates.is_empty())
            {
                if self.fates.contains(&incident.fate) {
                    incidents.push((*diff, *incident));
                }
            } else {
                return Step::Reached(self.of.to);
            }
            self.next += 1;
            looked_at += 1;
        }
        Step::More(self.of.to)
    }
}
