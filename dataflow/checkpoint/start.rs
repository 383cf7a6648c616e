//! What a run begins with: the newest checkpoint that is whole and of this log, or the beginning of
//! the log. One path for a first start, a restart and another number of workers; a replay and
//! `verify` begin at the beginning.
//!
//! A checkpoint is checked while it is loaded, not before: each section is read once, compared with
//! its checksum and taken. Whatever is wrong with one (missing, cut short, flipped, of another
//! epoch, not of this log) is said, what was loaded of it is dropped, and the next older one is
//! tried. All of them give the same figures; an older one only leaves more of the log to read.
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
    taking::Checkpoints,
};
use crate::{
    engine::StartError,
    remap::{self, Cursor},
};
use std::{
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
    /// What each worker begins with, if not with nothing.
    pub(crate) workers: Vec<Option<WorkerBegin<N, M>>>,
    /// The checkpoint that was loaded.
    pub(crate) loaded: Option<LoadedFrom>,
    /// Manifests that could not be.
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
    /// How many newer ones could not be loaded.
    pub passed_over: usize,
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

/// Claims the store for a new generation, loads what there is, and starts the thread that writes.
///
/// # Errors
/// When the store cannot, is another's, or there is nothing to begin with.
pub(crate) fn open<const N: usize, M: Group>(
    store: Objects,
    log: &dyn Log,
    of: Of,
    views: &Arc<Views<N, M>>,
) -> Result<Begin<N, M>, StartError> {
    let settings = of.engine.checkpoint;
    let opened = || {
        let store = Arc::new(store);
        // First the claim: what an older generation still writes then does no harm.
        let claimed =
            Keeper::claim(Arc::clone(&store) as Arc<dyn Store>, settings.keep(), of.clone());
        let mut keeper = claimed?;
        for folder in ["packs", "manifests"] {
            store.remove_unfinished(folder).map_err(LoadError::from)?;
        }
        let mut begin = begin(&*store, log, &of, views)?;
        begin.broken.iter().for_each(|&broken| keeper.condemn(broken));
        let pieces = of.engine.workers * PIECES;
        let checkpoints = Checkpoints::start(keeper, settings.interval, pieces)
            .map_err(|e| StartError::Thread(e.to_string()))?;
        begin.checkpoints = Some(checkpoints);
        Ok(begin)
    };
    // A thread of its own: who calls may be one that must not block.
    std::thread::scope(|scope| scope.spawn(opened).join())
        .unwrap_or_else(|_| Err(StartError::Thread("loading ended by a panic".to_owned())))
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

/// Loads the newest checkpoint that can be loaded into views that are still empty, or begins at the
/// beginning of the log.
///
/// # Errors
/// When the store cannot be listed or is another's, or when there is nothing to begin with.
pub(crate) fn begin<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
) -> Result<Begin<N, M>, LoadError> {
    let started = Instant::now();
    let (mut broken, mut reasons) = (Vec::new(), Vec::new());
    for name in manifests(store)? {
        let loaded = read_manifest(store, name).and_then(|manifest| {
            let is_own = manifest.installation == of.installation;
            let loaded = if is_own { load(store, log, of, views, &manifest)? } else { None };
            Ok((manifest, loaded))
        });
        match loaded {
            Ok((manifest, Some((from, workers)))) => {
                let loaded = LoadedFrom {
                    epoch: manifest.epoch,
                    generation: manifest.generation,
                    sections: manifest.sections,
                    bytes: manifest.bytes_live,
                    passed_over: broken.len(),
                    took: started.elapsed(),
                };
                let workers = workers.into_iter().map(Some).collect();
                let loaded = Some(loaded);
                return Ok(Begin { from, workers, loaded, broken, checkpoints: None });
            }
            Ok((manifest, None)) => {
                let (found, own) = (manifest.installation, of.installation.clone());
                return Err(LoadError::Foreign { name: name.to_string(), found, own });
            }
            Err(reason) => {
                tracing::warn!(%name, reason, "not a usable checkpoint; the one before is tried");
                reasons.push(reason);
                broken.push(name);
            }
        }
    }
    match beginning_missing(log) {
        None => Ok(Begin { broken, ..Begin::origin(log, of.engine.workers) }),
        Some(first) => {
            if reasons.is_empty() {
                reasons.push("there is none".to_owned());
            }
            Err(LoadError::Nothing { first, reasons: reasons.join("; ") })
        }
    }
}

/// What a run goes on after, and what its workers have.
type Resumed<const N: usize, M> = (Cursor, Vec<WorkerBegin<N, M>>);

fn load<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
    manifest: &Manifest,
) -> Result<Option<Resumed<N, M>>, String> {
    let at = manifest.at()?;
    check_job(manifest, of)?;
    check_log(&at, log)?;
    let sections = Sections::open(store, manifest)?;
    // The ledgers side by side, and the rows beside them. Views have nothing until all is there.
    let (ledgers, rows) = std::thread::scope(|scope| {
        let sections = &sections;
        let ledger = |worker| {
            let peers = of.engine.workers as u32;
            let settings = LedgerSettings {
                shuffled: !of.engine.partitioned_by_id,
                ..LedgerSettings::new(of.engine.lateness, worker as u32, peers)
            };
            let partitions = of.engine.id_partitions(log);
            scope.spawn(move || load_ledger(store, sections, settings, partitions))
        };
        let ledgers: Vec<_> = (0..of.engine.workers).map(ledger).collect();
        let rows = load_rows(store, sections, &at, views);
        let join = |thread: ScopedJoinHandle<'_, Result<Ledger, String>>| {
            thread.join().unwrap_or_else(|_| Err("loading it ended by a panic".to_owned()))
        };
        (ledgers.into_iter().map(join).collect::<Result<Vec<_>, _>>(), rows)
    });
    let (ledgers, rows) = (ledgers?, rows?.finish().map_err(|e| e.to_string())?);
    let begin = |(ledger, rows)| WorkerBegin { ledger, rows };
    let workers = ledgers.into_iter().zip(rows).map(begin).collect();
    let from = Cursor { row: Arc::new(at.row), next: at.remap_offset };
    Ok(Some((from, workers)))
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
