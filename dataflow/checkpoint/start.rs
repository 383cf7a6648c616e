//! What a run begins with: the newest checkpoint that is whole and of this log, or the beginning of
//! the log. One path for a first start, a restart and another number of workers; a replay and
//! `verify` begin at the beginning.
//!
//! A checkpoint is checked while it is loaded, not before: each section is read once, compared with
//! its checksum and taken. Whatever is wrong with one (missing, cut short, flipped, of another
//! epoch, not of this log) is said, what was loaded of it is dropped, and the next older one is
//! tried. They give the same figures, and an older one only leaves more of the log to read; but for
//! those from before a replay was taken up, which are not tried ([`super::offer`]). What the store
//! or the log does not give is not wrong: the start fails, and is tried again.
//!
//! # Several processes
//!
//! All processes of a generation begin with the same checkpoint: the first one *leads*, chooses it
//! and says which it is; the others *follow*, load exactly that, and if one cannot, nobody begins.
//! Each loads the ledgers of its own workers and the rows of all, because every process has all
//! views.
//!
//! So the rows must get the same numbers in each, as what a worker says of a row is told to all
//! processes by its number. They do: sections are taken by part, in the order of the manifest, and
//! in a part by key; rows of a section in their order there. Neither the numbers that a process has
//! for texts nor its place, nor how long anything took, has a part in it.
//!
//! # What is compared with the log
//!
//! A checkpoint is a function of the log up to its remap row. So the log must have that very row
//! where the manifest says, must not end before what the row names, and must still have all that
//! comes after it. And the job must have the rollups that the checkpoint has: rows of another list
//! of rollups would be taken for those of other tables.

mod loading;

pub(crate) use loading::owned_vnodes;

use super::{
    keeper::{Keeper, manifests, read_manifest},
    manifest::{Figures, ManifestName, Of},
    offer::{self, Offers, Refused},
    store::{Store, StoreError},
    taking::{Checkpoints, Ended, Role, SealedPart},
};
use crate::{engine::StartError, epochs::missing, remap::Cursor};
use loading::{NotLoaded, load};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::{
    accumulate::{Loaded, STAGES},
    ledger::Ledger,
    log::{Log, LogError, Topic},
    metrics::Group,
    time::Epoch,
};
use trueup_sinks::Views;

/// What each worker hands over: its ledger, and of each stage what its accumulator knows and its
/// view's shard.
const PIECES: usize = 1 + 2 * STAGES;

/// What a run begins with.
pub(crate) struct Begin<const N: usize, M> {
    /// The last row whose epoch it has.
    pub(crate) from: Cursor,
    /// What each worker of this process begins with, if not with nothing.
    pub(crate) workers: Vec<Option<WorkerBegin<N, M>>>,
    /// The checkpoint that was loaded.
    pub(crate) loaded: Option<LoadedFrom>,
    /// Whose figures that has, if there was a replay.
    pub(crate) figures: Option<Figures>,
    /// The replay that was not taken up, if one was offered.
    pub(crate) refused: Option<Refused>,
    /// Newer ones that could not be, here or in another process.
    pub(crate) broken: Vec<ManifestName>,
    /// Who takes the checkpoints of the run.
    pub(crate) checkpoints: Option<Arc<Checkpoints>>,
}

/// What a worker begins with.
pub(crate) struct WorkerBegin<const N: usize, M> {
    /// Its ledger.
    pub(crate) ledger: Ledger,
    /// Its accumulators' rows.
    pub(crate) rows: [Loaded<N, M>; STAGES],
}

/// The checkpoint that a run began with.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedFrom {
    /// Its epoch.
    pub epoch: Epoch,
    /// Who wrote it.
    pub generation: u64,
    /// How many sections it has.
    pub sections: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long loading took, with those.
    pub took: Duration,
}

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store does not give what it has, or does not say what that is.
    #[error("the checkpoints cannot be read: {0}")]
    Store(#[from] StoreError),
    /// The log does not give what a checkpoint is compared with.
    #[error("a checkpoint cannot be compared with the log: {0}")]
    Log(LogError),
    /// This process's log is not as far as what the others begin with.
    #[error(
        "all processes begin with the checkpoint {name}, and the log that this one sees is not as \
         far: {reason}"
    )]
    Behind {
        /// The manifest.
        name: String,
        /// What the log has.
        reason: String,
    },
    /// The store is another installation's.
    #[error(
        "the checkpoint {name} is of the installation {found}, and this is {own}: give each data \
         directory a place of its own in `checkpoint.store`"
    )]
    Foreign {
        /// The manifest.
        name: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        own: String,
    },
    /// It cannot begin with what the others begin with.
    #[error(
        "all processes begin with the checkpoint {name}, and this one cannot load it: {reason}"
    )]
    Chosen {
        /// The manifest.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a checkpoint nor the beginning of the log.
    #[error(
        "no checkpoint can be loaded, and the log no longer has its beginning ({first}): set back \
         what was changed, or restore the checkpoints or the log from a backup. What is wrong with \
         the checkpoints: {reasons}"
    )]
    Nothing {
        /// What the log begins with.
        first: String,
        /// What is wrong with which checkpoint.
        reasons: String,
    },
}

impl LoadError {
    /// Whether the same start may be possible later, with nothing changed.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            LoadError::Store(_) | LoadError::Behind { .. } => true,
            LoadError::Log(error) => error.may_pass(),
            LoadError::Foreign { .. } | LoadError::Chosen { .. } | LoadError::Nothing { .. } => {
                false
            }
        }
    }
}

impl<const N: usize, M> Begin<N, M> {
    /// The beginning of the log.
    pub(crate) fn origin(log: &dyn Log, workers: usize) -> Self {
        Begin::after(Cursor::origin(log), (0..workers).map(|_| None).collect())
    }

    fn after(from: Cursor, workers: Vec<Option<WorkerBegin<N, M>>>) -> Self {
        let (loaded, figures, refused, checkpoints) = (None, None, None, None);
        Begin { from, workers, loaded, figures, refused, broken: Vec::new(), checkpoints }
    }
}

/// Which of the workers of a job are a process's own. Workers are numbered through all processes,
/// by process and then by thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which process.
    pub(crate) process: usize,
    /// How many there are.
    pub(crate) processes: usize,
    /// Workers of each.
    pub(crate) threads: usize,
}

impl Place {
    /// Of the only process.
    pub(crate) fn alone(threads: usize) -> Place {
        Place { process: 0, processes: 1, threads }
    }

    /// Workers of all processes.
    pub(crate) fn peers(&self) -> usize {
        self.processes * self.threads
    }

    /// Its own.
    pub(crate) fn own(&self) -> Range<usize> {
        let first = self.process * self.threads;
        first..first + self.threads
    }
}

/// How a process begins that says what all begin with.
pub(crate) struct Leading {
    /// The generation that the processes have agreed on; `None`: the next one.
    pub(crate) generation: Option<u64>,
    /// Its place: the first one.
    pub(crate) place: Place,
    /// Checkpoints that a process could not load.
    pub(crate) broken: Vec<ManifestName>,
    /// Tells the members how a checkpoint ended; see [`Role`].
    pub(crate) say: Box<dyn Fn(Ended) + Send + Sync>,
}

/// How a process begins that is told with what.
pub(crate) struct Following {
    /// The generation that the processes have agreed on.
    pub(crate) generation: u64,
    /// Its place: not the first one.
    pub(crate) place: Place,
    /// What the leader has chosen; `None`: the beginning of the log.
    pub(crate) chosen: Option<ManifestName>,
    /// Tells the leader of a part of a checkpoint; see [`Role`].
    pub(crate) say: Box<dyn Fn(SealedPart) + Send + Sync>,
}

/// Begins the run of a process that is alone: as [`lead`] in the next generation.
///
/// # Errors
/// As [`lead`].
pub(crate) fn open<const N: usize, M: Group>(
    store: Arc<dyn Store>,
    log: &dyn Log,
    of: Of,
    views: &Arc<Views<N, M>>,
) -> Result<Begin<N, M>, StartError> {
    let place = Place::alone(of.engine.workers);
    let say = Box::new(|_| {});
    let leading = Leading { generation: None, place, broken: Vec::new(), say };
    lead(store, log, of, views, leading).map(|(begin, _)| begin)
}

/// Claims the store for a generation, loads what there is, and starts the thread that writes and
/// publishes. Which checkpoint it was that all processes begin with; `None`: the beginning of the
/// log. `of.engine.workers` are the workers of each process; `views` have the shards of all.
///
/// # Errors
/// When the generation is fenced, the store cannot, is another's, or there is nothing to begin
/// with.
pub(crate) fn lead<const N: usize, M: Group>(
    store: Arc<dyn Store>,
    log: &dyn Log,
    of: Of,
    views: &Arc<Views<N, M>>,
    leading: Leading,
) -> Result<(Begin<N, M>, Option<ManifestName>), StartError> {
    let Leading { generation, place, broken, say } = leading;
    let settings = of.engine.checkpoint;
    aside(|| {
        let (claimed, keep) = (Arc::clone(&store), settings.keep());
        // First the claim: what an older generation still writes then does no harm.
        let mut keeper = match generation {
            None => Keeper::claim(claimed, keep, of.clone())?,
            Some(generation) => Keeper::claim_as(claimed, keep, of.clone(), generation)?,
        };
        // No member of this generation writes before it was told what to begin with.
        for folder in ["packs", "manifests"] {
            store.remove_unfinished(folder).map_err(LoadError::from)?;
        }
        let taken_back = taken_back(&*store, &broken).map_err(LoadError::from)?;
        let offers = offer::take_up(&*store, &of, keeper.generation()).map_err(LoadError::from)?;
        let (mut begin, chosen) = begin(&*store, log, &of, views, place, &broken)?;
        let refused = settle(&*store, offers, &begin, chosen).map_err(LoadError::from)?;
        begin.refused = refused.or(taken_back);
        keeper.set_figures(begin.figures.clone());
        for &broken in &begin.broken {
            keeper.condemn(broken);
        }
        let role = match place.processes - 1 {
            0 => Role::Alone,
            members => Role::Leader { members: members as u32, say },
        };
        begin.checkpoints = Some(takes(keeper, &of, place, role)?);
        Ok((begin, chosen))
    })
}

/// What another process could not load of a replay, in the generation before this one, is taken
/// back: no later start must take it up unasked.
fn taken_back(store: &dyn Store, broken: &[ManifestName]) -> Result<Option<Refused>, StoreError> {
    let mut refused = None;
    for &name in broken {
        if let Some(id) = offer::take_back(store, name)? {
            refused = Some(not_loaded(id));
        }
    }
    Ok(refused)
}

fn not_loaded(id: String) -> Refused {
    let reason = "its state cannot be loaded; the log of the server says why".to_owned();
    Refused { id, reason }
}

/// Which offer was not taken up. What became the newest checkpoint and cannot be loaded is deleted
/// before anything is shown. What was loaded is there to stay.
fn settle<const N: usize, M>(
    store: &dyn Store,
    offers: Offers,
    begin: &Begin<N, M>,
    chosen: Option<ManifestName>,
) -> Result<Option<Refused>, StoreError> {
    if let (Some(name), Some(Figures { seen: false, .. })) = (chosen, &begin.figures) {
        offer::settle(store, name.generation)?;
    }
    match offers.taken_up {
        Some((name, id)) if begin.broken.contains(&name) => {
            store.delete(&name.to_string())?;
            Ok(Some(not_loaded(id)))
        }
        _ => Ok(offers.refused),
    }
}

/// Loads what the leader has chosen, and nothing else, and starts the thread that writes this
/// process's part of checkpoints.
///
/// # Errors
/// When that cannot be loaded.
pub(crate) fn follow<const N: usize, M: Group>(
    store: Arc<dyn Store>,
    log: &dyn Log,
    of: Of,
    views: &Arc<Views<N, M>>,
    following: Following,
) -> Result<Begin<N, M>, StartError> {
    let Following { generation, place, chosen, say } = following;
    aside(|| {
        let joined = Arc::clone(&store);
        let keep = of.engine.checkpoint.keep();
        let keeper = Keeper::join(joined, keep, of.clone(), generation, place.process as u32);
        let mut begin = match chosen {
            None => origin(log, place.threads)?,
            Some(name) => told(&*store, log, &of, views, place, name)?,
        };
        begin.checkpoints = Some(takes(keeper, &of, place, Role::Member { say })?);
        Ok(begin)
    })
}

/// Begins at the beginning of the log, to offer the state at the end of an epoch.
///
/// # Errors
/// When the log no longer has its beginning, or the store does not say what it has.
pub(crate) fn offering<const N: usize, M: Group>(
    store: Arc<dyn Store>,
    log: &dyn Log,
    of: Of,
    upto: Epoch,
) -> Result<Begin<N, M>, StartError> {
    aside(|| {
        let place = Place::alone(of.engine.workers);
        let keep = of.engine.checkpoint.keep();
        let keeper = Keeper::offering(store, keep, of.clone())?;
        let mut begin = origin(log, place.threads)?;
        begin.checkpoints = Some(takes(keeper, &of, place, Role::Offer { upto })?);
        Ok(begin)
    })
}

/// Loads on a thread of its own: who calls may be one that must not block.
fn aside<T: Send>(begin: impl FnOnce() -> Result<T, StartError> + Send) -> Result<T, StartError> {
    std::thread::scope(|scope| scope.spawn(begin).join())
        .unwrap_or_else(|_| Err(StartError::Thread("loading ended by a panic".to_owned())))
}

/// Starts the thread that writes.
fn takes(
    keeper: Keeper,
    of: &Of,
    place: Place,
    role: Role,
) -> Result<Arc<Checkpoints>, StartError> {
    let pieces = place.threads * PIECES;
    Checkpoints::start(keeper, of.engine.checkpoint.interval, pieces, role)
        .map_err(|e| StartError::Thread(e.to_string()))
}

/// Begins at the beginning of the log.
///
/// # Errors
/// When the log no longer has it.
pub(crate) fn origin<const N: usize, M>(
    log: &dyn Log,
    workers: usize,
) -> Result<Begin<N, M>, LoadError> {
    match beginning_missing(log) {
        None => Ok(Begin::origin(log, workers)),
        Some(first) => {
            Err(LoadError::Nothing { first, reasons: "none is to be loaded".to_owned() })
        }
    }
}

/// Loads the newest checkpoint that can be loaded into views that are still empty, but none that is
/// known to be broken, or begins at the beginning of the log. Which one it was.
///
/// # Errors
/// When the store or the log does not answer, the store is another's, or there is nothing to begin
/// with.
pub(crate) fn begin<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
    place: Place,
    known_broken: &[ManifestName],
) -> Result<(Begin<N, M>, Option<ManifestName>), LoadError> {
    let started = Instant::now();
    let (mut broken, mut reasons) = (Vec::new(), Vec::new());
    let settled = offer::settled(store)?;
    for name in manifests(store)? {
        if name.generation < settled {
            reasons.push(format!("{name}: has the figures from before a replay was taken up"));
            continue;
        }
        if known_broken.contains(&name) {
            reasons.push(format!("{name}: another process could not load it"));
            broken.push(name);
            continue;
        }
        match one(store, log, of, views, place, name) {
            Ok((mut begin, mut loaded)) => {
                loaded.took = started.elapsed();
                begin.loaded = Some(loaded);
                return Ok((Begin { broken, ..begin }, Some(name)));
            }
            // Neither older state nor the beginning of the log stands in for what may be good.
            Err(NotLoaded::Unknown(error)) => return Err(error),
            Err(NotLoaded::Wrong(reason) | NotLoaded::Behind(reason)) => {
                tracing::warn!(%name, reason, "not a usable checkpoint; the one before is tried");
                reasons.push(reason);
                broken.push(name);
            }
        }
    }
    match beginning_missing(log) {
        None => Ok((Begin { broken, ..Begin::origin(log, place.threads) }, None)),
        Some(first) => {
            if reasons.is_empty() {
                reasons.push("there is none".to_owned());
            }
            Err(LoadError::Nothing { first, reasons: reasons.join("; ") })
        }
    }
}

/// Loads the checkpoint that all processes begin with into views that are still empty.
fn told<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
    place: Place,
    name: ManifestName,
) -> Result<Begin<N, M>, LoadError> {
    let started = Instant::now();
    let name_of = || name.to_string();
    match one(store, log, of, views, place, name) {
        Ok((begin, loaded)) => {
            let loaded = Some(LoadedFrom { took: started.elapsed(), ..loaded });
            Ok(Begin { loaded, ..begin })
        }
        Err(NotLoaded::Unknown(error)) => Err(error),
        // The leader has seen that the log is as far.
        Err(NotLoaded::Behind(reason)) => Err(LoadError::Behind { name: name_of(), reason }),
        Err(NotLoaded::Wrong(reason)) => Err(LoadError::Chosen { name: name_of(), reason }),
    }
}

/// Loads one checkpoint; why it was not, if it was not.
fn one<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
    place: Place,
    name: ManifestName,
) -> Result<(Begin<N, M>, LoadedFrom), NotLoaded> {
    let manifest = read_manifest(store, name)?;
    if manifest.installation != of.installation {
        let (found, own) = (manifest.installation, of.installation.clone());
        let foreign = LoadError::Foreign { name: name.to_string(), found, own };
        return Err(NotLoaded::Unknown(foreign));
    }
    let (from, workers) = load(store, log, of, views, place, &manifest)?;
    let workers = workers.into_iter().map(Some).collect();
    let loaded = LoadedFrom {
        epoch: manifest.epoch,
        generation: manifest.generation,
        sections: manifest.sections,
        bytes: manifest.bytes_live,
        took: Duration::ZERO,
    };
    Ok((Begin { figures: manifest.figures, ..Begin::after(from, workers) }, loaded))
}

/// What is missing of a log's beginning, if a run that begins there would miss it.
fn beginning_missing(log: &dyn Log) -> Option<String> {
    let first = log.first(Topic::Remap, 0);
    if first > 0 {
        return Some(format!("the remap topic begins at offset {first}"));
    }
    if log.is_shared() {
        return missing(log);
    }
    [Topic::Events, Topic::Verdicts].into_iter().find_map(|topic| {
        (0..log.partitions(topic)).find_map(|partition| {
            let first = log.first(topic, partition);
            let text =
                || format!("partition {partition} of {} begins at offset {first}", topic.name());
            (first > 0).then(text)
        })
    })
}
