//! What differs between the recomputed rows and those that the engine serves, as a report for
//! people and as JSON. The first [`DIFFERENCES_MAX`] differences are kept, all are counted.

use super::{FIGURES, Recomputed, RowFigures, RowKey, ServedEvents, ViewRows, Views};
use serde::Serialize;
use std::{collections::BTreeMap, fmt};
use trueup_operators::{
    change::{Counts, Incident},
    event::{Fate, Position},
    time::{Epoch, LogTime, format_rfc3339},
};

/// How many differences are kept one by one.
pub const DIFFERENCES_MAX: usize = 10_000;
/// How many of them the report for people shows.
const SHOWN_MAX: usize = 50;

/// What is compared: everything, unless something is set.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only buckets that start at this time (µs) or later.
    pub from_us: Option<i64>,
    /// Only buckets that start before this time (µs).
    pub to_us: Option<i64>,
    /// Only views of these names; all if empty.
    pub views: Vec<String>,
    /// By view: buckets that start before this (µs) are not kept by the engine any more.
    pub kept_from_us: BTreeMap<String, i64>,
}

impl Filter {
    fn has_view(&self, name: &str) -> bool {
        self.views.is_empty() || self.views.iter().any(|view| view == name)
    }

    /// Whether rows of this view and bucket are compared.
    pub fn covers(&self, view: &str, start_us: i64) -> bool {
        self.has_view(view) && self.has_bucket(view, start_us)
    }

    fn has_bucket(&self, view: &str, start_us: i64) -> bool {
        self.from_us.is_none_or(|from| from <= start_us)
            && self.to_us.is_none_or(|to| start_us < to)
            && self.kept_from_us.get(view).is_none_or(|&from| from <= start_us)
    }
}

/// A figure that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Its column.
    pub column: String,
    /// What the engine serves.
    pub engine: String,
    /// What was recomputed.
    pub recomputed: String,
}

/// How a row differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum What {
    /// The engine lacks a row that there should be.
    Missing {
        /// Its columns.
        cells: Vec<Cell>,
    },
    /// The engine has a row that should not be.
    Extra {
        /// Its columns.
        cells: Vec<Cell>,
    },
    /// Columns differ.
    Figures {
        /// Those.
        cells: Vec<Cell>,
    },
    /// The engine lacks the view altogether.
    MissingView {
        /// How many rows it should have.
        rows: u64,
    },
    /// The engine has a view that no rollup makes.
    ExtraView {
        /// How many rows it has.
        rows: u64,
    },
}

/// A row of a view, or a count, that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The view; `counts` for how many events came to which end.
    pub view: String,
    /// When the row's bucket starts, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_start: Option<String>,
    /// The row's dimensions by name; absent ones are empty.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dimensions: BTreeMap<String, String>,
    /// How it differs.
    #[serde(flatten)]
    pub what: What,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// As of which epoch.
    pub epoch: Epoch,
    /// How many rows were compared, by view.
    pub rows: BTreeMap<String, u64>,
    /// How many differ, in all.
    pub different: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// No difference.
    pub fn is_equal(&self) -> bool {
        self.different == 0
    }

    fn push(&mut self, difference: Difference) {
        self.different += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference);
        }
    }
}

/// Compares what was recomputed with what the engine serves as of the same epoch.
pub fn compare(recomputed: &Recomputed, engine: &Views, filter: &Filter) -> Comparison {
    let mut comparison = Comparison {
        epoch: recomputed.epoch,
        rows: BTreeMap::new(),
        different: 0,
        differences: Vec::new(),
    };
    for (name, rows) in recomputed.views.iter().filter(|(name, _)| filter.has_view(name)) {
        match engine.get(name) {
            Some(served) => compare_view(recomputed, name, rows, served, filter, &mut comparison),
            None => {
                let rows = rows.len() as u64;
                comparison.push(of_view(name, What::MissingView { rows }));
            }
        }
    }
    let unknown = |name: &String| !recomputed.views.contains_key(name) && filter.has_view(name);
    for (name, rows) in engine.iter().filter(|(name, _)| unknown(name)) {
        comparison.push(of_view(name, What::ExtraView { rows: rows.len() as u64 }));
    }
    comparison
}

/// Adds how many events came to which end. What a filter leaves out cannot be counted apart, so
/// this is for comparisons of everything.
pub fn compare_counts(recomputed: &Recomputed, engine: &Counts, comparison: &mut Comparison) {
    let named = |counts: &Counts| {
        let fates = Fate::ALL.map(|fate| (fate.code(), counts.fates[fate as usize]));
        let others = [
            ("late", counts.late),
            ("verdicts", counts.verdicts),
            ("retractions", counts.retractions),
            ("verdicts_too_late", counts.verdicts_too_late),
            ("folded", counts.folded),
            ("arithmetic_errors", counts.arithmetic_errors),
        ];
        fates.into_iter().chain(others).collect::<Vec<_>>()
    };
    let mut cells = Vec::new();
    for ((column, recomputed), (_, engine)) in
        named(&recomputed.counts).into_iter().zip(named(engine))
    {
        if recomputed != engine {
            cells.push(cell(column, engine, recomputed));
        }
    }
    if !cells.is_empty() {
        comparison.push(of_view("counts", What::Figures { cells }));
    }
}

/// Adds the events that did not count, those that the engine still lists. One that it lists and
/// should not is a difference; one that it does not list is, unless it lists fewer of that fate
/// than there were.
pub fn compare_events(
    recomputed: &Recomputed,
    engine: &[ServedEvents],
    comparison: &mut Comparison,
) {
    let asides = &recomputed.asides;
    for ServedEvents { fate, total, .. } in engine {
        let found = asides.total(*fate);
        if found != *total {
            let cells = vec![cell("events", total, found)];
            comparison.push(of_view(fate.code(), What::Figures { cells }));
        }
    }
    let mut ours: BTreeMap<Position, (Fate, LogTime)> =
        asides.iter().map(|aside| (aside.position, (aside.fate, aside.log_time))).collect();
    for Incident { fate, position, log_time } in engine.iter().flat_map(|of| &of.events) {
        let served = Some((*fate, *log_time));
        let found = ours.remove(position);
        if found != served {
            comparison.push(of_event(*position, served, found));
        }
    }
    let is_whole =
        |fate: Fate| engine.iter().any(|of| of.fate == fate && of.total == of.events.len() as u64);
    for (position, found) in ours.into_iter().filter(|(_, (fate, _))| is_whole(*fate)) {
        comparison.push(of_event(position, None, Some(found)));
    }
}

fn of_event(
    position: Position,
    engine: Option<(Fate, LogTime)>,
    recomputed: Option<(Fate, LogTime)>,
) -> Difference {
    let text = |of: Option<(Fate, LogTime)>| match of {
        Some((fate, log_time)) => {
            let at = format_rfc3339(log_time.0);
            format!("{} at {at}", fate.code())
        }
        None => "–".to_owned(),
    };
    let cells = vec![cell("fate", text(engine), text(recomputed))];
    let what = match (engine, recomputed) {
        (None, _) => What::Missing { cells },
        (_, None) => What::Extra { cells },
        _ => What::Figures { cells },
    };
    let view = match recomputed.or(engine) {
        Some((Fate::TooLate, _)) => "late_events",
        Some((Fate::Duplicate, _)) => "duplicates",
        _ => "quarantine",
    };
    let (topic, partition) = position.place();
    let dimensions = [
        ("topic", topic.name().to_owned()),
        ("partition", partition.to_string()),
        ("offset", position.offset.to_string()),
        ("row", position.row.to_string()),
    ];
    Difference {
        view: view.to_owned(),
        bucket_start: None,
        dimensions: dimensions.map(|(name, value)| (name.to_owned(), value)).into(),
        what,
    }
}

fn compare_view(
    recomputed: &Recomputed,
    name: &str,
    rows: &ViewRows,
    served: &ViewRows,
    filter: &Filter,
    comparison: &mut Comparison,
) {
    let in_range = |key: &RowKey| filter.has_bucket(name, key.0);
    let mut compared = 0;
    for (key, row) in rows.iter().filter(|(key, _)| in_range(key)) {
        compared += 1;
        let what = match served.get(key) {
            None => What::Missing { cells: cells(None, Some(row)) },
            Some(served) if served == row => continue,
            Some(served) => What::Figures { cells: cells(Some(served), Some(row)) },
        };
        comparison.push(of_row(recomputed, name, key, what));
    }
    for (key, row) in served.iter().filter(|(key, _)| in_range(key)) {
        if !rows.contains_key(key) {
            compared += 1;
            let what = What::Extra { cells: cells(Some(row), None) };
            comparison.push(of_row(recomputed, name, key, what));
        }
    }
    comparison.rows.insert(name.to_owned(), compared);
}

fn of_view(name: &str, what: What) -> Difference {
    Difference { view: name.to_owned(), bucket_start: None, dimensions: BTreeMap::new(), what }
}

fn of_row(recomputed: &Recomputed, view: &str, key: &RowKey, what: What) -> Difference {
    let names = recomputed.dimensions.get(view).map_or(&[][..], Vec::as_slice);
    Difference {
        view: view.to_owned(),
        bucket_start: Some(format_rfc3339(key.0)),
        dimensions: names.iter().cloned().zip(key.1.iter().cloned()).collect(),
        what,
    }
}

fn cell(column: &str, engine: impl fmt::Display, recomputed: impl fmt::Display) -> Cell {
    Cell {
        column: column.to_owned(),
        engine: engine.to_string(),
        recomputed: recomputed.to_string(),
    }
}

/// The columns in which two rows differ; all of them if there is only one row.
fn cells(engine: Option<&RowFigures>, recomputed: Option<&RowFigures>) -> Vec<Cell> {
    let columns = |row: Option<&RowFigures>| {
        let text = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
        let figure = |i: usize| text(row.map(|row| row.figures[i].to_string()));
        let mut columns: Vec<(&str, String)> =
            FIGURES.iter().enumerate().map(|(i, &name)| (name, figure(i))).collect();
        columns.push(("version", text(row.map(|row| row.version.to_string()))));
        columns.push(("state", text(row.map(|row| row.state.name().to_owned()))));
        columns
    };
    let pairs = columns(engine).into_iter().zip(columns(recomputed));
    pairs.filter(|(e, r)| e.1 != r.1).map(|(e, r)| cell(e.0, e.1, r.1)).collect()
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in self.differences.iter().take(SHOWN_MAX) {
            writeln!(f, "{difference}")?;
        }
        if self.different > SHOWN_MAX as u64 {
            writeln!(f, "… and {} more", self.different - SHOWN_MAX as u64)?;
        }
        let rows: u64 = self.rows.values().sum();
        let (views, epoch) = (self.rows.len(), self.epoch);
        match self.different {
            0 => write!(f, "epoch {epoch}: {rows} rows of {views} views, no difference"),
            n => write!(f, "epoch {epoch}: {rows} rows of {views} views, {n} DIFFERENT"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.view)?;
        if let Some(start) = &self.bucket_start {
            write!(f, " {start}")?;
        }
        for (name, value) in &self.dimensions {
            write!(f, " {name}={}", if value.is_empty() { "–" } else { value })?;
        }
        let (what, cells) = match &self.what {
            What::Missing { cells } => (": the engine lacks the row", cells),
            What::Extra { cells } => (": the engine has a row too many", cells),
            What::Figures { cells } => ("", cells),
            What::MissingView { rows } => {
                return write!(f, ": the engine lacks the view of {rows} rows");
            }
            What::ExtraView { rows } => {
                return write!(f, ": the engine has a view too many, of {rows} rows");
            }
        };
        f.write_str(what)?;
        for Cell { column, engine, recomputed } in cells {
            write!(f, "\n  {column}: engine {engine}, recomputed {recomputed}")?;
        }
        Ok(())
    }
}
