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
    checkpoint::{CheckpointSettings, Checkpoints, start::Begin},
    epochs::{Cut, EpochSettings, Epochs, Feeder, Lag},
    flow::Job,
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
use timely::{CommunicationConfig, WorkerConfig, execute::execute};
use trueup_operators::{
    change::Sink,
    feed::EpochTimes,
    hash::{self, IdHash, VNODES},
    ledger::Entry,
    log::{Log, LogError, Topic},
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
    /// Worker threads; at most one per partition of the events topic does anything.
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
    pub(crate) epochs: Arc<Epochs>,
    pub(crate) checkpoints: Option<Arc<Checkpoints>>,
    pub(crate) memory: Mutex<Vec<WorkerMemory>>,
}

impl Shared {
    /// Ids belong to the worker that their partition of so many belongs to.
    pub(crate) fn id_partitions(&self) -> u16 {
        self.settings.id_partitions(&*self.log)
    }
}

/// A running job.
pub struct Engine {
    shared: Arc<Shared>,
    asks: Vec<(Sender<Ask>, Thread)>,
    closing: Option<JoinHandle<()>>,
    workers: Option<JoinHandle<()>>,
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
    Load(#[from] crate::checkpoint::LoadError),
    /// The checkpoints cannot be written.
    #[error("no checkpoint can be written: {0}")]
    Checkpoint(#[from] crate::checkpoint::keeper::CheckpointError),
}

/// What a worker thread takes with it.
struct Part<const N: usize, M, B> {
    plans: Receiver<crate::epochs::Plan>,
    asks: Receiver<Ask>,
    sinks: Sinks<N, M>,
    begin: worker::Begin<N, M>,
    shuffle: Option<Shuffle<B>>,
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
        Engine::start_from(begin, job, log, symbols, settings, sinks, announce)
    }

    /// Starts a job from what it begins with.
    pub(crate) fn start_from<J: Job<N>, const N: usize>(
        begin: Begin<N, J::Metrics>,
        job: J,
        log: Arc<dyn Log>,
        symbols: Arc<Symbols>,
        settings: EngineSettings,
        mut sinks: impl FnMut(usize) -> Sinks<N, J::Metrics>,
        announce: impl Fn(EpochTimes) + Send + 'static,
    ) -> Result<Engine, StartError> {
        let workers = settings.workers;
        if workers == 0 || workers > 64 {
            return Err(StartError::Settings(format!(
                "{workers} worker threads are configured; give 1 to 64"
            )));
        }
        let Begin { from, workers: begin, checkpoints, .. } = begin;
        let marks = checkpoints.clone();
        let epochs = Epochs::open(Arc::clone(&log), settings.epochs, workers, &from, marks)?;
        let memory = Mutex::new(vec![WorkerMemory::default(); workers]);
        let shared = Arc::new(Shared { log, symbols, settings, epochs, checkpoints, memory });

        let (mut plans, mut asks, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut places = match settings.partitioned_by_id {
            true => Vec::new(),
            false => shuffle::places(workers),
        }
        .into_iter();
        for (index, state) in begin.into_iter().enumerate() {
            let (plan_sender, plan_receiver) = channel();
            let (ask_sender, ask_receiver) = channel();
            plans.push(plan_sender);
            asks.push(ask_sender);
            let sinks = sinks(index);
            let begin = worker::Begin { after: from.row.epoch, state };
            let (plans, asks) = (plan_receiver, ask_receiver);
            parts.push(Some(Part { plans, asks, sinks, begin, shuffle: places.next() }));
        }
        let (threads, workers) = spawn(job, Arc::clone(&shared), parts)?;
        let feeders: Vec<Feeder> = plans
            .into_iter()
            .zip(&threads)
            .map(|(plans, thread)| Feeder { plans, thread: thread.clone() })
            .collect();
        let closing = {
            let epochs = Arc::clone(&shared.epochs);
            std::thread::Builder::new()
                .name("epochs".into())
                .spawn(move || epochs.run(from, &feeders, announce))
                .map_err(|e| StartError::Thread(e.to_string()))?
        };
        let asks = asks.into_iter().zip(threads).collect();
        Ok(Engine { shared, asks, closing: Some(closing), workers: Some(workers) })
    }

    /// How far the views are behind the log.
    pub fn lag(&self) -> Lag {
        self.shared.epochs.lag()
    }

    /// The epochs of this run.
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.shared.epochs
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
    /// Why it was not published, or that it took longer than `patience`.
    pub fn checkpoint(&self, patience: Duration) -> Result<Option<Epoch>, String> {
        let Some(checkpoints) = &self.shared.checkpoints else { return Ok(None) };
        let number = checkpoints.force();
        self.shared.epochs.hurry();
        checkpoints.wait(number, patience, || self.fault()).map(Some)
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
        let owner =
            usize::from(hash::partition(&id, self.shared.id_partitions())) % self.asks.len();
        let (ask, thread) = &self.asks[owner];
        let (answer, entry) = channel();
        ask.send(Ask { id, answer }).map_err(|_| format!("worker {owner} has ended"))?;
        thread.unpark();
        entry
            .recv_timeout(Duration::from_secs(5))
            .map_err(|_| format!("worker {owner} does not answer"))
    }

    /// Ends the feed, lets the workers finish what they were fed, and joins them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.epochs.stop();
        if let Some(closing) = self.closing.take() {
            join("epochs", closing);
        }
        if let Some(workers) = self.workers.take() {
            join("workers", workers);
        }
        if let Some(checkpoints) = &self.shared.checkpoints {
            checkpoints.stop();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

fn join(name: &str, thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!(name, "a thread ended by a panic");
    }
}

/// Starts the worker threads; their handles, and a thread that joins them.
fn spawn<J: Job<N>, const N: usize>(
    job: J,
    shared: Arc<Shared>,
    parts: Vec<Option<Part<N, J::Metrics, J::Batch>>>,
) -> Result<(Vec<Thread>, JoinHandle<()>), StartError> {
    let peers = parts.len();
    let parts = Mutex::new(parts);
    let (started, threads) = channel();
    let started = Mutex::new(started);
    let config = timely::Config {
        communication: CommunicationConfig::Process(peers),
        worker: WorkerConfig::default(),
    };
    let guards = execute(config, move |worker| {
        let index = worker.index();
        let Some(part) = parts.lock()[index].take() else { return };
        // The engine waits for this; it is there.
        drop(started.lock().send((index, std::thread::current())));
        let [rows, others] = part.sinks;
        let sinks: [Box<dyn Sink<N, J::Metrics>>; 2] = [rows, others];
        let ends = worker::Ends { plans: part.plans, asks: part.asks, shuffle: part.shuffle };
        worker::run(worker, &job, &shared, ends, sinks, part.begin);
    })
    .map_err(|e| StartError::Thread(e.to_string()))?;
    let mut handles: Vec<(usize, Thread)> = (0..peers)
        .map(|_| threads.recv().map_err(|e| StartError::Thread(e.to_string())))
        .collect::<Result<_, _>>()?;
    handles.sort_by_key(|(index, _)| *index);
    let joining = std::thread::Builder::new()
        .name("workers".into())
        .spawn(move || {
            for result in guards.join() {
                if let Err(error) = result {
                    tracing::error!(error, "a worker ended by a panic");
                }
            }
        })
        .map_err(|e| StartError::Thread(e.to_string()))?;
    Ok((handles.into_iter().map(|(_, thread)| thread).collect(), joining))
}
