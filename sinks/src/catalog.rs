//! Which views there are: one per table of every rollup, and the two lists of events that did not
//! count. The catalog is fixed when a job starts.

use trueup_operators::{
    change::TableId,
    event::Fate,
    rollup::{self, RollupSpec},
    time::Granularity,
};

use crate::incidents::LISTED;

/// The number of a view: its place in [`Catalog::views`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u16);

/// What a view's rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewKind {
    /// Rows of a table of a rollup.
    Table(TableId),
    /// Events that came to one of these ends, newest kept.
    Events(&'static [Fate]),
}

/// A view as the outside knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its number.
    pub id: ViewId,
    /// Its name: `audience_minute`, `quarantine`.
    pub name: String,
    /// What its rows are.
    pub kind: ViewKind,
}

/// All views of a job.
#[derive(Clone, Debug)]
pub struct Catalog {
    rollups: Vec<RollupSpec>,
    views: Vec<View>,
    columns: &'static [&'static str],
}

/// The view of events that came after the correction horizon.
pub const LATE_EVENTS: &str = "late_events";
/// The view of events that were set aside.
pub const QUARANTINE: &str = "quarantine";

/// The fates that [`LATE_EVENTS`] lists.
pub const LATE_FATES: &[Fate] = &[Fate::TooLate];
/// The fates that [`QUARANTINE`] lists.
pub const QUARANTINE_FATES: &[Fate] = &[Fate::Conflict, Fate::Quarantined];
/// All whose events can be asked for one by one.
pub const LISTED_FATES: &[Fate] = &LISTED;

impl Catalog {
    /// The views of these rollups, whose group has these columns.
    pub fn new(rollups: Vec<RollupSpec>, columns: &'static [&'static str]) -> Catalog {
        let tables = rollup::tables(&rollups).into_iter().map(|table| {
            let spec = &rollups[usize::from(table.rollup)];
            (spec.view_name(table.granularity), ViewKind::Table(table))
        });
        let lists = [(LATE_EVENTS, LATE_FATES), (QUARANTINE, QUARANTINE_FATES)]
            .map(|(name, fates)| (name.to_owned(), ViewKind::Events(fates)));
        let views = tables
            .chain(lists)
            .enumerate()
            .map(|(i, (name, kind))| View { id: ViewId(i as u16), name, kind })
            .collect();
        Catalog { rollups, views, columns }
    }

    /// All views, tables first.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// All rollups, by their number.
    pub fn rollups(&self) -> &[RollupSpec] {
        &self.rollups
    }

    /// The names of a table's figures.
    pub fn columns(&self) -> &'static [&'static str] {
        self.columns
    }

    /// A view by its name.
    pub fn view(&self, name: &str) -> Option<&View> {
        self.views.iter().find(|v| v.name == name)
    }

    /// The dimensions of a table's rows.
    pub fn dimensions(&self, table: TableId) -> &[String] {
        &self.rollups[usize::from(table.rollup)].dimensions
    }

    /// Where a table stands in arrays over all tables, whether a rollup has it or not.
    pub(crate) fn slot(table: TableId) -> usize {
        let granularity = match table.granularity {
            Granularity::Minute => 0,
            Granularity::Hour => 1,
            Granularity::Day => 2,
        };
        usize::from(table.rollup) * Granularity::ALL.len() + granularity
    }
}
