//! Power failures and kills at random instants, with and without a failing disk, through several
//! lives of one data directory.
//!
//! The model is the set of frames that were acknowledged or were seen after an opening: each of
//! them must be there, unchanged, in every later life. A promise about log times that an
//! acknowledged frame recorded (as remap rows do) must hold for every frame that comes later.

use super::{simulated::*, *};
use crate::{Fsync, Repair, Retention, check::check_on};
use std::collections::{BTreeMap, BTreeSet};

/// Topic, partition.
type Of = (Topic, u16);

#[derive(Default)]
struct Model {
    /// Every payload that was ever sent; each is different.
    sent: BTreeSet<Vec<u8>>,
    /// What must be there.
    known: BTreeMap<Of, BTreeMap<u64, (LogTime, Vec<u8>)>>,
    /// From this offset on log times are at least this.
    promised: Vec<(Of, u64, LogTime)>,
    /// Frames below these may have been deleted.
    deletable: BTreeMap<Of, u64>,
    counter: u64,
    acknowledged: u64,
    torn: u64,
    deleted: u64,
    lives: u64,
}

struct Sent {
    answer: Answer,
    frames: Vec<(Of, Vec<u8>)>,
    promises: Vec<(Of, u64, LogTime)>,
}

const PARTITIONS: [Of; 5] = [
    (Topic::Events, 0),
    (Topic::Events, 1),
    (Topic::Events, 2),
    (Topic::Verdicts, 0),
    (Topic::Remap, 0),
];

impl Model {
    /// Sends a request; sometimes one that records what `ends` promises.
    fn send(&mut self, log: &Stepped, rng: &mut Rng) -> Sent {
        let mut promises = Vec::new();
        for of in PARTITIONS {
            let end = log.journal.ends(of.0)[usize::from(of.1)];
            promises.push((of, end.offset, end.complete_to));
        }
        let mut frames = Vec::new();
        for _ in 0..1 + rng.below(4) {
            let of = PARTITIONS[rng.below(5) as usize];
            self.counter += 1;
            let sizes = [0, 40, 500, 3_000];
            let size = sizes[rng.below(4) as usize];
            let bytes = rng.below(1 + size) as usize;
            let mut payload = payload(self.counter, bytes);
            payload.extend(self.counter.to_le_bytes());
            self.sent.insert(payload.clone());
            frames.push((of, payload));
        }
        let appends = frames.iter().map(|(of, payload)| append(of.0, of.1, payload)).collect();
        Sent { answer: log.put(appends), frames, promises }
    }

    /// Notes what was acknowledged.
    fn settle(&mut self, sent: Sent) {
        let Some(Ok(places)) = sent.answer.lock().take() else { return };
        for ((of, payload), at) in sent.frames.into_iter().zip(places) {
            let known = self.known.entry(of).or_default();
            assert!(
                known.insert(at.offset, (at.log_time, payload)).is_none(),
                "offset given twice"
            );
            self.acknowledged += 1;
        }
        self.promised.extend(sent.promises);
    }

    /// Lets old segments go, as far as some of what is known.
    fn retain(&mut self, log: &Stepped, rng: &mut Rng) {
        for of in PARTITIONS {
            let end =
                self.known.get(&of).and_then(|known| known.keys().last()).map_or(0, |o| o + 1);
            let covered = self.deletable.entry(of).or_default();
            *covered = (*covered).max(rng.below(end + 1));
        }
        let policy = Retention { age_us_max: None, bytes_max: Some(rng.below(100_000)) };
        let deletable = &self.deletable;
        let retained =
            log.journal.retain(policy, |topic, partition| deletable[&(topic, partition)]);
        self.deleted += retained.map_or(0, |retained| retained.segments_deleted);
    }

    /// After an opening: all that is known is there. What else is there is known from now on.
    fn compare(&mut self, log: &Stepped) {
        for of in PARTITIONS {
            let frames = all(&log.journal, of.0, of.1);
            assert!(frames.is_sorted_by_key(|frame| frame.log_time));
            let end = log.journal.ends(of.0)[usize::from(of.1)];
            let first = log.journal.first(of.0, of.1);
            assert_eq!(end.offset, first + frames.len() as u64);
            assert_eq!(end.records, end.offset * u64::from(1 + of.1), "deleted ones included");
            let known = self.known.entry(of).or_default();
            let deletable = self.deletable.get(&of).copied().unwrap_or(0);
            assert!(first <= deletable);
            for (offset, expected) in known.range(first..) {
                let found = frames.get((*offset - first) as usize);
                let found = found.map(|frame| (frame.log_time, frame.payload.to_vec()));
                assert_eq!(found.as_ref(), Some(expected), "{of:?} offset {offset}");
            }
            for (frame, offset) in frames.iter().zip(first..) {
                assert_eq!(frame.offset, offset);
                assert!(self.sent.contains(frame.payload.as_slice()), "nobody sent this");
                known.insert(frame.offset, (frame.log_time, frame.payload.to_vec()));
                for (_, from, complete_to) in self.promised.iter().filter(|told| told.0 == of) {
                    let kept = frame.offset < *from || frame.log_time >= *complete_to;
                    assert!(kept, "{of:?} {offset} is earlier than was promised");
                }
            }
        }
    }
}

/// One process, from its opening to its end.
fn live(
    model: &mut Model,
    disk: &SimulatedDisk,
    settings: Settings,
    clock: &TestClock,
    (rng, failing): (&mut Rng, bool),
) {
    let crash_at = Some(disk.operations() + 1 + rng.below(200));
    disk.set_faults(Faults { crash_at, ..Faults::default() });
    let opened = Stepped::open(disk, settings, clock.clock());
    let mut log = match opened {
        Ok(log) => log,
        Err(LogError::Unavailable { .. }) if disk.has_crashed() => return,
        Err(error) => panic!("{error}"),
    };
    model.compare(&log);
    model.torn += u64::from(log.opened.torn.is_some());
    let mut ended = false;
    while !disk.has_crashed() && !ended {
        clock.set(rng.below(1_000_000) as i64);
        let faults =
            if failing && rng.below(8) == 0 { random_faults(rng) } else { Faults::default() };
        disk.set_faults(Faults { crash_at, ..faults });
        let sent: Vec<Sent> = (0..rng.below(4)).map(|_| model.send(&log, rng)).collect();
        for _ in 0..1 + rng.below(3) {
            ended = log.turn() == Turn::Ended;
            if ended {
                break;
            }
        }
        sent.into_iter().for_each(|sent| model.settle(sent));
        if rng.below(20) == 0 {
            model.retain(&log, rng);
        }
    }
    model.lives += 1;
}

fn random_faults(rng: &mut Rng) -> Faults {
    Faults {
        crash_at: None,
        bytes_max: (rng.below(3) == 0).then(|| rng.below(60_000)),
        short_writes: rng.below(2) == 0,
        syncs_failing: rng.below(3) as u32,
        cuts_failing: rng.below(4) == 0,
        renames_failing: rng.below(4) == 0,
        ..Faults::default()
    }
}

fn lives(seed: u64, failing: bool) -> Model {
    let mut rng = Rng::new(seed);
    let mut disk = SimulatedDisk::new(rng.next());
    let clock = TestClock::at(1_000);
    let mut model = Model::default();
    for _ in 0..6 {
        live(&mut model, &disk, small(), &clock, (&mut rng, failing));
        disk = if rng.below(3) == 0 { disk.after_kill() } else { disk.after_crash() };
    }
    verify(&mut model, &disk, &clock);
    model
}

/// The last opening, undisturbed, and one more, which must find nothing left to repair.
fn verify(model: &mut Model, disk: &SimulatedDisk, clock: &TestClock) {
    let log = Stepped::open(disk, small(), clock.clock()).unwrap();
    model.compare(&log);
    drop(log);
    let log = Stepped::open(disk, small(), clock.clock()).unwrap();
    model.compare(&log);
    assert_eq!(log.opened.torn, None, "the opening before cut it");
    drop(log);
    let report = check_on(disk, dir(), Repair::Nothing).unwrap();
    assert_eq!((report.damage, report.torn), (vec![], None));
}

#[test]
fn what_was_acknowledged_survives_power_failures_and_kills() {
    for_seeds(150, |seed| {
        lives(seed, false);
    });
}

#[test]
fn what_was_acknowledged_survives_them_on_a_failing_disk() {
    for_seeds(150, |seed| {
        lives(seed, true);
    });
}

#[test]
fn the_random_lives_meet_what_they_are_for() {
    let (mut acknowledged, mut torn, mut deleted, mut lived) = (0, 0, 0, 0);
    for seed in 0..40 {
        let model = lives(seed, seed % 2 == 0);
        acknowledged += model.acknowledged;
        torn += model.torn;
        deleted += model.deleted;
        lived += model.lives;
    }
    assert!(acknowledged > 5_000, "{acknowledged} frames were acknowledged");
    assert!(torn > 20, "{torn} openings found a torn write");
    assert!(deleted > 20, "{deleted} segments were deleted");
    assert!(lived > 150, "{lived} processes got as far as to work");
}

#[test]
fn without_syncs_a_power_failure_loses_the_end_and_nothing_else() {
    for_seeds(100, |seed| {
        let mut rng = Rng::new(seed);
        let disk = SimulatedDisk::new(rng.next());
        let clock = TestClock::at(1_000);
        let settings = Settings { fsync: Fsync::Never, ..small() };
        let mut model = Model::default();
        live(&mut model, &disk, settings, &clock, (&mut rng, false));
        // What was acknowledged may be gone, but what is left has no gap and was sent.
        model.known.clear();
        model.promised.clear();
        verify(&mut model, &disk.after_crash(), &clock);
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let model = lives(seed, true);
        (model.acknowledged, model.torn, model.lives, model.known)
    };
    assert_eq!(run(7), run(7));
}

#[test]
fn bytes_that_only_the_page_cache_held_are_written_again() {
    let disk = SimulatedDisk::new(3);
    let clock = TestClock::at(1);
    let mut log = Stepped::open(&disk, small(), clock.clock()).unwrap();
    log.write(vec![event(0, b"safe")]).unwrap();
    // The sync fails, and so does cutting off what it left behind.
    disk.set_faults(Faults { syncs_failing: 1, cuts_failing: true, ..Faults::default() });
    let lost = log.write(vec![event(0, &payload(1, 5_000))]);
    assert!(matches!(lost, Err(LogError::Unavailable { .. })));
    drop(log);
    // A new process on the same machine reads the frame from the page cache.
    let disk = disk.after_kill();
    let log = Stepped::open(&disk, small(), clock.clock()).unwrap();
    assert_eq!(log.journal.ends(Topic::Events)[0].offset, 2, "it was written, if not synced");
    drop(log);
    // It has told its readers, so the frame must survive the power as well.
    let disk = disk.after_crash();
    let log = Stepped::open(&disk, small(), clock.clock()).unwrap();
    assert_eq!(log.journal.ends(Topic::Events)[0].offset, 2);
    assert_eq!(all(&log.journal, Topic::Events, 0)[1].payload.as_slice(), payload(1, 5_000));
}

#[test]
fn a_process_killed_at_any_step_of_beginning_a_segment_costs_nothing_later() {
    let large = payload(1, 9_000);
    let mut names_seen = [0, 0, 0];
    for step in 1..20 {
        let disk = SimulatedDisk::new(step);
        let clock = TestClock::at(1);
        let mut log = Stepped::open(&disk, small(), clock.clock()).unwrap();
        log.write(vec![event(0, &large)]).unwrap();
        let crash_at = Some(disk.operations() + step);
        disk.set_faults(Faults { crash_at, ..Faults::default() });
        let died = log.write(vec![event(0, &large)]).is_err();
        drop(log);
        // Kill -9 leaves a name that is seen but not durable ...
        let disk = disk.after_kill();
        names_seen[disk.files(".seg").len()] += u32::from(died);
        let mut log = Stepped::open(&disk, small(), clock.clock()).unwrap();
        let at = log.write(vec![event(0, b"acknowledged")]).unwrap()[0];
        drop(log);
        // ... and the power fails after the next process has written to it.
        for _ in 0..5 {
            let log = Stepped::open(&disk.after_crash(), small(), clock.clock()).unwrap();
            assert_eq!(log.journal.ends(Topic::Events)[0].offset, at.offset + 1, "step {step}");
        }
    }
    assert!(names_seen[1] > 0 && names_seen[2] > 1, "{names_seen:?}");
}
