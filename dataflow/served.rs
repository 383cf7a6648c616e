//! The views that a process of a cluster shows, through all generations: those of the one that
//! runs, and while the next one begins, those of the one before.
//!
//! # Why it is hard
//!
//! A generation begins with views of its own, which are as old as the checkpoint that it loads.
//! Readers must see neither the step back nor the change: so the new views take the place of the
//! old ones when they show what those showed. What an epoch holds follows from the log alone, so
//! the same epoch has the same rows in both; a subscriber that has reached an epoch goes on after
//! it in the new views, whose history begins at the checkpoint. One that is in the middle of a
//! step, or of its snapshot, ends that in the old ones, which live as long as somebody reads them.
//!
//! # Promises
//!
//! * What is visible never goes back.
//! * A subscriber gets each difference once, through any number of generations. If it was slower
//!   than the history of the new views is long, it is told that its epoch is gone.

use parking_lot::RwLock;
use std::sync::Arc;
use tokio::sync::watch;
use trueup_operators::{
    change::{Counts, Incident},
    event::Fate,
    feed::EpochTimes,
    symbols::Symbols,
    time::{Epoch, Granularity, Lateness},
};
use trueup_sinks::{
    Catalog, Filter, Follow, IncidentKey, IncidentPage, Memory, Page, Place, ReadError, RowBlock,
    Start, Step, SumQuery, Summed, Tables, ViewId,
};

/// Views of one generation after another.
pub(crate) struct Served {
    catalog: Catalog,
    symbols: Arc<Symbols>,
    lateness: Lateness,
    now: RwLock<Now>,
    visible: watch::Sender<Option<Epoch>>,
}

/// What is shown, and how often it was replaced.
#[derive(Clone)]
struct Now {
    tables: Arc<dyn Tables>,
    turn: u64,
}

impl Served {
    /// Shows these; the next ones must be of the same job and have the same symbols.
    pub(crate) fn new(tables: Arc<dyn Tables>, symbols: Arc<Symbols>) -> Arc<Served> {
        Arc::new(Served {
            catalog: tables.catalog().clone(),
            symbols,
            lateness: tables.lateness(),
            visible: watch::Sender::new(tables.visible().map(|at| at.epoch)),
            now: RwLock::new(Now { tables, turn: 0 }),
        })
    }

    /// Shows the next ones, if they show what these do; whether they do.
    pub(crate) fn replace(&self, next: &Arc<dyn Tables>) -> bool {
        let mut now = self.now.write();
        let epoch = |tables: &Arc<dyn Tables>| tables.visible().map(|at| at.epoch);
        if epoch(next) < epoch(&now.tables) {
            return false;
        }
        *now = Now { tables: Arc::clone(next), turn: now.turn + 1 };
        true
    }

    /// Wakes whoever waits for a newer epoch, if there is one.
    pub(crate) fn look(&self) {
        let newest = self.tables().visible().map(|at| at.epoch);
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
        self.now().tables
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
        self.tables().first_epoch()
    }

    fn kept_from_us(&self, granularity: Granularity, at: EpochTimes) -> i64 {
        self.tables().kept_from_us(granularity, at)
    }

    fn sum(&self, query: &SumQuery) -> Result<Summed, ReadError> {
        self.tables().sum(query)
    }

    fn page(
        &self,
        view: ViewId,
        filter: &Filter,
        epoch: Option<Epoch>,
        from: Option<Place>,
        rows_max: usize,
    ) -> Result<Page, ReadError> {
        self.tables().page(view, filter, epoch, from, rows_max)
    }

    fn incidents(
        &self,
        fates: &[Fate],
        epoch: Option<Epoch>,
        before: Option<IncidentKey>,
        rows_max: usize,
    ) -> Result<IncidentPage, ReadError> {
        self.tables().incidents(fates, epoch, before, rows_max)
    }

    fn follow(
        self: Arc<Self>,
        view: ViewId,
        filter: Filter,
        start: Start,
    ) -> Result<Box<dyn Follow>, ReadError> {
        let Now { tables, turn } = self.now();
        let follow = tables.follow(view, filter.clone(), start)?;
        let is_between = matches!(start, Start::After(_));
        Ok(Box::new(Following { served: self, turn, follow, view, filter, is_between }))
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
}

impl Following {
    /// Goes over to the views that are shown now, if they are others and it can.
    fn go_over(&mut self) -> Result<(), ReadError> {
        let Now { tables, turn } = self.served.now();
        if turn == self.turn || !self.is_between {
            return Ok(());
        }
        let Some(at) = self.follow.at() else { return Ok(()) };
        let start = Start::After(Some(at.epoch));
        self.follow = tables.follow(self.view, self.filter.clone(), start)?;
        self.turn = turn;
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
        self.go_over()?;
        let step = self.follow.step(rows_max, rows, incidents)?;
        self.is_between = !matches!(step, Step::More(_));
        Ok(step)
    }

    fn at(&self) -> Option<EpochTimes> {
        self.follow.at()
    }

    fn in_snapshot(&self) -> bool {
        self.follow.in_snapshot()
    }
}
