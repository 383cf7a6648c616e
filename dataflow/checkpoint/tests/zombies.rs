//! Two writers on one store: whoever is older loses, whenever it wakes up.

use super::{
    Taken, at, claim, newest, pack,
    simulated::{Disk, Simulated},
    state, take,
};
use crate::checkpoint::{
    keeper::CheckpointError,
    store::{Listed, NewObject, Store, StoreError},
};
use bytes::Bytes;
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[test]
fn an_older_generation_is_told_that_it_is_fenced() {
    let store = Simulated::lasting(&Disk::default());
    let mut zombie = claim(&store);
    take(&mut zombie, 1, &state(3, 1), None).unwrap();
    let mut young = claim(&store);
    assert_eq!((zombie.generation(), young.generation()), (1, 2));
    let error = take(&mut zombie, 2, &state(3, 2), None).unwrap_err();
    assert!(matches!(error, CheckpointError::Fenced { own: 1, newer: 2 }), "{error}");
    // Although its epoch is the greater one.
    take(&mut young, 2, &state(4, 3), None).unwrap();
    assert_eq!(newest(&*store).0, Some((2, 2, state(4, 3))));
}

/// It stops just before it publishes, and goes on at any time: its manifest appears.
#[test]
fn a_manifest_that_a_zombie_gets_through_is_never_the_newest() {
    for young_has_published in [0, 1, 2, 3] {
        let disk = Disk::default();
        let store = Simulated::lasting(&disk);
        let mut zombie = claim(&store);
        for epoch in 1..4 {
            take(&mut zombie, epoch, &state(epoch, 1), None).unwrap();
        }
        let sealed = pack(&zombie, 9, &state(9, 9), None).unwrap();
        // It has looked at the fence, and stops: its claim is not seen, as if it had looked before.
        let claims: Vec<_> = {
            let mut young = claim(&store);
            assert_eq!(newest(&*store).0, Some((3, 1, state(3, 1))), "the young one starts here");
            for epoch in 4..4 + young_has_published {
                take(&mut young, epoch, &state(epoch, 2), None).unwrap();
            }
            let mut disk = disk.lock();
            let young = |name: &String| name.starts_with("generations/");
            let claims: Vec<String> = disk.keys().filter(|name| young(name)).cloned().collect();
            claims.into_iter().map(|name| (name.clone(), disk.remove(&name).unwrap())).collect()
        };
        let published = zombie.publish(sealed, &at(9), Taken::default());
        disk.lock().extend(claims);
        let (found, broken) = newest(&*store);
        assert_eq!(broken, Vec::<String>::new());
        if young_has_published == 0 {
            published.unwrap();
            assert_eq!(found, Some((9, 1, state(9, 9))), "as good as any, while there is no other");
            disk.lock().retain(|name, _| !name.contains("0009-1"));
            assert_eq!(newest(&*store).0, Some((3, 1, state(3, 1))), "what the young one has");
        } else {
            let epoch = 3 + young_has_published;
            assert_eq!(found, Some((epoch, 2, state(epoch, 2))));
        }
        let error = take(&mut zombie, 10, &state(1, 1), None).unwrap_err();
        assert!(matches!(error, CheckpointError::Fenced { .. }), "{error}");
    }
}

#[test]
fn packs_of_a_younger_generation_are_not_a_zombies_garbage() {
    let disk = Disk::default();
    let store = Simulated::lasting(&disk);
    let mut zombie = claim(&store);
    take(&mut zombie, 1, &state(3, 1), None).unwrap();
    let mut young = claim(&store);
    let sealed = pack(&young, 2, &state(5, 2), None).unwrap();
    let claim = store.list("generations").unwrap().pop().unwrap().name;
    let bytes = disk.lock().remove(&claim).unwrap();
    take(&mut zombie, 2, &state(3, 3), None).unwrap();
    disk.lock().insert(claim, bytes);
    young.publish(sealed, &at(2), Taken::default()).unwrap();
    assert_eq!(newest(&*store), (Some((2, 2, state(5, 2))), vec![]));
}

/// A service that makes a manifest and whose answer is lost, so that the client asks again: then
/// there is one, and it is its own.
struct Forgetful {
    store: Arc<dyn Store>,
    forgets: AtomicBool,
    /// What somebody else has made before.
    other: Option<Vec<u8>>,
}

impl Store for Forgetful {
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
        self.store.create(name)
    }

    fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        if name.starts_with("manifests/") && self.forgets.load(Ordering::Relaxed) {
            self.store.publish(name, self.other.clone().unwrap_or_else(|| bytes.clone()))?;
        }
        self.store.publish(name, bytes)
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.store.read(name, range)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.store.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.store.delete(name)
    }
}

#[test]
fn a_manifest_that_was_there_is_ones_own_if_it_is_the_same() {
    for (other, is_own) in [(None, true), (Some(b"of another".to_vec()), false)] {
        let store = Simulated::lasting(&Disk::default());
        let store = Forgetful { store, forgets: AtomicBool::new(true), other };
        let store = Arc::new(store);
        let mut keeper = claim(&(Arc::clone(&store) as Arc<dyn Store>));
        let published = take(&mut keeper, 1, &state(3, 1), None);
        assert_eq!(published.is_ok(), is_own, "{published:?}");
        if !is_own {
            let error = published.unwrap_err();
            assert!(matches!(error, CheckpointError::Fenced { own: 1, newer: 1 }), "{error}");
            continue;
        }
        store.forgets.store(false, Ordering::Relaxed);
        take(&mut keeper, 2, &state(4, 2), None).unwrap();
        assert_eq!(newest(&*store), (Some((2, 1, state(4, 2))), vec![]));
    }
}
