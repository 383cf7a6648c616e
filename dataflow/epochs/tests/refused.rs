//! A log that takes no rows: for a while, and for good.

use super::*;
use crate::checkpoint::{
    store::{Listed, NewObject, Objects, Store, StoreError},
    taking::Role,
    tests::claim,
};
use bytes::Bytes;
use std::ops::Range;

/// A journal of which the test says what it takes.
struct Moody {
    journal: Journal,
    refuses: AtomicBool,
    broken: Mutex<Option<String>>,
}

impl LogLayer for Moody {
    fn below(&self) -> &dyn Log {
        &self.journal
    }
    fn broken(&self) -> Option<String> {
        self.broken.lock().clone()
    }
    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(LogError::Unavailable { reason: "no space left on device".into() }),
            false => self.journal.append(frames, done),
        }
    }
}

/// A store that takes no manifest while the test holds it up.
struct Slow {
    store: Objects,
    holds: AtomicBool,
}

impl Store for Slow {
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
        self.store.create(name)
    }
    fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        while name.starts_with("manifests/") && self.holds.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
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

fn moody(dir: &std::path::Path, checkpoints: Option<Arc<Checkpoints>>) -> (Arc<Moody>, Server) {
    let settings = Settings { fsync: Fsync::Never, ..Settings::default() };
    let (journal, _) = Journal::open(dir, settings, system_clock()).unwrap();
    let (refuses, broken) = (AtomicBool::new(false), Mutex::new(None));
    let log = Arc::new(Moody { journal, refuses, broken });
    let shared = Arc::clone(&log) as Arc<dyn Log>;
    let server = Server::with(&shared, checkpoints);
    (log, server)
}

#[test]
fn who_waits_for_an_epoch_is_told_that_the_log_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, server) = moody(dir.path(), None);
    wait_for("the first epoch", || server.epochs.lag().closed > 0);
    log.refuses.store(true, Ordering::Relaxed);
    append_and_wait(&log.journal, vec![event()]).unwrap();
    let began = Instant::now();
    let told = server.epochs.settle(Duration::from_secs(60)).unwrap_err();
    assert!(told.contains("no space left on device"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(20), "after {:?}", began.elapsed());
    let began_before = began.checked_sub(Duration::from_secs(60)).unwrap();
    assert_eq!(server.epochs.in_vain(began_before, false), Some(told));
    assert_eq!(server.epochs.fault(), None, "it may pass");

    log.refuses.store(false, Ordering::Relaxed);
    let closed = server.epochs.lag().closed;
    wait_for("an epoch, now that there is room", || server.epochs.lag().closed > closed);
    assert_eq!(server.epochs.in_vain(began_before, false), None);
    server.end();
}

#[test]
fn a_checkpoint_whose_epoch_is_closed_waits_for_its_store_and_for_no_further_row() {
    let (dir, objects) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let holds = AtomicBool::new(true);
    let slow = Arc::new(Slow { store: Objects::in_dir(objects.path()).unwrap(), holds });
    let keeper = claim(&(Arc::clone(&slow) as Arc<dyn Store>));
    let checkpoints = Checkpoints::start(keeper, Duration::ZERO, 0, Role::Alone).unwrap();
    let (log, server) = moody(dir.path(), Some(Arc::clone(&checkpoints)));
    wait_for("the first epoch", || server.epochs.lag().closed > 0);
    let (epochs, began) = (Arc::clone(&server.epochs), Instant::now());
    let waits = std::thread::spawn(move || epochs.checkpoint(Duration::from_secs(60)));
    wait_for("the checkpoint", || checkpoints.status().under_way.is_some());
    log.refuses.store(true, Ordering::Relaxed);
    wait_for("the log's refusal", || server.epochs.in_vain(began, false).is_some());
    assert_eq!(server.epochs.in_vain(began, true), None);
    std::thread::sleep(Duration::from_millis(300));
    let is_given_up = waits.is_finished();
    slow.holds.store(false, Ordering::Relaxed);
    let taken = waits.join().unwrap();
    assert!(!is_given_up, "it was given up: {taken:?}");
    assert_eq!(taken.unwrap(), checkpoints.status().last.map(|last| last.epoch));
    // The next one needs a row.
    let told = server.epochs.checkpoint(Duration::from_secs(60)).unwrap_err();
    assert!(told.contains("no space left on device"), "{told}");
    server.end();
    checkpoints.stop();
}

#[test]
fn a_log_that_is_broken_for_good_ends_the_run_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (log, server) = moody(dir.path(), None);
    wait_for("the first epoch", || server.epochs.lag().closed > 0);
    assert_eq!(server.epochs.fault(), None);
    *log.broken.lock() = Some("cutting back failed; restart".into());
    wait_for("the fault", || server.epochs.fault().is_some());
    let (_, fault) = server.end();
    assert_eq!(fault.unwrap(), "cutting back failed; restart");
}
