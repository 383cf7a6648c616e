//! The runtime of a job: opens the epochs of a log, starts the workers, feeds them, answers
//! questions about single events, and stops. It knows no event type and no view: the job brings
//! the one, the sinks are the other.
//!
//! # Stopping and failing
//!
//! [`Engine::stop`] ends the feed, lets the workers finish what they have and joins them. What
//! must not be guessed away (a log that cannot be read, a batch that cannot be decoded) is a
//! *fault*: nothing is fed any more, no view advances, and [`Engine::fault`] says why. The server
//! then exits with 70; the log has everything, so the next start is as good as this one was.

use crate::{
    checkpoint::{
        CheckpointSettings, Checkpoints, LoadError, keeper::CheckpointError, start::Begin,
    },
    cluster::Generation,
    epochs::{Cut, EpochSettings, Epochs, Feeder, Lag, Led},
    flow::Job,
    neighbour,
    remap::{self, Cursor},
    seat::Seat,
    shuffle::{self, Shuffle},
    worker::{self, WorkerMemory},
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{JoinHandle, Thread},
    time::{Duration, Instant},
};
use timely::{CommunicationConfig, WorkerConfig, execute::execute, worker::Worker};
use trueup_operators::{
    change::Sink,
    feed::EpochTimes,
    hash::{self, IdHash, VNODES},
    ledger::Entry,
    log::{Log, LogError, Topic},
    sum::Exchanged,
    symbols::Symbols,
    time::{DAY_US, Epoch, Lateness, MINUTE_US},
};

/// How a job runs.
///
/// ```
/// use trueup::EngineSettings;
///
/// let settings = EngineSettings { workers: 4, ..EngineSettings::default() };
/// assert_eq!(settings.epochs.tick, std::time::Duration::from_millis(100));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Worker threads of each process; at most one per partition of the events topic does anything.
    pub workers: usize,
    /// When a bucket settles and is final.
    pub lateness: Lateness,
    /// How the log is cut.
    pub epochs: EpochSettings,
    /// Decoded batches kept for verdicts, bytes of payload over all workers.
    pub read_back_bytes_max: usize,
    /// When checkpoints are taken.
    pub checkpoint: CheckpointSettings,
    /// Whether the partition of an event follows from its id ([`hash::partition`]), for all that
    /// the log holds. If not, events are exchanged between the workers before they are
    /// deduplicated.
    pub partitioned_by_id: bool,
}

impl Default for EngineSettings {
    /// Two workers, a tick of 100 ms, five minutes of allowed lateness, a day of correction
    /// horizon, a checkpoint every 30 seconds.
    fn default() -> Self {
        EngineSettings {
            workers: 2,
            lateness: Lateness {
                allowed_lateness_us: 5 * MINUTE_US,
                correction_horizon_us: DAY_US,
                future_skew_us_max: 5 * MINUTE_US,
            },
            epochs: EpochSettings {
                tick: Duration::from_millis(100),
                epoch_bytes_max: 16 << 20,
                epochs_in_flight_max: 4,
                cut: Cut::Live,
            },
            read_back_bytes_max: 256 << 20,
            checkpoint: CheckpointSettings::default(),
            partitioned_by_id: true,
        }
    }
}

impl EngineSettings {
    /// Ids belong to the worker that their partition of so many belongs to.
    pub(crate) fn id_partitions(&self, log: &dyn Log) -> u16 {
        match self.partitioned_by_id {
            true => log.partitions(Topic::Events),
            false => VNODES as u16,
        }
    }
}

/// The two sinks of a worker: rows and fates, and `(other)` rows.
pub type Sinks<const N: usize, M> = [Box<dyn Sink<N, M> + Send>; 2];

/// A question about one event.
pub(crate) struct Ask {
    pub(crate) id: IdHash,
    pub(crate) answer: Sender<Option<Entry>>,
}

/// What the workers, the closing thread and the server share.
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) symbols: Arc<Symbols>,
    pub(crate) settings: EngineSettings,
    pub(crate) seat: Seat,
    pub(crate) epochs: Arc<Epochs>,
    pub(crate) checkpoints: Option<Arc<Checkpoints>>,
    pub(crate) memory: Mutex<Vec<WorkerMemory>>,
    /// Ids belong to the worker that their partition of so many belongs to, as long as it runs,
    /// whatever becomes of the topic.
    pub(crate) id_partitions: u16,
}

/// A running job, or this process's part of it.
pub struct Engine {
    shared: Arc<Shared>,
    asks: Vec<(Mutex<Sender<Ask>>, Thread)>,
    closing: Mutex<Option<JoinHandle<()>>>,
    workers: Mutex<Option<JoinHandle<()>>>,
}

/// Why a job cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The settings ask for what cannot be.
    #[error("{0}")]
    Settings(String),
    /// A thread did not start.
    #[error("a worker thread did not start: {0}")]
    Thread(String),
    /// There is no checkpoint to begin with, nor the beginning of the log.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The checkpoints cannot be written.
    #[error("no checkpoint can be written: {0}")]
    Checkpoint(#[from] CheckpointError),
}

impl StartError {
    /// Whether it may be otherwise a moment later: a store or a broker did not answer.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            StartError::Log(error) => error.may_pass(),
            StartError::Load(error) => error.may_pass(),
            StartError::Checkpoint(error) => {
                matches!(error, CheckpointError::Store(_) | CheckpointError::Fenced { .. })
            }
            StartError::Settings(_) | StartError::Thread(_) => false,
        }
    }
}

/// What a worker thread takes with it.
struct Part<const N: usize, M, B> {
    plans: Receiver<crate::epochs::Plan>,
    asks: Receiver<Ask>,
    sinks: worker::SinksByProcess<N, M>,
    begin: worker::Begin<N, M>,
    shuffle: Option<Shuffle<B>>,
}

/// What an engine begins with, and where.
pub(crate) struct Beginning<const N: usize, M> {
    pub(crate) begin: Begin<N, M>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) symbols: Arc<Symbols>,
    pub(crate) seat: Seat,
    /// What the process that leads feeds this one; `None` where this one leads.
    pub(crate) led: Option<Led>,
}

impl<const N: usize, M: Exchanged> Beginning<N, M> {
    /// Starts the job's part that runs here. `sinks` is asked for those of each worker of the
    /// cluster: every process is told everything.
    pub(crate) fn start<J: Job<N, Metrics = M>>(
        self,
        job: Arc<J>,
        settings: EngineSettings,
        mut sinks: impl FnMut(usize) -> Sinks<N, M>,
        announce: impl Fn(EpochTimes) + Send + 'static,
    ) -> Result<Engine, StartError> {
        let Beginning { begin, log, symbols, seat, led } = self;
        let workers = settings.workers;
        if workers == 0 || workers > 64 {
            return Err(StartError::Settings(format!(
                "{workers} worker threads are configured; give 1 to 64"
            )));
        }
        let Begin { from, workers: begin, checkpoints, .. } = begin;
        let marks = checkpoints.clone();
        let epochs = Epochs::open(Arc::clone(&log), settings.epochs, seat.clone(), &from, marks)?;
        let memory = Mutex::new(vec![WorkerMemory::default(); workers]);
        // By process, then by thread.
        let mut sinks: Vec<Vec<Option<Sinks<N, M>>>> = (0..seat.processes())
            .map(|process| (0..workers).map(|t| Some(sinks(process * workers + t))).collect())
            .collect();
        let id_partitions = settings.id_partitions(&*log);
        let shared = Arc::new(Shared {
            log,
            symbols,
            settings,
            seat,
            epochs,
            checkpoints,
            memory,
            id_partitions,
        });

        let (mut plans, mut asks, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut places = match settings.partitioned_by_id {
            true => Vec::new(),
            false => shuffle::places(workers),
        }
        .into_iter();
        for (own, state) in begin.into_iter().enumerate() {
            let (plan_sender, plan_receiver) = channel();
            let (ask_sender, ask_receiver) = channel();
            plans.push(plan_sender);
            asks.push(Mutex::new(ask_sender));
            let sinks = sinks.iter_mut().filter_map(|of_process| of_process[own].take());
            let (rows, others) = sinks.map(|[rows, others]| (rows, others)).unzip();
            let sinks = [rows, others];
            let begin = worker::Begin { after: from.row.epoch, state };
            let (plans, asks) = (plan_receiver, ask_receiver);
            parts.push(Some(Part { plans, asks, sinks, begin, shuffle: places.next() }));
        }
        let (threads, workers) = spawn(job, &shared, parts)?;
        let feeders: Vec<Feeder> = plans
            .into_iter()
            .zip(&threads)
            .map(|(plans, thread)| Feeder { plans, thread: thread.clone() })
            .collect();
        let closing = {
            let epochs = Arc::clone(&shared.epochs);
            std::thread::Builder::new()
                .name("epochs".into())
                .spawn(move || match led {
                    None => epochs.run(from, &feeders, announce),
                    Some(led) => epochs.follow(&led, from, &feeders, announce),
                })
                .map_err(|e| StartError::Thread(e.to_string()))?
        };
        let asks = asks.into_iter().zip(threads).collect();
        let (closing, workers) = (Mutex::new(Some(closing)), Mutex::new(Some(workers)));
        Ok(Engine { shared, asks, closing, workers })
    }
}

impl Engine {
    /// Starts a job at the beginning of a log, without checkpoints. `sinks` gives each worker its
    /// sinks; `announce` is told an epoch's times before any sink gets the epoch.
    ///
    /// # Errors
    /// When the log cannot be read or the threads do not start.
    pub fn start<J: Job<N>, const N: usize>(
        job: J,
        log: Arc<dyn Log>,
        symbols: Arc<Symbols>,
        settings: EngineSettings,
        sinks: impl FnMut(usize) -> Sinks<N, J::Metrics>,
        announce: impl Fn(EpochTimes) + Send + 'static,
    ) -> Result<Engine, StartError> {
        let begin = Begin::origin(&*log, settings.workers);
        let begin =
            Beginning { begin, log, symbols, seat: Seat::alone(settings.workers), led: None };
        begin.start(Arc::new(job), settings, sinks, announce)
    }

    /// An engine that runs nothing: what a process has until it is one of a cluster.
    pub(crate) fn at_rest(
        log: Arc<dyn Log>,
        symbols: Arc<Symbols>,
        settings: EngineSettings,
    ) -> Result<Engine, StartError> {
        // What the log holds already is no matter of who has not met the others: it may be much,
        // and its beginning may be gone.
        let from = Cursor { next: remap::end(&*log), ..Cursor::origin(&*log) };
        let seat = Seat::alone(settings.workers);
        let epochs = Epochs::open(Arc::clone(&log), settings.epochs, seat.clone(), &from, None)?;
        epochs.rest("the processes have not met yet".to_owned());
        let memory = Mutex::default();
        let (checkpoints, asks) = (None, Vec::new());
        let id_partitions = settings.id_partitions(&*log);
        let shared =
            Shared { log, symbols, settings, seat, epochs, checkpoints, memory, id_partitions };
        let (closing, workers) = (Mutex::default(), Mutex::default());
        Ok(Engine { shared: Arc::new(shared), asks, closing, workers })
    }

    /// How far the views are behind the log.
    pub fn lag(&self) -> Lag {
        self.shared.epochs.lag()
    }

    /// The texts of dimensions.
    pub(crate) fn symbols(&self) -> &Arc<Symbols> {
        &self.shared.symbols
    }

    /// The epochs of this run.
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.shared.epochs
    }

    /// Lets go of what is under way: the run is over, by no fault of this process.
    pub(crate) fn abandon(&self, reason: String) {
        self.shared.epochs.abandon(reason);
    }

    /// Why the run cannot go on, if it cannot.
    pub fn fault(&self) -> Option<String> {
        self.shared.epochs.fault()
    }

    /// Waits until everything that is durable now is in the views; the epoch that shows it.
    ///
    /// # Errors
    /// Why the run cannot go on, or that it took longer than `patience`.
    pub fn settle(&self, patience: Duration) -> Result<Epoch, String> {
        self.shared.epochs.settle(patience)
    }

    /// Whether a log that others append to holds more than the last epoch took.
    pub(crate) fn has_more(&self) -> bool {
        self.shared.epochs.has_more()
    }

    /// Waits until the last epoch that was closed when this was called is in the views.
    ///
    /// # Errors
    /// Why the run cannot go on, or that it took longer than `patience`.
    pub fn catch_up(&self, patience: Duration) -> Result<Epoch, String> {
        let (target, until) = (self.lag().closed, Instant::now() + patience);
        while self.lag().visible < target {
            if let Some(fault) = self.fault() {
                return Err(fault);
            }
            if Instant::now() >= until {
                let visible = self.lag().visible;
                return Err(format!("after {patience:?} epoch {visible} of {target} is visible"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(target)
    }

    /// Takes a checkpoint of the next epoch, which is closed for it; its epoch. `None`: this run
    /// takes none.
    ///
    /// # Errors
    /// Why it was not published, that the log refuses its epoch, or that it took longer than
    /// `patience`.
    pub fn checkpoint(&self, patience: Duration) -> Result<Option<Epoch>, String> {
        self.shared.epochs.checkpoint(patience)
    }

    /// The generation that it runs in; `None`: alone.
    pub(crate) fn generation(&self) -> Option<&Arc<Generation>> {
        self.shared.seat.generation()
    }

    /// Who takes the checkpoints of this run, if anyone does.
    pub fn checkpoints(&self) -> Option<&Arc<Checkpoints>> {
        self.shared.checkpoints.as_ref()
    }

    /// What each worker holds, as of its last epoch.
    pub fn memory(&self) -> Vec<WorkerMemory> {
        self.shared.memory.lock().clone()
    }

    /// What the ledger knows of an event. `None`: nothing, or no longer.
    ///
    /// # Errors
    /// When the worker that would know has ended or does not answer in time.
    pub fn lookup(&self, id: IdHash) -> Result<Option<Entry>, String> {
        let seat = &self.shared.seat;
        let owner = usize::from(hash::partition(&id, self.shared.id_partitions)) % seat.peers();
        let (process, generation) = (seat.process_of(owner), seat.generation());
        match generation.filter(|generation| generation.process() != process) {
            None => self.lookup_here(owner, id),
            Some(generation) => neighbour::lookup(generation, process, owner, id),
        }
    }

    /// What the ledger of a worker of this process knows of an event.
    ///
    /// # Errors
    /// When the worker has ended, does not answer in time, or is none of this process.
    pub(crate) fn lookup_here(&self, owner: usize, id: IdHash) -> Result<Option<Entry>, String> {
        let own = self.shared.seat.own().position(|worker| worker == owner);
        let Some((ask, thread)) = own.and_then(|own| self.asks.get(own)) else {
            return Err(format!("worker {owner} does not run here"));
        };
        let (answer, entry) = channel();
        let asked = ask.lock().send(Ask { id, answer });
        asked.map_err(|_| format!("worker {owner} has ended"))?;
        thread.unpark();
        entry
            .recv_timeout(Duration::from_secs(5))
            .map_err(|_| format!("worker {owner} does not answer"))
    }

    /// Ends the feed, lets the workers finish what they were fed, and joins them. In a cluster that
    /// would be an epoch that lacks the part of this process: there it leaves first, and what is
    /// under way is let go.
    pub fn stop(&self) {
        if let Some(generation) = self.shared.seat.generation() {
            generation.leave();
            self.abandon("it was stopped".to_owned());
        }
        self.shared.epochs.stop();
        if let Some(closing) = self.closing.lock().take() {
            join("epochs", closing);
        }
        if let Some(workers) = self.workers.lock().take() {
            join("workers", workers);
        }
        if let Some(checkpoints) = &self.shared.checkpoints {
            checkpoints.stop();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn join(name: &str, thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!(name, "a thread ended by a panic");
    }
}

/// Starts the worker threads of this process; their handles, and a thread that joins them.
fn spawn<J: Job<N>, const N: usize>(
    job: Arc<J>,
    shared: &Arc<Shared>,
    parts: Vec<Option<Part<N, J::Metrics, J::Batch>>>,
) -> Result<(Vec<Thread>, JoinHandle<()>), StartError> {
    let (own, parts) = (shared.seat.own(), Mutex::new(parts));
    let (started, threads) = channel();
    let started = Mutex::new(started);
    let run = {
        let (shared, first) = (Arc::clone(shared), own.start);
        move |worker: &mut Worker| {
            let index = worker.index() - first;
            let Some(part) = parts.lock()[index].take() else { return };
            // The engine waits for this; it is there.
            drop(started.lock().send((index, std::thread::current())));
            let ends = worker::Ends { plans: part.plans, asks: part.asks, shuffle: part.shuffle };
            worker::run(worker, &*job, &shared, ends, part.sinks, part.begin);
        }
    };
    let not_started = |error: &dyn std::fmt::Display| StartError::Thread(error.to_string());
    let config = WorkerConfig::default();
    let join: Box<dyn FnOnce() -> Result<(), String> + Send> = match shared.seat.generation() {
        Some(generation) => {
            let run = move |worker: &mut Worker, _: &_| run(worker);
            let workers = generation.execute(config, run).map_err(|e| not_started(&e))?;
            Box::new(move || workers.join().map(drop))
        }
        None => {
            let communication = CommunicationConfig::Process(own.len());
            let config = timely::Config { communication, worker: config };
            let guards = execute(config, run).map_err(|e| not_started(&e))?;
            Box::new(move || guards.join().into_iter().collect())
        }
    };
    let mut handles: Vec<(usize, Thread)> =
        own.map(|_| threads.recv().map_err(|e| not_started(&e))).collect::<Result<_, _>>()?;
    handles.sort_by_key(|(index, _)| *index);
    let joining = std::thread::Builder::new()
        .name("workers".into())
        .spawn(move || {
            if let Err(error) = join() {
                tracing::error!(error, "a worker ended by a panic");
            }
        })
        .map_err(|e| not_started(&e))?;
    Ok((handles.into_iter().map(|(_, thread)| thread).collect(), joining))
}
