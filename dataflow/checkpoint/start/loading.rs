//! Loading one checkpoint: each section is read once, compared with its checksum and taken, and the
//! manifest is compared with the job and with the log. Nothing here looks for another one.
//!
//! What is hard is to say what it means that something was not loaded. What is wrong stays wrong,
//! and another checkpoint takes its place. What a store or a log did not give may be as good as
//! ever: who passed that over would begin with older state, throw away a replay that was published,
//! or go through the whole log, because of some seconds without an answer. So the two are told
//! apart where they are found, and stay apart up to who decides.

use super::{LoadError, Place, WorkerBegin};
use crate::{
    checkpoint::{
        ahead::Ahead,
        keeper::Sections,
        manifest::{At, Manifest, Of},
        pack::{Index, Place as Section},
        pieces::{Whose, vnode_prefix},
        store::{Store, Unread},
    },
    remap::{self, Cursor},
};
use std::{sync::Arc, thread::ScopedJoinHandle};
use trueup_operators::{
    hash::{self, VNODES},
    ledger::{Ledger, LedgerSettings},
    log::{Log, LogError, Topic},
    metrics::Group,
};
use trueup_sinks::{Loader, Views};

/// Why a checkpoint was not loaded.
pub(super) enum NotLoaded {
    /// It cannot be: it is broken, or of another job or another log.
    Wrong(String),
    /// The log ends before it, as far as this process knows.
    Behind(String),
    /// Nothing may take its place: nothing is known of it, or the store is another's.
    Unknown(LoadError),
}

impl From<Unread> for NotLoaded {
    fn from(unread: Unread) -> NotLoaded {
        match unread {
            Unread::Wrong(reason) => NotLoaded::Wrong(reason),
            Unread::Store(error) => NotLoaded::Unknown(error.into()),
        }
    }
}

impl From<String> for NotLoaded {
    fn from(reason: String) -> NotLoaded {
        NotLoaded::Wrong(reason)
    }
}

impl From<LogError> for NotLoaded {
    fn from(error: LogError) -> NotLoaded {
        match error {
            LogError::Corrupt { .. } | LogError::OutOfRange { .. } => {
                NotLoaded::Wrong(error.to_string())
            }
            error => NotLoaded::Unknown(LoadError::Log(error)),
        }
    }
}

/// What a run goes on after, and what its workers have.
pub(super) type Resumed<const N: usize, M> = (Cursor, Vec<WorkerBegin<N, M>>);

/// Loads what a manifest names.
pub(super) fn load<const N: usize, M: Group>(
    store: &dyn Store,
    log: &dyn Log,
    of: &Of,
    views: &Arc<Views<N, M>>,
    place: Place,
    manifest: &Manifest,
) -> Result<Resumed<N, M>, NotLoaded> {
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
        let join = |thread: ScopedJoinHandle<'_, Result<Ledger, NotLoaded>>| {
            let panicked = |_| Err("loading it ended by a panic".to_owned().into());
            thread.join().unwrap_or_else(panicked)
        };
        (ledgers.into_iter().map(join).collect::<Result<Vec<_>, _>>(), rows)
    });
    let (ledgers, rows) = (ledgers?, rows?.finish().map_err(|e| e.to_string())?);
    let (workers, peers) = (rows.len(), place.peers());
    if workers != peers {
        return Err(format!("the views are those of {workers} workers, there are {peers}").into());
    }
    let rows = rows.into_iter().skip(place.own().start);
    let begin = |(ledger, rows)| WorkerBegin { ledger, rows };
    let workers = ledgers.into_iter().zip(rows).map(begin).collect();
    let from = Cursor::of(at.row, at.remap_offset);
    Ok((from, workers))
}

/// Loads the ledger of a worker: the vnodes that it owns now, whoever owned them before.
fn load_ledger(
    store: &dyn Store,
    sections: &Sections,
    settings: LedgerSettings,
    partitions: u16,
) -> Result<Ledger, NotLoaded> {
    let (mut ledger, mut ahead) = (Ledger::new(settings), Ahead::new(store));
    for vnode in owned_vnodes(settings.worker, settings.peers, partitions) {
        let parts = each(sections, Whose::Vnode)
            .filter(|(_, key, _)| key.starts_with(&vnode_prefix(vnode)))
            .map(|(index, key, place)| ahead.section(index, key, place))
            .collect::<Result<Vec<_>, Unread>>()?;
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        ledger.load_vnode(vnode, &parts).map_err(|e| e.to_string())?;
    }
    let (index, key, place) = each(sections, Whose::Impressions)
        .next()
        .ok_or_else(|| "the section of what all ledgers know is missing".to_owned())?;
    let section = ahead.section(index, key, place)?;
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
) -> Result<Loader<N, M>, NotLoaded> {
    let (mut loader, mut ahead) = (views.load(at.times()), Ahead::new(store));
    for (index, key, place) in each(sections, Whose::Rows) {
        let section = ahead.section(index, key, place)?;
        loader.take(&section).map_err(|e| e.to_string())?;
    }
    Ok(loader)
}

/// The sections of one family of keys, by key.
fn each(sections: &Sections, whose: Whose) -> impl Iterator<Item = (&Index, &[u8], &Section)> {
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
fn check_log(at: &At, log: &dyn Log) -> Result<(), NotLoaded> {
    let epoch = at.row.epoch;
    let next = at.remap_offset;
    let (first, end) = (log.first(Topic::Remap, 0), remap::end(log));
    let has = || {
        format!(
            "epoch {epoch}: its row is before offset {next} of the remap topic, the log has \
             {first}..{end}"
        )
    };
    if next > end {
        return Err(NotLoaded::Behind(has()));
    }
    if next < first {
        return Err(has().into());
    }
    if next > first {
        check_row(at, log)?;
    }
    for (topic, uptos) in [(Topic::Events, &at.row.events), (Topic::Verdicts, &at.row.verdicts)] {
        let ends = log.ends(topic);
        if ends.len() < uptos.len() {
            let reason = format!("epoch {epoch}: the log has {} partitions", ends.len());
            return Err(NotLoaded::Behind(reason));
        }
        for (partition, (upto, end)) in (0..).zip(uptos.iter().zip(ends)) {
            let first = log.first(topic, partition);
            if (first..=end.offset).contains(&upto.offset) {
                continue;
            }
            let reason = format!(
                "epoch {epoch}: it goes on at offset {} of partition {partition} of {}, the log \
                 has {first}..{}",
                upto.offset,
                topic.name(),
                end.offset
            );
            let is_behind = upto.offset > end.offset;
            return Err(if is_behind { NotLoaded::Behind(reason) } else { reason.into() });
        }
    }
    Ok(())
}

/// Whether the log has the checkpoint's row, where that should be. A shared one may have lost it.
fn check_row(at: &At, log: &dyn Log) -> Result<(), NotLoaded> {
    let (epoch, offset) = (at.row.epoch, at.remap_offset - 1);
    let frames = log.read(Topic::Remap, 0, offset, offset + 1, 0)?;
    let Some(frame) = frames.first() else {
        return match log.is_shared() {
            true => Ok(()),
            false => Err(format!("epoch {epoch}: the log gave no remap row").into()),
        };
    };
    match remap::row(log, frame)? {
        Some(row) if row == at.row => Ok(()),
        _ => Err(format!(
            "epoch {epoch}: the remap row at offset {offset} is not the checkpoint's: it is of \
             another log, or of a writer that was superseded"
        )
        .into()),
    }
}
