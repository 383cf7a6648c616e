//! A job at home: its log in a directory, the engine on the log, the views of the engine. This is
//! what the server hosts the ad job with, and what a program hosts a job of its own with.

mod replay;

use crate::{
    alone::{self, Alone},
    checkpoint::{
        LoadedFrom,
        store::{Objects, Store, StoreError},
    },
    cluster::{Cluster, ClusterError, ClusterSettings},
    config::Config,
    decided::{Decided, DecidedError},
    engine::{Engine, EngineSettings, StartError},
    flow::Job,
    installation,
    member::{Member, Membership},
    neighbour,
    open_log::OpenLog,
    rows::{Event, Rows},
    run::{Current, Home, Run},
    seat::{LEADER, Seat},
    served::Served,
    worker::WorkerMemory,
};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_log::system_clock;
use trueup_operators::{
    hash::{self, HashKey},
    log::{Append, FRAME_RECORDS_MAX, Topic, append_and_wait},
    rollup::{RollupSpec, check_rollups},
    symbols::Symbols,
    time::{BucketState, Epoch, EventTime, SECOND_US, format_rfc3339},
};
use trueup_sinks::{Filter, ReadError, Tables, ViewKind, ViewSettings};

/// How long [`Host::settle`] waits. A restart on a large log takes as long as the log is large.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
/// How long the last checkpoint may take.
pub(crate) const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(120);
/// How long a first start asks a place of checkpoints again that does not give them. Then the
/// process ends and says what was asked for: who restarts it knows for how long.
const STORE_PATIENCE: Duration = Duration::from_secs(60);
/// Where checkpoints are, in the directory of the job.
pub const CHECKPOINTS: &str = "checkpoints";
/// How often who waits looks again.
const GLANCE: Duration = Duration::from_millis(5);
/// Rows copied out of a view at a time.
const PAGE_ROWS: usize = 4_096;

/// A running job with its log and its views.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use trueup::*;
/// # #[derive(Clone, Serialize, Deserialize)]
/// # struct Reading { sensor: String, number: u64, at_us: i64, celsius: i64 }
/// # impl Event for Reading {
/// #     const DIMENSIONS: &'static [&'static str] = &["sensor"];
/// #     fn id(&self) -> String { format!("{}/{}", self.sensor, self.number) }
/// #     fn time(&self) -> EventTime { EventTime(self.at_us) }
/// #     fn texts(&self) -> Vec<&str> { vec![&self.sensor] }
/// # }
/// # trueup::group! { struct Warmth { readings, celsius } counting readings }
/// # struct Sensors;
/// # impl Job<1> for Sensors {
/// #     type Batch = Rows<Reading>;
/// #     type Metrics = Warmth;
/// #     fn rollups(&self) -> Vec<RollupSpec> { vec![RollupSpec::new("warmth", &["sensor"])] }
/// #     fn topology<'s>(&self, readings: Source<'s, Rows<Reading>>) -> Output<'s, 1, Warmth> {
/// #         let warmth = |r: &Reading, _| Warmth { readings: 1, celsius: r.celsius };
/// #         readings.dedupe().sum(PerEvent::new(&self.rollups(), warmth)).accumulate().views()
/// #     }
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let host = Host::open(dir, Sensors, Default::default(), EngineSettings::default())?;
/// let at_us = std::time::UNIX_EPOCH.elapsed()?.as_micros() as i64;
/// let reading = Reading { sensor: "attic".into(), number: 1, at_us, celsius: 21 };
/// host.send(&[reading.clone(), reading])?; // sent twice, counts once
/// host.settle()?;
/// let rows: Vec<ViewRow> = host.rows("warmth_hour")?;
/// assert_eq!(rows[0].dimensions, ["attic"]);
/// assert_eq!(rows[0].figures, [1, 21]);
/// host.close();
/// # Ok(())
/// # }
/// ```
pub struct Host {
    log: OpenLog,
    symbols: Arc<Symbols>,
    tables: Arc<dyn Tables>,
    life: Life,
    /// Where checkpoints are, if there are any.
    store: Option<Arc<dyn Store>>,
    /// How far ahead an event may claim to be; see [`Lateness`].
    ///
    /// [`Lateness`]: trueup_operators::time::Lateness
    future_skew_us_max: i64,
}

/// How a process runs its job.
enum Life {
    Alone(Alone),
    Member(Member),
}

impl Life {
    fn served(&self) -> &Arc<Served> {
        match self {
            Life::Alone(alone) => alone.served(),
            Life::Member(member) => member.served(),
        }
    }

    fn current(&self) -> &Arc<Current> {
        match self {
            Life::Alone(alone) => alone.current(),
            Life::Member(member) => member.current(),
        }
    }
}

/// A row of a view.
///
/// ```
/// use trueup::{Granularity, ViewRow};
///
/// fn hours(row: &ViewRow) -> i32 {
///     Granularity::Hour.bucket(row.bucket).0
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewRow {
    /// The first instant of its bucket.
    pub bucket: EventTime,
    /// The texts of its dimensions; empty where absent.
    pub dimensions: Vec<String>,
    /// Its figures, in the order of [`crate::Group::COLUMNS`].
    pub figures: Vec<i64>,
    /// How often it has changed.
    pub version: u64,
    /// What may still happen to its bucket.
    pub state: BucketState,
}

/// Why a host cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The log, or the engine on it, cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The log cannot take or give something.
    #[error(transparent)]
    Log(#[from] trueup_operators::log::LogError),
    /// Events cannot be written as a batch.
    #[error("the events cannot be encoded: {0}")]
    Encode(#[from] arrow_schema::ArrowError),
    /// The directory's figures were decided with other settings.
    #[error(transparent)]
    Decided(#[from] DecidedError),
    /// The job's rollups cannot be kept.
    #[error("{0}")]
    Rollups(String),
    /// An event says that it happened when nothing can have.
    #[error(
        "the event `{id}` happened at {at}; give a time from 1970 on that is at most \
         {ahead_s} s ahead of this machine's clock: how long an id is remembered goes by it"
    )]
    Time {
        /// Its id.
        id: String,
        /// What it says.
        at: String,
        /// How far ahead it may be.
        ahead_s: i64,
    },
    /// A view cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The job has no such view.
    #[error("there is no view `{name}`; there are {known}")]
    NoView {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The place of the checkpoints cannot be opened.
    #[error("the place of the checkpoints cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// What all processes of a cluster must share is one process's own.
    #[error(
        "{0}, and the processes of a cluster share one: set `log.kind = \"kafka\"`, and \
         `checkpoint.store` to a place that all of them reach"
    )]
    Own(&'static str),
    /// This process cannot be one of the cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The run cannot go on.
    #[error("{0}")]
    Fault(String),
}

impl Host {
    /// Opens a job's directory, made if it is not there, and starts the job: it begins with the
    /// newest checkpoint, everything that the log holds after it flows through the dataflow, and
    /// then what comes.
    ///
    /// # Errors
    /// When the directory cannot be opened, another process has it, or the log is damaged.
    pub fn open<J: Job<N>, const N: usize>(
        dir: &Path,
        job: J,
        log: trueup_log::Settings,
        engine: EngineSettings,
    ) -> Result<Host, HostError> {
        let views = ViewSettings::new(engine.workers, job.rollups(), engine.lateness);
        Host::open_with(dir, job, log, engine, views)
    }

    /// The same, and says what the views keep. (`views.workers` is set here.)
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_with<J: Job<N>, const N: usize>(
        dir: &Path,
        job: J,
        log: trueup_log::Settings,
        engine: EngineSettings,
        views: ViewSettings,
    ) -> Result<Host, HostError> {
        check(&job.rollups(), N)?;
        Host::open_on(dir, CHECKPOINTS, OpenLog::embedded(dir, log)?, job, engine, views)
    }

    /// The same, on a log that is open already; the directory holds what else a job keeps, and the
    /// checkpoints are in `store`: a directory, in that one if it is relative, or a URL.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_on<J: Job<N>, const N: usize>(
        dir: &Path,
        store: &str,
        log: OpenLog,
        job: J,
        engine: EngineSettings,
        views: ViewSettings,
    ) -> Result<Host, HostError> {
        check(&job.rollups(), N)?;
        let decided = Decided::new(&engine.lateness, &job.rollups());
        decided.clone().hold(dir)?;
        let store = match engine.checkpoint.is_on() {
            true => Some((Objects::open(dir, store)?, decided)),
            false => None,
        };
        Host::on(log, job, engine, views, store)
    }

    /// As a configuration says: on its log, alone or as one process of its cluster. The rollups are
    /// the job's.
    ///
    /// # Errors
    /// As [`Host::open`] and [`Host::join`].
    pub fn configured<J: Job<N>, const N: usize>(
        config: &Config,
        job: J,
    ) -> Result<Host, HostError> {
        Host::configured_telling(config, job, || {})
    }

    /// The same; `log_is_open` is called between the log and what is loaded of checkpoints.
    pub(crate) fn configured_telling<J: Job<N>, const N: usize>(
        config: &Config,
        job: J,
        log_is_open: impl FnOnce(),
    ) -> Result<Host, HostError> {
        let (dir, store) = (&config.data_dir, &config.checkpoint.store);
        let (engine, rollups) = (config.engine(), job.rollups());
        let views = ViewSettings { rollups, ..config.views() };
        let cluster = config.cluster()?;
        if cluster.is_some() {
            installation::share(dir, store, config.log.partitions)?;
        }
        let log = config.open_log()?;
        log_is_open();
        match cluster {
            None => Host::open_on(dir, store, log, job, engine, views),
            Some(cluster) => Host::join(dir, store, log, job, engine, views, cluster),
        }
    }

    /// On an open log, as one process of a cluster: the job's workers run in all of them. It
    /// returns at once; until the cluster is together, and whenever it comes together again, events
    /// are taken and what was shown last is shown.
    ///
    /// # Errors
    /// As [`Host::open`], and when the cluster's settings cannot be, or the log or the place of the
    /// checkpoints is this process's own.
    pub fn join<J: Job<N>, const N: usize>(
        dir: &Path,
        store: &str,
        log: OpenLog,
        job: J,
        engine: EngineSettings,
        views: ViewSettings,
        mut cluster: ClusterSettings,
    ) -> Result<Host, HostError> {
        check(&job.rollups(), N)?;
        if !log.log().is_shared() {
            return Err(HostError::Own("the log is embedded in this process's directory"));
        }
        let decided = Decided::new(&engine.lateness, &job.rollups());
        decided.clone().hold(dir)?;
        let store = match engine.checkpoint.is_on() {
            true => Some((Objects::open(dir, store)?, decided)),
            false => None,
        };
        let home = home(&log, job, engine, views, store);
        let symbols = Arc::clone(&home.symbols);
        cluster.version = format!("{}/job-{}", cluster.version, digest(&home));
        let store = home.store.as_ref().map(|(store, _)| Arc::clone(store));
        let member = Member::start(home, Cluster::open(cluster)?)?;
        Ok(Host::of(log, symbols, Life::Member(member), store, &engine))
    }

    fn on<J: Job<N>, const N: usize>(
        log: OpenLog,
        job: J,
        engine: EngineSettings,
        views: ViewSettings,
        store: Option<(Objects, Decided)>,
    ) -> Result<Host, HostError> {
        let home = home(&log, job, engine, views, store);
        let (run, next) = (home.alone_patiently(STORE_PATIENCE)?, home.clone());
        Host::alone(log, home, run, Box::new(move || next.alone()))
    }

    fn alone<J: Job<N>, const N: usize>(
        log: OpenLog,
        home: Home<J, N>,
        run: Run,
        begin: alone::Begin,
    ) -> Result<Host, HostError> {
        let seat = Seat::alone(home.engine.workers);
        let alone = Alone::start(run, || home.views(&seat), begin)?;
        let store = home.store.as_ref().map(|(store, _)| Arc::clone(store));
        Ok(Host::of(log, Arc::clone(&home.symbols), Life::Alone(alone), store, &home.engine))
    }

    fn of(
        log: OpenLog,
        symbols: Arc<Symbols>,
        life: Life,
        store: Option<Arc<dyn Store>>,
        engine: &EngineSettings,
    ) -> Host {
        let tables = Arc::clone(life.served()) as Arc<dyn Tables>;
        let future_skew_us_max = engine.lateness.future_skew_us_max;
        Host { log, symbols, tables, life, store, future_skew_us_max }
    }

    /// Appends events and waits until they are durable. An event that was sent before is a
    /// duplicate and changes nothing, so a sender that is not sure sends again.
    ///
    /// # Errors
    /// When nothing, or not everything, is certain to be durable: send again. When an event's time
    /// is out of range: nothing was sent.
    pub fn send<E: Event>(&self, events: &[E]) -> Result<(), HostError> {
        self.check_times(events)?;
        let key = self.key();
        let log = &**self.log.intake();
        let partitions = log.partitions(Topic::Events);
        let mut parts: Vec<Vec<&E>> = (0..partitions).map(|_| Vec::new()).collect();
        for event in events {
            let partition = hash::partition(&Rows::id_hash(event, &key), partitions);
            parts[usize::from(partition)].push(event);
        }
        let mut frames = Vec::new();
        for (partition, events) in parts.iter().enumerate() {
            for events in events.chunks(FRAME_RECORDS_MAX) {
                frames.push(Append {
                    topic: Topic::Events,
                    partition: partition as u16,
                    schema_version: 1,
                    records: events.len() as u32,
                    payload: Rows::encode(events, &key)?,
                });
            }
        }
        append_and_wait(log, frames)?;
        Ok(())
    }

    /// The ledger forgets an id when no copy can count any more, and that is reckoned from the most
    /// that an event may be ahead of its arrival.
    fn check_times<E: Event>(&self, events: &[E]) -> Result<(), HostError> {
        let now_us = system_clock()().0;
        let range = 0..=now_us.saturating_add(self.future_skew_us_max);
        match events.iter().find(|event| !range.contains(&event.time().0)) {
            None => Ok(()),
            Some(event) => Err(HostError::Time {
                id: event.id(),
                at: format_rfc3339(event.time().0),
                ahead_s: self.future_skew_us_max / SECOND_US,
            }),
        }
    }

    /// Waits until the views show everything that is durable now, in a cluster through any number
    /// of generations.
    ///
    /// # Errors
    /// Why the run cannot go on.
    pub fn settle(&self) -> Result<Epoch, HostError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let settled = self.engine().settle(until.saturating_duration_since(Instant::now()));
            // The next run shows the rest.
            let is_between = self.fault().is_none();
            match settled {
                Err(_) if is_between && Instant::now() < until => std::thread::sleep(GLANCE),
                Err(why) => return Err(HostError::Fault(self.fault().unwrap_or(why))),
                // The views of a generation are shown a moment after they are as far.
                Ok(epoch) if self.tables.visible().is_some_and(|at| at.epoch >= epoch) => {
                    return Ok(epoch);
                }
                Ok(_) => std::thread::sleep(GLANCE),
            }
        }
    }

    /// All rows of a view, of one epoch, sorted by bucket and dimensions.
    ///
    /// # Errors
    /// When there is no such view, or no epoch yet.
    pub fn rows(&self, view: &str) -> Result<Vec<ViewRow>, HostError> {
        let catalog = self.tables.catalog();
        let found = catalog.view(view).filter(|v| matches!(v.kind, ViewKind::Table { .. }));
        let Some(found) = found else {
            let known: Vec<&str> = catalog.views().iter().map(|v| v.name.as_str()).collect();
            return Err(HostError::NoView { name: view.into(), known: known.join(", ") });
        };
        let (mut rows, mut epoch, mut from) = (Vec::new(), None, None);
        loop {
            let page = self.tables.page(found.id, &Filter::default(), epoch, from, PAGE_ROWS);
            if matches!(page, Err(ReadError::Renumbered)) {
                // The next generation's views took the place of those that were read.
                (rows, epoch, from) = (Vec::new(), None, None);
                continue;
            }
            let page = page?;
            rows.extend(page.rows.rows().map(|row| ViewRow {
                bucket: EventTime(row.start_us),
                dimensions: row.key.iter().map(|&s| self.symbols.text(s).to_string()).collect(),
                figures: row.values.to_vec(),
                version: row.version,
                state: row.state,
            }));
            (epoch, from) = (Some(page.at.epoch), page.next);
            if from.is_none() {
                break;
            }
        }
        rows.sort_by(|a, b| (a.bucket, &a.dimensions).cmp(&(b.bucket, &b.dimensions)));
        Ok(rows)
    }

    /// The secret that ids are hashed with.
    pub fn key(&self) -> HashKey {
        self.log.identity().hash_key
    }

    /// The log.
    pub fn log(&self) -> &OpenLog {
        &self.log
    }

    /// The texts of dimensions.
    pub fn symbols(&self) -> &Arc<Symbols> {
        &self.symbols
    }

    /// The views, to be asked anything, and to be served.
    pub fn tables(&self) -> &Arc<dyn Tables> {
        &self.tables
    }

    /// The engine: in a cluster, that of the generation that runs or ran last.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.life.current().get().engine)
    }

    /// The checkpoint that the run began with; `None`: with the beginning of the log.
    pub fn loaded(&self) -> Option<LoadedFrom> {
        self.life.current().get().loaded.clone()
    }

    /// How many newer checkpoints could not be loaded.
    pub(crate) fn passed_over(&self) -> usize {
        self.life.current().get().passed_over
    }

    /// Why this process cannot go on, if it cannot. The end of a generation is no such reason; a
    /// log that nothing can be appended to before it is opened anew is one.
    pub fn fault(&self) -> Option<String> {
        let of_run = match &self.life {
            Life::Member(member) => member.fault(),
            Life::Alone(alone) => alone.fault(),
        };
        of_run.or_else(|| self.log.broken())
    }

    /// What is known of the cluster, if there is one.
    pub fn membership(&self) -> Option<Membership> {
        match &self.life {
            Life::Member(member) => Some(member.membership()),
            Life::Alone(_) => None,
        }
    }

    /// Takes a checkpoint of everything that the views show, so that the next start has little to
    /// do; its epoch. `None`: this run takes none.
    ///
    /// # Errors
    /// Why it was not published. The log has everything nevertheless.
    pub fn checkpoint(&self) -> Result<Option<Epoch>, HostError> {
        let engine = self.engine();
        match engine.generation().filter(|g| g.process() != LEADER) {
            None => engine.checkpoint(CHECKPOINT_PATIENCE),
            Some(generation) => neighbour::checkpoint(generation, CHECKPOINT_PATIENCE),
        }
        .map_err(HostError::Fault)
    }

    /// What the fullest other process of the cluster holds, as far as they answer.
    pub(crate) fn fullest_other(&self) -> Option<Vec<WorkerMemory>> {
        let engine = self.engine();
        let generation = engine.generation()?;
        let others = (0..generation.processes()).filter(|&p| p != generation.process());
        let told = others.filter_map(|process| neighbour::memory(generation, process).ok());
        told.max_by_key(|workers| {
            let nearly_full = workers.iter().any(|worker| worker.ledger_nearly_full);
            (nearly_full, workers.iter().map(WorkerMemory::bytes).sum::<usize>())
        })
    }

    /// Shows no more, and leaves the cluster if this process is of one: the others wait until it is
    /// back.
    pub(crate) fn leave(&self) {
        match &self.life {
            Life::Member(member) => member.stop(),
            Life::Alone(alone) => alone.stop(),
        }
    }

    /// Ends the run, with a checkpoint if it takes any; the log has everything. In a cluster it
    /// waits for the other processes to close too: until then they need this one.
    pub fn close(self) {
        // A run that is still behind would first have to catch up.
        let engine = self.engine();
        if engine.fault().is_none()
            && engine.lag().caught_up
            && let Err(error) = self.checkpoint()
        {
            tracing::warn!(%error, "no last checkpoint: the next start has more to read");
        }
        if let Some(generation) = engine.generation() {
            generation.finish(PATIENCE);
        }
        self.leave();
        engine.stop();
    }
}

fn home<J: Job<N>, const N: usize>(
    log: &OpenLog,
    job: J,
    engine: EngineSettings,
    views: ViewSettings,
    store: Option<(Objects, Decided)>,
) -> Home<J, N> {
    Home {
        partitions: log.identity().partitions,
        installation: log.identity().installation_hex(),
        log: Arc::clone(log.log()),
        symbols: Arc::new(Symbols::default()),
        job: Arc::new(job),
        engine,
        views,
        store: store.map(|(store, decided)| (Arc::new(store) as Arc<dyn Store>, decided)),
    }
}

/// Of what all processes must have alike, or one would take another's sums for what they are not.
fn digest<J: Job<N>, const N: usize>(home: &Home<J, N>) -> String {
    let engine = &home.engine;
    let alike = format!(
        "{:?}",
        (
            home.job.rollups(),
            (engine.lateness, engine.partitioned_by_id),
            (home.store.is_some(), &home.installation, home.partitions),
        )
    );
    format!("{:016x}", hash::stable(alike.as_bytes()))
}

/// Whether a job's rollups can be kept. Which dimensions there are is the job's to know.
fn check(rollups: &[RollupSpec], dimensions_max: usize) -> Result<(), HostError> {
    let known: Vec<&str> =
        rollups.iter().flat_map(|rollup| &rollup.dimensions).map(String::as_str).collect();
    check_rollups(rollups, &known, dimensions_max)
        .map_err(|problem| HostError::Rollups(problem.to_string()))
}
