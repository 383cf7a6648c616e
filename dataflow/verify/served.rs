//! The rows that a running engine serves, in the form in which they are compared.

use super::{FIGURES, RowFigures, Views};
use std::collections::BTreeMap;
use trueup_operators::{change::Incident, event::Fate, time::Epoch};
use trueup_sinks::{Filter, Tables, ViewKind, catalog::LISTED_FATES, tables::ReadError};

/// Rows, and events that were set aside, copied out of a view at a time.
const PAGE_ROWS: usize = 4_096;

/// What an engine serves at an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// The epoch.
    pub epoch: Epoch,
    /// All rows of all its tables.
    pub views: Views,
    /// By view: buckets that start before this (µs) are not kept there any more.
    pub kept_from_us: BTreeMap<String, i64>,
}

/// Reads all rows of all tables at one epoch, or at the newest.
///
/// # Errors
/// When there is no epoch, it is gone from the history, or it goes while it is read.
pub fn served(tables: &dyn Tables, epoch: Option<Epoch>) -> Result<Served, ReadError> {
    let newest = tables.visible().ok_or(ReadError::NotReady)?;
    let epoch = epoch.unwrap_or(newest.epoch);
    let mut served = Served { epoch, views: Views::new(), kept_from_us: BTreeMap::new() };
    for view in tables.catalog().views() {
        let ViewKind::Table(table) = view.kind else { continue };
        let mut from = None;
        let rows = served.views.entry(view.name.clone()).or_default();
        loop {
            let page = tables.page(view.id, &Filter::default(), Some(epoch), from, PAGE_ROWS)?;
            for row in page.rows.rows() {
                let text = |&symbol| tables.symbols().text(symbol).to_string();
                let mut figures = [0; FIGURES.len()];
                for (to, from) in figures.iter_mut().zip(row.values) {
                    *to = *from;
                }
                // As wide as a change's; the sums of reports are wider.
                let version = u32::try_from(row.version).unwrap_or(u32::MAX);
                let key = (row.start_us, row.key.iter().map(text).collect());
                rows.insert(key, RowFigures { figures, version, state: row.state });
            }
            from = page.next;
            if from.is_none() {
                let kept_from_us = tables.kept_from_us(table.granularity, page.at);
                served.kept_from_us.insert(view.name.clone(), kept_from_us);
                break;
            }
        }
    }
    Ok(served)
}

/// What an engine serves of the events that ended in one way, other than being counted.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedEvents {
    /// What became of them.
    pub fate: Fate,
    /// Them, the newest first.
    pub events: Vec<Incident>,
    /// How many there were, whether they are kept or not.
    pub total: u64,
}

/// Reads the events that are listed, fate by fate, at one epoch or at the newest.
///
/// # Errors
/// As [`served`].
pub fn served_events(
    tables: &dyn Tables,
    epoch: Option<Epoch>,
) -> Result<Vec<ServedEvents>, ReadError> {
    let newest = tables.visible().ok_or(ReadError::NotReady)?;
    let epoch = epoch.unwrap_or(newest.epoch);
    LISTED_FATES.iter().map(|&fate| events_of(tables, epoch, fate)).collect()
}

fn events_of(tables: &dyn Tables, epoch: Epoch, fate: Fate) -> Result<ServedEvents, ReadError> {
    let mut served = ServedEvents { fate, events: Vec::new(), total: 0 };
    let mut before = None;
    loop {
        let page = tables.incidents(&[fate], Some(epoch), before, PAGE_ROWS)?;
        served.total = page.total;
        let Some((key, _)) = page.incidents.last() else { return Ok(served) };
        before = Some(*key);
        served.events.extend(page.incidents.iter().map(|(_, incident)| *incident));
    }
}
