//! One run of a job: the part of its dataflow that this process has, and the views that it fills,
//! from what they begin with until they end. A process that runs alone has one run; in a cluster it
//! has one in each generation.

use crate::{
    checkpoint::{
        LoadedFrom,
        manifest::{Figures, Of},
        offer::Refused,
        start::{self, Begin},
        store::Store,
    },
    decided::Decided,
    engine::{Beginning, Engine, EngineSettings, StartError},
    epochs::Led,
    flow::Job,
    seat::Seat,
    served::{Next, Served},
};
use parking_lot::RwLock;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::{
    log::{Log, Topic},
    symbols::Symbols,
    time::Epoch,
};
use trueup_sinks::{Tables, ViewSettings, Views};

/// How often who waits looks around.
const GLANCE: Duration = Duration::from_millis(10);

/// How long until a start is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// A run.
pub(crate) struct Run {
    pub(crate) engine: Arc<Engine>,
    pub(crate) tables: Arc<dyn Tables>,
    /// The checkpoint that it began with.
    pub(crate) loaded: Option<LoadedFrom>,
    /// Whose figures that has, if there was a replay.
    pub(crate) figures: Option<Figures>,
    /// The replay that was not taken up, if one was offered.
    pub(crate) refused: Option<Refused>,
    /// How many newer ones could not be loaded.
    pub(crate) passed_over: usize,
}

impl Run {
    /// What a process has before its first run.
    pub(crate) fn at_rest(engine: Arc<Engine>, tables: Arc<dyn Tables>) -> Run {
        let (loaded, figures, refused) = (None, None, None);
        Run { engine, tables, loaded, figures, refused, passed_over: 0 }
    }

    /// Shows its views as they come, until it is over.
    pub(crate) fn show(&self, served: &Served, is_over: impl Fn() -> bool) {
        let mut newer = self.tables.watch();
        let mut is_shown = served.shows(&self.tables);
        // For the timer and the wake-up of one wait.
        let waits = tokio::runtime::Builder::new_current_thread().enable_time().build();
        while !is_over() {
            is_shown = is_shown || served.replace(&self.shows());
            served.look();
            match &waits {
                Ok(waits) => {
                    // Woken or not, it looks again.
                    let woken = async { tokio::time::timeout(GLANCE, newer.changed()).await };
                    drop(waits.block_on(woken));
                }
                Err(_) => std::thread::sleep(GLANCE),
            }
        }
    }

    fn shows(&self) -> Next<'_> {
        let since = self.engine.epochs().since();
        Next { tables: &self.tables, figures: self.figures.as_ref(), since }
    }
}

/// What all runs of a job have in common.
pub(crate) struct Home<J, const N: usize> {
    pub(crate) log: Arc<dyn Log>,
    /// Whose log it is.
    pub(crate) installation: String,
    pub(crate) symbols: Arc<Symbols>,
    pub(crate) job: Arc<J>,
    /// As they are configured.
    pub(crate) engine: EngineSettings,
    /// Of how many partitions its ids are, as long as the events topic has as many.
    pub(crate) partitions: u16,
    pub(crate) views: ViewSettings,
    /// Where checkpoints are, if there are any.
    pub(crate) store: Option<(Arc<dyn Store>, Decided)>,
}

impl<J, const N: usize> Clone for Home<J, N> {
    fn clone(&self) -> Self {
        Home {
            log: Arc::clone(&self.log),
            installation: self.installation.clone(),
            symbols: Arc::clone(&self.symbols),
            job: Arc::clone(&self.job),
            engine: self.engine,
            partitions: self.partitions,
            views: self.views.clone(),
            store: self.store.clone(),
        }
    }
}

impl<J: Job<N>, const N: usize> Home<J, N> {
    /// Views that are still empty, for all workers.
    pub(crate) fn views(&self, seat: &Seat) -> Arc<Views<N, J::Metrics>> {
        // Each worker has two sinks: its rows, and its `(other)` rows.
        let settings = ViewSettings { workers: seat.peers() * 2, ..self.views.clone() };
        Views::new(settings, Arc::clone(&self.symbols))
    }

    /// Whether ids belong to workers by their partitions. A topic with more partitions than it had
    /// holds ids of one partition in two.
    pub(crate) fn is_partitioned_by_id(&self) -> bool {
        self.engine.partitioned_by_id && self.log.partitions(Topic::Events) == self.partitions
    }

    /// How a run runs; all processes of a cluster the same.
    pub(crate) fn settings(&self, partitioned_by_id: bool) -> EngineSettings {
        EngineSettings { partitioned_by_id, ..self.engine }
    }

    /// What its checkpoints are of.
    pub(crate) fn of(&self, decided: &Decided, engine: EngineSettings) -> Of {
        Of {
            installation: self.installation.clone(),
            decided: decided.clone(),
            rollups: self.job.rollups(),
            engine,
        }
    }

    /// The run of a process that is alone.
    ///
    /// # Errors
    /// When there is nothing to begin with, or threads do not start.
    pub(crate) fn alone(&self) -> Result<Run, StartError> {
        let seat = Seat::alone(self.engine.workers);
        let (views, settings) = (self.views(&seat), self.settings(self.is_partitioned_by_id()));
        let begin = match &self.store {
            None => start::origin(&*self.log, self.engine.workers)?,
            Some((store, decided)) => {
                start::open(Arc::clone(store), &*self.log, self.of(decided, settings), &views)?
            }
        };
        self.run(seat, begin, views, None, settings)
    }

    /// The same; when a store or a log does not give what the run would begin with, it is asked
    /// again for so long.
    ///
    /// # Errors
    /// As [`Home::alone`].
    pub(crate) fn alone_patiently(&self, patience: Duration) -> Result<Run, StartError> {
        let until = Instant::now() + patience;
        loop {
            match self.alone() {
                Err(StartError::Load(error)) if error.may_pass() && Instant::now() < until => {
                    tracing::warn!(%error, "the run cannot begin; it is tried again");
                    std::thread::sleep(AGAIN);
                }
                begun => return begun,
            }
        }
    }

    /// The run of a process that goes through the log beside the job, up to an epoch or all of it,
    /// and may offer what it finds there.
    ///
    /// # Errors
    /// When the log no longer has its beginning, or threads do not start.
    pub(crate) fn replay(&self, offers: Option<Epoch>) -> Result<Run, StartError> {
        let seat = Seat::alone(self.engine.workers);
        let (views, settings) = (self.views(&seat), self.settings(self.is_partitioned_by_id()));
        let begin = match (&self.store, offers) {
            (Some((store, decided)), Some(upto)) => {
                let of = self.of(decided, settings);
                start::offering(Arc::clone(store), &*self.log, of, upto)?
            }
            _ => start::origin(&*self.log, self.engine.workers)?,
        };
        self.run(seat, begin, views, None, settings)
    }

    /// The run that goes on from `begin`, which has been loaded into `views`.
    ///
    /// # Errors
    /// When threads do not start.
    pub(crate) fn run(
        &self,
        seat: Seat,
        begin: Begin<N, J::Metrics>,
        views: Arc<Views<N, J::Metrics>>,
        led: Option<Led>,
        settings: EngineSettings,
    ) -> Result<Run, StartError> {
        let (loaded, checkpoints) = (begin.loaded.clone(), begin.checkpoints.clone());
        let (figures, refused) = (begin.figures.clone(), begin.refused.clone());
        let passed_over = begin.broken.len();
        let sink = |place: usize| {
            let checkpoints = checkpoints.clone();
            let sink = views.shard(place).on_image(move |image| {
                // Only who takes checkpoints marks epochs.
                if let Some(checkpoints) = &checkpoints {
                    checkpoints.hand_over(Box::new(image));
                }
            });
            Box::new(sink) as Box<_>
        };
        let announced = Arc::clone(&views);
        let (log, symbols) = (Arc::clone(&self.log), Arc::clone(&self.symbols));
        let beginning = Beginning { begin, log, symbols, seat, led };
        let engine = beginning.start(
            Arc::clone(&self.job),
            settings,
            |worker| [0, 1].map(|stage| sink(worker * 2 + stage)),
            move |times| announced.announce(times),
        )?;
        let (engine, tables) = (Arc::new(engine), views);
        Ok(Run { engine, tables, loaded, figures, refused, passed_over })
    }
}

/// The run of the moment.
pub(crate) struct Current(RwLock<Arc<Run>>);

impl Current {
    pub(crate) fn new(run: Run) -> Arc<Current> {
        Arc::new(Current(RwLock::new(Arc::new(run))))
    }

    pub(crate) fn get(&self) -> Arc<Run> {
        Arc::clone(&self.0.read())
    }

    pub(crate) fn set(&self, run: Run) {
        *self.0.write() = Arc::new(run);
    }
}
