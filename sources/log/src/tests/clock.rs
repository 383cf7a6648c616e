//! A wall clock that is wrong for a while: what is refused, what goes on, and that no wrong time
//! stays in the log.

use super::*;
use crate::clock::Guard;

const HOUR_US: i64 = 3_600_000_000;
const WEEKS_US: i64 = 500 * HOUR_US;
const NOW_US: i64 = 400_000 * HOUR_US;

/// A machine: its wall clock, which may be wrong, and its watch.
struct Machine {
    wall: TestClock,
    watch: TestClock,
}

impl Machine {
    fn at(us: i64) -> Machine {
        Machine { wall: TestClock::at(us), watch: TestClock::at(0) }
    }

    /// Time passes, and the wall clock is off by so much.
    fn pass(&self, us: i64, off_us: i64) {
        self.watch.0.fetch_add(us, SeqCst);
        self.wall.set(NOW_US + self.watch.0.load(SeqCst) + off_us);
    }

    fn open(&self, disk: &simulated::SimulatedDisk) -> Stepped {
        let watch = Arc::clone(&self.watch.0);
        let watch: crate::Watch =
            Arc::new(move || Duration::from_micros(watch.load(SeqCst).unsigned_abs()));
        let settings = small();
        let behind_us_max = settings.clock_behind_us_max;
        let guard = Guard::watching(self.wall.clock(), watch, behind_us_max);
        Stepped::guarded(disk, settings, guard).unwrap()
    }
}

fn refusal(result: Result<Vec<Appended>, LogError>) -> String {
    match result {
        Err(LogError::Unavailable { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_glitch_of_the_clock_is_refused_and_leaves_nothing_behind() {
    let disk = simulated::SimulatedDisk::new(1);
    let machine = Machine::at(NOW_US);
    let mut log = machine.open(&disk);
    assert_eq!(log.write(vec![event(0, b"a")]).unwrap()[0].log_time, LogTime(NOW_US));
    machine.pass(10, 0);
    let waiting = log.put(vec![event(1, b"taken before")]);

    machine.pass(10, WEEKS_US);
    let reason = refusal(log.write(vec![event(0, b"b")]));
    let times = [NOW_US + 20 + WEEKS_US, NOW_US + 20];
    for time in times.map(trueup_operators::time::format_rfc3339) {
        assert!(reason.contains(&time), "{time} is not named: {reason}");
    }
    assert!(reason.contains("restart"), "{reason}");
    assert_eq!(log.journal.clock_doubt(), Some(reason));
    // What was taken is written and can become visible, with the last time that was believed.
    assert_eq!(log.turn(), Turn::Wrote);
    assert_eq!(waiting.lock().take().unwrap().unwrap()[0].log_time, LogTime(NOW_US + 10));
    let ends = log.journal.ends(Topic::Events);
    assert!(ends.iter().all(|end| end.complete_to == LogTime(NOW_US + 10)), "{ends:?}");
    let row = log.write(vec![append(Topic::Remap, 0, b"row")]).unwrap();
    assert_eq!(row[0].log_time, LogTime(NOW_US + 10));
    // A request must not hide events behind a row.
    refusal(log.write(vec![append(Topic::Remap, 0, b"row"), event(0, b"c")]));

    machine.pass(10, 0);
    assert_eq!(log.journal.clock_doubt(), None);
    assert_eq!(log.write(vec![event(0, b"d")]).unwrap()[0].log_time, LogTime(NOW_US + 30));
    log.close();
    let log = machine.open(&disk);
    assert_eq!(log.opened.clock_behind_us, 0);
    assert_eq!(log.journal.ends(Topic::Events)[0].complete_to, LogTime(NOW_US + 30));
}

#[test]
fn who_restarts_with_a_clock_that_is_ahead_means_it() {
    let disk = simulated::SimulatedDisk::new(1);
    let machine = Machine::at(NOW_US);
    let mut log = machine.open(&disk);
    log.write(vec![event(0, b"a")]).unwrap();
    machine.pass(10, WEEKS_US);
    refusal(log.write(vec![event(0, b"b")]));
    log.close();
    let mut log = machine.open(&disk);
    let ahead = LogTime(NOW_US + 10 + WEEKS_US);
    assert_eq!(log.write(vec![event(0, b"c")]).unwrap()[0].log_time, ahead);

    // It was wrong after all, and is set right: nothing that would not count is taken.
    machine.pass(10, 0);
    let reason = refusal(log.write(vec![event(0, b"d")]));
    assert!(reason.contains("data_dir"), "{reason}");
    log.close();
    let mut log = machine.open(&disk);
    assert_eq!(log.opened.clock_behind_us, WEEKS_US - 10);
    refusal(log.write(vec![event(0, b"e")]));
    assert_eq!(all(&log.journal, Topic::Events, 0).len(), 2, "what is there can be read");
    // Time goes by.
    machine.pass(WEEKS_US - HOUR_US, 0);
    assert_eq!(log.write(vec![event(0, b"f")]).unwrap()[0].log_time, ahead);
}

#[test]
fn a_machine_that_wakes_up_without_a_time_waits_for_one() {
    let disk = simulated::SimulatedDisk::new(1);
    let machine = Machine::at(NOW_US);
    let mut log = machine.open(&disk);
    log.write(vec![event(0, b"a")]).unwrap();
    log.close();
    machine.pass(10, -NOW_US);
    let mut log = machine.open(&disk);
    let reason = refusal(log.write(vec![event(0, b"b")]));
    assert!(reason.contains("1970-01-01T00:00:00"), "{reason}");
    // Set two days on, for which the machine was off.
    machine.pass(10, 48 * HOUR_US);
    let at = log.write(vec![event(0, b"c")]).unwrap()[0].log_time;
    assert_eq!(at, LogTime(NOW_US + 20 + 48 * HOUR_US));
}
