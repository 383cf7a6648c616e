//! A topic in memory that does to its writer what brokers do: fails before or after it has
//! committed, gives up on transactions, is taken over by another process in the middle of anything.
//! The world goes on meanwhile: every call may bring the views further. At every commit the topic
//! is compared with what the views are at that epoch.

use super::{
    super::{ChangeTopic, Note, Open, Upper, Visit},
    world::{Rows, World},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use trueup_operators::log::LogError;

/// How often what happens, one in so many calls; 0: never.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Odds {
    pub(super) epoch: u64,
    /// An epoch for a message that is read.
    pub(super) reading: u64,
    pub(super) failure: u64,
    /// A commit whose answer is lost.
    pub(super) doubt: u64,
    /// The process dies.
    pub(super) kill: u64,
    /// Another process takes over.
    pub(super) rival: u64,
    /// The brokers give up on a transaction.
    pub(super) expiry: u64,
}

#[derive(Default)]
pub(super) struct Store {
    /// What was committed, in order: key and value.
    pub(super) messages: Vec<(String, String)>,
    pub(super) upper: Option<Upper>,
    /// Who may write.
    pub(super) owner: u64,
    pub(super) commits: u64,
    pub(super) odds: Odds,
    /// Buckets whose end is in one of these spans, µs, may have left the views unpublished.
    pub(super) missed: Vec<(i64, i64)>,
}

/// Another process, from its start to its end.
pub(super) type Rival = Box<dyn FnMut() + Send>;

/// The topic and the world, as a writer and a test share them.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Arc<Mutex<Store>>,
    pub(super) world: Arc<Mutex<World>>,
    /// Who takes over when that happens next.
    pub(super) rival: Arc<Mutex<Option<Rival>>>,
}

impl Shared {
    pub(super) fn new(world: World) -> Shared {
        let store = Arc::new(Mutex::new(Store::default()));
        Shared { store, world: Arc::new(Mutex::new(world)), rival: Arc::default() }
    }

    pub(super) fn opener(&self) -> Open {
        let shared = self.clone();
        Box::new(move |stop| {
            shared.pass();
            let mut store = shared.store.lock();
            store.owner += 1;
            let owner = store.owner;
            let upper = store.upper.clone();
            drop(store);
            let shared = shared.clone();
            let (staged, has_read) = (None, None);
            Ok(Box::new(Topic { shared, owner, stop, upper, staged, has_read, in_doubt: false }))
        })
    }

    /// Some time passes.
    pub(super) fn pass(&self) {
        let odds = self.store.lock().odds.epoch;
        let mut world = self.world.lock();
        while odds > 0 && world.random.below(odds) == 0 && world.deliver() {}
    }

    fn happens(&self, odds: impl Fn(&Odds) -> u64) -> bool {
        let odds = odds(&self.store.lock().odds);
        odds > 0 && self.world.lock().random.below(odds) == 0
    }

    /// What the topic comes to: by the newest of each key, and by adding up.
    pub(super) fn sums(&self) -> (Rows, Rows) {
        sums(&self.store.lock().messages)
    }

    /// That the topic holds the views at its upper − 1.
    #[track_caller]
    pub(super) fn check(&self) {
        let store = self.store.lock();
        let world = self.world.lock();
        let (newest, added) = sums(&store.messages);
        assert_eq!(newest, added, "−old +new is another than the newest");
        let Some(upper) = &store.upper else { return assert!(newest.is_empty()) };
        let note: &Note = upper.note.as_ref().unwrap();
        world.check_note(upper.epoch, note);
        let Some(at) = upper.epoch.checked_sub(1) else { return assert!(newest.is_empty()) };
        let (kept, left) = world.rows(at);
        let is_missed = |key: &str| {
            let end_us = world.end_us(key);
            store.missed.iter().any(|&(from, to)| from < end_us && end_us <= to)
        };
        for (key, row) in newest.iter().filter(|(key, _)| world.is_configured(key)) {
            match (kept.get(key), left.get(key)) {
                (Some(is), _) => assert_eq!(row, is, "{key} at {at}"),
                (None, _) if is_missed(key) => {}
                (None, Some(was)) => assert_eq!(row, was, "{key}, which has left, at {at}"),
                (None, None) => panic!("{key} is not there at {at}: {row}"),
            }
        }
        let ever: BTreeSet<&String> = store.messages.iter().map(|(key, _)| key).collect();
        for key in left.keys().filter(|key| ever.contains(key) && !is_missed(key)) {
            assert!(newest.contains_key(key), "{key} was taken back when it left, at {at}");
        }
        for key in kept.keys() {
            assert!(newest.contains_key(key), "{key} is missing at {at}");
        }
    }
}

fn sums(messages: &[(String, String)]) -> (Rows, Rows) {
    let mut newest = Rows::new();
    let mut added: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut epochs: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, value) in messages {
        let value: Value = serde_json::from_str(value).unwrap();
        let parsed: Value = serde_json::from_str(key).unwrap();
        assert_eq!(json!({ "view": value["view"], "row": value["row"] }), parsed);
        let epoch = value["epoch"].as_u64().unwrap();
        let before = epochs.insert(key, epoch);
        assert!(before.is_none_or(|before| before < epoch), "{key}: {before:?} then {epoch}");
        assert_ne!(value["old"], value["new"], "{key} did not change in {epoch}");
        let rows = added.entry(key.clone()).or_default();
        if !value["old"].is_null() {
            let at = rows.iter().position(|row| *row == value["old"]);
            let at = at.unwrap_or_else(|| panic!("{key}: −{} of {rows:?}", value["old"]));
            rows.remove(at);
        }
        if value["new"].is_null() {
            newest.remove(key);
        } else {
            rows.push(value["new"].clone());
            newest.insert(key.clone(), value["new"].clone());
        }
    }
    let one = |(key, mut rows): (String, Vec<Value>)| {
        let row = rows.pop()?;
        assert!(rows.is_empty(), "{key} is several rows: {row} {rows:?}");
        Some((key, row))
    };
    (newest, added.into_iter().filter_map(one).collect())
}

struct Topic {
    shared: Shared,
    owner: u64,
    stop: Arc<AtomicBool>,
    upper: Option<Upper>,
    staged: Option<Vec<(String, String)>>,
    /// How much was there when it was read first since the last transaction.
    has_read: Option<usize>,
    in_doubt: bool,
}

fn broken(what: &str) -> LogError {
    LogError::Unavailable { reason: what.into() }
}

impl Topic {
    /// What may happen at any call.
    fn call(&mut self) -> Result<(), LogError> {
        self.shared.pass();
        if self.shared.happens(|odds| odds.kill) {
            self.stop.store(true, Ordering::Release);
        }
        if self.shared.happens(|odds| odds.rival) {
            let rival = self.shared.rival.lock().take();
            if let Some(mut rival) = rival {
                rival();
            }
        }
        if self.shared.happens(|odds| odds.expiry) {
            self.shared.store.lock().owner += 1;
        }
        let fails = self.shared.happens(|odds| odds.failure);
        match () {
            () if self.stop.load(Ordering::Acquire) => Err(broken("dead")),
            () if self.is_fenced() => Err(broken("fenced")),
            () if self.in_doubt => Err(broken("in doubt")),
            () if fails => Err(broken("failed")),
            () => Ok(()),
        }
    }
}

impl ChangeTopic for Topic {
    fn upper(&self) -> Option<Upper> {
        self.upper.clone()
    }

    fn begin(&mut self) -> Result<(), LogError> {
        self.call()?;
        assert!(self.staged.is_none(), "a transaction within a transaction");
        self.staged = Some(Vec::new());
        Ok(())
    }

    fn write(&mut self, key: &str, value: &str) -> Result<(), LogError> {
        self.call()?;
        self.staged.as_mut().expect("in a transaction").push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    fn commit(&mut self, upper: &Upper) -> Result<(), LogError> {
        self.call()?;
        let staged = self.staged.take().expect("in a transaction");
        let before = self.shared.store.lock().upper.clone();
        assert_eq!(self.upper, before, "it did not know how far the topic is");
        let before = before.map_or(0, |upper| upper.epoch);
        assert!(upper.epoch > before || (upper.epoch == before && staged.is_empty()));
        {
            let mut store = self.shared.store.lock();
            store.messages.extend(staged);
            if self.has_read.is_some() {
                store.missed.extend(self.shared.world.lock().missed(before, upper.epoch));
            }
            store.upper = Some(upper.clone());
            store.commits += 1;
        }
        self.has_read = None;
        // A claim repeats what another process said, of views that had other settings perhaps.
        if upper.epoch > before {
            self.shared.check();
        }
        if self.shared.happens(|odds| odds.doubt) {
            self.in_doubt = true;
            return Err(broken("the answer was lost"));
        }
        self.upper = Some(upper.clone());
        Ok(())
    }

    fn abort(&mut self) {
        self.staged = None;
    }

    fn read(&mut self, each: &mut Visit<'_>) -> Result<(), LogError> {
        assert!(self.has_read.is_some() || self.staged.is_none(), "not read before");
        let end = *self.has_read.get_or_insert(self.shared.store.lock().messages.len());
        for at in 0..end {
            self.call()?;
            if self.shared.happens(|odds| odds.reading) {
                self.shared.world.lock().deliver();
            }
            let (key, value) = self.shared.store.lock().messages[at].clone();
            each(key.as_bytes(), Some(value.as_bytes()))?;
        }
        Ok(())
    }

    fn last_upper(&mut self) -> Result<Option<Upper>, LogError> {
        self.shared.pass();
        if self.shared.happens(|odds| odds.failure) {
            return Err(broken("does not say how far it is"));
        }
        Ok(self.shared.store.lock().upper.clone())
    }

    fn is_fenced(&self) -> bool {
        self.shared.store.lock().owner != self.owner
    }
}
