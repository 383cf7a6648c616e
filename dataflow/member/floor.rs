//! What the number of the next generation must be greater than, so that the rows and checkpoints of
//! whoever leads it are never taken for a zombie's.
//!
//! The remap topic says so, and may be as long as the job is old, or have lost its beginning. So it
//! is read only from where the newest checkpoint ends whose manifest can be read: all before that
//! was written in generations that are no greater than the checkpoint's. Without one it is read
//! from what it still has; whether a run can begin there is not decided here.

use crate::{
    checkpoint::{
        keeper::{manifests, newest_generation, read_manifest},
        manifest::At,
        start::LoadError,
        store::{Store, Unread},
    },
    engine::StartError,
    remap,
};
use trueup_operators::log::{Log, Topic};

/// The greatest number that was used, as store and log say. `None`: it was told to stop.
///
/// # Errors
/// When the store or the log does not answer, or the log holds what nobody may read past.
pub(super) fn floor(
    log: &dyn Log,
    store: Option<&dyn Store>,
    installation: &str,
    is_stopping: impl Fn() -> bool,
) -> Result<Option<u64>, StartError> {
    let (mut used, mut from) = (0, 0);
    if let Some(store) = store {
        used = newest_generation(store).map_err(LoadError::from)?;
        if let Some(at) = newest(store, log, installation)? {
            used = used.max(at.row.writer.generation);
            from = at.remap_offset;
        }
    }
    let written = remap::newest_generation(log, from, is_stopping)?;
    Ok(written.map(|written| written.max(used)))
}

/// Where the newest checkpoint ends that is of this installation and within the log.
fn newest(store: &dyn Store, log: &dyn Log, installation: &str) -> Result<Option<At>, LoadError> {
    let has = log.first(Topic::Remap, 0)..=remap::end(log);
    for name in manifests(store)? {
        let manifest = match read_manifest(store, name) {
            Ok(manifest) if manifest.installation == installation => manifest,
            Ok(_) | Err(Unread::Wrong(_)) => continue,
            Err(Unread::Store(error)) => return Err(error.into()),
        };
        // What is wrong with it is said when it is loaded.
        if let Ok(at) = manifest.at()
            && has.contains(&at.remap_offset)
        {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        checkpoint::{
            store::Objects,
            tests::{self as checkpoints, claim, take},
        },
        remap::tests::Remap,
    };
    use std::{cell::Cell, sync::Arc};
    use trueup_operators::log::{Foreign, LogError};

    /// A topic of 40 rows, in generations up to 10, of which the first ones are gone.
    fn topic(first: u64) -> Remap {
        let log = Remap { first, most: 3, ..Remap::default() };
        (1..=40).for_each(|epoch| drop(log.row(epoch, 1 + epoch / 4)));
        // A zombie's, and somebody's.
        log.row(40, 2);
        log.push(b"x".to_vec(), 0, Some(Foreign::NoPayload));
        log
    }

    fn go_on() -> bool {
        false
    }

    #[test]
    fn a_topic_without_its_beginning_has_a_floor() {
        for first in [0, 1, 17, 39, 42] {
            let log = topic(first);
            let due = if first < 40 { 11 } else { 0 };
            assert_eq!(floor(&log, None, "7f0c", go_on).unwrap(), Some(due), "from {first}");
            assert!(log.asked.lock().iter().all(|&from| from >= first));
        }
    }

    #[test]
    fn it_is_read_only_from_where_the_newest_readable_checkpoint_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Objects::in_dir(dir.path()).unwrap());
        let mut keeper = claim(&store);
        for epoch in [20, 30] {
            take(&mut keeper, epoch, &checkpoints::state(3, 1), None).unwrap();
        }
        let asked = |first, installation| {
            let log = topic(first);
            let found = floor(&log, Some(&*store), installation, go_on).unwrap();
            assert_eq!(found, Some(11));
            let asked = log.asked.lock().clone();
            asked[0]
        };
        for first in [0, 17, 30] {
            assert_eq!(asked(first, "7f0c"), 30);
            assert_eq!(asked(first, "another"), first);
        }
        // Not what the log has no longer.
        assert_eq!(asked(31, "7f0c"), 31);
        let newest = manifests(&*store).unwrap()[0].to_string();
        std::fs::write(dir.path().join(&newest), "{}").unwrap();
        assert_eq!(asked(17, "7f0c"), 20);

        // A claim counts too, where the log has nothing after it.
        (0..20).for_each(|_| drop(claim(&store)));
        assert_eq!(floor(&topic(0), Some(&*store), "7f0c", go_on).unwrap(), Some(21));
    }

    #[test]
    fn whoever_is_stopped_reads_no_further() {
        let (log, asked) = (topic(0), Cell::new(0));
        let is_stopping = || asked.replace(asked.get() + 1) == 2;
        assert_eq!(floor(&log, None, "7f0c", is_stopping).unwrap(), None);
        assert_eq!(log.asked.lock().len(), 2);
    }

    #[test]
    fn what_a_newer_program_wrote_does_not_pass() {
        let log = topic(0);
        log.push(vec![9; 40], 9, None);
        let error = floor(&log, None, "7f0c", go_on).unwrap_err();
        assert!(matches!(error, StartError::Log(LogError::Invalid { .. })), "{error}");
        assert!(!error.may_pass());
    }
}
