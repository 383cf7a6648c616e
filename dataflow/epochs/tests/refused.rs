//! A log that takes no rows: for a while, and for good.

use super::*;

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

fn moody(dir: &std::path::Path) -> (Arc<Moody>, Server) {
    let settings = Settings { fsync: Fsync::Never, ..Settings::default() };
    let (journal, _) = Journal::open(dir, settings, system_clock()).unwrap();
    let (refuses, broken) = (AtomicBool::new(false), Mutex::new(None));
    let log = Arc::new(Moody { journal, refuses, broken });
    let shared = Arc::clone(&log) as Arc<dyn Log>;
    let server = Server::start(&shared);
    (log, server)
}

#[test]
fn who_waits_for_an_epoch_is_told_that_the_log_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, server) = moody(dir.path());
    wait_for("the first epoch", || server.epochs.lag().closed > 0);
    log.refuses.store(true, Ordering::Relaxed);
    append_and_wait(&log.journal, vec![event()]).unwrap();
    let began = Instant::now();
    let told = server.epochs.settle(Duration::from_secs(60)).unwrap_err();
    assert!(told.contains("no space left on device"), "{told}");
    assert!(began.elapsed() < Duration::from_secs(20), "after {:?}", began.elapsed());
    let began_before = began.checked_sub(Duration::from_secs(60)).unwrap();
    assert_eq!(server.epochs.in_vain(began_before), Some(told));
    assert_eq!(server.epochs.fault(), None, "it may pass");

    log.refuses.store(false, Ordering::Relaxed);
    let closed = server.epochs.lag().closed;
    wait_for("an epoch, now that there is room", || server.epochs.lag().closed > closed);
    assert_eq!(server.epochs.in_vain(began_before), None);
    server.end();
}

#[test]
fn a_log_that_is_broken_for_good_ends_the_run_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (log, server) = moody(dir.path());
    wait_for("the first epoch", || server.epochs.lag().closed > 0);
    assert_eq!(server.epochs.fault(), None);
    *log.broken.lock() = Some("cutting back failed; restart".into());
    wait_for("the fault", || server.epochs.fault().is_some());
    let (_, fault) = server.end();
    assert_eq!(fault.unwrap(), "cutting back failed; restart");
}
