//! How far the views are behind is what came and is not shown, whatever was deleted meanwhile.

use super::*;
use trueup_log::Retention;

const PAYLOAD_BYTES: usize = 2_000;

fn small_segments(dir: &std::path::Path) -> Arc<Journal> {
    let settings = Settings {
        partitions: 1,
        segment_bytes_max: 16 << 10,
        fsync: Fsync::Never,
        ..Settings::default()
    };
    Arc::new(Journal::open(dir, settings, system_clock()).unwrap().0)
}

fn fill(journal: &Journal, frames: usize) {
    for _ in 0..frames {
        let frame = Append { payload: vec![0; PAYLOAD_BYTES].into(), ..event() };
        append_and_wait(journal, vec![frame]).unwrap();
    }
}

/// Bytes of events that are held.
fn held(journal: &Journal) -> u64 {
    journal.ends(Topic::Events).iter().map(|end| end.bytes).sum()
}

fn shorten(journal: &Journal) {
    let policy = Retention { age_us_max: None, bytes_max: Some(0) };
    let before = held(journal);
    journal.retain(policy, |_, _| u64::MAX).unwrap();
    assert!(held(journal) < before / 2, "{before} bytes before, {} now", held(journal));
}

/// Epochs that nobody closes, of a log that may be shared.
fn opened(log: Arc<dyn Log>) -> Arc<Epochs> {
    let settings = EpochSettings {
        tick: Duration::from_millis(2),
        epoch_bytes_max: 1 << 20,
        epochs_in_flight_max: u64::MAX,
        cut: Cut::Live,
    };
    let from = Cursor::origin(&*log);
    Epochs::open(log, settings, Seat::alone(1), &from, None).unwrap()
}

#[test]
fn what_was_deleted_hides_nothing_of_what_came() {
    let dir = tempfile::tempdir().unwrap();
    let journal = small_segments(dir.path());
    fill(&journal, 100);
    let epochs = opened(Arc::clone(&journal) as Arc<dyn Log>);
    assert_eq!(epochs.lag().bytes, 0, "what was there at the start is nobody's fault");
    shorten(&journal);
    assert_eq!(epochs.lag().bytes, 0);
    let before = held(&journal);
    fill(&journal, 10);
    let came = held(&journal) - before;
    assert!(came > 10 * PAYLOAD_BYTES as u64, "{came}");
    assert_eq!(epochs.lag().bytes, came);
    shorten(&journal);
    assert_eq!(epochs.lag().bytes, came, "deleted, and still shown by nobody");
}

#[test]
fn an_epoch_that_is_shown_takes_off_what_it_holds_also_after_its_segments_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let journal = small_segments(dir.path());
    fill(&journal, 20);
    let log = Arc::clone(&journal) as Arc<dyn Log>;
    let server = Server::start(&log);
    fill(&journal, 100);
    wait_for("an epoch of everything", || {
        let state = server.epochs.state.lock();
        covers(&state.closed.row, &all_ends(&*log))
    });
    let epoch = server.epochs.lag().closed;
    shorten(&journal);
    assert!(server.epochs.lag().bytes > 100 * PAYLOAD_BYTES as u64);
    server.epochs.commit(0, epoch);
    assert_eq!(server.epochs.lag().bytes, 0);
    server.end();
}

#[test]
fn what_brokers_delete_of_a_shared_log_hides_nothing_either() {
    let dir = tempfile::tempdir().unwrap();
    let journal = small_segments(dir.path());
    fill(&journal, 100);
    let shared = Arc::new(Known(Arc::clone(&journal)));
    let epochs = opened(Arc::clone(&shared) as Arc<dyn Log>);
    shorten(&journal);
    fill(&journal, 10);
    *epochs.shared_ends.lock() = Arc::new(all_ends(&*shared));
    assert_eq!(epochs.lag().bytes, 10 * PAYLOAD_BYTES as u64);
}

/// A journal as a log of others, of which is known what an offset takes.
struct Known(Arc<Journal>);

impl LogLayer for Known {
    fn below(&self) -> &dyn Log {
        &*self.0
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn offset_bytes(&self, topic: Topic, _partition: u16) -> Option<u64> {
        (topic == Topic::Events).then_some(PAYLOAD_BYTES as u64)
    }
}
