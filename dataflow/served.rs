//! The views that a process shows, through all its runs: those of the one that goes, and while the
//! next one begins, those of the one before. In a cluster each generation has a run; a process that
//! is alone begins another one when it takes up a replay.
//!
//! # Why it is hard
//!
//! A run begins with views of its own, which are as old as the checkpoint that it loads.
//! Readers must see neither the step back nor the change: so the new views take the place of the
//! old ones when they show what those showed. What an epoch holds follows from the log alone, so
//! the same epoch has the same rows in both; a subscriber that has reached an epoch goes on after
//! it in the new views, whose history begins at the checkpoint. One that is in the middle of a
//! step, or of its snapshot, ends that in the old ones, which live as long as somebody reads them.
//!
//! # Replays
//!
//! A run that begins with what a replay found ([`crate::replay`]) shows other figures for the same
//! epochs. So it is shown from an epoch on that it has closed itself, which nobody has seen before:
//! an epoch's number says which figures it has. What changed between the old views and the new is
//! found by comparing all rows ([`Restatement`]), and a subscriber who has added up the old ones
//! gets it as the one step to that epoch. One who comes back later with an older epoch is told that
//! it is gone, as is one who has not come along in the meantime.
//!
//! # Promises
//!
//! * What is visible never goes back.
//! * A subscriber gets each difference once, through any number of runs. If it was slower than the
//!   history of the new views is long, it is told that its epoch is gone.
//! * What a replay changed comes in one step, or the reader is told to begin anew.

use crate::checkpoint::manifest::Figures;
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use std::sync::{Arc, Weak};
use tokio::sync::watch;
use trueup_operators::{
    change::{Counts, Incident},
    event::Fate,
    feed::EpochTimes,
    symbols::Symbols,
    time::{Epoch, Granularity, Lateness},
};
use trueup_sinks::{
    Catalog, Filter, Follow, IncidentKey, IncidentPage, Memory, Page, Place, ReadError, Restated,
    Restatement, RowBlock, Start, Step, SumQuery, Summed, Tables, ViewId,
};

/// The most rows that change by a replay for subscribers to get them as a step: some 100 bytes
/// each, held as long as somebody reads the old views.
const RESTATED_ROWS_MAX: usize = 4_000_000;
/// How often comparing is begun anew when the views have gone on too far.
const TRIES_MAX: u32 = 3;

/// Views of one run after another.
pub(crate) struct Served {
    catalog: Catalog,
    symbols: Arc<Symbols>,
    lateness: Lateness,
    now: RwLock<Now>,
    visible: watch::Sender<Option<Epoch>>,
    replayed: Mutex<Option<Replayed>>,
}

/// What is shown, and how often it was replaced.
#[derive(Clone)]
struct Now {
    tables: Arc<dyn Tables>,
    /// The replay whose figures they have.
    figures: Option<String>,
    turn: u64,
    /// When other figures were shown last.
    restated: Option<Turn>,
}

/// A turn at which the figures became others.
#[derive(Clone)]
struct Turn {
    turn: u64,
    /// The first epoch that has the new ones.
    since: Epoch,
    /// How the ones came from the others; none if nobody can use it.
    how: Option<Arc<Restatement>>,
    /// The old ones, as long as somebody reads them.
    old: Weak<dyn Tables>,
}

/// A replay whose figures are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replayed {
    /// Its name.
    pub id: String,
    /// The first epoch that has its figures.
    pub since_epoch: Epoch,
    /// How many rows it changed; none if nothing was shown before, or if they are too many.
    pub rows_changed: Option<u64>,
}

/// The views of a run, as they are to be shown.
pub(crate) struct Next<'a> {
    /// Them.
    pub(crate) tables: &'a Arc<dyn Tables>,
    /// Whose figures they have, if there was a replay.
    pub(crate) figures: Option<&'a Figures>,
    /// The first epoch that the run has closed, once it has.
    pub(crate) since: Option<Epoch>,
}

impl Served {
    /// Shows these, with those figures; the next ones must be of the same job and have the same
    /// symbols.
    pub(crate) fn new(
        tables: Arc<dyn Tables>,
        symbols: Arc<Symbols>,
        figures: Option<&Figures>,
    ) -> Arc<Served> {
        let figures = figures.map(|figures| figures.replay.clone());
        Arc::new(Served {
            catalog: tables.catalog().clone(),
            symbols,
            lateness: tables.lateness(),
            visible: watch::Sender::new(tables.visible().map(|at| at.epoch)),
            now: RwLock::new(Now { tables, figures, turn: 0, restated: None }),
            replayed: Mutex::default(),
        })
    }

    /// Shows the next ones, if they show what these do; whether they do. Those of a replay are
    /// shown when they show more, and that may take as long as it takes to compare them.
    pub(crate) fn replace(&self, next: &Next<'_>) -> bool {
        let figures = next.figures.map(|figures| figures.replay.clone());
        let is_seen = next.figures.is_none_or(|figures| figures.seen);
        let now = self.now();
        let nothing = now.tables.visible().is_none();
        match figures == now.figures || nothing && is_seen {
            true => self.go_on(next.tables, figures),
            false => self.restate(next, figures),
        }
    }

    fn go_on(&self, next: &Arc<dyn Tables>, figures: Option<String>) -> bool {
        let mut now = self.now.write();
        if epoch(next) < epoch(&now.tables) {
            return false;
        }
        (now.tables, now.figures, now.turn) = (Arc::clone(next), figures, now.turn + 1);
        true
    }

    fn restate(&self, next: &Next<'_>, figures: Option<String>) -> bool {
        let (Some(since), Some(visible)) = (next.since, epoch(next.tables)) else { return false };
        let old = self.tables();
        if visible < since || epoch(&old) >= Some(since) {
            return false;
        }
        let shown = old.visible().is_some();
        let how = shown.then(|| restatement(&*old, &**next.tables)).flatten().map(Arc::new);
        let rows_changed = how.as_ref().map(|how| how.changed());
        tracing::info!(id = figures, since, rows_changed, "the figures of a replay are shown");
        let replayed = figures.clone().map(|id| Replayed { id, since_epoch: since, rows_changed });
        let mut now = self.now.write();
        let turn = now.turn + 1;
        let restated = Some(Turn { turn, since, how, old: Arc::downgrade(&old) });
        *now = Now { tables: Arc::clone(next.tables), figures, turn, restated };
        drop(now);
        *self.replayed.lock() = replayed;
        true
    }

    /// Whether these are the ones that are shown.
    pub(crate) fn shows(&self, tables: &Arc<dyn Tables>) -> bool {
        Arc::ptr_eq(&self.tables(), tables)
    }

    /// The replay whose figures are shown, if this process has begun to show them.
    pub(crate) fn replayed(&self) -> Option<Replayed> {
        self.replayed.lock().clone()
    }

    /// Nobody can use any more what led from views that are gone.
    fn forget(&self) {
        let is_due = |turn: &Turn| turn.how.is_some() && turn.old.strong_count() == 0;
        if self.now.read().restated.as_ref().is_some_and(is_due)
            && let Some(turn) = &mut self.now.write().restated
        {
            turn.how = None;
        }
    }

    /// Wakes whoever waits for a newer epoch, if there is one.
    pub(crate) fn look(&self) {
        self.forget();
        let newest = epoch(&self.tables());
        self.visible.send_if_modified(|visible| {
            let is_newer = newest > *visible;
            *visible = newest.max(*visible);
            is_newer
        });
    }

    fn now(&self) -> Now {
        self.now.read().clone()
    }

    fn tables(&self) -> Arc<dyn Tables> {
        Arc::clone(&self.now.read().tables)
    }

    /// The views, if they are asked for an epoch that has their figures.
    fn at(&self, epoch: Option<Epoch>) -> Result<Arc<dyn Tables>, ReadError> {
        let now = self.now.read();
        epoch.map_or(Ok(()), |epoch| now.check(epoch))?;
        Ok(Arc::clone(&now.tables))
    }
}

fn epoch(tables: &Arc<dyn Tables>) -> Option<Epoch> {
    tables.visible().map(|at| at.epoch)
}

/// What subscribers get; none when it is too much, or the views do not wait for it.
fn restatement(old: &dyn Tables, new: &dyn Tables) -> Option<Restatement> {
    let mut tries_left = TRIES_MAX;
    loop {
        tries_left -= 1;
        match Restatement::between(old, new, RESTATED_ROWS_MAX) {
            Ok(found) => return Some(found),
            Err(ReadError::Gone { .. }) if tries_left > 0 => {}
            Err(error) => {
                tracing::warn!(%error, "subscribers have to begin anew with what a replay found");
                return None;
            }
        }
    }
}

impl Now {
    /// Whether a reader's epoch has the figures that are shown.
    fn check(&self, epoch: Epoch) -> Result<(), ReadError> {
        match &self.restated {
            Some(Turn { since, .. }) if epoch < *since => {
                Err(ReadError::Gone { epoch, first: *since })
            }
            _ => Ok(()),
        }
    }
}

impl Tables for Served {
    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    fn lateness(&self) -> Lateness {
        self.lateness
    }

    fn visible(&self) -> Option<EpochTimes> {
        self.tables().visible()
    }

    fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        self.visible.subscribe()
    }

    fn first_epoch(&self) -> Option<Epoch> {
        let now = self.now.read();
        let since = now.restated.as_ref().map(|restated| restated.since);
        now.tables.first_epoch().map(|first| first.max(since.unwrap_or(first)))
    }

    fn kept_from_us(&self, granularity: Granularity, at: EpochTimes) -> i64 {
        self.tables().kept_from_us(granularity, at)
    }

    fn sum(&self, query: &SumQuery) -> Result<Summed, ReadError> {
        self.at(query.epoch)?.sum(query)
    }

    fn page(
        &self,
        view: ViewId,
        filter: &Filter,
        epoch: Option<Epoch>,
        from: Option<Place>,
        rows_max: usize,
    ) -> Result<Page, ReadError> {
        self.at(epoch)?.page(view, filter, epoch, from, rows_max)
    }

    fn incidents(
        &self,
        fates: &[Fate],
        epoch: Option<Epoch>,
        before: Option<IncidentKey>,
        rows_max: usize,
    ) -> Result<IncidentPage, ReadError> {
        self.at(epoch)?.incidents(fates, epoch, before, rows_max)
    }

    fn first_listed(&self) -> Option<Epoch> {
        self.tables().first_listed()
    }

    fn follow(
        self: Arc<Self>,
        view: ViewId,
        filter: Filter,
        start: Start,
    ) -> Result<Box<dyn Follow>, ReadError> {
        let now = self.now();
        if let Start::After(Some(epoch)) | Start::Snapshot(Some(epoch)) | Start::Between(epoch, _) =
            start
        {
            now.check(epoch)?;
        }
        let Now { tables, turn, .. } = now;
        let follow = tables.follow(view, filter.clone(), start)?;
        let is_between = matches!(start, Start::After(_));
        let over = None;
        Ok(Box::new(Following { served: self, turn, follow, view, filter, is_between, over }))
    }

    fn counts(&self) -> Result<(EpochTimes, Counts), ReadError> {
        self.tables().counts()
    }

    fn row_counts(&self) -> Result<(EpochTimes, Vec<u64>), ReadError> {
        self.tables().row_counts()
    }

    fn memory(&self) -> Memory {
        self.tables().memory()
    }

    fn epoch_hash(&self, epoch: Epoch) -> Option<u64> {
        self.tables().epoch_hash(epoch)
    }
}

/// A subscription that goes on in the views that take the place of those it began with.
struct Following {
    served: Arc<Served>,
    turn: u64,
    follow: Box<dyn Follow>,
    view: ViewId,
    filter: Filter,
    /// Whether it has brought all on the way to where it is.
    is_between: bool,
    /// What it brings of what a replay changed.
    over: Option<Over>,
}

/// The step from the figures before a replay to those of the replay.
struct Over {
    restated: Restated,
    /// The views that it leads to.
    tables: Arc<dyn Tables>,
    turn: u64,
}

impl Following {
    /// Goes over to the views that are shown now, if they are others and it can.
    fn go_over(&mut self) -> Result<(), ReadError> {
        let now = self.served.now();
        if now.turn == self.turn || !self.is_between {
            return Ok(());
        }
        let Some(at) = self.follow.at() else { return Ok(()) };
        if let Some(restated) = now.restated.as_ref().filter(|turn| self.turn < turn.turn) {
            return self.begin_restated(at, restated, &now);
        }
        self.go_on(&now.tables, now.turn, at)
    }

    fn go_on(
        &mut self,
        tables: &Arc<dyn Tables>,
        turn: u64,
        at: EpochTimes,
    ) -> Result<(), ReadError> {
        let start = Start::After(Some(at.epoch));
        self.follow = Arc::clone(tables).follow(self.view, self.filter.clone(), start)?;
        self.turn = turn;
        Ok(())
    }

    /// Figures have changed. What is left of the old ones comes first.
    fn begin_restated(
        &mut self,
        at: EpochTimes,
        restated: &Turn,
        now: &Now,
    ) -> Result<(), ReadError> {
        // What leaves a view by its age is not told apart from what a replay took out of it.
        let usable = self.turn + 1 == restated.turn
            && now.turn == restated.turn
            && !self.filter.leavers_stay;
        let Some(how) = restated.how.as_ref().filter(|_| usable) else {
            return Err(ReadError::Gone { epoch: at.epoch, first: restated.since });
        };
        if at.epoch < how.from().epoch {
            return Ok(());
        }
        let restated = how.follow(self.view, &self.filter, &*now.tables);
        let (tables, turn) = (Arc::clone(&now.tables), now.turn);
        self.over = Some(Over { restated, tables, turn });
        Ok(())
    }
}

impl Follow for Following {
    fn step(
        &mut self,
        rows_max: usize,
        rows: &mut RowBlock,
        incidents: &mut Vec<(i8, Incident)>,
    ) -> Result<Step, ReadError> {
        if self.over.is_none() {
            self.go_over()?;
        }
        let Some(over) = &mut self.over else {
            let step = self.follow.step(rows_max, rows, incidents)?;
            self.is_between = !matches!(step, Step::More(_));
            return Ok(step);
        };
        let step = over.restated.step(rows_max, rows, incidents);
        if let Step::Reached(at) = step {
            let (tables, turn) = (Arc::clone(&over.tables), over.turn);
            self.go_on(&tables, turn, at)?;
            self.over = None;
        }
        Ok(step)
    }

    fn at(&self) -> Option<EpochTimes> {
        self.follow.at()
    }

    fn in_snapshot(&self) -> bool {
        self.follow.in_snapshot()
    }
}
