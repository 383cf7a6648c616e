//! A store in memory that counts operations, and at one of them stops: the operation happened, or
//! it did not, or a part of it did, and none after it happens.

use crate::checkpoint::store::{Listed, NewObject, Store, StoreError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{collections::BTreeMap, ops::Range, sync::Arc, time::UNIX_EPOCH};
use trueup_generator::random::{Random, finalise};

/// The randomness of this run of a test and its seed, printed so that a failure can be repeated.
pub(crate) fn repeat(test: &str) -> (Random, u64) {
    let seed = match std::env::var("TRUEUP_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => finalise(UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64) >> 32,
    };
    println!("{test}: repeat with TRUEUP_SEED={seed}");
    (Random::new(seed, 0), seed)
}

/// What is durable, shared by the stores of one life after another.
pub(super) type Disk = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

pub(super) struct Simulated {
    pub(super) disk: Disk,
    power: Mutex<Power>,
}

struct Power {
    operations: u64,
    stop_at: u64,
    random: Random,
}

impl Simulated {
    /// Runs until its operation number `stop_at`.
    pub(super) fn new(disk: &Disk, stop_at: u64, random: Random) -> Simulated {
        let power = Mutex::new(Power { operations: 0, stop_at, random });
        Simulated { disk: Arc::clone(disk), power }
    }

    pub(super) fn lasting(disk: &Disk) -> Arc<dyn Store> {
        Arc::new(Simulated::new(disk, u64::MAX, Random::new(0, 0)))
    }

    /// How many operations there were.
    pub(super) fn operations(&self) -> u64 {
        self.power.lock().operations
    }

    /// What this operation may still do of what it wanted to: all of it while there is power.
    fn allow(&self, name: &str, bytes: &[u8]) -> (Vec<u8>, bool, Result<(), StoreError>) {
        let mut power = self.power.lock();
        power.operations += 1;
        if power.operations < power.stop_at {
            return (bytes.to_vec(), true, Ok(()));
        }
        let error = Err(StoreError::Failed { name: name.into(), reason: "no power".into() });
        if power.operations > power.stop_at {
            return (Vec::new(), false, error);
        }
        let cut = power.random.below(bytes.len() as u64 + 1) as usize;
        let mut left = bytes[..cut].to_vec();
        // Blocks that were given to the file and never written.
        if power.random.chance(0.3) {
            left.resize(bytes.len(), 0);
        }
        if power.random.chance(0.3) {
            left = bytes.to_vec();
        }
        (left, power.random.chance(0.7), error)
    }
}

impl Store for Simulated {
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
        self.allow(name, &[]).2?;
        Ok(Box::new(Writing { store: self, name: name.to_owned(), bytes: Vec::new() }))
    }

    fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        if self.disk.lock().contains_key(name) {
            return Err(StoreError::Exists { name: name.into() });
        }
        let (left, happens, result) = self.allow(name, &bytes);
        if happens {
            self.disk.lock().insert(name.to_owned(), left);
        }
        result
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let disk = self.disk.lock();
        let object = disk.get(name).ok_or(StoreError::Missing { name: name.into() })?;
        let read = object.get(range.start as usize..range.end as usize);
        let short = || {
            let found = object.len() as u64;
            StoreError::Short { name: name.into(), found, wanted: range.end }
        };
        read.map(Bytes::copy_from_slice).ok_or_else(short)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let folder = format!("{folder}/");
        let disk = self.disk.lock();
        let objects = disk.iter().filter(|(name, _)| name.starts_with(&folder));
        let listed = |(name, object): (&String, &Vec<u8>)| Listed {
            name: name.clone(),
            bytes: object.len() as u64,
        };
        Ok(objects.map(listed).collect())
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (_, happens, result) = self.allow(name, &[]);
        if happens {
            self.disk.lock().remove(name);
        }
        result
    }
}

struct Writing<'a> {
    store: &'a Simulated,
    name: String,
    bytes: Vec<u8>,
}

impl NewObject for Writing<'_> {
    fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.store.allow(&self.name, &[]).2?;
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let (left, happens, result) = self.store.allow(&self.name, &self.bytes);
        if happens {
            self.store.disk.lock().insert(self.name, left);
        }
        result
    }
}
