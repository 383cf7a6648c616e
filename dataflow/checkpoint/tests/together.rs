//! Several processes in one: each has checkpoints of its own on a store that all share, and what
//! they say to each other goes through links that a test can hold up or cut.

use super::{SETTINGS, State, at, key, of};
use crate::{
    checkpoint::{
        Checkpoints,
        keeper::Keeper,
        manifest::ManifestName,
        pack::PackError,
        pieces::Live,
        store::{Listed, NewObject, Store, StoreError},
        taking::{Ended, Piece, Put, Role, SealedPart},
    },
    remap::Cursor,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_operators::{feed::ImageKind, remap::RemapRow};

/// What each process hands over of an epoch.
const PIECES: usize = 2;
/// How long something may take that takes no time.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A store that can be told to refuse writing.
pub(super) struct Refusing {
    store: Arc<dyn Store>,
    pub(super) refuses: AtomicBool,
}

impl Refusing {
    pub(super) fn new(store: Arc<dyn Store>) -> Arc<Refusing> {
        Arc::new(Refusing { store, refuses: AtomicBool::new(false) })
    }

    fn may(&self, name: &str) -> Result<(), StoreError> {
        match self.refuses.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(StoreError::Failed { name: name.into(), reason: "is full".into() }),
        }
    }
}

impl Store for Refusing {
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
        self.may(name).and_then(|()| self.store.create(name))
    }

    fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.may(name).and_then(|()| self.store.publish(name, bytes))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.store.read(name, range)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.store.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.may(name).and_then(|()| self.store.delete(name))
    }
}

/// What one process says to another.
#[derive(Clone, Debug)]
pub(super) enum Word {
    Sealed(SealedPart),
    Ended(usize, Ended),
}

/// The links between all processes of a generation.
#[derive(Default)]
pub(super) struct Links {
    all: OnceLock<Vec<Weak<Checkpoints>>>,
    /// Words are kept back, if there is a list.
    held: Mutex<Option<Vec<Word>>>,
    cut: AtomicBool,
}

impl Links {
    /// From now on words wait.
    pub(super) fn hold(&self) {
        self.held.lock().get_or_insert_default();
    }

    /// What waits.
    pub(super) fn held(&self) -> Vec<Word> {
        self.held.lock().clone().unwrap_or_default()
    }

    /// What has waited arrives, and nothing waits any more.
    pub(super) fn release(&self) {
        let held = self.held.lock().take();
        held.into_iter().flatten().for_each(|word| self.deliver(word));
    }

    /// From now on nothing arrives.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    fn send(&self, word: Word) {
        if let Some(held) = &mut *self.held.lock() {
            return held.push(word);
        }
        self.deliver(word);
    }

    /// As it crosses from one process to another.
    pub(super) fn deliver(&self, word: Word) {
        let process = |process: usize| self.all.get().unwrap()[process].upgrade();
        if self.cut.load(Ordering::Relaxed) {
            return;
        }
        match word {
            Word::Sealed(part) => {
                let part = serde_json::to_string(&part).unwrap();
                let Some(leader) = process(0) else { return };
                leader.sealed(serde_json::from_str(&part).unwrap());
            }
            Word::Ended(member, ended) => {
                let ended = serde_json::to_string(&ended).unwrap();
                let Some(member) = process(member) else { return };
                member.ended(serde_json::from_str(&ended).unwrap());
            }
        }
    }
}

/// The processes of a generation, and what each has.
pub(super) struct Together {
    pub(super) processes: Vec<Arc<Checkpoints>>,
    pub(super) links: Arc<Links>,
    states: Vec<State>,
    changed: Vec<BTreeSet<Vec<u8>>>,
    last: u64,
}

impl Together {
    /// Begins a generation on these stores, the leader's first, with the state of an epoch, newer
    /// than what is `broken`. `None`: it cannot claim.
    pub(super) fn begin(
        stores: &[Arc<dyn Store>],
        generation: u64,
        epoch: u64,
        state: State,
        broken: &[ManifestName],
    ) -> Option<Together> {
        let store = |process: usize| Arc::clone(&stores[process]);
        let mut leader = Keeper::claim_as(store(0), SETTINGS, of(), generation).ok()?;
        broken.iter().for_each(|&broken| leader.condemn(broken));
        let join = |p: usize| Keeper::join(store(p), SETTINGS, of(), generation, p as u32);
        let keepers = [leader].into_iter().chain((1..stores.len()).map(join));
        let links = Arc::new(Links::default());
        let members = stores.len() - 1;
        let role = |process: usize| {
            let links = Arc::clone(&links);
            match process {
                0 => {
                    let tell = move |ended: Ended| {
                        (1..=members).for_each(|m| links.send(Word::Ended(m, ended.clone())));
                    };
                    Role::Leader { members: members as u32, say: Box::new(tell) }
                }
                _ => Role::Member { say: Box::new(move |part| links.send(Word::Sealed(part))) },
            }
        };
        let start = |(process, keeper): (usize, Keeper)| {
            Checkpoints::start(keeper, Duration::ZERO, PIECES, role(process)).unwrap()
        };
        let processes: Vec<_> = keepers.enumerate().map(start).collect();
        assert!(links.all.set(processes.iter().map(Arc::downgrade).collect()).is_ok());
        let mut states: Vec<State> = stores.iter().map(|_| State::new()).collect();
        for (key, section) in state {
            states[owner(&key, stores.len())].insert(key, section);
        }
        let changed = stores.iter().map(|_| BTreeSet::new()).collect();
        Some(Together { processes, links, states, changed, last: epoch })
    }

    pub(super) fn leader(&self) -> &Checkpoints {
        &self.processes[0]
    }

    /// What all processes have.
    pub(super) fn state(&self) -> State {
        self.states.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.clone())).collect()
    }

    /// A section becomes this, or is gone.
    pub(super) fn set(&mut self, number: u64, section: Option<Vec<u8>>) {
        let key = key(number);
        let owner = owner(&key, self.states.len());
        match section {
            Some(section) => {
                self.states[owner].insert(key.clone(), section);
                self.changed[owner].insert(key);
            }
            None => {
                self.states[owner].remove(&key);
                self.changed[owner].remove(&key);
            }
        }
    }

    /// The next epoch is marked in all processes, if the leader does.
    pub(super) fn mark(&mut self, epoch: u64) -> Option<ImageKind> {
        let (next, before) = (cursor(epoch), row(self.last));
        self.leader().force();
        let kind = self.leader().mark(&next, &before)?;
        self.last = epoch;
        self.processes[1..].iter().for_each(|member| member.marked(&next, &before, kind));
        Some(kind)
    }

    /// A process hands over what it has.
    pub(super) fn hand_over(&mut self, process: usize, kind: ImageKind) {
        let (state, changed) = (&self.states[process], std::mem::take(&mut self.changed[process]));
        for piece in 0..PIECES {
            let own = state.iter().filter(|(key, _)| usize::from(key[7]) % 2 == piece);
            let writes = |key: &[u8]| kind == ImageKind::Whole || changed.contains(key);
            let writes = own.clone().filter(|(key, _)| writes(key));
            self.processes[process].hand_over(Box::new(Half {
                lives: own.map(|(key, _)| key.clone()).collect(),
                writes: writes.map(|(key, bytes)| (key.clone(), bytes.clone())).collect(),
            }));
        }
    }

    /// Takes the checkpoint of an epoch to its end in all processes.
    pub(super) fn take(&mut self, epoch: u64) -> Option<ImageKind> {
        let kind = self.mark(epoch)?;
        (0..self.processes.len()).for_each(|process| self.hand_over(process, kind));
        self.until_over();
        Some(kind)
    }

    /// Waits until none is under way anywhere.
    pub(super) fn until_over(&self) {
        let is_over = |p: &Arc<Checkpoints>| p.status().under_way.is_none();
        within_patience("no checkpoint is under way", || self.processes.iter().all(is_over));
    }

    /// Ends it in every process.
    pub(super) fn stop(&self) {
        let began = Instant::now();
        self.processes.iter().for_each(|process| process.stop());
        assert!(began.elapsed() < PATIENCE, "stopping took {:?}", began.elapsed());
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        self.processes.iter().for_each(|process| process.stop());
    }
}

/// Which process has a section.
fn owner(key: &[u8], processes: usize) -> usize {
    usize::from(key[7]) / 2 % processes
}

pub(super) fn within_patience(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub(super) fn row(epoch: u64) -> RemapRow {
    at(epoch).row
}

pub(super) fn cursor(epoch: u64) -> Cursor {
    Cursor::of(row(epoch), epoch)
}

/// A part of a process's state.
struct Half {
    lives: BTreeSet<Vec<u8>>,
    writes: State,
}

impl Piece for Half {
    fn live(&self, live: &mut Live) {
        self.lives.iter().for_each(|key| live.add(&key[..]));
    }

    fn write(self: Box<Self>, put: &mut Put<'_>) -> Result<(), PackError> {
        self.writes.iter().try_for_each(|(key, section)| put(key, section))
    }
}
