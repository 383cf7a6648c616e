//! What a run begins with: the newest checkpoint that is whole and of this log, or the beginning of
//! the log. One path for a first start, a restart and another number of workers; a replay and
//! `verify` begin at the beginning.
//!
//! A checkpoint is checked while it is loaded, not before: each section is read once, compared with
//! its checksum and taken. Whatever is wrong with one (missing, cut short, flipped, of another
//! epoch, not of this log) is said, what was loaded of it is dropped, and the next older one is
//! tried. All of them give the same figures; an older one only leaves more of the log to read.
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

use super::{
    keeper::{Keeper, Sections, manifests, read_manifest},
    manifest::{At, Manifest, ManifestName, Of},
    pack::Index,
    pieces::{Whose, vnode_prefix},
    store::{Objects, Store, StoreError},
    taking::{Checkpoints, Ended, Role, SealedPart},
};
use crate::{
    engine::StartError,
    remap::{self, Cursor},
};
use std::{
    ops::Range,
    sync::Arc,
    thread::ScopedJoinHandle,
    time::{Duration, Instant},
};
use trueup_operators::{
    accumulate::{Loaded, STAGES},
    hash::{self, VNODES},
    ledger::{Ledger, LedgerSettings},
    log::{Log, LogError, Topic},
    metrics::Group,
    remap::RemapRow,
    time::Epoch,
};
use trueup_sinks::{Loader, Views};

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
    /// The store does not say what it has.
    #[error("the checkpoints cannot be listed: {0}")]
    Store(#[from] StoreError),
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

impl<const N: usize, M> Begin<N, M> {
    /// The beginning of the log.
    pub(crate) fn origin(log: &dyn Log, workers: usize) -> Self {
        Begin {
            from: Cursor::origin(log),
            workers: (0..workers).map(|_| None).collect(),
            loaded: None,
            broken: Vec::new(),
            checkpoints: None,
        }
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
    store: Arc<Objects>,
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
    store: Arc<Objects>,
    log: &dyn Log,
    of: Of,
    views: &Arc<Views<N, M>>,
    leading: Leading,
) -> Result<(Begin<N, M>, Option<ManifestName>), StartError> {
    let Leading { generation, place, broken, say } = leading;
    let settings = of.engine.checkpoint;
    aside(|| {
        let (claimed, keep) = (Arc::clone(&store) as Arc<dyn Store>, settings.keep());
        // First the claim: what an older generation still writes then does no harm.
        let mut keeper = match generation {
            None => Keeper::claim(claimed, keep, of.clone())?,
            Some(generation) => Keeper::claim_as(claimed, keep, of.clone(), generation)?,
        };
        // No member of this generation writes before it was told what to begin with.
        for folder in ["packs", "manifests"] {
            store.remove_unfinished(folder).map_err(LoadError::from)?;
        }
        let (mut begin, chosen) = begin(&*store, log, &of, views, place, &broken)?;
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

/// Loads what the leader has chosen, and nothing else, and starts the thread that writes this
/// process's part of checkpoints.
///
/// # Errors
/// When that cannot be loaded.
pub(crate) fn follow<const N: usize, M: Group>(
    store: Arc<Objects>,
    log: &dyn Log,
    of: Of,
    views: &Arc<Views<N, M>>,
    following: Following,
) -> Result<Begin<N, M>, StartError> {
    let Following { generation, place, chosen, say } = following;
    aside(|| {
        let joined = Arc::clone(&store) as Arc<dyn Store>;
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
/// When the store cannot be listed or is another's, or when there is nothing to begin with.
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
    for name in manifests(store)? {
        if known_broken.contains(&name) {
            reasons.push(format!("{name}: another process could not load it"));
            broken.push(name);
            continue;
        }
        match one(store, log, of, views, place, name)? {
            Ok((mut begin, mut loaded)) => {
                loaded.took = started.elapsed();
                begin.loaded = Some(loaded);
                return Ok((Begin { broken, ..begin }, Some(name)));
            }
            Err(reason) => {
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
    match one(store, log, of, views, place, name)? {
        Ok((begin, loaded)) => {
            let loaded = Some(LoadedFrom { took: started.elapsed(), ..loaded });
            Ok(Begin { loaded, ..begin })
        }
        Err(reason) => Err(LoadError::Chosen { name: name.to_string(), reason }),
    }
}

/// Loads one checkpoint; what is wrong with it, if it cannot be.
///
/// # Errors
/// When it is another installation's.
fn one<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
    place: Place,
    name: ManifestName,
) -> Result<Result<(Begin<N, M>, LoadedFrom), String>, LoadError> {
    let manifest = match read_manifest(store, name) {
        Ok(manifest) => manifest,
        Err(reason) => return Ok(Err(reason)),
    };
    if manifest.installation != of.installation {
        let (found, own) = (manifest.installation, of.installation.clone());
        return Err(LoadError::Foreign { name: name.to_string(), found, own });
    }
    let loaded = load(store, log, of, views, place, &manifest);
    Ok(loaded.map(|(from, workers)| {
        let workers = workers.into_iter().map(Some).collect();
        let loaded = LoadedFrom {
            epoch: manifest.epoch,
            generation: manifest.generation,
            sections: manifest.sections,
            bytes: manifest.bytes_live,
            took: Duration::ZERO,
        };
        (Begin { from, workers, loaded: None, broken: Vec::new(), checkpoints: None }, loaded)
    }))
}

/// What a run goes on after, and what its workers have.
type Resumed<const N: usize, M> = (Cursor, Vec<WorkerBegin<N, M>>);

fn load<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
    place: Place,
    manifest: &Manifest,
) -> Result<Resumed<N, M>, String> {
    let at = manifest.at()?;
    check_job(manifest, of)?;
    check_log(&at, log)?;
    let sections = Sections::open(store, manifest)?;
    // The ledgers side by side, and the rows beside them. Views have nothing until all is there.
    let (ledgers, rows) = std::thread::scope(|scope| {
        let sections = &sections;
        let ledger = |worker| {
            let peers = place.peers() as u32;
            let settings = LedgerSettings {
                shuffled: !of.engine.partitioned_by_id,
                ..LedgerSettings::new(of.engine.lateness, worker as u32, peers)
            };
            let partitions = of.engine.id_partitions(log);
            scope.spawn(move || load_ledger(store, sections, settings, partitions))
        };
        let ledgers: Vec<_> = place.own().map(ledger).collect();
        let rows = load_rows(store, sections, &at, views);
        let join = |thread: ScopedJoinHandle<'_, Result<Ledger, String>>| {
            thread.join().unwrap_or_else(|_| Err("loading it ended by a panic".to_owned()))
        };
        (ledgers.into_iter().map(join).collect::<Result<Vec<_>, _>>(), rows)
    });
    let (ledgers, rows) = (ledgers?, rows?.finish().map_err(|e| e.to_string())?);
    let (workers, peers) = (rows.len(), place.peers());
    if workers != peers {
        return Err(format!("the views are those of {workers} workers, there are {peers}"));
    }
    let rows = rows.into_iter().skip(place.own().start);
    let begin = |(ledger, rows)| WorkerBegin { ledger, rows };
    let workers = ledgers.into_iter().zip(rows).map(begin).collect();
    let from = Cursor { row: Arc::new(at.row), next: at.remap_offset };
    Ok((from, workers))
}

/// Loads the ledger of a worker: the vnodes that it owns now, whoever owned them before.
fn load_ledger(
    store: &dyn Store,
    sections: &Sections,
    settings: LedgerSettings,
    partitions: u16,
) -> Result<Ledger, String> {
    let mut ledger = Ledger::new(settings);
    for vnode in owned_vnodes(settings.worker, settings.peers, partitions) {
        let parts = each(sections, Whose::Vnode)
            .filter(|(_, key, _)| key.starts_with(&vnode_prefix(vnode)))
            .map(|(index, key, place)| index.section(store, key, place))
            .collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        ledger.load_vnode(vnode, &parts).map_err(|e| e.to_string())?;
    }
    let (index, key, place) = each(sections, Whose::Impressions)
        .next()
        .ok_or("the section of what all ledgers know is missing")?;
    let section = index.section(store, key, place)?;
    ledger.load_impressions(&section).map_err(|e| e.to_string())?;
    ledger.finish_load();
    Ok(ledger)
}

/// The vnodes that a worker owns: those of its partitions, of so many that ids are divided into.
pub(crate) fn owned_vnodes(
    worker: u32,
    peers: u32,
    partitions: u16,
) -> impl Iterator<Item = usize> {
    let owner = move |&vnode: &usize| {
        u32::from(hash::partition_of_vnode(vnode, partitions)) % peers == worker
    };
    (0..VNODES).filter(owner)
}

/// Loads views and accumulators.
fn load_rows<const N: usize, M: Group>(
    store: &dyn Store,
    sections: &Sections,
    at: &At,
    views: &Arc<Views<N, M>>,
) -> Result<Loader<N, M>, String> {
    let mut loader = views.load(at.times());
    for (index, key, place) in each(sections, Whose::Rows) {
        let section = index.section(store, key, place)?;
        loader.take(&section).map_err(|e| e.to_string())?;
    }
    Ok(loader)
}

/// The sections of one family of keys, by key.
fn each(
    sections: &Sections,
    whose: Whose,
) -> impl Iterator<Item = (&Index, &[u8], &super::pack::Place)> {
    sections.indexes.iter().flat_map(move |index| {
        let own = index.sections.iter().filter(move |(key, _)| Whose::of(key) == Some(whose));
        own.map(move |(key, place)| (index, &key[..], place))
    })
}

/// Whether a checkpoint is of the job's rollups and decided as the job decides.
fn check_job(manifest: &Manifest, of: &Of) -> Result<(), String> {
    if manifest.decided.is_decided_as(&of.decided) && manifest.rollups == of.rollups {
        return Ok(());
    }
    let names = |manifest: &[trueup_operators::rollup::RollupSpec]| {
        manifest.iter().map(|rollup| rollup.name.clone()).collect::<Vec<_>>().join(", ")
    };
    let (were, are) = (names(&manifest.rollups), names(&of.rollups));
    Err(format!(
        "epoch {}: the checkpoint is of the rollups {were}, with their dimensions, granularities \
         and `rows_max`; the job's are {are}, or are other ones of these names",
        manifest.epoch
    ))
}

/// Whether a checkpoint is of this log, and the log goes on where it ends.
fn check_log(at: &At, log: &dyn Log) -> Result<(), String> {
    let epoch = at.row.epoch;
    let next = at.remap_offset;
    let (first, end) = (log.first(Topic::Remap, 0), remap::end(log));
    if next > end || next < first {
        return Err(format!(
            "epoch {epoch}: its row is before offset {next} of the remap topic, the log has \
             {first}..{end}"
        ));
    }
    if next > first {
        let own = read_row(log, next - 1).map_err(|e| format!("epoch {epoch}: {e}"))?;
        if own.is_some_and(|own| own != at.row) {
            return Err(format!(
                "epoch {epoch}: the remap row at offset {} is not the checkpoint's: it is of \
                 another log, or of a writer that was superseded",
                next - 1
            ));
        }
    }
    for (topic, uptos) in [(Topic::Events, &at.row.events), (Topic::Verdicts, &at.row.verdicts)] {
        let ends = log.ends(topic);
        if ends.len() < uptos.len() {
            return Err(format!("epoch {epoch}: the log has {} partitions", ends.len()));
        }
        for (partition, (upto, end)) in (0..).zip(uptos.iter().zip(ends)) {
            let first = log.first(topic, partition);
            if !(first..=end.offset).contains(&upto.offset) {
                return Err(format!(
                    "epoch {epoch}: it goes on at offset {} of partition {partition} of {}, the \
                     log has {first}..{}",
                    upto.offset,
                    topic.name(),
                    end.offset
                ));
            }
        }
    }
    Ok(())
}

/// The row at an offset. `None`: the log has it no longer, which only a shared one may say.
fn read_row(log: &dyn Log, offset: u64) -> Result<Option<RemapRow>, String> {
    let frames =
        log.read(Topic::Remap, 0, offset, offset + 1, 0).map_err(|e: LogError| e.to_string())?;
    match frames.first() {
        Some(frame) => RemapRow::decode(&frame.payload).map(Some),
        None if log.is_shared() => Ok(None),
        None => Err("the log gave no remap row".to_owned()),
    }
}

/// What is missing of a log's beginning, if a run that begins there would miss it.
fn beginning_missing(log: &dyn Log) -> Option<String> {
    let first = log.first(Topic::Remap, 0);
    if first > 0 {
        return Some(format!("the remap topic begins at offset {first}"));
    }
    // What others deleted of a shared log before the first epoch was never seen.
    if log.is_shared() {
        return None;
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
