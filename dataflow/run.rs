//! One run of a job: the part of its dataflow that this process has, and the views that it fills,
//! from what they begin with until they end. A process that runs alone has one run; in a cluster it
//! has one in each generation.

use crate::{
    checkpoint::{
        LoadedFrom,
        manifest::Of,
        start::{self, Begin},
        store::Objects,
    },
    decided::Decided,
    engine::{Beginning, Engine, EngineSettings, StartError},
    epochs::Led,
    flow::Job,
    seat::Seat,
};
use parking_lot::RwLock;
use std::sync::Arc;
use trueup_operators::{
    log::{Log, Topic},
    symbols::Symbols,
};
use trueup_sinks::{Tables, ViewSettings, Views};

/// A run.
pub(crate) struct Run {
    pub(crate) engine: Arc<Engine>,
    pub(crate) tables: Arc<dyn Tables>,
    /// The checkpoint that it began with.
    pub(crate) loaded: Option<LoadedFrom>,
    /// How many newer ones could not be loaded.
    pub(crate) passed_over: usize,
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
    pub(crate) store: Option<(Arc<Objects>, Decided)>,
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
        Ok(Run { engine: Arc::new(engine), tables: views, loaded, passed_over })
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
