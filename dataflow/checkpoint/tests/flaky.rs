//! A store that does not answer for a while, after it has listed what there is: nothing is given up
//! for that, neither a checkpoint nor a replay that was published.

use super::{
    places::{EPOCHS, Recorded, follows_from, leads_from, of},
    resumed::settings,
};
use crate::{
    checkpoint::{
        keeper::{manifests, read_manifest},
        manifest::{Figures, ManifestName},
        start::LoadError,
        store::{Listed, NewObject, Store, StoreError},
    },
    engine::StartError,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{ops::Range, sync::Arc};

/// A store of which reads of packs fail, so many after so many others.
pub(crate) struct Flaky {
    store: Arc<dyn Store>,
    /// How many are answered, and how many are not then.
    reads: Mutex<(u64, u64)>,
}

impl Flaky {
    pub(crate) fn new(store: Arc<dyn Store>, answered: u64, failing: u64) -> Arc<Flaky> {
        Arc::new(Flaky { store, reads: Mutex::new((answered, failing)) })
    }

    /// Whether all that were to fail have.
    pub(crate) fn is_well(&self) -> bool {
        self.reads.lock().1 == 0
    }
}

impl Store for Flaky {
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
        self.store.create(name)
    }

    fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.store.publish(name, bytes)
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let mut reads = self.reads.lock();
        match &mut *reads {
            (answered @ 1.., _) if name.starts_with("packs/") => *answered -= 1,
            (0, failing @ 1..) if name.starts_with("packs/") => {
                *failing -= 1;
                let reason = "503 Slow Down".to_owned();
                return Err(StoreError::Failed { name: name.into(), reason });
            }
            _ => {}
        }
        drop(reads);
        self.store.read(name, range)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.store.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.store.delete(name)
    }
}

/// The error of a start that may be possible later, and that names what the store did not give.
fn assert_passes(error: &StartError) {
    assert!(matches!(error, StartError::Load(LoadError::Store(_))), "{error}");
    let text = error.to_string();
    assert!(error.may_pass() && text.contains("packs/") && text.contains("503"), "{text}");
}

/// Which manifest has the state of a replay that nobody has seen yet.
fn replays(store: &dyn Store, id: &str) -> Option<ManifestName> {
    let is_replays = |&name: &ManifestName| {
        let figures = read_manifest(store, name).unwrap().figures;
        figures == Some(Figures { replay: id.to_owned(), seen: false })
    };
    manifests(store).unwrap().into_iter().find(is_replays)
}

#[test]
fn a_leader_gives_nothing_up_that_a_store_does_not_give_for_a_while() {
    let recorded =
        Recorded::new("a_leader_gives_nothing_up_that_a_store_does_not_give_for_a_while");
    let store = recorded.objects();
    let own = || of(settings(1, EPOCHS));
    let mut generation = recorded.next_generation();
    for is_offered in [false, true] {
        let id = is_offered.then(|| recorded.offer());
        let newest = manifests(&*store).unwrap()[0];
        let mut failures = 0;
        for answered in 0.. {
            generation += 1;
            let flaky = Flaky::new(recorded.objects(), answered, u64::MAX);
            let before = manifests(&*store).unwrap();
            let began = leads_from(flaky, &recorded, own(), generation, Vec::new());
            let after = manifests(&*store).unwrap();
            assert!(before.iter().all(|name| after.contains(name)), "{before:?}, then {after:?}");
            if let Some(id) = &id {
                let is_offered = store.list("replays").unwrap().len() == 1;
                assert!(is_offered || replays(&*store, id) == Some(after[0]), "{after:?}");
            }
            match began {
                Ok((begin, chosen)) => {
                    begin.checkpoints.unwrap().stop();
                    assert_eq!((begin.broken, begin.refused), (vec![], None));
                    let due = id.as_ref().map_or(Some(newest), |id| replays(&*store, id));
                    assert_eq!((chosen, due), (due, Some(after[0])));
                    break;
                }
                Err(error) => assert_passes(&error),
            }
            failures += 1;
        }
        assert!(failures > 3, "{failures} starts failed");
    }
    assert_eq!(store.list("figures").unwrap().len(), 1);
}

#[test]
fn a_member_calls_nothing_broken_that_a_store_does_not_give_for_a_while() {
    let test = "a_member_calls_nothing_broken_that_a_store_does_not_give_for_a_while";
    let recorded = Recorded::new(test);
    let chosen = Some(recorded.split(2));
    let own = || of(settings(1, EPOCHS));
    let mut failures = 0;
    for answered in 0.. {
        let flaky = Flaky::new(recorded.objects(), answered, u64::MAX);
        match follows_from(flaky, &recorded, own(), chosen) {
            Ok(begin) => {
                begin.checkpoints.unwrap().stop();
                break;
            }
            Err(error) => assert_passes(&error),
        }
        failures += 1;
    }
    assert!(failures > 3, "{failures} starts failed");
}
